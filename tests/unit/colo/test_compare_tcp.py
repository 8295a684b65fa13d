"""What releases a frame of a TCP connection, and what must not."""

from __future__ import annotations

from typing import Any

import pytest

from pystack.wire.packet import ACK, FIN, PSH, RST, SYN, parse_untrusted
from tests.colo_guests import Guest
from tests.unit.colo.bench import SECOND, Bench

HELLO = b"HTTP/1.1 200 OK\r\n\r\nhello"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_syn_ack_waits_for_the_secondarys_whatever_its_number(bench: Bench) -> None:
    bench.secondary.iss = 900_000
    assert bench.p(bench.primary.syn_ack()) == 0
    assert bench.s(bench.secondary.syn_ack()) == 1
    assert bench.reasons == []


@pytest.mark.parametrize("change", [{"mss": 1400}, {"scale": None}, {"scale": 3}, {"sack": False}])
def test_options_that_are_negotiated_otherwise_are_a_difference(bench: Bench, change: dict[str, Any]) -> None:
    assert bench.both(bench.primary.syn_ack(), bench.secondary.syn_ack(**change)) == 0
    assert bench.reasons == ["options"]


def test_a_refusal_is_not_an_answer(bench: Bench) -> None:
    refused = bench.secondary.segment(0, RST | ACK)
    assert bench.both(bench.primary.syn_ack(), refused) == 0
    assert bench.reasons == ["flags"]


def test_both_refuse(bench: Bench) -> None:
    assert bench.both(bench.primary.segment(0, RST | ACK), bench.secondary.segment(0, RST | ACK)) == 1
    assert bench.reasons == []


def test_equal_payload_leaves_and_a_different_one_stays(bench: Bench) -> None:
    bench.open()
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 1
    assert bench.both(bench.primary.data(24, b"abc"), bench.secondary.data(24, b"abX")) == 0
    (found,) = bench.asked
    assert (found.reason, found.offset) == ("payload", 26)
    assert found.primary[found.before :] == b"c"
    assert found.secondary[found.before :] == b"X"
    assert found.primary[: found.before] == b"ab"


def test_a_difference_is_asked_for_once_and_all_of_the_flow_waits(bench: Bench) -> None:
    bench.open()
    bench.both(bench.primary.data(0, b"abc"), bench.secondary.data(0, b"abX"))
    for offset in (3, 6, 9):
        assert bench.both(bench.primary.data(offset, b"abc"), bench.secondary.data(offset, b"abc")) == 0
    assert bench.reasons == ["payload"]
    assert bench.commit() == 4
    assert bench.both(bench.primary.data(12, b"same"), bench.secondary.data(12, b"same")) == 1


def test_another_connection_does_not_wait(bench: Bench) -> None:
    bench.open()
    bench.p(bench.primary.data(0, b"held"))
    other_p, other_s = Guest(dport=5001), Guest(dport=5001)
    assert bench.both(other_p.syn_ack(), other_s.syn_ack()) == 1


@pytest.mark.parametrize("primary_first", [True, False])
def test_segmentation_does_not_matter(bench: Bench, primary_first: bool) -> None:
    bench.open()
    pieces = [bench.secondary.data(at, HELLO[at : at + 5]) for at in range(0, len(HELLO), 5)]
    if primary_first:
        assert bench.p(bench.primary.data(0, HELLO)) == 0
        assert [bench.s(piece) for piece in pieces] == [0, 0, 0, 0, 1]
    else:
        assert bench.s(*pieces) == 0
        assert bench.p(bench.primary.data(0, HELLO)) == 1
    assert bench.reasons == []


def test_an_acknowledgement_that_is_ahead_is_held_and_is_no_difference(bench: Bench) -> None:
    bench.open()
    bench.primary.acked += 100
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 0
    assert bench.reasons == []
    bench.secondary.acked += 100
    assert bench.s(bench.secondary.ack(24)) == 1


def test_acknowledgements_around_the_wrap(bench: Bench) -> None:
    """QEMU's fb5eca4a57 and e29bc931e1: unsigned arithmetic took the wrong one for the smaller."""
    bench.primary.acked = bench.secondary.acked = 0xFFFF_FFF0
    bench.open()
    bench.primary.acked = 0x10
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 0
    bench.secondary.acked = 0x0F
    assert bench.s(bench.secondary.ack(24)) == 0
    bench.secondary.acked = 0x10
    assert bench.s(bench.secondary.ack(24)) == 1


