"""Reassembly: datagrams come back whole or not at all, and what waits is bounded."""

from __future__ import annotations

import pytest

from pystack.clock import SECOND
from pystack.counters import Counters
from pystack.net.reassembly import Limits, Reassembler
from pystack.testing.frames import Crafter
from pystack.timers import Timers
from pystack.wire.packet import IP_MF, PROTO_UDP, Packet, parse_untrusted, verify_untrusted

WIRE = Crafter("10.0.0.9", "10.0.0.1")
DATA = bytes(range(256)) * 12
OTHER = 253  # a protocol for experiments (RFC 3692)


class Bench:
    """A reassembler with what it needs, fed frames."""

    def __init__(self, **limits: int) -> None:
        self.counters = Counters()
        self.timers = Timers()
        self.reassembler = Reassembler(self.counters, self.timers, Limits(**limits))

    def feed(self, *frames: bytes, now: int = 0) -> Packet | None:
        result = None
        for frame in frames:
            packet = parse_untrusted(frame, 0, self.counters)
            assert packet is not None
            result = self.reassembler.add_untrusted(packet, now)
        return result


def piece(offset: int, data: bytes, *, more: bool = True, ident: int = 1) -> bytes:
    return WIRE.ipv4(OTHER, data, fragment=offset >> 3 | (IP_MF if more else 0), ident=ident)


@pytest.mark.parametrize("sizes", [(8,), (8, 8, 8), (1480, 1480), (3000,), (2048, 8)])
def test_fragments_in_any_order_become_the_datagram(sizes: tuple[int, ...]) -> None:
    whole = WIRE.udp(5, 6, DATA)
    frames = WIRE.fragments(PROTO_UDP, whole[34:], *sizes)
    for order in (frames, frames[::-1], frames[1:] + frames[:1]):
        bench = Bench()
        packet = bench.feed(*order)
        assert packet is not None
        assert (packet.sport, packet.dport, packet.payload_bytes()) == (5, 6, DATA)
        assert verify_untrusted(packet, bench.counters, rx_checksum=False)
        assert not packet.is_fragment
        assert len(bench.reassembler) == bench.reassembler.bytes_held == 0
        assert bench.timers.next_timeout() is None
        assert bench.counters.snapshot() == {"ipv4.fragments": len(frames), "ipv4.reassembled": 1}


def test_an_exact_duplicate_is_ignored() -> None:
    bench = Bench()
    assert bench.feed(piece(0, DATA[:16]), piece(0, DATA[:16])) is None
    assert bench.feed(piece(16, DATA[16:32], more=False)) is not None
    assert bench.counters["ipv4.fragment_duplicate"] == 1


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (piece(8, b"x" * 16), "overlap"),  # its head
        (piece(0, b"x" * 16), "overlap"),  # the same place, other bytes
        (piece(0, DATA[:24]), "overlap"),  # engulfs from the same start
        (piece(8, DATA[8:16]), "overlap"),  # within, same bytes
        (piece(0, DATA[:8], more=False), "overlap"),
    ],
)
def test_overlap_ends_the_datagram_and_what_still_comes_of_it(second: bytes, reason: str) -> None:
    bench = Bench()
    assert bench.feed(piece(0, DATA[:16]), second) is None
    assert bench.counters[f"ipv4.fragment_{reason}"] == 1
    assert bench.feed(piece(0, DATA[:16]), piece(16, DATA[16:32], more=False)) is None
    assert bench.counters["ipv4.fragment_late"] == 2
    assert bench.reassembler.bytes_held == 0


def test_a_piece_that_reaches_into_the_next_one_is_an_overlap() -> None:
    bench = Bench()
    bench.feed(piece(16, DATA[:16]), piece(8, DATA[:16]))
    assert bench.counters["ipv4.fragment_overlap"] == 1


