"""The flows: which guest endpoint stands for which host socket, and for how long.

Read before editing: RFC 4787 (UDP: endpoint-independent mapping REQ-1, timeouts REQ-5), RFC 5382 (TCP: timeouts REQ-5),
RFC 5508 (ICMP). Every table is bounded and every entry expires.

Memory: a TCP flow with an idle connection below it takes about 6 KB in CPython 3.11 (the unit tests measure it) plus
the kernel's socket, so the default table of 16,384 flows stays below 100 MB when it is full of idle flows. What is
queued adds to that, bounded per connection by TcpConfig's two buffers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar, final

from pystack.clock import SECOND, Micros
from pystack.slirp.forwards import Publish
from pystack.tcp.tcb import Connection

MAX_TCP_FLOWS: Final = 16_384
"""At the bound a new SYN is refused with an RST: what works goes on working."""
MAX_READ_AHEAD_BYTES: Final = 256 << 20
"""What all flows together may hold for guests that do not take it. At the bound each of them reads one large segment at
a time, and only when it holds nothing; what a flow holds already stays."""
MAX_UDP_FLOWS: Final = 4_096
"""At the bound the flow that was silent for longest gives way: most UDP flows are over long before they expire."""
MAX_PING_FLOWS: Final = 256
MAX_INBOUND_PEERS: Final = 4_096

TCP_IDLE: Final[Micros] = 7_440 * SECOND
"""2 h 4 min without a byte in either direction, in an established connection (RFC 5382 REQ-5)."""
TCP_HALF_CLOSED_IDLE: Final[Micros] = 1_200 * SECOND
"""The same once one direction is closed. RFC 5382 allows 4 minutes; a server may think for longer."""
TCP_DIAL: Final[Micros] = 135 * SECOND
"""A dial that the host has not decided: longer than Linux itself tries (127 s with the default of 6 SYNs)."""
TCP_DRAIN: Final[Micros] = SECOND
"""How long what the host sent before its RST may take to reach the guest before the RST follows anyway."""
SWEEP_INTERVAL: Final[Micros] = 15 * SECOND
"""How often TCP flows are looked at; their timeouts are kept to within this."""
UDP_IDLE: Final[Micros] = 240 * SECOND
DNS_IDLE: Final[Micros] = 10 * SECOND
"""A UDP flow that has spoken to port 53 alone: one question, one answer."""
PING_IDLE: Final[Micros] = 60 * SECOND

# States of a TcpFlow.
DIALING: Final = 0
OPEN: Final = 1
DRAINING: Final = 2
"""The host's socket was reset; the guest gets what had come before, and then its RST."""
CLOSED: Final = 3


@final
class TcpFlow:
    """A guest's connection and the host socket that it stands for.

    Attributes:
        conn: the stack's end towards the guest.
        address, port: where the host is to dial, 4 or 16 bytes and a number. For a published port: who came in.
        state: DIALING, OPEN, DRAINING or CLOSED.
        host: free for the host side (its socket); None before the dial and after the end.
        inbound: whether the connection was opened from the host (a published port).
        alternatives: where else to dial when that fails (the other resolvers, for DNS over TCP).
        guest_eof: the guest's FIN and everything before it has been handed to the host (SHUTDOWN was requested).
        host_eof: the host's end of stream was reached; ``conn`` was shut down.
        blocked: the host side was told that there is no space; a READ is owed to it.
        reach: how many large segments the next read may bring: more while reads come back full.
        to_host, to_guest: payload bytes that were carried.
        since, active: instants of the start and of the last byte.
    """

    __slots__ = (
        "active", "address", "alternatives", "blocked", "conn", "guest_eof", "host", "host_eof", "inbound", "port",
        "reach", "since", "state", "to_guest", "to_host",
    )  # fmt: skip

    def __init__(self, conn: Connection, address: bytes, port: int, now: Micros, *, inbound: bool = False) -> None:
        self.conn = conn
        self.address = address
        self.port = port
        self.state = DIALING
        self.host: object = None
        self.inbound = inbound
        self.alternatives: tuple[tuple[bytes, int], ...] = ()
        self.guest_eof = False
        self.host_eof = False
        self.blocked = False
        self.reach = 1
        self.to_host = 0
        self.to_guest = 0
        self.since = now
        self.active = now

    def idle_limit(self) -> Micros:
        """How long this flow may stay without a byte in the state it is in."""
        if self.state == OPEN:
            return TCP_HALF_CLOSED_IDLE if self.guest_eof or self.host_eof else TCP_IDLE
        return TCP_DIAL if self.state == DIALING else TCP_DRAIN


