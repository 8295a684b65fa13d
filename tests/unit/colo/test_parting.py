"""When a frame of the primary leaves in two, and when it must not."""

from __future__ import annotations

import struct

import pytest

from colo.compare import Comparator, CompareConfig
from pystack.counters import Counters
from pystack.link.segment import to_wire_untrusted
from pystack.wire import vnet
from pystack.wire.packet import ACK, CWR, FIN, PSH, RST, Packet, parse_untrusted, verify_untrusted
from tests.colo_guests import framed
from tests.large_frames import Large, syn_ack
from tests.unit.colo.bench import SECOND, Bench

STREAM = bytes(range(250)) * 4
LARGE = Large()
SMALL = LARGE.but(gso_size=0)


@pytest.fixture
def bench() -> Bench:
    """Both have answered the client's SYN, and have told of their window."""
    bench = Bench(vnet_hdr_len=12)
    assert bench.both(syn_ack(LARGE), syn_ack(LARGE)) == 1
    assert bench.both(SMALL.data(0, b"", ACK), SMALL.data(0, b"", ACK)) == 1
    bench.out.clear()
    return bench


def parsed(frame: bytes, vnet_hdr_len: int = 12) -> Packet:
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    assert packet is not None
    return packet


def small(start: int, stop: int, flags: int = ACK) -> bytes:
    """A segment of the secondary."""
    return SMALL.data(start, STREAM[start:stop], flags)


def payloads(bench: Bench) -> list[bytes]:
    """Of what has left since the last look."""
    frames, bench.out = bench.out, []
    return [parsed(frame).payload_bytes() for frame in frames]


@pytest.mark.parametrize("secondary_first", [False, True])
def test_what_the_secondary_has_sent_of_a_large_frame_leaves(bench: Bench, secondary_first: bool) -> None:
    """Else it waits for the client to acknowledge it, and the client for this frame."""
    whole = LARGE.data(0, STREAM)
    if secondary_first:
        assert bench.s(small(0, 150), small(150, 300)) == 0
        assert bench.p(whole) == 1
    else:
        assert bench.p(whole) == 0
        bench.comparator.secondary(small(0, 150), 0)
        assert bench.s(small(150, 300)) == 1, "in one piece what came before anybody looked"
    assert payloads(bench) == [STREAM[:300]]
    assert bench.comparator.held_frames == 1
    assert bench.s(small(300, 600)) == 1
    assert bench.s(small(600, 1000)) == 1
    assert payloads(bench) == [STREAM[300:600], STREAM[600:]]
    assert bench.counters["compare.cut"] == 2
    assert (bench.comparator.held_bytes, bench.reasons) == (0, [])


def test_the_parts_say_what_is_left_to_do(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM[:350], ACK | CWR | PSH | FIN, ident=9))
    for start, stop in ((0, 200), (200, 300), (300, 350)):
        bench.s(small(start, stop, ACK | (FIN if stop == 350 else 0)))
    headers = [vnet.parse_untrusted(frame, 12) for frame in bench.out]
    large, header = vnet.GSO_TCPV4, 54
    assert headers == [
        vnet.Header(vnet.F_NEEDS_CSUM, large | vnet.GSO_ECN, header, 100, 34, 16),
        vnet.Header(vnet.F_NEEDS_CSUM, vnet.GSO_NONE, 0, 0, 34, 16),
        vnet.Header(vnet.F_NEEDS_CSUM, vnet.GSO_NONE, 0, 0, 34, 16),
    ]
    packets = [parsed(frame) for frame in bench.out]
    assert [packet.flags for packet in packets] == [ACK | CWR, ACK, ACK | PSH | FIN]
    assert [packet.ident for packet in packets] == [9, 11, 12]


def test_the_rest_of_a_large_frame_does_not_say_that_it_has_the_flag_of_the_first(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM[:350], ACK | CWR))
    assert bench.s(small(0, 100)) == 1
    assert bench.commit() == 1
    types = [header.gso_type for header in (vnet.parse_untrusted(frame, 12) for frame in bench.out) if header]
    assert types == [vnet.GSO_NONE, vnet.GSO_TCPV4]


def test_less_than_a_segment_waits_until_the_secondary_repeats_it(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM))
    assert bench.s(small(0, 60)) == 0
    assert bench.s(small(0, 60)) == 1, "it can go no further"
    assert bench.s(small(60, 120)) == 0
    assert bench.s(small(120, 170)) == 1
    assert payloads(bench) == [STREAM[:60], STREAM[60:170]]


