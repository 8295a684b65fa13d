"""What a flood does to the tracker: it stays within its bound, in memory too, and keeps what is worth it."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from pystack.clock import SECOND
from pystack.flow import tracker as tracker_module
from pystack.flow.table import DEFAULT_CAPACITY, AtBound
from pystack.flow.tracker import State, Timeouts, TrackedFlow, Tracker
from pystack.testing.frames import Crafter
from pystack.timers import NEVER
from pystack.wire import tcp, udp
from pystack.wire.packet import ACK, SYN
from tests.unit.flow.tracking import CLIENT, SERVER, Watch, opened, parse, syns

SPOOFED = 200_000
HALF_OPEN = 100_000
BYTES_PER_FLOW = 1_650
"""What the docstring and the page state, and a tenth more: Python versions differ."""


def measure(count: int) -> float:
    """Bytes for each of ``count`` established connections, with all options and both ends heard, in a full table."""
    options = tcp.build_options(mss=1460, sack_permitted=True, timestamps=(1, 0), window_scale=7)
    answers = tcp.build_options(mss=1460, sack_permitted=True, timestamps=(1, 1), window_scale=7)
    tracker = Tracker(capacity=count)
    there = CLIENT.tcp(flags=SYN, sport=1, dport=80, seq=1000, options=options)
    back = SERVER.tcp(flags=SYN | ACK, sport=80, dport=1, seq=2000, ack=1001, options=answers)
    third = CLIENT.tcp(flags=ACK, sport=1, dport=80, seq=1001, ack=2001)
    gc.collect()
    tracemalloc.start()
    for number in range(count):
        address = (0x0B00_0000 + number).to_bytes(4, "big")
        for frame, at in ((there, 26), (back, 30), (third, 26)):
            tracker.observe(parse(frame[:at] + address + frame[at + 4 :]), number)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(tracker), tracker.live) == (count, count)
    return used / count


def test_memory_of_a_flow_is_within_what_is_stated() -> None:
    assert measure(8_192) < BYTES_PER_FLOW
    assert tracker_module.__doc__ is not None
    assert "1,500 bytes of each TCP flow" in tracker_module.__doc__


def test_a_flood_of_spoofed_syns_ends_no_open_connection() -> None:
    """And no more flows are in memory than the table holds, not all that there have been."""
    watch = Watch(tracker=Tracker(capacity=4096))
    watch.open()
    assert watch.tracker.observe(parse(CLIENT.udp(1, 2)), 0) is not None
    watch.tracker.observe(parse(SERVER.udp(2, 1)), 0)
    for index, packet in enumerate(syns(SPOOFED)):
        watch.tracker.observe(packet, index)
        if not index & 0xFFF:
            watch.tracker.take_ended()
    watch.tracker.take_ended()
    # Besides those in the table there are some whose entries in the heap of deadlines were not yet swept out.
    assert sum(isinstance(known, TrackedFlow) for known in gc.get_objects()) < 4 * 4096
    watch.tracker._check()
    assert (len(watch.tracker), watch.tracker.live) == (4096, 4096)
    assert watch.counters["flow.evicted"] == SPOOFED - 4094
    watch.now = SPOOFED
    assert watch.server(1, ACK, 1, b"still here") is State.ESTABLISHED
    watch.tracker.tick(SPOOFED + Timeouts().half_open)
    assert (len(watch.tracker), watch.tracker.live) == (2, 2)
    assert watch.client(1, ACK, 11) is State.ESTABLISHED


def test_what_nobody_takes_is_bounded() -> None:
    tracker = Tracker(capacity=16)
    for packet in syns(DEFAULT_CAPACITY + 100):
        tracker.observe(packet, 0)
    assert tracker.counters["flow.ended_lost"] == 100 - 16
    assert len(tracker.take_ended()) == DEFAULT_CAPACITY
    assert tracker.take_ended() == []


def test_half_open_connections_fill_the_table_and_go_in_time() -> None:
    tracker = Tracker()
    for packet in syns(HALF_OPEN):
        tracker.observe(packet, 0)
    assert (len(tracker), tracker.live) == (DEFAULT_CAPACITY, DEFAULT_CAPACITY)
    assert tracker.counters.snapshot() == {"flow.new": HALF_OPEN, "flow.evicted": HALF_OPEN - DEFAULT_CAPACITY}
    tracker.take_ended()
    tracker.tick(Timeouts().half_open)
    assert (len(tracker), tracker.live, tracker.next_timeout()) == (0, 0, None)
    assert len(tracker.take_ended()) == DEFAULT_CAPACITY
    assert tracker.observe(next(syns(1)), 80 * SECOND) is not None


def test_unanswered_datagrams_make_room_before_what_was_answered() -> None:
    tracker = Tracker(capacity=50)
    for port in range(10):
        tracker.observe(parse(CLIENT.udp(port, 53)), 0)
        tracker.observe(parse(SERVER.udp(53, port)), 0)
    flood = Crafter("10.9.9.9", "10.0.0.2")
    for port in range(1000):
        assert tracker.observe(parse(flood.udp(port, 53)), 1) is not None
        tracker.observe(parse(flood.echo(port)), 1)
    assert all(tracker.get(parse(CLIENT.udp(port, 53))) is not None for port in range(10))
    tracker._check()


def test_a_caller_may_rather_refuse() -> None:
    tracker = Tracker(capacity=100, at_bound=AtBound.REFUSE)
    flows = [tracker.observe(packet, 0) for packet in syns(150)]
    assert [flow is None for flow in flows] == [False] * 100 + [True] * 50
    assert tracker.counters.snapshot() == {"flow.new": 100, "flow.table_full": 50, "flow.not_tracked": 50}


def test_or_evict_the_oldest() -> None:
    watch = Watch(tracker=Tracker(capacity=100, at_bound=AtBound.EVICT_OLDEST))
    watch.open()
    for port in range(200):
        watch.tracker.observe(parse(CLIENT.udp(port, 9)), 0)
        watch.tracker.observe(parse(SERVER.udp(9, port)), 0)
    assert watch.tracked in watch.tracker.take_ended()
    assert len(watch.tracker) == 100
    watch.tracker._check()


def test_what_is_full_of_open_connections_refuses() -> None:
    watch = Watch(tracker=Tracker(capacity=1))
    watch.open()
    assert watch.tracker.observe(next(syns(1)), 0) is None
    watch.close()
    assert watch.tracker.observe(next(syns(1)), 0) is not None
    assert watch.tracked.deadline == NEVER


def test_a_claim_keeps_no_frame() -> None:
    """A SYN may carry 60 KB, and there may be one for each flow."""
    watch = opened()
    gc.collect()
    tracemalloc.start()
    watch.client_iss += 90_000
    watch.client(0, SYN, 0, bytes(60_000))
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 10_000
    assert watch.counters["flow.tcp_syn_in_connection"] == 1


@pytest.mark.parametrize("size", [0, 60_000])
def test_the_size_of_a_packet_does_not_matter(size: int) -> None:
    """Its payload is not touched: one look at the header tells all, and nothing of the frame is kept."""
    tracker = Tracker()
    frame = CLIENT.ipv4(17, udp.build(src=bytes(4), dst=bytes(4), sport=1, dport=2, payload=bytes(size)))
    packet = parse(frame)
    gc.collect()
    tracemalloc.start()
    tracker.observe(packet, 0)
    used, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used <= peak < 10_000


if __name__ == "__main__":
    print(f"{measure(DEFAULT_CAPACITY):.0f} bytes per flow")
