"""The tracker knows what the ends know: two real stacks talk past it, through loss, disorder and duplication.

And whatever is said by whomever, its own numbers never contradict each other.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pystack.clock import MILLISECOND
from pystack.counters import Counters
from pystack.flow.table import AtBound
from pystack.flow.tcp_state import UNSET, EndState, end_state
from pystack.flow.tracker import State, Timeouts, TrackedFlow, Tracker
from pystack.link.impair import Impairment
from pystack.seq import MASK
from pystack.tcp.state import CLOSED, LISTEN, NAMES, SYN_RECEIVED, SYN_SENT
from pystack.tcp.tcb import Connection
from pystack.testing.world import Host, Talker, World
from pystack.wire.packet import ACK, FIN, PROTO_TCP, RST, SYN, parse_untrusted
from tests.property.wire.strategies import any_frames
from tests.unit.flow.rewriting import Lane
from tests.unit.flow.tracking import Watch, parse

PORT = 80


@dataclass
class Wire:
    """Two hosts on a bad line, and a tracker that sees each segment as it arrives.

    So the tracker is never behind its receiver and never ahead of its sender.
    """

    seed: int
    impairment: Impairment
    tracker: Tracker = field(default_factory=Tracker)
    flow: TrackedFlow | None = None

    def __post_init__(self) -> None:
        self.world = World(self.seed)
        self.alice, self.bob = self.world.host("10.0.0.1/24"), self.world.host("10.0.0.2/24")
        self.world.link(self.alice, self.bob, self.impairment)
        for host in (self.alice, self.bob):
            host.observer = self._observe

    def _observe(self, _host: Host, frame: bytes) -> None:
        packet = parse_untrusted(frame, 0, Counters())
        if packet is not None and packet.proto == PROTO_TCP:
            self.flow = self.tracker.observe(packet, self.world.now) or self.flow

    def compare(self, a: Connection, b: Connection) -> None:
        """Whether the tracker's numbers fit both ends' own, at any moment."""
        if self.flow is None:
            return
        assert self.flow.tcp is not None
        self.tracker._check()
        ends = self.flow.tcp.ends  # the lower end is alice
        for sender, receiver, stream, answers in ((a, b, *ends), (b, a, *ends[::-1])):
            if stream.iss == UNSET or sender.state in (CLOSED, LISTEN, SYN_SENT):
                continue
            assert sender.iss == stream.iss & 0xFFFF_FFFF
            if answers.ack != UNSET:
                # The sender leaves unread what a segment that was overtaken acknowledges (RFC 9293 section 3.10.7.4).
                behind = answers.ack - stream.iss - (sender.snd_una - sender.iss)
                assert behind == 0 if not self.impairment.reorder else behind >= 0
            assert stream.nxt - stream.iss <= sender.snd_max - sender.iss
            if receiver.state not in (CLOSED, LISTEN, SYN_SENT):
                assert receiver.rcv_nxt - receiver.irs <= stream.nxt - stream.iss
                if receiver.peer_fin >= 0:
                    assert stream.fin - stream.iss == receiver.peer_fin - receiver.irs
            if answers.options is not None and sender.state != SYN_RECEIVED:
                assert sender.snd_wscale == (answers.scale if stream.scale != UNSET else sender.snd_wscale)


@pytest.mark.parametrize("seed", range(40))
def test_its_numbers_are_those_of_two_stacks_at_every_moment(seed: int) -> None:
    wire = Wire(
        seed,
        Impairment(
            loss=(0, 0.02, 0.1)[seed % 3],
            reorder=(0, 0.1, 0.3)[seed // 3 % 3],
            duplicate=(0, 0.05)[seed % 2],
            delay=(0, 20 * MILLISECOND)[seed // 2 % 2],
            jitter=(0, 5 * MILLISECOND)[seed // 4 % 2],
        ),
    )
    world = wire.world
    down, up = bytes(range(256)) * (1 + seed * 16), bytes(range(255)) * (1 + seed % 7 * 40)
    server = world.serve(wire.bob, PORT, send=down, shut=("sent", "eof")[seed % 2])
    client = world.connect(
        wire.alice, wire.bob, PORT, send=up, shut=("sent", "eof", "sent")[seed % 3] if seed % 2 == 0 else "sent"
    )

    def over() -> bool:
        if server.talkers:
            wire.compare(client.connection, server.talkers[0].connection)
        return bool(server.talkers) and client.closed and server.talkers[0].closed

    assert world.run(until=over, seconds=3000)
    other = server.talkers[0]
    assert (bytes(client.received), bytes(other.received)) == (down, up)
    flow = wire.flow
    assert flow is not None
    assert flow.tcp is not None
    lower, higher = flow.tcp.ends
    assert (lower.nxt - lower.iss, higher.nxt - higher.iss) == (len(up) + 2, len(down) + 2)
    assert (lower.fin, higher.fin) == (lower.nxt - 1, higher.nxt - 1)
    assert (lower.ack, higher.ack) == (higher.nxt, lower.nxt)
    assert flow.state is State.TIME_WAIT
    assert {flow.tcp.end_state(0), flow.tcp.end_state(1)} <= {EndState.TIME_WAIT, EndState.CLOSED}
    assert flow.opener == 0
    bad = {"flow.tcp_bad_ack", "flow.tcp_bad_fin", "flow.tcp_after_fin", "flow.tcp_fin_moved", "flow.tcp_shortened"}
    assert not bad & wire.tracker.counters.snapshot().keys()
    world.clock.jump_to(world.now + Timeouts().time_wait)
    wire.tracker.tick(world.now)
    assert (len(wire.tracker), wire.tracker.live) == (0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_the_end_states_are_those_of_two_stacks_when_nothing_is_under_way(seed: int) -> None:
    """Each end's state by the book, after every step of a connection whose line is good."""
    wire = Wire(seed, Impairment(delay=MILLISECOND))
    world = wire.world
    server = world.serve(wire.bob, PORT, send=b"hello", shut=("eof", "sent", "never", "eof")[seed % 4])
    client = world.connect(wire.alice, wire.bob, PORT, send=b"hi", shut=("sent", "eof", "never", "never")[seed % 4])
    world.run(until=lambda: False, seconds=5)
    if seed >= 4:
        closing = client.connection if seed % 2 else server.talkers[0].connection
        closing.shutdown()
        world.run(until=lambda: False, seconds=5)
    flow = wire.flow
    assert flow is not None
    assert flow.tcp is not None
    assert server.talkers
    for direction, talker in enumerate((client, server.talkers[0])):
        assert flow.tcp.end_state(direction).value == NAMES[talker.connection.state]


