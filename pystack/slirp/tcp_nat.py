"""TCP through the gateway: every connection of the guest is one of the stack's and one of the host's, joined here.

Read before editing: RFC 9293 sections 3.5 and 3.6 (opening, closing, half-close), RFC 5382 (NAT behaviour for TCP).

A guest's SYN waits in the stack, unanswered, while the host is dialled; the answer decides whether it is accepted or
refused. From then on the two directions are independent: data and end of stream are carried as they come, each side's
window holds the other side back, and an RST on one side becomes an RST on the other.

```text
DIALING --dialled--> OPEN --both ends of stream carried, or an RST from the guest--> CLOSED
   |                   `--an RST from the host--> DRAINING --what had come before is acknowledged, or 1 s--> CLOSED
   `--dial failed, the guest gave up--> CLOSED
```
"""

from __future__ import annotations

import errno
from typing import Final, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.slirp.dns_forwarder import PORT as DNS_PORT
from pystack.slirp.dns_forwarder import DnsForwarder
from pystack.slirp.forwards import Publish
from pystack.slirp.nat import CLOSED, DIALING, DRAINING, OPEN, SWEEP_INTERVAL, TCP_DRAIN, TcpFlow
from pystack.slirp.plan import AddressPlan
from pystack.slirp.policy import Policy
from pystack.slirp.quote import tcp_quote
from pystack.slirp.requests import ABORT, CLOSE, DIAL, READ, SHUTDOWN, WRITE, HostRequest
from pystack.stack import Stack
from pystack.tcp import events
from pystack.tcp.listener import Listener
from pystack.tcp.state import SYN_RECEIVED
from pystack.tcp.tcb import Connection
from pystack.timers import NEVER
from pystack.wire import icmp

BACKLOG: Final = 1024

_LARGE: Final = 65_536
_MAX_REACH: Final = 16
_RECOUNTS: Final = 4  # per bound on what is read ahead: how exactly that is kept
_SEQ_MASK: Final = 0xFFFF_FFFF

UNREACHABLE_CODES: Final = {
    errno.ENETUNREACH: icmp.NET_UNREACHABLE,
    errno.ENETDOWN: icmp.NET_UNREACHABLE,
    errno.EHOSTUNREACH: icmp.HOST_UNREACHABLE,
    errno.EHOSTDOWN: icmp.HOST_UNREACHABLE,
    errno.EACCES: icmp.ADMIN_PROHIBITED,
    errno.EPERM: icmp.ADMIN_PROHIBITED,
}
"""What the host's kernel says about a destination, as the code of an ICMP Destination Unreachable."""

_EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))


