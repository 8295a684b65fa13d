"""The fast lane takes an acknowledgement for the secondary's when both told the same: it must be what still holds."""

from __future__ import annotations

from colo.compare import Comparator, CompareConfig
from colo.framing import PLAIN
from pystack.wire.packet import ACK
from tests.colo_guests import Guest


def wrapped(frame: bytes) -> bytes:
    return PLAIN.pack(len(frame)) + frame


class Bench:
    """Two machines with one open connection, in which 1,000 more bytes of the client's are on their way."""

    def __init__(self) -> None:
        self.comparator = Comparator(CompareConfig(framed=True))
        self.p, self.s = Guest(), Guest()
        assert self.feed(self.p.syn_ack(), None) == []
        assert len(self.feed(None, self.s.syn_ack())) == 1
        assert len(self.feed(self.data(self.p, 1, b"a"), self.data(self.s, 1, b"a"))) == 1

    @staticmethod
    def data(guest: Guest, offset: int, payload: bytes, ack: int = 7000) -> bytes:
        return guest.segment(guest.iss + offset, ACK, payload, ack=ack)

    def feed(self, primary: bytes | None, secondary: bytes | None) -> list[bytes]:
        if primary is not None:
            self.comparator.primary_bytes(wrapped(primary), 0)
        if secondary is not None:
            self.comparator.secondary_bytes(wrapped(secondary), 0)
        return [bytes(buffer) for buffer in self.comparator.take_released()]


def test_what_the_secondary_told_before_a_checkpoint_holds_no_more() -> None:
    bench = Bench()
    bench.feed(None, bench.s.segment(bench.s.iss + 2, ACK, ack=8000))  # the secondary is ahead
    comparator = bench.comparator
    comparator.primary_boundary()
    comparator.secondary_boundary()
    comparator.commit(0)  # and becomes a copy of the primary, which has not acknowledged these bytes
    frame = bench.data(bench.p, 2, b"b", ack=8000)
    assert bench.feed(frame, bench.data(bench.s, 2, b"b", ack=7000)) == []
    assert bench.feed(None, bench.s.segment(bench.s.iss + 3, ACK, ack=8000)) == [wrapped(frame)]


def test_also_when_the_secondary_is_first() -> None:
    bench = Bench()
    bench.feed(None, bench.s.segment(bench.s.iss + 2, ACK, ack=8000))
    comparator = bench.comparator
    comparator.primary_boundary()
    comparator.secondary_boundary()
    comparator.commit(0)
    bench.feed(bench.p.segment(bench.p.iss + 2, ACK), None)  # the connection is active again
    frame = bench.data(bench.p, 2, b"b", ack=8000)
    assert bench.feed(None, bench.data(bench.s, 2, b"b", ack=7000)) == []
    assert bench.feed(frame, None) == []
    assert bench.feed(None, bench.s.segment(bench.s.iss + 3, ACK, ack=8000)) == [wrapped(frame)]


def test_an_acknowledgement_far_outside_the_window_is_not_taken_from_the_secondary() -> None:
    bench = Bench()
    far = 7000 + (1 << 30) + 1000
    bench.feed(None, bench.s.segment(bench.s.iss + 2, ACK, ack=far))
    assert bench.comparator.counters["compare.out_of_window"] == 1
    frame = bench.data(bench.p, 2, b"b", ack=far)
    assert bench.feed(frame, bench.data(bench.s, 2, b"b", ack=7000)) == []


def test_a_secondary_that_is_ahead_covers_what_the_primary_tells() -> None:
    bench = Bench()
    bench.feed(None, bench.s.segment(bench.s.iss + 2, ACK, ack=7500))
    frame = bench.data(bench.p, 2, b"b", ack=7400)
    assert bench.feed(frame, bench.data(bench.s, 2, b"b", ack=7500)) == [wrapped(frame)]


def test_one_that_is_behind_does_not() -> None:
    bench = Bench()
    frame = bench.data(bench.p, 2, b"b", ack=7400)
    assert bench.feed(frame, bench.data(bench.s, 2, b"b", ack=7399)) == []
    assert bench.feed(None, bench.s.segment(bench.s.iss + 3, ACK, ack=7400)) == [wrapped(frame)]
