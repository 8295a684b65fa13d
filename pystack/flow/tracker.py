"""The tracker: a passive observer of both directions of every flow.

Read before editing: RFC 9293 sections 3.3.2 (the states, here as an observer between both ends sees them), 3.6.1 (a
four-tuple used anew) and 3.10.7; RFC 5961 section 3 (a reset must be in place); RFC 5382 and RFC 4787 (timeouts).

A packet costs the same whatever its size: one look-up, and for TCP the numbers of its header. Nothing is answered,
delayed or changed. What it knows of TCP is in `pystack.flow.tcp_track`.

Memory: 1,500 bytes of each TCP flow, both ends' SYN options included (measured over 65,536 of them by
``python -m tests.unit.flow.test_tracker_bounds``).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, final

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.flow.fragments import FragmentInspector
from pystack.flow.key import flow_key, quoted_flow_key_untrusted
from pystack.flow.table import DEFAULT_CAPACITY, AtBound, FlowTable
from pystack.flow.tcp_state import OVER, SYNCHRONIZED, EndState, State
from pystack.flow.tcp_track import TcpTrack
from pystack.net.reassembly import Limits
from pystack.timers import NEVER
from pystack.wire.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, RST, Packet

__all__ = ["EndState", "State", "Timeouts", "TrackedFlow", "Tracker"]

_MAX_ENDED: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a flow may be silent before it is forgotten, by state; microseconds.

    Attributes:
        half_open: TCP in NEW, SYN_SENT and SYN_RECEIVED. RFC 5382 REQ-5 asks 4 minutes of a translator, whose flow dies
            when it forgets it; an observer takes it up again with the next segment. The longest silence between a
            SYN's retransmissions is 64 s.
        established: 2 hours and 4 minutes (RFC 5382 REQ-5): one more than the 2 hours of keep-alives.
        half_closed: one end has sent its FIN, and the other may go on for long: 1 hour.
        closing: both have: 4 minutes (RFC 5382 REQ-5: partially closed).
        time_wait: both FINs were acknowledged: 4 minutes, two maximum segment lifetimes (RFC 9293 section 3.4.2).
        closed: it was reset: until late segments are over, 10 s, as Linux's connection tracking.
        udp: 5 minutes (RFC 4787 REQ-5). icmp: 60 s (RFC 5508 REQ-1). other: 10 minutes, as Linux's.
    """

    half_open: Micros = 75 * SECOND
    established: Micros = 7_440 * SECOND
    half_closed: Micros = 3_600 * SECOND
    closing: Micros = 240 * SECOND
    time_wait: Micros = 240 * SECOND
    closed: Micros = 10 * SECOND
    udp: Micros = 300 * SECOND
    icmp: Micros = 60 * SECOND
    other: Micros = 600 * SECOND


@final
class TrackedFlow:
    """One flow.

    Attributes:
        key: `pystack.flow.key.flow_key`. proto: IP protocol. version: 4 or 6.
        opener: the direction (0 or 1, see `flow_key`) of its first packet. packets: of each direction. errors: ICMP
        errors that quote it. tcp: what is known of a TCP connection, None for other protocols. lifetime: in its state.
        since, seen: when it began, and when its last packet came; microseconds.
    """

    __slots__ = (
        "_tracker", "armed_at", "deadline", "errors", "key", "lifetime", "opener", "packets", "proto", "seen", "since",
        "tcp", "version",
    )  # fmt: skip

    def __init__(self, tracker: Tracker, key: bytes, packet: Packet, direction: int, now: Micros) -> None:
        self._tracker = tracker
        self.key = key
        self.proto = packet.proto
        self.version = packet.version
        self.opener = direction
        self.packets = [0, 0]
        self.errors = 0
        self.tcp = TcpTrack(direction) if packet.proto == PROTO_TCP else None
        self.since = self.seen = now
        self.lifetime: Micros = 0
        self.deadline: Micros = NEVER
        self.armed_at: Micros = NEVER

    @property
    def state(self) -> State:
        """Of TCP; ESTABLISHED for anything else once both ends have been heard, NEW before."""
        if self.tcp is not None:
            return self.tcp.state
        return State.ESTABLISHED if self.packets[0] and self.packets[1] else State.NEW

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.state not in OVER

    def on_timer(self, now: Micros) -> None:
        """It has been silent for as long as its state allows."""
        self._tracker.expire(self, now)


