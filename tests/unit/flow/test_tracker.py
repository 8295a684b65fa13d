"""The tracker: states, numbers, lifetimes and bounds, as an observer between both ends sees them."""

from __future__ import annotations

import tracemalloc

import pytest

from pystack.counters import Counters
from pystack.flow.table import AtBound
from pystack.flow.tracker import State, Timeouts, TrackedFlow, Tracker
from pystack.testing.frames import Crafter
from pystack.wire import tcp, udp
from pystack.wire.packet import ACK, FIN, RST, SYN, Packet, parse_untrusted

SECOND = 1_000_000
CLIENT = Crafter("10.0.0.9", "10.0.0.2")
SERVER = Crafter("10.0.0.2", "10.0.0.9")


class Watch:
    """A tracker, and the two ends of one connection to feed it with."""

    def __init__(self, *, client_iss: int = 100, server_iss: int = 0xFFFF_FFF0, **options: object) -> None:
        self.tracker = Tracker(**options)  # type: ignore[arg-type]
        self.now = 0
        self.client_iss, self.server_iss = client_iss, server_iss
        self.flow: TrackedFlow | None = None

    def client(self, offset: int, flags: int, ack: int = 0, payload: bytes = b"", **fields: object) -> State:
        return self._feed(CLIENT, 5000, 80, self.client_iss + offset, self.server_iss + ack, flags, payload, **fields)

    def server(self, offset: int, flags: int, ack: int = 0, payload: bytes = b"", **fields: object) -> State:
        return self._feed(SERVER, 80, 5000, self.server_iss + offset, self.client_iss + ack, flags, payload, **fields)

    def _feed(
        self, wire: Crafter, sport: int, dport: int, seq: int, ack: int, flags: int, payload: bytes, **fields: object
    ) -> State:
        frame = wire.tcp(
            sport=sport, dport=dport, seq=seq & 0xFFFF_FFFF, ack=ack & 0xFFFF_FFFF if flags & ACK else 0,
            flags=flags, payload=payload, **fields,
        )  # fmt: skip
        packet = parse_untrusted(frame, 0, Counters())
        assert packet is not None
        self.flow = self.tracker.observe(packet, self.now)
        assert self.flow is not None
        return self.flow.state

    def open(self) -> None:
        assert self.client(0, SYN, options=tcp.build_options(mss=1460, window_scale=7)) is State.SYN_SENT
        assert self.server(0, SYN | ACK, 1, options=tcp.build_options(mss=1460, window_scale=2)) is State.SYN_RECEIVED
        assert self.client(1, ACK, 1) is State.ESTABLISHED

    def close(self) -> None:
        assert self.client(1, FIN | ACK, 1) is State.CLOSING
        assert self.server(1, ACK, 2) is State.CLOSING
        assert self.server(1, FIN | ACK, 2) is State.CLOSING
        assert self.client(2, ACK, 2) is State.TIME_WAIT

    @property
    def counters(self) -> Counters:
        return self.tracker.counters


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_a_connection_from_its_first_syn_to_time_wait(watch: Watch) -> None:
    watch.open()
    watch.close()
    assert watch.tracker.live == 0
    assert len(watch.tracker) == 1
    assert watch.flow is not None
    assert watch.flow.packets == [3, 4] or watch.flow.packets == [4, 3]


def test_numbers_are_absolute_across_the_wrap_and_windows_scaled(watch: Watch) -> None:
    watch.open()
    watch.server(1, ACK, 1, b"x" * 100, window=60_000)
    flow = watch.flow
    assert flow is not None
    assert flow.tcp is not None
    server = flow.tcp.ends[1 - flow.opener]
    assert server.nxt - server.iss == 101
    assert server.right - server.ack == 60_000 << 2
    assert server.nxt & 0xFFFF_FFFF == (watch.server_iss + 101) & 0xFFFF_FFFF


