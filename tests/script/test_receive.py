"""Receiving: delayed ACKs, the receiver's window, out-of-order text and SACK blocks, super-frames."""

from __future__ import annotations

import pytest

from pystack.tcp import events
from tests.script.script import OFFLOAD, Script, ms, seconds

# -- acknowledgements (RFC 9293 section 3.8.6.3, RFC 5681 section 4.2) ------------------------------------------------


def test_a_lone_segment_is_acknowledged_soon() -> None:
    # SHLD-18, MUST-40.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=100")
    assert s.events() == {c: events.DATA}
    s.after(ms(5), "ACK seq=1 ack=101")


def test_every_second_full_segment_is_acknowledged_at_once() -> None:
    # SHLD-19.
    s = Script(listen=True)
    s.open_passively()
    s.peer("ACK seq=1 ack=1 len=1460")
    s.expect()
    s.peer("ACK seq=1461 ack=1 len=1460")
    s.expect("ACK seq=1 ack=2921")
    s.peer("ACK seq=2921 ack=1 len=1460")
    s.after(ms(5), "ACK seq=1 ack=4381")


def test_a_batch_of_segments_costs_one_ack() -> None:
    # MUST-58, MUST-59.
    s = Script(listen=True)
    s.open_passively()
    s.peer(*[f"ACK seq={1 + 1460 * n} ack=1 len=1460" for n in range(10)])
    s.expect("ACK seq=1 ack=14601")
    s.quiet(seconds(1))


def test_the_ack_rides_on_data() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=100")
    c.write(b"answer")
    s.expect("ACK seq=1 ack=101 len=6")
    s.quiet(ms(150))


def test_text_in_order_is_delivered_across_the_wrap() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    at = 1
    for length in (1460, 1460, 1460, 1460, 700):  # 2**32 lies within the third
        s.peer(f"ACK seq={at} ack=1 len={length}")
        at += length
    assert c.irs < 1 << 32 < c.rcv_nxt
    assert c.read(100_000) == s.pattern(1, at - 1)


def test_duplicate_text_is_acknowledged_and_not_delivered_again() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=100")
    s.after(ms(5), "ACK seq=1 ack=101")
    s.peer("ACK seq=1 ack=1 len=100")
    s.expect("ACK seq=1 ack=101")
    s.peer("ACK seq=51 ack=1 len=100")
    s.expect("ACK seq=1 ack=151")
    assert c.read(1000) == s.pattern(1, 150)
    s.counted(outside_window=1, partly_duplicate=1)


# -- the window (RFC 9293 section 3.8.6) ------------------------------------------------------------------------------


def test_window_follows_what_is_unread_and_never_moves_left() -> None:
    # SHLD-14.
    s = Script(receive_buffer=4000)
    c = s.open_actively()
    s.peer("ACK seq=1 ack=1 len=1460", "ACK seq=1461 ack=1 len=1460")
    s.expect("ACK seq=1 ack=2921 win=1080")
    c.read(1000)  # less than is worth telling
    s.peer("ACK seq=2921 ack=1 len=1080")
    s.after(ms(5), "ACK seq=1 ack=4001 win=0")


def test_window_opens_by_a_worthwhile_step_only() -> None:
    # MUST-39, receiver's silly-window avoidance: the smaller of a segment and half of the buffer.
    s = Script(receive_buffer=10_000)
    c = s.open_actively()
    at = 1
    for _ in range(6):
        s.peer(f"ACK seq={at} ack=1 len=1460")
        at += 1460
    s.peer(f"ACK seq={at} ack=1 len=1240")
    s.expect("ACK seq=1 ack=10001 win=0")
    c.read(1459)
    s.expect()
    s.peer("ACK seq=10000 ack=1 len=1")  # a probe of the closed window: nothing worth offering yet
    s.expect("ACK seq=1 ack=10001 win=0")
    c.read(1041)
    s.expect()
    c.read(420)
    s.expect("ACK seq=1 ack=10001 win=2920")


def test_small_buffer_opens_by_half() -> None:
    s = Script(receive_buffer=1000)
    c = s.open_actively()
    s.peer("ACK seq=1 ack=1 len=1000")
    s.after(ms(5), "ACK seq=1 ack=1001 win=0")
    c.read(499)
    s.expect()
    c.read(1)
    s.expect("ACK seq=1 ack=1001 win=500")


def test_a_wider_window_rides_on_the_ack_that_is_due() -> None:
    # A SYN-ACK offers 65,535 bytes at most. To tell of a larger buffer at the first byte read would cost each short
    # connection a segment, and helps nobody: a peer with more to send than this makes an ACK due at once.
    s = Script(listen=True, window_scale=True, receive_buffer=1 << 20)
    c = s.open_passively("SYN seq=0 win=65535 mss=1460 ws=7")
    s.peer("ACK seq=1 ack=1 len=100")
    assert len(c.read(100)) == 100
    s.expect()
    c.write(b"answer")
    s.expect("ACK seq=1 ack=101 len=6 win=65535")  # in units of 16 bytes now


def test_text_beyond_the_window_is_cut_off() -> None:
    s = Script(receive_buffer=1000)
    c = s.open_actively()
    s.peer("ACK seq=1 ack=1 len=1400")
    s.expect("ACK seq=1 ack=1001 win=0")
    assert c.readable == 1000
    s.counted(beyond_window=1)


def test_a_probe_of_the_closed_window_is_answered_and_its_ack_counts() -> None:
    s = Script(receive_buffer=1000)
    c = s.open_actively()
    c.write(b"x" * 10)
    s.expect("ACK seq=1 ack=1 len=10")
    s.peer("ACK seq=1 ack=1 len=1000")
    s.after(ms(5), "ACK seq=11 ack=1001 win=0")
    s.peer("ACK seq=1001 ack=11 len=1")
    s.expect("ACK seq=11 ack=1001 win=0")
    assert c.unsent_or_unacked == 0
    assert c.readable == 1000


