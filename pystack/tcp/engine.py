"""All TCP connections of one stack: finds the connection of a segment, owns its timers and its turn to send.

Sans-I/O: segments and time come in by calls; frames and events are drained.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.frame import TxFrame
from pystack.net.path import Path
from pystack.seq import MASK, sub, unwrap
from pystack.tcp import events, receive, send, timeouts
from pystack.tcp.config import TcpConfig
from pystack.tcp.events import TcpError
from pystack.tcp.handshake import take_syn
from pystack.tcp.isn import IsnGenerator
from pystack.tcp.listener import Listener
from pystack.tcp.segment import SegmentWriter
from pystack.tcp.state import CLOSED, ESTABLISHED, SYN_RECEIVED, SYN_SENT, TIME_WAIT
from pystack.tcp.tcb import Connection
from pystack.timers import NEVER, Timers
from pystack.wire.packet import ACK, FIN, RST, SYN, Packet
from pystack.wire.tcp import parse_options_untrusted

TcpEndpoint: TypeAlias = Connection | Listener
PathTo: TypeAlias = Callable[[bytes, bytes, Packet | None], Path]
"""(source address, destination address, the packet that is answered or None) -> the path."""

_ANY: Final = (b"", 0)
_EPHEMERAL_FIRST: Final = 32_768
_EPHEMERAL_COUNT: Final = 28_232
_MAX_REPLIES: Final = 1024
_ISN_STEP: Final = 65_536


@final
class TcpEngine:
    """Demultiplexer, timer owner and turn keeper.

    Bounds: at most ``max_connections`` connections; SYNs beyond it are dropped and counted (TIME-WAIT ones are given up
    first, oldest first); at most 1,024 replies (RSTs, probes) wait for the link.
    """

    def __init__(
        self,
        config: TcpConfig,
        counters: Counters,
        timers: Timers,
        path_to: PathTo,
        *,
        seed: int,
        max_connections: int = 65_536,
    ) -> None:
        self.config = config
        self.counters = counters
        self.timers = timers
        self.dirty: deque[Connection] = deque()
        self.ready: list[TcpEndpoint] = []
        self.replies: list[TxFrame] = []
        self.max_connections = max_connections
        self._path_to = path_to
        self._isn = IsnGenerator(seed)
        self._port_salt = seed
        self._connections: dict[bytes, Connection] = {}
        self.by_key: Final[Mapping[bytes, Connection]] = self._connections
        self._listeners: dict[tuple[bytes, int], Listener] = {}
        self._catch_all: Listener | None = None
        self._waiting: dict[Connection, None] = {}  # in TIME-WAIT, oldest first

    # -- the caller's side ------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._connections)

    def connections(self) -> list[Connection]:
        """All connections, TIME-WAIT included."""
        return list(self._connections.values())

    def connect(
        self,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        now: Micros,
        config: TcpConfig | None = None,
    ) -> Connection:
        """Active OPEN (RFC 9293 section 3.9.1.1). ``local``'s port may be 0: one is chosen (RFC 6056 algorithm 3).

        Raises:
            UsageError: the four-tuple is in use, no port is free, or the table is full.
        """
        if not self._make_room():
            raise UsageError(f"The connection table is full ({self.max_connections} connections); close some first.")
        port = local[1] or self._choose_port(local[0], remote, now)
        key = remote[0] + local[0] + remote[1].to_bytes(2, "big") + port.to_bytes(2, "big")
        old = self._connections.get(key)
        if old is not None:
            if old.state != TIME_WAIT:
                raise UsageError(f"A connection from port {port} to that address and port exists already.")
            self.finish(old, None)
        c = self._make(key, (local[0], port), remote, config or self.config, None, now, old)
        c.state = SYN_SENT
        self.counters.bump("tcp.active_open")
        c.mark()
        return c

    def listen(
        self, port: int, *, address: bytes = b"", backlog: int = 128, config: TcpConfig | None = None
    ) -> Listener:
        """Passive OPEN on ``port`` of ``address``, of every address when empty.

        Raises:
            UsageError: somebody listens there already.
        """
        key = (address, port)
        if key in self._listeners:
            raise UsageError(f"Port {port} is being listened on already.")
        listener = self._listeners[key] = Listener(self, key, backlog, config or self.config, False)
        return listener

    def listen_any(self, *, backlog: int, config: TcpConfig | None = None) -> Listener:
        """Take every connection that no other listener takes; they are deferred until accepted or refused."""
        if self._catch_all is not None:
            raise UsageError("There is a catch-all listener already.")
        self._catch_all = Listener(self, _ANY, backlog, config or self.config, True)
        return self._catch_all

    def unlisten(self, listener: Listener) -> None:
        """Forget ``listener``; its half-open connections are dropped."""
        if listener is self._catch_all:
            self._catch_all = None
        self._listeners.pop(listener.key, None)
        for c in [c for c in self._connections.values() if c.listener is listener and c.state == SYN_RECEIVED]:
            c.abort()

    # -- packets ----------------------------------------------------------------------------------------------------

    def on_packet(self, p: Packet, now: Micros) -> None:
        """A verified, unfragmented TCP packet whose destination is ours."""
        c = self._connections.get(p.key)
        if c is None:
            self._no_connection(p, now)
        else:
            self.on_segment(c, p, now)

    def on_segment(self, c: Connection, p: Packet, now: Micros) -> None:
        """A verified segment of ``c``, which the caller found in `by_key`."""
        if c.state == TIME_WAIT and p.flags & (SYN | ACK | RST) == SYN and self._reopens(c, p):
            self.finish(c, None)
            self._no_connection(p, now, c)
            return
        receive.on_segment(c, p, now)

    def _no_connection(self, p: Packet, now: Micros, before: Connection | None = None) -> None:
        """RFC 9293 sections 3.10.7.1 (CLOSED) and 3.10.7.2 (LISTEN). ``before``: whose TIME-WAIT this SYN has ended."""
        flags = p.flags
        listener = self._listeners.get((p.dst, p.dport)) or self._listeners.get((b"", p.dport)) or self._catch_all
        if listener is None or flags & (RST | ACK | SYN | FIN) != SYN:
            if not flags & RST:
                self.counters.bump("tcp.no_connection" if listener is None else "tcp.not_a_syn")
                if listener is None or flags & ACK:
                    self.reset_for(p, None)
            else:
                self.counters.bump("tcp.rst_ignored")
            return
        if not p.sport or not p.dport:
            self.counters.bump("tcp.port_zero")
            return
        if listener.full or not self._make_room():
            self.counters.bump("tcp.listen_overflow")
            return
        remote, local = (p.src, p.sport), (p.dst, p.dport)
        c = self._make(p.key, local, remote, listener.config, p, now, before)
        c.opened_passively = True
        c.listener = listener
        listener.pending += 1
        take_syn(c, p, now)
        c.idle_since = now
        c.state = SYN_RECEIVED
        self.counters.bump("tcp.passive_open")
        if listener.deferred:
            c.deferred = True
            listener.offer(c)
        else:
            c.mark()

    def _reopens(self, c: Connection, p: Packet) -> bool:
        """Whether a SYN may end TIME-WAIT (RFC 9293 MAY-2, RFC 6191): it is newer than all that connection had."""
        if unwrap(p.seq, c.rcv_nxt) > c.rcv_nxt:
            return True
        if not c.ts_ok:
            return False
        options = parse_options_untrusted(p.frame, p.l4 + 20, p.payload, self.counters)
        stamps = options.timestamps
        return stamps is not None and 0 < (stamps[0] - c.ts_recent) & MASK < 1 << 31

    def on_icmp_error(self, key: bytes, seq: int, *, hard: bool, text: str, mtu: int = 0) -> None:
        """An ICMP error about a segment of ours (RFC 9293 section 3.9.2.2, RFC 5927, RFC 1191).

        Args:
            key: the quoted four-tuple as it reads in a packet from the peer to us.
            seq: the quoted sequence number; one that is not in flight marks a forgery and is ignored.
            hard: ends a connection that is being opened; an established one only notes it (RFC 5927 section 5.2).
            mtu: next-hop MTU of a "fragmentation needed", 0 for other errors.
        """
        c = self._connections.get(key)
        if c is None or c.deferred or c.state == TIME_WAIT or not c.snd_una <= unwrap(seq, c.snd_una) <= c.snd_max:
            self.counters.bump("tcp.icmp_not_ours")
            return
        if mtu:
            self._lower_mtu(c, mtu)
        elif hard and c.state in (SYN_SENT, SYN_RECEIVED):
            self.counters.bump("tcp.icmp_hard_error")
            self.finish(c, TcpError.UNREACHABLE)
        else:
            self.counters.bump("tcp.icmp_soft_error")
            c.soft_error = text
            c.notify(events.SOFT_ERROR)

    def _lower_mtu(self, c: Connection, mtu: int) -> None:
        """Path MTU discovery: never up, never below 68 bytes (RFC 1191 section 3); what was too big goes again."""
        mtu = max(mtu, 68 if c.path.version == 4 else 1280)
        if mtu >= c.path.mtu:
            self.counters.bump("tcp.icmp_mtu_ignored")
            return
        self.counters.bump("tcp.icmp_mtu_lowered")
        c.path.mtu = mtu
        if c.state >= ESTABLISHED:
            c.set_mss(min(c.mss + (12 if c.ts_ok else 0), c.mss_for_path()))
            c.snd_nxt = c.snd_una
            c.timed_at = NEVER
            c.mark()

    # -- what connections ask of their engine ------------------------------------------------------------------------

    def opened(self, c: Connection) -> None:
        """The handshake of ``c`` is complete."""
        if c.listener is not None and not c.listener.deferred:
            c.listener.offer(c)
        c.notify(events.OPEN)

    def finish(self, c: Connection, error: TcpError | None) -> None:
        """``c`` is over: out of the table, its buffers freed, its owner told unless that happened at TIME-WAIT."""
        if c.gone:
            return
        told = c.state == TIME_WAIT
        c.gone = True
        c.path.in_use = False
        c.state = CLOSED
        c.deadline = NEVER
        c.rtx_at = c.ack_delay_at = c.time_wait_at = c.fin_wait_at = c.keepalive_at = NEVER
        self._connections.pop(c.key, None)
        self._waiting.pop(c, None)
        c.drop_buffers()
        if c.listener is not None:
            c.listener.release(c)
        if not told:
            c.error = error
            c.notify(events.CLOSED)

    def time_wait(self, c: Connection, now: Micros) -> None:
        """``c`` enters TIME-WAIT (RFC 9293 section 3.6.1, MUST-13). For its owner it is over."""
        c.enter(TIME_WAIT)
        c.time_wait_at = now + c.config.time_wait
        c.rtx_at = c.keepalive_at = c.fin_wait_at = NEVER
        self._waiting[c] = None
        c.drop_buffers()
        c.notify(events.CLOSED)
        c.mark()

    def reply(self, frame: TxFrame) -> None:
        """Queue a probe; when too much waits for the link already it is lost, as it might be on the way."""
        if len(self.replies) < _MAX_REPLIES:
            self.replies.append(frame)

    def send_reset(self, c: Connection) -> None:
        """An RST for a connection that is being aborted."""
        if len(self.replies) < _MAX_REPLIES:
            send.reset(c, self.replies)

    def send_refusal(self, c: Connection) -> None:
        """The RST that a closed port answers to a SYN with (section 3.10.7.1)."""
        if len(self.replies) < _MAX_REPLIES and c.path.ready:
            self.counters.bump("tcp.refused")
            self.replies.append(c.writer.write(0, c.rcv_nxt & MASK, RST | ACK, 0))

    def reset_for(self, p: Packet, path: Path | None) -> None:
        """Answer ``p`` by an RST as section 3.10.7.1 makes it. The caller has made sure that ``p`` is none itself."""
        if path is None:
            path = self._path_to(p.dst, p.src, p)
        if len(self.replies) >= _MAX_REPLIES or not path.ready:
            self.counters.bump("tcp.rst_suppressed")
            return
        self.counters.bump("tcp.rst_sent")
        writer = SegmentWriter(path, p.dport, p.sport)
        if p.flags & ACK:
            self.replies.append(writer.write(p.ack, 0, RST, 0))
        else:
            length = p.end - p.payload + bool(p.flags & SYN) + bool(p.flags & FIN)
            self.replies.append(writer.write(0, (p.seq + length) & MASK, RST | ACK, 0))

    # -- output, events, time ----------------------------------------------------------------------------------------

    def output(self, now: Micros, out: list[TxFrame], limit: int) -> None:
        """Append what may be sent now to ``out`` until it holds ``limit`` frames; the rest keeps its turn."""
        if self.replies:
            take = max(limit - len(out), 0)
            out += self.replies[:take]
            del self.replies[:take]
        dirty = self.dirty
        while dirty and len(out) < limit:
            c = dirty.popleft()
            c.dirty = False
            if not send.output(c, now, out, limit):
                c.mark()  # at the end: a busy connection does not keep the others waiting

    @property
    def pending(self) -> bool:
        """Whether `output` has something to look at."""
        return bool(self.dirty or self.replies)

    def paths_ready(self, paths: Iterable[Path]) -> None:
        """The neighbour of ``paths`` was resolved: the connections on them may send. O(connections)."""
        ready = {id(path) for path in paths}
        for c in self._connections.values():
            if id(c.path) in ready:
                c.mark()

    def events_into(self, out: list[Any]) -> None:
        """Append the collected events, each a (`TcpEndpoint`, flags), to ``out``, a list of those or of more kinds."""
        if self.ready:
            for endpoint in self.ready:
                out.append((endpoint, endpoint.events))
                endpoint.events = 0
            self.ready.clear()

    def on_timer(self, c: Connection, now: Micros) -> None:
        """Called by a connection whose deadline has come."""
        timeouts.on_timer(c, now)

    # -- making connections -------------------------------------------------------------------------------------------

    def _make(
        self,
        key: bytes,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        config: TcpConfig,
        packet: Packet | None,
        now: Micros,
        before: Connection | None,
    ) -> Connection:
        iss, ts_offset = self._isn(key, now)
        if before is not None and sub(iss, before.snd_max & MASK) <= 0:
            # MAY-2 asks for an ISN above all that the last connection has used; a fast one outruns the clock.
            iss = (before.snd_max + _ISN_STEP) & MASK
        path = self._path_to(local[0], remote[0], packet)
        if config.dscp:
            path.tos = config.dscp << 2
        c = self._connections[key] = Connection(self, config, path, key, local, remote, iss, ts_offset)
        return c

    def _make_room(self) -> bool:
        """Whether one more connection fits; the oldest in TIME-WAIT makes way."""
        if len(self._connections) < self.max_connections:
            return True
        if not self._waiting:
            self.counters.bump("tcp.table_full")
            return False
        self.counters.bump("tcp.time_wait_evicted")
        self.finish(next(iter(self._waiting)), None)
        return True

    def _choose_port(self, address: bytes, remote: tuple[bytes, int], now: Micros) -> int:
        """RFC 6056 algorithm 3: a start that outsiders cannot guess, then the next free one."""
        fixed = remote[0] + address + remote[1].to_bytes(2, "big")
        start = self._isn(fixed, now)[0]
        for step in range(_EPHEMERAL_COUNT):
            port = _EPHEMERAL_FIRST + (start + step) % _EPHEMERAL_COUNT
            if fixed + port.to_bytes(2, "big") not in self._connections:
                return port
        raise UsageError("No local port is free for one more connection to that address and port.")