@pytest.mark.parametrize(
    "second", [piece(32, b"x" * 8), piece(40, b"x" * 8, more=False), piece(8, b"x" * 8, more=False)]
)
def test_two_ends_contradict_each_other(second: bytes) -> None:
    bench = Bench()
    bench.feed(piece(16, DATA[:16], more=False), second)
    assert bench.counters["ipv4.fragment_inconsistent"] == 1


def test_an_end_before_what_has_arrived_is_inconsistent() -> None:
    bench = Bench()
    bench.feed(piece(64, DATA[:16]), piece(16, DATA[:16], more=False))
    assert bench.counters["ipv4.fragment_inconsistent"] == 1


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (piece(8, b""), "empty"),
        (piece(8, b"", more=False), "empty"),
        (piece(0, b"x" * 9), "misaligned"),
        (piece(65_528, b"x" * 8, more=False), "too_big"),
        (piece(65_000, b"x" * 520), "too_big"),
    ],
)
def test_a_fragment_that_cannot_be_is_dropped_alone(frame: bytes, reason: str) -> None:
    bench = Bench()
    assert bench.feed(frame) is None
    assert bench.counters.snapshot() == {"ipv4.fragments": 1, f"ipv4.fragment_{reason}": 1}
    assert len(bench.reassembler) == 0


def test_the_header_counts_for_the_largest_datagram() -> None:
    # 65,512 bytes of payload fit behind a header of 20 bytes, but the one of fragment zero has 60.
    options = bytes([1]) * 40
    bench = Bench()
    assert bench.feed(piece(65_504, b"x" * 8, more=False)) is None
    for start in range(0, 65_504, 1424):
        size = min(1424, 65_504 - start)
        extra = options if not start else b""
        bench.feed(WIRE.ipv4(OTHER, bytes(size), fragment=start >> 3 | IP_MF, ident=1, options=extra))
    assert bench.counters["ipv4.fragment_too_big"] == 1
    assert len(bench.reassembler) == 0


def test_what_is_never_completed_is_given_up_after_60_seconds() -> None:
    bench = Bench()
    bench.feed(piece(0, DATA[:8], ident=1), now=5)
    bench.feed(piece(8, DATA[:8], ident=2), now=6)
    assert bench.timers.next_timeout() == 5 + 60 * SECOND
    bench.timers.fire(5 + 60 * SECOND)
    # Fragment zero is there: the sender shall hear of it.
    (first,) = bench.reassembler.take_expired()
    assert first.ident == 1
    assert len(bench.reassembler) == 1
    bench.timers.fire(6 + 60 * SECOND)
    assert bench.reassembler.take_expired() == []
    assert len(bench.reassembler) == bench.reassembler.bytes_held == 0
    assert bench.timers.next_timeout() is None
    assert bench.counters["ipv4.reassembly_timeout"] == 2


def test_many_first_fragments_are_bounded_and_the_oldest_makes_room() -> None:
    bench = Bench(datagrams=8)
    for ident in range(1000):
        bench.feed(piece(0, DATA[:8], ident=ident))
    assert len(bench.reassembler) == 8
    assert bench.counters["ipv4.reassembly_evicted"] == 992
    assert bench.feed(piece(8, DATA[8:16], more=False, ident=999)) is not None


def test_many_small_fragments_of_one_datagram_are_bounded() -> None:
    bench = Bench(fragments=16)
    for number in range(1000):
        bench.feed(piece(16 * number, DATA[:8]))
    assert bench.counters["ipv4.fragment_too_many"] == 1
    assert bench.counters["ipv4.fragment_late"] == 1000 - 17
    assert bench.reassembler.bytes_held == 0


def test_bytes_are_bounded_whatever_they_belong_to() -> None:
    bench = Bench(bytes=20_000)
    for ident in range(100):
        bench.feed(piece(0, bytes(1400), ident=ident), piece(1400, bytes(1400), ident=ident))
        assert bench.reassembler.bytes_held <= 20_000
    assert bench.counters["ipv4.reassembly_evicted"] > 90