def test_the_stream_passes_the_wrap_and_ends_right_on_it() -> None:
    """QEMU takes 0 for "unset", so that a stream that ends at 2**32 makes it forget where it was."""
    bench = Bench()
    for guest in (bench.primary, bench.secondary):
        guest.iss = 0xFFFF_FFFF - len(HELLO)
    bench.open()
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 1
    assert bench.p(bench.primary.data(0, HELLO)) == 1
    assert bench.both(bench.primary.data(24, b"more"), bench.secondary.data(24, b"more")) == 1
    assert bench.reasons == []


def test_a_retransmission_leaves_at_once_and_must_be_the_same(bench: Bench) -> None:
    bench.open()
    bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO))
    assert bench.p(bench.primary.data(4, HELLO[4:10])) == 1
    assert bench.p(bench.primary.data(4, b"others")) == 0
    assert bench.reasons == ["retransmission"]


def test_a_retransmission_overtakes_what_waits_for_the_secondary(bench: Bench) -> None:
    """Else a client that has lost it, a secondary that waits for the client and what is new wait for each other."""
    bench.open()
    bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO))
    assert bench.p(bench.primary.data(24, b"new")) == 0
    again = bench.primary.data(0, HELLO)
    assert bench.p(again) == 1
    assert bench.out[-1] == again
    assert bench.s(bench.secondary.data(24, b"new")) == 1


def test_a_retransmission_overtakes_the_large_frame_that_it_is_a_part_of(bench: Bench) -> None:
    """Its last bytes may wait for the client to have the first."""
    bench.open()
    assert bench.both(bench.primary.data(0, HELLO * 4), bench.secondary.data(0, HELLO)) == 0
    assert bench.p(bench.primary.data(0, HELLO[:5])) == 1
    assert bench.s(bench.secondary.data(24, HELLO * 3)) == 1
    assert bench.reasons == []


def test_a_retransmission_does_not_overtake_the_syn(bench: Bench) -> None:
    assert bench.p(bench.primary.syn_ack(), bench.primary.data(0, b"abc"), bench.primary.data(0, b"abc")) == 0
    assert bench.s(bench.secondary.syn_ack()) == 1
    assert bench.s(bench.secondary.data(0, b"abc")) == 2


def test_a_retransmission_with_new_bytes_behind_waits_for_those(bench: Bench) -> None:
    bench.open()
    bench.both(bench.primary.data(0, b"12345"), bench.secondary.data(0, b"12345"))
    assert bench.p(bench.primary.data(0, b"1234567890")) == 0
    assert bench.s(bench.secondary.data(5, b"67890")) == 1
    assert bench.reasons == []


def test_nothing_is_compared_across_a_gap(bench: Bench) -> None:
    """QEMU compares 0..5 of the one with 5..10 of the other, and finds "AAAAA" equal."""
    bench.open()
    assert bench.both(bench.primary.data(0, b"AAAAA"), bench.secondary.data(5, b"AAAAA")) == 0
    assert bench.s(bench.secondary.data(0, b"AAAAA")) == 1
    assert bench.reasons == []


def test_out_of_order_segments_of_the_primary_leave_in_its_order(bench: Bench) -> None:
    bench.open()
    later, earlier = bench.primary.data(5, b"67890"), bench.primary.data(0, b"12345")
    assert bench.p(later, earlier) == 0
    assert bench.s(bench.secondary.data(0, b"1234567890")) == 2
    assert bench.out == [later, earlier]


def test_a_fin_needs_the_secondarys_at_the_same_place(bench: Bench) -> None:
    bench.open()
    assert bench.p(bench.primary.fin(0, b"bye")) == 0
    assert bench.s(bench.secondary.data(0, b"bye")) == 0
    assert bench.s(bench.secondary.fin(3)) == 1
    assert bench.both(bench.primary.ack(4), bench.secondary.ack(4)) == 1
    assert bench.reasons == []