@pytest.mark.parametrize("vnet_hdr_len", [0, 12])
def test_an_ordinary_frame_is_cut_only_if_the_secondary_repeats_a_part_of_it(vnet_hdr_len: int) -> None:
    bench = Bench(vnet_hdr_len=vnet_hdr_len)
    guest = SMALL.but(vnet_hdr_len=vnet_hdr_len, partial=vnet_hdr_len > 0)
    bench.both(syn_ack(guest), syn_ack(guest))
    assert bench.both(guest.data(0, STREAM[:200]), guest.data(0, STREAM[:150])) == 0
    bench.out.clear()
    assert bench.s(guest.data(100, STREAM[100:150])) == 1
    assert bench.s(guest.data(150, STREAM[150:200])) == 1
    packets = [parsed(frame, vnet_hdr_len) for frame in bench.out]
    assert [packet.payload_bytes() for packet in packets] == [STREAM[:150], STREAM[150:200]]
    for frame in bench.out:
        (wire,) = to_wire_untrusted(frame, vnet_hdr_len, bench.counters)
        assert verify_untrusted(parsed(wire, 0), bench.counters, rx_checksum=False)
    assert bench.comparator.held_bytes == 0


def test_what_the_client_has_already_is_no_reason_to_cut(bench: Bench) -> None:
    bench.both(small(0, 100), small(0, 100))
    assert bench.both(small(100, 200), small(100, 150)) == 0
    assert bench.s(small(0, 100)) == 0


def test_a_whole_frame_leaves_whole_if_it_is_covered_before_anybody_looks(bench: Bench) -> None:
    whole = LARGE.data(0, STREAM)
    bench.comparator.primary(whole, 0)
    for start in range(0, 1000, 100):
        bench.comparator.secondary(small(start, start + 100), 0)
    assert bench.s() == 1
    assert bench.out == [whole]
    assert bench.counters["compare.cut"] == 0


def test_an_end_waits_with_the_last_segment(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM[:300], ACK | FIN))
    assert bench.s(small(0, 300)) == 1
    assert payloads(bench) == [STREAM[:200]]
    assert bench.s(small(300, 300, ACK | FIN)) == 1
    assert [parsed(frame).flags for frame in bench.out] == [ACK | FIN]
    assert payloads(bench) == [STREAM[200:300]]
    assert bench.reasons == []


def test_a_part_acknowledges_what_the_whole_does_and_waits_for_that(bench: Bench) -> None:
    bench.p(LARGE.but(acked=7100).data(0, STREAM))
    assert bench.s(small(0, 300)) == 0
    assert bench.s(SMALL.but(acked=7100).data(300, b"", ACK)) == 1
    assert [parsed(frame).ack for frame in bench.out] == [7100]
    assert payloads(bench) == [STREAM[:300]]


def test_a_part_offers_no_larger_window_than_both_can_take(bench: Bench) -> None:
    bench.p(LARGE.but(window=9000).data(0, STREAM))
    assert bench.s(small(0, 300)) == 1
    packet = parsed(bench.out[-1])
    assert (packet.window, packet.payload_bytes()) == (8000, STREAM[:300])
    bench.out.clear()
    assert bench.s(SMALL.but(window=9000).data(300, STREAM[300:])) == 2, "and the window that was owed"
    assert [parsed(frame).window for frame in bench.out] == [9000, 9000]
    assert payloads(bench) == [STREAM[300:], b""]
    assert bench.comparator.held_bytes == 0


def test_nothing_different_leaves(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM))
    changed = bytearray(STREAM[:300])
    changed[250] ^= 1
    assert bench.s(SMALL.data(0, bytes(changed))) == 0
    assert bench.reasons == ["payload"]
    assert bench.commit() == 1


def test_a_difference_in_the_rest_is_told_at_its_place(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM))
    assert bench.s(small(0, 300)) == 1
    assert bench.s(SMALL.data(300, b"something else")) == 0
    assert [(asked.reason, asked.offset) for asked in bench.asked] == [("payload", 300)]
    bench.out.clear()
    assert bench.commit() == 1
    assert payloads(bench) == [STREAM[300:]]