def test_a_reset_ends_it_for_the_tracker_too() -> None:
    wire = Wire(1, Impairment())
    server = wire.world.serve(wire.bob, PORT, shut="never")
    client = wire.world.connect(wire.alice, wire.bob, PORT, send=b"hi", shut="never")
    wire.world.run(until=lambda: bool(server.talkers) and bool(server.talkers[0].received), seconds=5)
    assert wire.tracker.live == 1
    client.connection.abort()
    wire.world.run(until=lambda: server.talkers[0].closed, seconds=5)
    assert wire.flow is not None
    assert (wire.flow.state, wire.tracker.live) == (State.CLOSED, 0)


def test_many_connections_one_after_the_other_on_the_same_ports() -> None:
    """Each is an incarnation of its own, with the stacks' own numbers."""
    wire = Wire(5, Impairment(loss=0.05, delay=MILLISECOND))
    world = wire.world
    server = world.serve(wire.bob, PORT, send=b"x" * 5000, shut="eof")
    incarnations = []
    for round_ in range(6):
        client: Talker = world.connect(wire.alice, wire.bob, PORT, local_port=5555, send=b"y" * 3000)
        assert world.run(
            until=lambda: client.closed and len(server.talkers) > round_ and server.talkers[round_].closed,  # noqa: B023
            seconds=600,
        )
        world.run(until=lambda: False, seconds=150)  # past the ends' own TIME-WAIT
        assert wire.flow is not None
        assert wire.flow.tcp is not None
        lower, higher = wire.flow.tcp.ends
        assert (lower.nxt - lower.iss, higher.nxt - higher.iss) == (3002, 5002)
        incarnations.append((wire.flow.tcp.incarnation, lower.iss & 0xFFFF_FFFF))
    assert [number for number, _ in incarnations] == list(range(6))
    assert len({iss for _, iss in incarnations}) == 6


# ------------------------------------------------------------------------------------------- whatever is said by whom

segments = st.tuples(
    st.booleans(),
    st.sampled_from((-70_000, -2, -1, 0, 1, 2, 3, 5, 10, 65_537, 1 << 30, 1 << 31)),
    st.sampled_from((-70_000, -1, 0, 1, 2, 3, 5, 10, 65_537, 1 << 30, 1 << 31)),
    st.sampled_from((SYN, SYN | ACK, ACK, ACK, ACK, FIN | ACK, FIN | ACK, FIN, RST, RST | ACK, 0, SYN | FIN, 0xFF)),
    st.sampled_from((b"", b"", b"x", b"abcd")),
    st.sampled_from((0, 1, 1000, 65_535)),
)