@pytest.mark.parametrize("primary_ends", [True, False])
def test_data_where_the_other_has_ended_is_a_difference(bench: Bench, primary_ends: bool) -> None:
    bench.open()
    if primary_ends:
        bench.both(bench.primary.fin(0), bench.secondary.data(0, b"more"))
    else:
        bench.both(bench.primary.data(0, b"more"), bench.secondary.fin(0))
    assert bench.out == []
    assert bench.reasons == ["flags"]


@pytest.mark.parametrize("iss", [1_000_000, 5])
def test_a_reused_four_tuple_is_a_new_incarnation(bench: Bench, iss: int) -> None:
    """QEMU keeps its position, and lets everything out unchecked that lies below it."""
    bench.open()
    bench.both(bench.primary.fin(0, HELLO), bench.secondary.fin(0, HELLO))
    for guest in (bench.primary, bench.secondary):
        guest.iss = iss
    assert bench.both(bench.primary.syn_ack(), bench.secondary.syn_ack()) == 1
    assert bench.both(bench.primary.data(0, b"PRIMARY"), bench.secondary.data(0, b"SECONDA")) == 0
    assert bench.reasons == ["payload"]


def test_the_secondary_may_reuse_the_four_tuple_first(bench: Bench) -> None:
    bench.open()
    bench.both(bench.primary.fin(0), bench.secondary.fin(0))
    for guest in (bench.primary, bench.secondary):
        guest.iss = 77_000
    assert bench.s(bench.secondary.syn_ack(), bench.secondary.data(0, HELLO)) == 0
    assert bench.p(bench.primary.syn_ack(), bench.primary.data(0, HELLO)) == 2
    assert bench.reasons == []


def test_a_new_syn_while_the_old_connection_is_held_waits_for_a_checkpoint(bench: Bench) -> None:
    bench.open()
    bench.p(bench.primary.data(0, b"held"))
    bench.primary.iss = bench.secondary.iss = 50_000
    assert bench.p(bench.primary.syn_ack()) == 0
    assert bench.reasons == ["incarnation"]
    assert bench.commit() == 2
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 1


def test_a_late_duplicate_of_the_syn_ack_is_no_incarnation(bench: Bench) -> None:
    bench.open()
    bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO))
    assert bench.both(bench.primary.syn_ack(), bench.secondary.syn_ack()) == 1
    assert bench.both(bench.primary.data(24, b"more"), bench.secondary.data(24, b"more")) == 1
    assert bench.reasons == []


def test_a_connection_that_began_before_the_comparison(bench: Bench) -> None:
    assert bench.both(bench.primary.data(100, HELLO), bench.secondary.data(100, HELLO)) == 1
    assert bench.p(bench.primary.data(90, b"0123456789")) == 0
    assert bench.s(bench.secondary.data(90, b"0123456789")) == 1
    assert bench.reasons == []


def test_bytes_from_before_the_comparison_are_not_taken_for_agreed_ones(bench: Bench) -> None:
    bench.both(bench.primary.data(100, HELLO), bench.secondary.data(100, HELLO))
    assert bench.p(bench.primary.data(90, b"0123456789")) == 0
    assert bench.s(bench.secondary.data(90, b"01234X6789")) == 0
    bench.wait(4 * SECOND)
    assert bench.reasons == ["timeout"]


def test_ethernet_padding_is_not_payload(bench: Bench) -> None:
    bench.open()
    bench.s(bench.secondary.ack(0))
    assert bench.p(bench.primary.ack(0) + bytes(6)) == 1
    assert bench.both(bench.primary.data(0, b"ab") + bytes(4), bench.secondary.data(0, b"ab")) == 1
    assert bench.reasons == []


def test_timestamps_and_sack_blocks_are_no_difference(bench: Bench) -> None:
    bench.primary.tsval, bench.secondary.tsval = 1, 999_999
    bench.open()
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 1
    bench.secondary.tsval = None
    assert bench.both(bench.primary.data(24, HELLO), bench.secondary.data(24, HELLO)) == 1


def test_a_guest_opens(bench: Bench) -> None:
    syn_p = bench.primary.segment(bench.primary.iss, SYN)
    bench.secondary.iss = 4_000_000
    assert bench.both(syn_p, bench.secondary.segment(bench.secondary.iss, SYN)) == 1
    bench.secondary.iss = bench.primary.iss  # as the rewriter makes it
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 1