@final
class Tracker:
    """All flows, bounded.

    Args:
        capacity: how many flows. at_bound: what becomes of one more. timeouts: by state. limits: of the fragments that
        wait for the rest of their datagram.

    Attributes:
        live: flows that have not ended: of TCP, that are neither in TIME_WAIT nor CLOSED.
        counters: of packets ``flow.not_tracked`` (no room), ``flow.tcp_stray_rst``, ``flow.icmp_related``; of flows
            ``flow.new``, ``ended``, ``reused``, ``expired``, ``evicted``, ``table_full``, ``ended_lost``; and those of
            `TcpTrack` and `FragmentInspector`.
    """

    __slots__ = ("_ended", "_inspector", "_lifetimes", "_table", "counters", "live", "timeouts")

    def __init__(
        self,
        *,
        capacity: int = DEFAULT_CAPACITY,
        at_bound: AtBound = AtBound.EVICT_UNFINISHED,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.counters = Counters() if counters is None else counters
        self.timeouts = Timeouts() if timeouts is None else timeouts
        self._table: FlowTable[TrackedFlow] = FlowTable(capacity, at_bound, self.counters)
        self._inspector = FragmentInspector(self.counters, limits)
        self._ended: deque[TrackedFlow] = deque()
        self.live = 0
        self._lifetimes: dict[State, Micros] = {
            State.NEW: self.timeouts.half_open,
            State.SYN_SENT: self.timeouts.half_open,
            State.SYN_RECEIVED: self.timeouts.half_open,
            State.ESTABLISHED: self.timeouts.established,
            State.HALF_CLOSED: self.timeouts.half_closed,
            State.CLOSING: self.timeouts.closing,
            State.TIME_WAIT: self.timeouts.time_wait,
            State.CLOSED: self.timeouts.closed,
        }

    def __len__(self) -> int:
        return len(self._table)

    @property
    def capacity(self) -> int:
        """How many flows there may be."""
        return self._table.capacity

    def get(self, packet: Packet) -> TrackedFlow | None:
        """The flow of ``packet``, if it is known."""
        return self._table.flows.get(flow_key(packet)[0])

    def state(self, key: bytes) -> State | None:
        """Of the flow with this `pystack.flow.key.flow_key`, None if it is not known."""
        flow = self._table.flows.get(key)
        return None if flow is None else flow.state

    def quoted(self, packet: Packet) -> TrackedFlow | None:
        """The flow that an ICMP or ICMPv6 error is about, if it is known. Whether it is true is the ends' to judge."""
        quote = quoted_flow_key_untrusted(packet)
        return None if quote is None else self._table.flows.get(quote[0])

    def observe(self, packet: Packet, now: Micros) -> TrackedFlow | None:
        """Note a packet of either direction; returns its flow, None when it has none or there is no room for it.

        A fragment is put together with the others of its datagram first, and the flow is told of the whole. A RST makes
        no flow: there is nothing that it could end.
        """
        if packet.is_fragment:
            whole = self._inspector.add_untrusted(packet, now)
            return None if whole is None or whole.is_fragment else self.observe(whole, now)
        key, direction = flow_key(packet)
        if not key:
            return None
        flow = self._table.flows.get(key)
        if flow is None:
            flow = self._add(key, packet, direction, now)
            if flow is None:
                return None
        packets = flow.packets
        packets[direction] += 1
        flow.seen = now
        tcp = flow.tcp
        if tcp is None:
            flow.deadline = now + flow.lifetime
            if packets[direction] == 1 and packets[1 - direction]:
                self._table.mark(flow, unfinished=False)  # it was answered
            if packet.proto == PROTO_ICMP or packet.proto == PROTO_ICMPV6:
                self._relate(packet)
            return flow
        before = tcp.state
        after = tcp.observe(packet, direction, self.counters)
        if after is before:
            flow.deadline = now + flow.lifetime
        else:
            self._on_state(flow, before, after, now)
        return flow

    def _relate(self, packet: Packet) -> None:
        about = self.quoted(packet)
        if about is not None:
            about.errors += 1
            self.counters.bump("flow.icmp_related")

    def _add(self, key: bytes, packet: Packet, direction: int, now: Micros) -> TrackedFlow | None:
        if packet.proto == PROTO_TCP and packet.flags & RST:
            self.counters.bump("flow.tcp_stray_rst")
            return None
        flow = TrackedFlow(self, key, packet, direction, now)
        timeouts = self.timeouts
        if flow.tcp is not None:
            flow.lifetime = timeouts.half_open
        elif packet.proto == PROTO_UDP:
            flow.lifetime = timeouts.udp
        else:
            flow.lifetime = timeouts.icmp if packet.proto in (PROTO_ICMP, PROTO_ICMPV6) else timeouts.other
        flow.deadline = now + flow.lifetime
        evicted = self._table.add(flow)
        if evicted is None:
            self.counters.bump("flow.not_tracked")
            return None
        self.counters.bump("flow.new")
        self.live += 1
        for victim in evicted:
            self._end(victim)
        self._table.mark(flow, unfinished=True)
        return flow

    def _on_state(self, flow: TrackedFlow, before: State, after: State, now: Micros) -> None:
        """Another state has another lifetime, and counts otherwise at the bound."""
        flow.lifetime = self._lifetimes[after]
        flow.deadline = now + flow.lifetime
        self._table.timers.arm(flow)
        if after in OVER and before not in OVER:
            self.live -= 1
            self.counters.bump("flow.ended")
        elif before in OVER and after not in OVER:
            self.live += 1
        self._table.mark(flow, unfinished=after not in SYNCHRONIZED)

    def expire(self, flow: TrackedFlow, now: Micros) -> None:
        """Called by ``flow`` when its deadline has come."""
        if flow.deadline <= now:
            self.counters.bump("flow.expired")
            self._table.remove(flow)
            self._end(flow)

    def _end(self, flow: TrackedFlow) -> None:
        if flow.is_live:
            self.live -= 1
        if len(self._ended) >= _MAX_ENDED:
            self.counters.bump("flow.ended_lost")
            self._ended.popleft()
        self._ended.append(flow)

    def take_ended(self) -> list[TrackedFlow]:
        """Flows that were forgotten since the last call: what others know of them can go too.

        Bounded: when nobody takes them the oldest ones are lost (``flow.ended_lost``).
        """
        if not self._ended:
            return []
        ended = list(self._ended)
        self._ended.clear()
        return ended

    def tick(self, now: Micros) -> None:
        """Forget what has been silent for too long."""
        self._table.tick(now)
        self._inspector.tick(now)

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""
        flows, fragments = self._table.next_timeout(), self._inspector.next_timeout()
        return flows if fragments is None else fragments if flows is None else min(flows, fragments)

    def _check(self) -> None:
        """The invariants, for tests."""
        self._table._check()  # noqa: SLF001  (it is ours)
        self._inspector._check()  # noqa: SLF001
        flows = self._table.flows.values()
        assert self.live == sum(flow.is_live for flow in flows)
        assert len(self._ended) <= _MAX_ENDED
        for flow in flows:
            assert flow.deadline >= flow.seen
            if flow.tcp is not None:
                flow.tcp._check()  # noqa: SLF001