def test_both_ends_may_open_at_once(watch: Watch) -> None:
    """RFC 9293 section 3.5, figure 8."""
    assert watch.client(0, SYN) is State.SYN_SENT
    assert watch.server(0, SYN) is State.SYN_RECEIVED
    watch.client(0, SYN | ACK, 1)
    assert watch.server(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.client(1, ACK, 1) is State.ESTABLISHED


def test_a_server_may_open_too(watch: Watch) -> None:
    assert watch.server(0, SYN) is State.SYN_SENT
    assert watch.client(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.server(1, ACK, 1) is State.ESTABLISHED


def test_both_may_close_at_once(watch: Watch) -> None:
    watch.open()
    assert watch.client(1, FIN | ACK, 1) is State.CLOSING
    assert watch.server(1, FIN | ACK, 1) is State.CLOSING
    watch.client(2, ACK, 2)
    assert watch.server(2, ACK, 2) is State.TIME_WAIT


def test_a_connection_that_is_met_midway(watch: Watch) -> None:
    assert watch.server(5000, ACK, 700, b"data") is State.NEW
    assert watch.client(700, ACK, 5004) is State.ESTABLISHED
    assert watch.tracker.live == 1


def test_retransmissions_and_disorder_do_not_move_it_back(watch: Watch) -> None:
    watch.open()
    watch.server(101, ACK, 1, b"y" * 100)
    watch.server(1, ACK, 1, b"x" * 100)
    watch.server(0, SYN | ACK, 1)
    flow = watch.flow
    assert flow is not None
    assert flow.tcp is not None
    assert flow.tcp.ends[1 - flow.opener].nxt - flow.tcp.ends[1 - flow.opener].iss == 201
    assert flow.state is State.ESTABLISHED
    assert watch.counters["flow.tcp_syn_again"] == 1


def test_a_syn_in_an_open_connection_changes_nothing(watch: Watch) -> None:
    watch.open()
    watch.client_iss += 900_000
    assert watch.client(0, SYN) is State.ESTABLISHED
    assert watch.counters["flow.tcp_syn_in_connection"] == 1


def test_ports_are_used_again_after_the_end(watch: Watch) -> None:
    watch.open()
    watch.close()
    watch.client_iss, watch.server_iss = 7, 8
    watch.open()
    assert watch.tracker.live == 1
    assert watch.counters["flow.reused"] == 1


def test_a_refusal_ends_it(watch: Watch) -> None:
    watch.client(0, SYN)
    watch.server_iss = 0
    assert watch.server(0, RST | ACK, 1) is State.CLOSED
    assert watch.tracker.live == 0


def test_a_reset_must_be_in_place(watch: Watch) -> None:
    """RFC 5961 section 3.2: else anybody could end it."""
    watch.open()
    watch.server(1, ACK, 1, b"x" * 100)
    watch.client(1, ACK, 101)
    assert watch.server(50, RST, 1) is State.ESTABLISHED
    assert watch.counters["flow.tcp_bad_rst"] == 1
    assert watch.server(101, RST, 1) is State.CLOSED


def test_numbers_far_outside_the_window_move_nothing(watch: Watch) -> None:
    watch.open()
    flow = watch.flow
    assert flow is not None
    assert flow.tcp is not None
    before = [(end.nxt, end.ack) for end in flow.tcp.ends]
    watch.server(0x3000_0000, ACK, 1, b"far")
    watch.client(1, ACK, 0x6000_0000)
    assert [(end.nxt, end.ack) for end in flow.tcp.ends] == before
    assert watch.counters["flow.tcp_out_of_window"] == 1
    assert watch.counters["flow.tcp_bad_ack"] == 1


@pytest.mark.parametrize(
    ("frame", "lifetime"),
    [
        (CLIENT.udp(1, 2), Timeouts().udp),
        (CLIENT.echo(1), Timeouts().icmp),
        (CLIENT.ipv4(47, b"x"), Timeouts().other),
        (CLIENT.tcp(flags=SYN, sport=1, dport=2), Timeouts().half_open),
    ],
)
def test_each_kind_is_forgotten_after_its_time(frame: bytes, lifetime: int) -> None:
    tracker = Tracker()
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    flow = tracker.observe(packet, 0)
    tracker.observe(packet, 5)  # which moves its deadline
    assert tracker.next_timeout() == lifetime + 5
    tracker.tick(lifetime + 4)
    assert len(tracker) == 1
    tracker.tick(lifetime + 5)
    assert (len(tracker), tracker.live) == (0, 0)
    assert tracker.take_ended() == [flow]
    assert tracker.take_ended() == []


def test_an_open_connection_lives_longer_than_one_that_has_ended(watch: Watch) -> None:
    watch.open()
    watch.tracker.tick(3600 * SECOND)
    assert watch.tracker.live == 1
    watch.now = 3600 * SECOND
    watch.close()
    watch.tracker.tick(watch.now + Timeouts().time_wait)
    assert len(watch.tracker) == 0


def test_fragments_belong_to_the_flow_of_their_datagram() -> None:
    tracker = Tracker()
    addresses = {"src": bytes((10, 0, 0, 9)), "dst": bytes((10, 0, 0, 2))}
    whole = udp.build(**addresses, sport=1, dport=2, payload=bytes(200))
    flows = []
    for frame in CLIENT.fragments(17, whole, 64, 64):
        packet = parse_untrusted(frame, 0, Counters())
        assert packet is not None
        flows.append(tracker.observe(packet, 0))
    assert flows[:-1] == [None, None]
    assert flows[-1] is not None
    assert flows[-1].packets[flows[-1].opener] == 1


def _syns(count: int) -> list[Packet]:
    """SYNs from spoofed addresses and ports."""
    base = CLIENT.tcp(flags=SYN, sport=1, dport=80)
    packets = []
    for number in range(count):
        frame = base[:28] + number.to_bytes(4, "big") + base[32:]
        packet = parse_untrusted(frame, 0, Counters())
        assert packet is not None
        packets.append(packet)
    return packets


def test_a_flood_of_syns_is_bounded_and_does_not_end_an_open_connection() -> None:
    watch = Watch(capacity=4096)
    watch.open()
    for packet in _syns(50_000):
        watch.tracker.observe(packet, 0)
    assert len(watch.tracker) == 4096
    assert watch.server(1, ACK, 1, b"still here") is State.ESTABLISHED
    watch.tracker.tick(Timeouts().half_open)
    assert (len(watch.tracker), watch.tracker.live) == (1, 1)


def test_a_caller_may_rather_refuse() -> None:
    tracker = Tracker(capacity=100, at_bound=AtBound.REFUSE)
    flows = [tracker.observe(packet, 0) for packet in _syns(150)]
    assert [flow is None for flow in flows] == [False] * 100 + [True] * 50
    assert tracker.counters["flow.not_tracked"] == 50


def test_memory_of_a_full_table_is_within_what_the_page_states() -> None:
    packets = _syns(10_000)
    tracker = Tracker()
    tracemalloc.start()
    for packet in packets:
        tracker.observe(packet, 0)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / len(packets) < 1600
