"""What went wrong in QEMU's COLO before, as far as it needs no QEMU to show that it does not go wrong here.

Hashes are those of QEMU's commits; docs/reference/differences-from-qemu.md has the list.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from colo.compare import Comparator, CompareConfig
from pystack.flow.rewriter import Rewriter, RewriterConfig
from pystack.testing.frames import Crafter
from pystack.wire.packet import ACK, SYN, parse_untrusted
from tests.colo_guests import CLIENT, GUEST, Guest


def released(comparator: Comparator) -> list[bytes]:
    return [bytes(buffer) for buffer in comparator.take_released()]


def test_nothing_held_leaves_before_the_checkpoint_has_completed() -> None:
    """4fa8ed25b8: the client saw data that the secondary never had, and the connection was reset at the failover."""
    one, other = Guest(), replace(Guest(), ident=500)
    comparator = Comparator(CompareConfig())
    held = [one.data(0, b"abc"), one.data(3, b"def")]
    for frame in held:
        comparator.primary(frame, 0)
    comparator.secondary(other.data(0, b"xyz"), 0)
    assert [request.reason for request in comparator.take_requests()] == ["payload"]
    comparator.primary_boundary()
    comparator.secondary_boundary()
    late = one.data(6, b"ghi")
    comparator.primary(late, 1)
    assert released(comparator) == []
    comparator.commit(2)
    assert released(comparator) == held
    comparator.secondary(other.data(6, b"ghi"), 3)
    assert released(comparator) == [late]


def test_a_checkpoint_that_failed_releases_nothing() -> None:
    """a8664ba510 and others: an error on the way is no commit."""
    one, other = Guest(), Guest()
    comparator = Comparator(CompareConfig())
    comparator.primary(one.data(0, b"abc"), 0)
    comparator.secondary(other.data(0, b"xyz"), 0)
    comparator.primary_boundary()
    comparator.secondary_boundary()
    comparator.abort(1)
    assert released(comparator) == []
    assert comparator.held_frames == 1


def test_what_the_secondary_sent_before_a_checkpoint_is_not_compared_after_it() -> None:
    """QEMU has no mark between the two: a late frame of the old secondary meets the new one's."""
    wire = Crafter(GUEST, CLIENT)
    comparator = Comparator(CompareConfig())
    comparator.secondary(wire.udp(1, 2, b"of a machine that is no more"), 0)
    comparator.primary_boundary()
    comparator.secondary_boundary()
    comparator.commit(1)
    frame = wire.udp(1, 2, b"new")
    comparator.primary(frame, 2)
    comparator.secondary(frame, 2)
    assert released(comparator) == [frame]
    assert comparator.take_requests() == []


@pytest.mark.parametrize("iss", [0, 1, 0xFFFF_FFFF])
def test_the_first_segment_of_a_connection(iss: int) -> None:
    """862ee1e07e: the position was not initialised."""
    one, other = Guest(iss=iss), Guest(iss=iss)
    comparator = Comparator(CompareConfig())
    frame = one.data(0, b"first")
    comparator.primary(frame, 0)
    comparator.secondary(other.data(0, b"first"), 0)
    assert released(comparator) == [frame]


def test_the_longest_timeout() -> None:
    """0c4266ef26: the type was too short for it. QEMU takes 2^32 - 1 ms at most, and so does `--compare-timeout`."""
    longest = 0xFFFF_FFFF * 1000
    comparator = Comparator(CompareConfig(compare_timeout=longest))
    comparator.primary(Guest().data(0, b"alone"), 7)
    comparator.tick(6 + longest)
    assert comparator.take_requests() == []
    comparator.tick(7 + longest + comparator.config.scan_cycle)
    assert [request.reason for request in comparator.take_requests()] == ["timeout"]


def test_without_a_secondary_everything_passes() -> None:
    """45942b79b9, 5bd57eba04: QEMU crashed when there was nothing to compare with."""
    one = Guest()
    comparator = Comparator(CompareConfig())
    frames = [one.syn_ack(), one.data(0, b"abc"), one.fin(3)]
    comparator.primary(frames[0], 0)
    comparator.pass_through(1)
    for frame in frames[1:]:
        comparator.primary(frame, 2)
    assert released(comparator) == frames
    comparator.tick(10**9)
    assert comparator.take_requests() == []


def test_what_is_dropped_is_counted_and_bounded() -> None:
    """bdadbb0f74, 9162ed6649, f77bed14f0, 2061c14c9b: what did not fit leaked."""
    wire = Crafter(GUEST, CLIENT)
    comparator = Comparator(CompareConfig(max_held_bytes=10_000))
    for number in range(100):
        comparator.primary(wire.udp(1, 2, number.to_bytes(2, "big") + bytes(500)), 0)
    assert comparator.counters.snapshot()["compare.primary_dropped"] > 0
    assert comparator.held_bytes < 11_000
    assert [request.reason for request in comparator.take_requests()] == ["queue_full"]
    comparator.primary_boundary()
    comparator.secondary_boundary()
    comparator.commit(1)
    assert len(released(comparator)) > 15
    assert comparator.held_bytes == 0


def test_connections_that_have_ended_make_room() -> None:
    """a18d436954: QEMU's table only grows, until it forgets all at once what it holds."""
    comparator = Comparator(CompareConfig(max_flows=10))
    for port in range(1000, 1100):
        one, other = Guest(dport=port), Guest(dport=port)
        frames = [one.syn_ack(), one.data(0, b"abc"), one.fin(3)]
        for mine, its in zip(frames, [other.syn_ack(), other.data(0, b"abc"), other.fin(3)], strict=True):
            comparator.primary(mine, 0)
            comparator.secondary(its, 0)
        assert released(comparator) == frames
        assert comparator.flows <= 10
    assert comparator.take_requests() == []


def test_the_rewriter_s_table_is_bounded_and_keeps_who_is_open() -> None:
    """94c36c4875: QEMU's ended in an assertion when it was full."""
    rewriter = Rewriter(RewriterConfig(max_flows=8))
    guest, client = Crafter(GUEST, CLIENT), Crafter(CLIENT, GUEST)

    def to_secondary(**fields: int) -> bytes | None:
        packet = parse_untrusted(client.tcp(dport=80, **fields), 0, rewriter.counters)
        assert packet is not None
        return rewriter.to_secondary(packet, 0)

    to_secondary(sport=5000, seq=7000, flags=SYN)
    answer = {"sport": 80, "dport": 5000, "ack": 7001, "flags": SYN | ACK}
    for seq, take in ((1000, rewriter.observe_primary), (5000, rewriter.from_secondary)):
        packet = parse_untrusted(guest.tcp(seq=seq, **answer), 0, rewriter.counters)
        assert packet is not None
        take(packet, 0)
    to_secondary(sport=5000, seq=7001, ack=1001, flags=ACK)
    for port in range(6000, 6100):
        to_secondary(sport=port, seq=1, flags=SYN)
        assert len(rewriter) <= 8
    expected = client.tcp(sport=5000, dport=80, seq=7001, ack=5001, flags=ACK)
    assert to_secondary(sport=5000, seq=7001, ack=1001, flags=ACK) == expected