def test_a_window_that_is_larger_is_lowered_to_what_both_take(bench: Bench) -> None:
    bench.open()
    bench.both(bench.primary.ack(0), bench.secondary.ack(0))
    bench.primary.window = 9000
    bench.out.clear()
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 1
    packet = parse_untrusted(bench.out[0], 0, bench.counters)
    assert packet is not None
    assert packet.window == 8000
    assert packet.payload_bytes() == HELLO
    assert _checksums_hold(bench.out[0])
    # When the secondary's opens too, the client is told, by the primary's last frame without its payload.
    bench.secondary.window = 9000
    assert bench.s(bench.secondary.ack(24)) == 1
    update = parse_untrusted(bench.out[1], 0, bench.counters)
    assert update is not None
    assert (update.window, update.flags, update.payload_len) == (9000, ACK, 0)
    assert update.seq == bench.primary.iss + 1 + 24
    assert _checksums_hold(bench.out[1])
    assert bench.reasons == []
    assert bench.comparator.held_bytes == 0


def _checksums_hold(frame: bytes) -> bool:
    from pystack.counters import Counters
    from pystack.wire.packet import verify_untrusted

    counters = Counters()
    packet = parse_untrusted(frame, 0, counters)
    return packet is not None and verify_untrusted(packet, counters, rx_checksum=False)


def test_a_closed_window_of_the_secondary_closes_the_clients_until_it_opens(bench: Bench) -> None:
    bench.open()
    bench.secondary.window = bench.primary.window = 0
    bench.primary.acked = bench.secondary.acked = 7000 + (8000 << 7)
    bench.both(bench.primary.ack(0), bench.secondary.ack(0))
    bench.primary.window = 500
    bench.out.clear()
    assert bench.p(bench.primary.ack(0)) == 1
    shut = parse_untrusted(bench.out[0], 0, bench.counters)
    assert shut is not None
    assert shut.window == 0
    bench.secondary.window = 500
    assert bench.s(bench.secondary.ack(0)) == 1
    opened = parse_untrusted(bench.out[1], 0, bench.counters)
    assert opened is not None
    assert opened.window == 500


def test_a_window_that_was_lowered_is_told_after_a_checkpoint(bench: Bench) -> None:
    bench.open()
    bench.both(bench.primary.ack(0), bench.secondary.ack(0))
    bench.primary.window = 9000
    assert bench.p(bench.primary.ack(0)) == 1
    bench.out.clear()
    assert bench.commit() == 1
    update = parse_untrusted(bench.out[0], 0, bench.counters)
    assert update is not None
    assert update.window == 9000


def test_numbers_far_outside_the_window_move_nothing(bench: Bench) -> None:
    bench.open()
    bench.secondary.acked += 0x6000_0000
    bench.s(bench.secondary.data(0x5000_0000, b"far"))
    assert bench.counters["compare.out_of_window"] == 2
    bench.primary.acked += 100
    assert bench.p(bench.primary.ack(0)) == 0
    assert bench.p(bench.primary.data(0x5000_0000, b"far")) == 0
    bench.wait(4 * SECOND)
    assert bench.reasons == ["timeout"]


def test_the_psh_flag_is_no_difference(bench: Bench) -> None:
    bench.open()
    assert bench.both(bench.primary.data(0, HELLO, ACK | PSH), bench.secondary.data(0, HELLO, ACK)) == 1


def test_fin_with_data_in_one_machine_and_alone_in_the_other(bench: Bench) -> None:
    bench.open()
    assert bench.s(bench.secondary.fin(0, HELLO)) == 0
    assert bench.p(bench.primary.data(0, HELLO)) == 1
    assert bench.p(bench.primary.segment(bench.primary.iss + 1 + 24, FIN | ACK)) == 1


def test_vnet_headers_of_either_length(bench: Bench) -> None:
    """QEMU's 5a2d9929ac: the header's length was subtracted twice."""
    for length in (10, 12):
        other = Bench(vnet_hdr_len=length)
        other.primary.vnet_hdr_len = other.secondary.vnet_hdr_len = length
        other.open()
        assert other.both(other.primary.data(0, HELLO), other.secondary.data(0, HELLO)) == 1
        assert other.both(other.primary.data(24, b"a"), other.secondary.data(24, b"b")) == 0
        assert other.reasons == ["payload"]