@given(
    script=st.lists(segments, max_size=30),
    isses=st.tuples(st.sampled_from((0, 1, 0xFFFF_FFFE)), st.sampled_from((0, 0x7FFF_FFFF, 0xFFFF_FFFF))),
    v6=st.booleans(),
    is_open=st.booleans(),
)
def test_no_segments_make_it_contradict_itself(
    script: list[tuple[bool, int, int, int, bytes, int]], isses: tuple[int, int], v6: bool, is_open: bool
) -> None:
    """`Tracker._check` after each; and both summaries of the state agree."""
    watch = Watch(client_iss=isses[0], server_iss=isses[1], lane=Lane(v6=v6))
    if is_open:
        watch.open()
    for from_client, offset, ack, flags, payload, window in script:
        side = watch.lane.segment(
            outward=not from_client,
            seq=isses[not from_client] + offset,
            ack=isses[from_client] + ack,
            flags=flags,
            payload=payload,
            window=window,
        )
        watch.now += 1000
        flow = watch.tracker.observe(parse(side), watch.now)
        watch.tracker._check()
        if flow is None or flow.tcp is None:
            continue
        ends = {end_state(*flow.tcp.ends), end_state(*flow.tcp.ends[::-1])}
        if flow.state is State.TIME_WAIT:
            assert ends <= {EndState.TIME_WAIT, EndState.CLOSED}
        elif flow.state is State.ESTABLISHED:
            assert ends <= {EndState.ESTABLISHED, EndState.SYN_SENT, EndState.SYN_RECEIVED, EndState.UNHEARD}
        elif flow.state is State.HALF_CLOSED:
            assert ends & {EndState.FIN_WAIT_1, EndState.FIN_WAIT_2, EndState.LAST_ACK, EndState.SYN_SENT}


in_order = st.tuples(
    st.booleans(), st.none(), st.none(), st.none(), st.sampled_from((b"", b"x", b"abcd")), st.sampled_from((1, 65_535))
)


@given(
    script=st.lists(st.one_of(segments, in_order, in_order), max_size=30),
    isses=st.tuples(st.sampled_from((0, 1, 0xFFFF_FFFE)), st.sampled_from((0, 0x7FFF_FFFF, 0xFFFF_FFFF))),
)
def test_the_shortcut_says_what_the_long_way_does(
    script: list[tuple[bool, int | None, int | None, int | None, bytes, int]], isses: tuple[int, int]
) -> None:
    """A segment without numbers is the next one in order, and acknowledges all."""
    watch = Watch(client_iss=isses[0], server_iss=isses[1])
    watch.open()
    quick, slow = deepcopy(watch.track), deepcopy(watch.track)
    counters = Counters(), Counters()
    for from_client, offset, ack, flags, payload, window in script:
        direction = quick.opener if from_client else 1 - quick.opener
        me, peer = quick.ends[direction], quick.ends[1 - direction]
        packet = parse(
            watch.lane.segment(
                outward=not from_client,
                seq=me.nxt & MASK if offset is None else isses[not from_client] + offset,
                ack=peer.nxt & MASK if ack is None else isses[from_client] + ack,
                flags=ACK if flags is None else flags,
                payload=payload,
                window=window,
            )
        )
        assert quick.observe(packet, direction, counters[0]) is slow.observe_slowly(packet, direction, counters[1])
        assert counters[0].snapshot() == counters[1].snapshot()
        for one, other in zip(quick.ends, slow.ends, strict=True):
            assert all(getattr(one, name) == getattr(other, name) for name in one.__slots__)


@settings(max_examples=200)
@given(frames=st.lists(any_frames, max_size=40), at_bound=st.sampled_from(AtBound), pause=st.integers(0, 100))
def test_any_frames_leave_it_within_its_bounds_and_forgotten_in_the_end(
    frames: list[bytes], at_bound: AtBound, pause: int
) -> None:
    tracker = Tracker(capacity=4, at_bound=at_bound)
    now, known = 0, 0
    for frame in frames:
        now += pause * 1_000_000
        packet = parse_untrusted(frame, 0, Counters())
        if packet is not None:
            flow = tracker.observe(packet, now)
            assert flow is None or tracker.get(packet) is flow or packet.is_fragment
        tracker.tick(now)
        tracker._check()
        assert len(tracker) <= 4
        due = tracker.next_timeout()
        assert due is None or due > now
    known = tracker.counters["flow.new"]
    tracker.tick(1 << 61)
    assert (len(tracker), tracker.live, tracker.next_timeout()) == (0, 0, None)
    assert len(tracker.take_ended()) == known