def test_no_window_update_after_the_peers_fin() -> None:
    s = Script(receive_buffer=1000)
    c = s.open_actively()
    s.peer("FIN-ACK seq=1 ack=1 len=1000")
    s.expect("ACK seq=1 ack=1002")
    c.read(1000)
    s.expect()


# -- out of order, and what the sender is told (RFC 5681 section 4.2, RFC 2018) ---------------------------------------


def test_out_of_order_text_is_kept_and_acknowledged_at_once() -> None:
    # SHLD-31, MAY-13.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=101 ack=1 len=100")
    s.expect("ACK seq=1 ack=1 noopt")
    assert c.readable == 0
    s.peer("ACK seq=1 ack=1 len=100")
    s.expect("ACK seq=1 ack=201")
    assert c.read(1000) == s.pattern(1, 200)
    s.counted(out_of_order=1)


def test_a_peer_without_sack_gets_a_duplicate_ack_for_each_segment() -> None:
    s = Script(listen=True)
    s.open_passively()
    s.peer(*[f"ACK seq={101 + 100 * n} ack=1 len=100" for n in range(3)])
    s.expect(*["ACK seq=1 ack=1"] * 3)


def test_a_peer_with_sack_gets_one_ack_that_says_all() -> None:
    s = Script(listen=True, sack=True)
    s.open_passively("SYN seq=0 mss=1460 sackok")
    s.peer(*[f"ACK seq={101 + 100 * n} ack=1 len=100" for n in range(3)])
    s.expect("ACK seq=1 ack=1 sack=101:401")


def test_first_sack_block_is_the_most_recent_one() -> None:
    # RFC 2018 section 4.
    s = Script(listen=True, sack=True)
    s.open_passively("SYN seq=0 mss=1460 sackok")
    s.peer("ACK seq=101 ack=1 len=100")
    s.expect("ACK seq=1 ack=1 sack=101:201")
    s.peer("ACK seq=501 ack=1 len=100")
    s.expect("ACK seq=1 ack=1 sack=501:601,101:201")
    s.peer("ACK seq=301 ack=1 len=100")
    s.expect("ACK seq=1 ack=1 sack=301:401,501:601,101:201")
    s.peer("ACK seq=201 ack=1 len=50")  # joins a block that is known
    s.expect("ACK seq=1 ack=1 sack=101:251,301:401,501:601")
    s.peer("ACK seq=501 ack=1 len=100")  # again
    s.expect("ACK seq=1 ack=1 sack=501:601,101:251,301:401")
    s.peer("ACK seq=1 ack=1 len=100")
    s.expect("ACK seq=1 ack=251 sack=501:601,301:401")


@pytest.mark.parametrize(("timestamps", "blocks"), [(False, 4), (True, 3)])
def test_as_many_sack_blocks_as_fit(timestamps: bool, blocks: int) -> None:
    s = Script(listen=True, sack=True, timestamps=timestamps)
    ts = " ts=9:0" if timestamps else ""
    s.open_passively(f"SYN seq=0 mss=1460 sackok{ts}", f"ACK seq=1 ack=1{ts}")
    packets = []
    for n in range(6):
        s.peer(f"ACK seq={101 + 200 * n} ack=1 len=100{ts}")
        packets = s.sent()
    newest_first = [f"{101 + 200 * n}:{201 + 200 * n}" for n in range(5, -1, -1)]
    assert s.show(packets[0]).count("), (") == blocks - 1
    s.peer(f"ACK seq=1101 ack=1 len=100{ts}")
    s.expect(f"ACK seq=1 ack=1 sack={','.join(newest_first[:blocks])}")


def test_no_sack_blocks_without_permission() -> None:
    s = Script(listen=True, sack=True)
    s.open_passively("SYN seq=0 mss=1460")
    s.peer("ACK seq=101 ack=1 len=100")
    s.expect("ACK seq=1 ack=1 noopt")


def test_an_ack_of_a_hole_is_not_swallowed_by_data() -> None:
    s = Script(listen=True, sack=True)
    c = s.open_passively("SYN seq=0 mss=1460 sackok")
    s.peer("ACK seq=101 ack=1 len=100")
    c.write(b"data")
    s.expect("ACK seq=1 ack=1 len=4", "ACK seq=5 ack=1 sack=101:201")


def test_overlapping_text_keeps_the_first_copy() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=101 ack=1 len=100", "ACK seq=51 ack=1 len=250", "ACK seq=151 ack=1 len=10")
    s.sent()
    s.peer("ACK seq=1 ack=1 len=60")
    s.expect("ACK seq=1 ack=301")
    assert c.read(1000) == s.pattern(1, 300)


# -- large segments ---------------------------------------------------------------------------------------------------


def test_an_incoming_super_frame_is_acknowledged_at_once() -> None:
    s = Script(listen=True, link=OFFLOAD)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=60000")
    s.expect("ACK seq=1 ack=60001")
    assert c.read(100_000) == s.pattern(1, 60_000)
    assert isinstance(c.peek(), list)


def test_large_payloads_stay_views_of_their_frame() -> None:
    s = Script(listen=True, link=OFFLOAD)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=30000")
    (chunk,) = c.peek()
    assert isinstance(chunk, memoryview)
    assert len(chunk) == 30_000
    c.consume(29_999)
    assert [bytes(piece) for piece in c.peek()] == [s.pattern(30_000, 1)]