@final
class UdpFlow:
    """A guest's UDP endpoint and the one host socket that it stands for, whatever it talks to.

    Attributes:
        guest, guest_port: the guest's endpoint. host: free for the host side.
        only_dns: nothing but port 53 was addressed so far.
        to_host, to_guest: datagrams carried.
    """

    __slots__ = ("guest", "guest_port", "host", "only_dns", "to_guest", "to_host")

    def __init__(self, guest: bytes, guest_port: int) -> None:
        self.guest = guest
        self.guest_port = guest_port
        self.host: object = None
        self.only_dns = True
        self.to_host = 0
        self.to_guest = 0


@final
class PingFlow:
    """A guest's echo identifier and the ping socket that it stands for."""

    __slots__ = ("guest", "host", "ident")

    def __init__(self, guest: bytes, ident: int) -> None:
        self.guest = guest
        self.ident = ident
        self.host: object = None


@final
class InboundPeer:
    """Somebody who sent datagrams to a published port, and the endpoint that the guest sees in its place.

    Attributes:
        publish: the published port that it came through.
        host_address, host_port: its real endpoint. address, port: what the guest sees.
    """

    __slots__ = ("address", "host", "host_address", "host_port", "port", "publish")

    def __init__(self, publish: Publish, host: tuple[bytes, int], seen: tuple[bytes, int]) -> None:
        self.publish = publish
        self.host_address, self.host_port = host
        self.address, self.port = seen
        self.host: object = None


KeyT = TypeVar("KeyT", bound=Hashable)
FlowT = TypeVar("FlowT")


@final
class IdleTable(Generic[KeyT, FlowT]):
    """A bounded table, ordered by last use, whose entries expire after ``idle`` microseconds without one. O(1) each.

    Invariant: the instants of last use never decrease from the first entry to the last.
    """

    __slots__ = ("_entries", "_idle", "_limit")

    def __init__(self, *, limit: int, idle: Micros) -> None:
        self._entries: OrderedDict[KeyT, tuple[FlowT, Micros]] = OrderedDict()
        self._limit = limit
        self._idle = idle

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: KeyT) -> bool:
        return key in self._entries

    def use(self, key: KeyT, now: Micros) -> FlowT | None:
        """The entry of ``key``, which is in use at ``now``; None when there is none."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries[key] = (entry[0], now)
        self._entries.move_to_end(key)
        return entry[0]

    def add(self, key: KeyT, flow: FlowT, now: Micros) -> FlowT | None:
        """Enter ``flow``; returns the one that had to give way at the bound, for its socket to be closed."""
        evicted = self._entries.popitem(last=False)[1][0] if len(self._entries) >= self._limit else None
        self._entries[key] = (flow, now)
        return evicted

    def remove(self, key: KeyT) -> FlowT | None:
        """Take the entry of ``key`` out and return it; None when there is none."""
        entry = self._entries.pop(key, None)
        return entry[0] if entry else None

    def expire(self, now: Micros) -> list[FlowT]:
        """Take out and return what has been idle for too long."""
        due: list[FlowT] = []
        while self._entries:
            key, (flow, used) = next(iter(self._entries.items()))
            if used + self._idle > now:
                break
            del self._entries[key]
            due.append(flow)
        return due

    def next_timeout(self) -> Micros | None:
        """When the first entry expires, None when the table is empty."""
        if not self._entries:
            return None
        _, used = next(iter(self._entries.values()))
        return used + self._idle

    def values(self) -> list[FlowT]:
        """All flows, the one unused for longest first."""
        return [flow for flow, _ in self._entries.values()]

    def check(self) -> None:
        """Verify the invariants; for tests."""
        used = [at for _, at in self._entries.values()]
        assert used == sorted(used)
        assert len(used) <= self._limit