@final
class TcpNat:
    """The table of TCP flows, and what moves between their two sides.

    Args:
        listener: the stack's catch-all listener, whose connections are deferred.
        requests: where requests to the host are put.
        limit: flows at most. read_ahead: bytes from the host that all of them may hold for the guest.
    """

    def __init__(
        self,
        stack: Stack,
        listener: Listener,
        plan: AddressPlan,
        policy: Policy,
        dns: DnsForwarder | None,
        requests: list[HostRequest],
        *,
        limit: int,
        read_ahead: int,
    ) -> None:
        self._stack = stack
        self._listener = listener
        self._plan = plan
        self._policy = policy
        self._dns = dns
        self._requests = requests
        self._limit = limit
        self._read_ahead = read_ahead
        self._uncounted = 0
        self._tight = False
        self._counters: Counters = stack.counters
        self._flows: dict[TcpFlow, None] = {}
        self._sweep_at: Micros = NEVER
        self.to_host = 0
        """Bytes carried by flows that are over; `stats` adds those of the living."""
        self.to_guest = 0

    def __len__(self) -> int:
        return len(self._flows)

    def flows(self) -> list[TcpFlow]:
        """All flows, the oldest first."""
        return list(self._flows)

    # ---------------------------------------------------------------------------------------- what the stack reports

    def on_listener(self, now: Micros) -> None:
        """Consider the SYNs that wait."""
        while (conn := self._listener.take()) is not None:
            self._consider(conn, now)

    def _consider(self, conn: Connection, now: Micros) -> None:
        if not self._plan.may_be_guest(conn.remote_addr):
            self._counters.bump("slirp.foreign_source")
            conn.refuse(silent=True)
            return
        targets = self._targets(conn.local_addr, conn.local_port)
        if not targets:
            self._counters.bump("slirp.tcp_refused_by_policy")
            conn.refuse()
        elif len(self._flows) >= self._limit:
            self._counters.bump("slirp.tcp_table_full")
            conn.refuse()
        else:
            flow = TcpFlow(conn, *targets[0], now)
            flow.alternatives = targets[1:]
            self._enter(flow, now)
            self._requests.append((DIAL, flow, None))

    def _targets(self, destination: bytes, port: int) -> tuple[tuple[bytes, int], ...]:
        """Where to dial for a guest that connects to ``destination``: the first one, or else the next."""
        if destination == self._plan.dns:
            return self._dns.resolvers if self._dns is not None and port == DNS_PORT else ()
        address = self._policy.host_address(destination)
        return () if address is None else ((address, port),)

    def _enter(self, flow: TcpFlow, now: Micros) -> None:
        flow.conn.user = flow
        flow.conn.tell_sent = flow.blocked
        self._flows[flow] = None
        if self._sweep_at == NEVER:
            self._sweep_at = now + SWEEP_INTERVAL

    def on_event(self, conn: Connection, flags: int, now: Micros) -> None:
        """An event of a connection. One whose flow is over has no ``user`` any more."""
        flow = conn.user
        if flow is None:
            return
        assert isinstance(flow, TcpFlow)
        if flags & events.DATA and flow.state == OPEN:
            self._requests.append((WRITE, flow, None))
        if flags & (events.SENT | events.OPEN):
            self._on_sent(flow)
        if flags & events.OPEN and flow.inbound and flow.state == DIALING:
            self._counters.bump("slirp.tcp_opened")
            flow.state = OPEN
            self._start(flow, now)
        if flags & events.EOF and flow.state == OPEN and conn.eof:
            self._guest_eof(flow)
        if flags & events.CLOSED and flow.state != CLOSED:
            self._on_closed(flow)

    def _start(self, flow: TcpFlow, now: Micros) -> None:
        """Both sides are connected: let an inbound flow's host side read, and take what the guest has sent already."""
        flow.active = now
        if flow.blocked:
            self._resume(flow)
        if flow.conn.readable:
            self._requests.append((WRITE, flow, None))

    def _on_sent(self, flow: TcpFlow) -> None:
        if flow.blocked and flow.state == OPEN and self._space(flow.conn, 1):
            self._resume(flow)
        elif flow.state == DRAINING and not flow.conn.unsent_or_unacked:
            self._reset_guest(flow)

    def _resume(self, flow: TcpFlow) -> None:
        """There is space again; until it is used up, no one needs to hear of every ACK."""
        flow.blocked = False
        flow.conn.tell_sent = False
        self._requests.append((READ, flow, None))

    def _guest_eof(self, flow: TcpFlow) -> None:
        """Everything that the guest had to say was handed to the host's kernel."""
        if flow.guest_eof:
            return
        flow.guest_eof = True
        if flow.host_eof:
            self._finish(flow)
        else:
            self._requests.append((SHUTDOWN, flow, None))

    def _on_closed(self, flow: TcpFlow) -> None:
        """The stack's connection is over: orderly, refused or reset by the guest, or given up."""
        conn = flow.conn
        if flow.state == OPEN and conn.error is None and flow.host_eof:
            if conn.readable:
                return  # the host has not taken everything yet: `written` ends it
            self._guest_eof(flow)
            return
        if flow.state == DIALING:
            reason = "slirp.inbound_failed" if flow.inbound else "slirp.tcp_given_up"
        else:
            silent = conn.error is events.TcpError.TIMED_OUT
            reason = "slirp.tcp_guest_silent" if silent else "slirp.tcp_reset_by_guest"
        self._counters.bump(reason)
        if flow.state != DRAINING:
            self._requests.append((ABORT, flow, None))
        self._forget(flow)

    # ----------------------------------------------------------------------------------------- what the host answers

    def dialled(self, flow: TcpFlow, now: Micros) -> None:
        """The host is connected: complete the guest's handshake."""
        if flow.state == DIALING:
            self._counters.bump("slirp.tcp_opened")
            flow.state = OPEN
            flow.conn.accept()
            self._start(flow, now)

    def dial_failed(self, flow: TcpFlow, number: int, now: Micros) -> None:
        """The host cannot be connected to, for the reason ``number`` (an errno).

        The guest is told what its own kernel would find out. Refused: RST. No route: ICMP unreachable. Timed out:
        nothing, as nothing came. Anything else: RST.
        """
        if flow.state != DIALING:
            return
        if flow.alternatives:
            (flow.address, flow.port), *rest = flow.alternatives
            flow.alternatives = tuple(rest)
            self._requests.append((DIAL, flow, None))
            return
        conn = flow.conn
        code = UNREACHABLE_CODES.get(number)
        if code is not None:
            self._counters.bump("slirp.dial_unreachable")
            about = tcp_quote(
                (conn.remote_addr, conn.remote_port), (conn.local_addr, conn.local_port), conn.irs & _SEQ_MASK
            )
            source = conn.local_addr if code == icmp.ADMIN_PROHIBITED else self._plan.gateway
            self._stack.send_icmp_error(about, icmp.UNREACHABLE, code, source=source, now=now)
            conn.refuse(silent=True)
        elif number == errno.ETIMEDOUT:
            self._counters.bump("slirp.dial_timed_out")
            conn.refuse(silent=True)
        else:
            self._counters.bump("slirp.dial_exhausted" if number in _EXHAUSTED else "slirp.dial_refused")
            conn.refuse()
        self._forget(flow)

    def written(self, flow: TcpFlow, n: int, now: Micros) -> None:
        """The host took ``n`` bytes of ``flow.conn.peek()``."""
        conn = flow.conn
        conn.consume(n)
        flow.to_host += n
        flow.active = now
        if conn.eof and flow.state == OPEN:
            self._guest_eof(flow)

    def host_space(self, flow: TcpFlow) -> int:
        """How many bytes to read from the host at most: what fills whole large segments, or 0 (a READ will follow)."""
        if flow.state == OPEN and (space := self._space(flow.conn, flow.reach)):
            return space
        flow.blocked = flow.conn.tell_sent = True
        return 0

    def _space(self, conn: Connection, reach: int) -> int:
        """How many bytes of up to ``reach`` large segments there is space for, in whole segments."""
        size = _read_size(conn)
        if self._tight:
            return 0 if conn.unsent_or_unacked else size
        return min(reach, conn.send_space // size) * size

    def _count_held(self) -> None:
        """See whether the flows hold too much for guests that do not take it."""
        self._uncounted = 0
        held = sum(flow.conn.unsent_or_unacked for flow in self._flows)
        tight = held + self._read_ahead // _RECOUNTS > self._read_ahead
        if tight and not self._tight:
            self._counters.bump("slirp.read_ahead_full")
        self._tight = tight

    def host_data(self, flow: TcpFlow, data: bytes, now: Micros) -> None:
        """``data``, not longer than `host_space` said, came from the host."""
        n = len(data)
        flow.to_guest += flow.conn.write(data)
        flow.active = now
        # A bulk transfer is read in few large pieces: each read costs the host's kernel a window update and a wake-up.
        flow.reach = min(2 * flow.reach, _MAX_REACH) if n >= _LARGE // 2 * flow.reach else 1
        self._uncounted += n
        if self._uncounted * _RECOUNTS >= self._read_ahead:
            self._count_held()

    def host_eof(self, flow: TcpFlow, now: Micros) -> None:
        """The host will send nothing more."""
        if flow.state != OPEN or flow.host_eof:
            return
        flow.host_eof = True
        flow.active = now
        flow.conn.shutdown()
        if flow.guest_eof:
            self._finish(flow)

    def host_reset(self, flow: TcpFlow, now: Micros) -> None:
        """The host's connection broke; its socket is closed already."""
        if flow.state != OPEN:
            if flow.state == DIALING:  # an inbound flow, whose peer did not wait
                self._reset_guest(flow)
            return
        self._counters.bump("slirp.tcp_reset_by_host")
        # A guest whose handshake is under way would take an RST for a refusal, or for nothing that concerns it.
        if not flow.conn.unsent_or_unacked and flow.conn.state != SYN_RECEIVED:
            self._reset_guest(flow)
            return
        flow.state = DRAINING
        flow.conn.tell_sent = True
        flow.active = now
        self._sweep_at = min(self._sweep_at, now + TCP_DRAIN)

    # ---------------------------------------------------------------------------------------------- published ports

    def inbound(self, publish: Publish, guest: bytes, peer: tuple[bytes, int], now: Micros) -> TcpFlow | None:
        """Connect to the guest on behalf of ``peer``; None when the table is full or there is no way to the guest."""
        if len(self._flows) >= self._limit:
            self._counters.bump("slirp.tcp_table_full")
            return None
        conn = self._connect((guest, publish.guest_port), self._policy.published_address(peer[0]), peer[1], now)
        if conn is None:
            self._counters.bump("slirp.inbound_failed")
            return None
        self._counters.bump("slirp.inbound_accepted")
        flow = TcpFlow(conn, *peer, now, inbound=True)
        self._enter(flow, now)
        return flow

    def _connect(self, remote: tuple[bytes, int], source: bytes, port: int, now: Micros) -> Connection | None:
        """Connect to the guest from ``source`` and ``port``; from another port if that connection exists already."""
        for local_port in (port, 0):
            try:
                return self._stack.connect(remote, now, local_address=source, local_port=local_port)
            except UsageError:
                continue
        return None

    # ----------------------------------------------------------------------------------------------- ends and time

    def tick(self, now: Micros) -> None:
        """Reap what has been idle for too long."""
        if now < self._sweep_at:
            return
        for flow in self.flows():
            if flow.active + flow.idle_limit() <= now:
                self._reap(flow)
        self._count_held()
        self._sweep_at = now + SWEEP_INTERVAL if self._flows else NEVER
        if any(flow.state == DRAINING for flow in self._flows):
            self._sweep_at = now + TCP_DRAIN

    def next_timeout(self) -> Micros | None:
        """When `tick` looks at the flows next; None without flows."""
        return None if self._sweep_at == NEVER else self._sweep_at

    def _reap(self, flow: TcpFlow) -> None:
        if flow.state == DRAINING:
            self._reset_guest(flow)
            return
        self._counters.bump("slirp.tcp_reaped")
        self._requests.append((ABORT, flow, None))
        if flow.state == DIALING and not flow.inbound:
            flow.conn.refuse(silent=True)
        self._reset_guest(flow)

    def _reset_guest(self, flow: TcpFlow) -> None:
        conn = flow.conn
        self._forget(flow)
        conn.abort()

    def _finish(self, flow: TcpFlow) -> None:
        """Both directions are closed. What the guest has yet to acknowledge is the stack's business alone."""
        self._counters.bump("slirp.tcp_closed")
        self._requests.append((CLOSE, flow, None))
        conn = flow.conn
        self._forget(flow)
        conn.close()

    def _forget(self, flow: TcpFlow) -> None:
        flow.state = CLOSED
        flow.conn.user = None
        self._flows.pop(flow, None)
        self.to_host += flow.to_host
        self.to_guest += flow.to_guest

    def check(self) -> None:
        """Verify the invariants; for tests."""
        assert len(self._flows) <= self._limit
        for flow in self._flows:
            assert flow.state != CLOSED
            assert flow.conn.user is flow
            assert not (flow.guest_eof and flow.host_eof)


def _read_size(conn: Connection) -> int:
    """Bytes that leave as whole segments: one large one where the link takes those, else as many small ones."""
    segment = conn.segment_limit
    size = segment if segment * 2 > _LARGE else _LARGE // segment * segment
    return min(size, conn.config.send_buffer)