def test_a_retransmission_is_held_against_the_part_that_has_left(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM))
    bench.s(small(0, 300))
    assert bench.p(small(100, 300)) == 1, "before the rest"
    assert bench.p(SMALL.data(100, bytes(10))) == 0
    assert bench.reasons == ["retransmission"]


def test_what_waits_behind_comes_behind() -> None:
    """In the framed stream too, and with a checkpoint in between."""
    comparator = Comparator(CompareConfig(framed=True, vnet_framing=True, vnet_hdr_len=12))
    behind = small(1000, 1000)
    comparator.primary_bytes(framed(syn_ack(LARGE), 12), 0)
    comparator.secondary_bytes(framed(syn_ack(LARGE), 12), 0)
    comparator.take_released()
    stream = framed(LARGE.data(0, STREAM), 12) + framed(behind, 12)
    comparator.primary_bytes(stream, 0)
    comparator.secondary_bytes(framed(small(0, 300), 12), 0)
    first = b"".join(comparator.take_released())
    length, vnet_hdr_len = struct.unpack_from("!II", first)
    assert (length, vnet_hdr_len) == (len(first) - 8, 12)
    assert comparator.held_bytes == len(stream) - 300
    assert comparator.held_frames == 2
    comparator.commit(0)
    rest = b"".join(comparator.take_released())
    assert rest.endswith(framed(behind, 12))
    assert parsed(rest[8 : -8 - len(behind)]).payload_bytes() == STREAM[300:]
    assert comparator.held_bytes == 0


def test_parts_of_several_connections_leave_in_the_order_of_their_frames() -> None:
    comparator = Comparator(CompareConfig(framed=True, vnet_framing=True, vnet_hdr_len=12))
    other = bytearray(LARGE.data(0, STREAM))
    ports = slice(12 + 34, 12 + 38)
    other[ports] = b"\0\x50\0\x07"
    comparator.primary_bytes(framed(LARGE.data(0, STREAM), 12) + framed(bytes(other), 12), 0)
    half = bytearray(small(0, 300))
    half[ports] = b"\0\x50\0\x07"
    comparator.secondary_bytes(framed(bytes(half), 12) + framed(small(0, 300), 12), 0)
    released = b"".join(comparator.take_released())
    size = 8 + int.from_bytes(released[:4], "big")
    assert [parsed(part[8:]).dport for part in (released[:size], released[size:])] == [5000, 7]


def test_held_bytes_are_those_of_the_rest_in_memory_of_its_own(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM))
    bench.s(small(0, 300))
    flow = next(iter(bench.comparator._flows.active.values()))
    (record,) = flow.held
    assert len(record[2]) == bench.comparator.held_bytes == 12 + 54 + 700
    assert getattr(flow, "ahead", []) == [record]


@pytest.mark.parametrize(
    ("at", "value"),
    [(12 + 34 + 20 + 999, b"\xff"), (6, b"\x23"), (1, b"\x04"), (4, b"\0\0")],
    ids=["a damaged byte", "csum_start elsewhere", "IPv6", "no gso_size"],
)
def test_a_frame_that_contradicts_itself_stays_whole(at: int, value: bytes) -> None:
    """What is wrong with it is for the client to see."""
    bench = Bench(vnet_hdr_len=12)
    guest = SMALL.but(partial=False) if at > 12 else LARGE
    bench.both(syn_ack(SMALL), syn_ack(SMALL))
    whole = bytearray(guest.data(0, STREAM))
    whole[at : at + len(value)] = value
    bench.out.clear()
    assert bench.p(bytes(whole)) == 0
    assert bench.s(small(0, 300), small(0, 300)) == 0
    assert bench.counters["compare.cut"] == 0


def test_a_reset_with_payload_stays_whole(bench: Bench) -> None:
    bench.p(LARGE.data(0, STREAM, RST | ACK))
    assert bench.s(small(0, 300), small(0, 300)) == 0


def test_what_is_left_waits_anew(bench: Bench) -> None:
    """A checkpoint is asked for when the secondary does not go on, and not because the client is slow."""
    bench.p(LARGE.data(0, STREAM))
    for start in (0, 100, 200):
        bench.wait(2 * SECOND)
        assert bench.s(small(start, start + 100)) == 1
    assert bench.reasons == []
    bench.wait(4 * SECOND)
    assert [(asked.reason, asked.offset) for asked in bench.asked] == [("timeout", 300)]
