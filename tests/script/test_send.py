"""Sending: segmentation, Nagle, silly windows, zero windows, GSO."""

from __future__ import annotations

import pytest

from pystack.tcp.events import TcpError
from tests.script.script import OFFLOAD, Script, ms, seconds

# -- segments ---------------------------------------------------------------------------------------------------------


def test_data_is_cut_into_full_segments_and_the_last_is_pushed() -> None:
    # SHLD-28, MUST-61.
    s = Script(listen=True, nagle=False)
    c = s.open_passively()
    c.write(b"x" * 3000)
    s.expect("ACK seq=1 ack=1 len=1460", "ACK seq=1461 ack=1 len=1460", "PSH-ACK seq=2921 ack=1 len=80")


def test_successive_writes_share_a_segment() -> None:
    # SHLD-27, MAY-16.
    s = Script(listen=True)
    c = s.open_passively()
    for _ in range(10):
        c.write(b"y" * 50)
    (segment,) = s.expect("PSH-ACK seq=1 ack=1 len=500")
    assert segment.payload_bytes() == b"y" * 500


def test_write_takes_what_the_buffer_holds() -> None:
    s = Script(listen=True, send_buffer=1000)
    c = s.open_passively()
    assert c.send_space == 1000
    assert c.write(b"x" * 1500) == 1000
    assert c.write(b"x") == 0
    assert c.unsent_or_unacked == 1000
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=601")
    assert c.send_space == 600


def test_initial_window_is_ten_segments() -> None:
    # RFC 6928 section 2.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(b"x" * 50_000)
    assert [p.payload_len for p in s.sent()] == [1000] * 10


def test_slow_start_doubles_per_round_trip() -> None:
    s = Script(listen=True, initial_window_segments=2)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(b"x" * 50_000)
    assert len(s.sent()) == 2
    s.peer("ACK seq=1 ack=2001")
    assert len(s.sent()) == 4
    s.peer("ACK seq=1 ack=6001")
    assert len(s.sent()) == 8


def test_congestion_window_restarts_after_an_idle_rto() -> None:
    # RFC 5681 section 4.1: counted from what was sent last, not from what was received last.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(b"x" * 30_000)
    s.sent()
    s.peer("ACK seq=1 ack=10001")
    s.sent()
    s.peer("ACK seq=1 ack=30001")
    assert c.cc.cwnd > 20_000
    s.quiet(seconds(5))
    s.peer("ACK seq=1 ack=30001 len=10")  # a request: it does not make the silence any shorter
    c.write(b"x" * 30_000)
    assert len(s.sent()) == 10


# -- Nagle (RFC 9293 section 3.7.4) -----------------------------------------------------------------------------------


@pytest.mark.parametrize("timestamps", [False, True])
def test_nagle_holds_a_small_segment_while_one_is_unacknowledged(timestamps: bool) -> None:
    ts = " ts=5:0" if timestamps else ""
    s = Script(listen=True, timestamps=timestamps)
    c = s.open_passively(f"SYN seq=0 win=65535 mss=1460{ts}", f"ACK seq=1 ack=1{ts}")
    c.write(b"a" * 10)
    s.expect("ACK seq=1 ack=1 len=10")
    c.write(b"b" * 10)
    s.expect()
    full = 1448 if timestamps else 1460  # MSS minus options: a segment that is full must not wait
    c.write(b"c" * (full - 10))
    s.expect(f"ACK seq=11 ack=1 len={full}")
    c.write(b"d")
    s.expect()
    s.peer(f"ACK seq=1 ack={11 + full}{ts}")
    s.expect(f"ACK seq={11 + full} ack=1 len=1")


def test_without_nagle_small_segments_leave_at_once() -> None:
    # MUST-17.
    s = Script(listen=True, nagle=False)
    c = s.open_passively()
    for n in range(3):
        c.write(b"a")
        s.expect(f"ACK seq={1 + n} ack=1 len=1")


def test_fin_lets_the_last_small_segment_go() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    c.write(b"a" * 10)
    s.expect("ACK seq=1 ack=1 len=10")
    c.write(b"b" * 10)
    s.expect()
    c.shutdown()
    s.expect("FIN-ACK seq=11 ack=1 len=10")


# -- the sender's silly window (RFC 9293 section 3.8.6.2.1) -----------------------------------------------------------


def test_a_small_window_is_not_filled_until_the_override() -> None:
    # MUST-38.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=1000 mss=1000", "ACK seq=1 ack=1 win=1000")
    c.write(b"x" * 3000)
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1001 win=100")
    s.after(ms(200), "ACK seq=1001 ack=1 len=100")


def test_half_of_the_largest_window_is_worth_sending() -> None:
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=600 mss=1000", "ACK seq=1 ack=1 win=600")
    c.write(b"x" * 3000)
    s.expect("ACK seq=1 ack=1 len=600")
    s.peer("ACK seq=1 ack=601 win=300")
    s.expect("ACK seq=601 ack=1 len=300")


# -- zero windows (RFC 9293 section 3.8.6.1) --------------------------------------------------------------------------


def test_zero_window_is_probed_with_back_off_for_ever() -> None:
    # MUST-36, MUST-37, SHLD-29, SHLD-30.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000", "ACK seq=1 ack=1 win=0")
    c.write(b"x" * 3000)
    pause = ms(200)
    for _ in range(40):
        s.after(pause, "ACK seq=1 ack=1 len=1")
        s.peer("ACK seq=1 ack=1 win=0")
        s.expect()
        pause = min(2 * pause, seconds(60))
    assert s.state == "ESTABLISHED"
    s.counted(window_probe=40, retransmitted=39, retransmitted_bytes=39)
    assert c.unsent_or_unacked == 3000


def test_window_that_opens_is_used_at_once_and_with_a_timer_of_its_own() -> None:
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000", "ACK seq=1 ack=1 win=0")
    c.write(b"x" * 3000)
    for pause in (200, 400, 800, 1600, 3200):
        s.after(ms(pause), "ACK seq=1 ack=1 len=1")
        s.peer("ACK seq=1 ack=1 win=0")
    s.peer("ACK seq=1 ack=1 win=5000")
    s.expect("ACK seq=1 ack=1 len=1000", "ACK seq=1001 ack=1 len=1000", "ACK seq=2001 ack=1 len=1000")
    s.after(ms(200), "ACK seq=1 ack=1 len=1000")  # the RTO, and not what is left of the last probe's pause


def test_probe_that_was_taken_is_not_sent_again() -> None:
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000", "ACK seq=1 ack=1 win=0")
    c.write(b"x" * 3000)
    s.after(ms(200), "ACK seq=1 ack=1 len=1")
    s.peer("ACK seq=1 ack=2 win=2000")
    s.expect("ACK seq=2 ack=1 len=1000", "ACK seq=1002 ack=1 len=1000")


def test_window_of_a_dead_peer_is_given_up() -> None:
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000", "ACK seq=1 ack=1 win=0")
    c.write(b"x" * 3000)
    for _ in range(20):
        if not len(s.engine):
            break
        s.clock.jump_to(s.timers.next_timeout() or 0)
        s.timers.fire(s.now)
        s.sent()
    assert c.error is TcpError.TIMED_OUT


def test_acks_and_data_go_on_while_a_probe_is_out() -> None:
    # The ACK of what the peer sends must be acceptable to it: its window is closed, so only RCV.NXT itself is.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000", "ACK seq=1 ack=1 win=0")
    c.write(b"x" * 3000)
    s.after(ms(200), "ACK seq=1 ack=1 len=1")
    s.peer("ACK seq=1 ack=1 len=1000 win=0", "ACK seq=1001 ack=1 len=1000 win=0")
    s.expect("ACK seq=1 ack=2001")


def test_a_window_that_shrinks_stops_new_data_and_is_survived() -> None:
    # MUST-34, SHLD-15, SHLD-16.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=5000 mss=1000", "ACK seq=1 ack=1 win=5000")
    c.write(b"x" * 10_000)
    assert len(s.sent()) == 5
    s.peer("ACK seq=1 ack=1001 win=1000")  # the edge moves from 5001 back to 2001
    s.expect()
    s.after(ms(200), "ACK seq=1001 ack=1 len=1000")
    s.peer("ACK seq=1 ack=5001 win=1000")
    s.expect("ACK seq=5001 ack=1 len=1000")


def test_shrunk_to_zero_is_probed() -> None:
    # MUST-35.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=5000 mss=1000", "ACK seq=1 ack=1 win=5000")
    c.write(b"x" * 5000)
    assert len(s.sent()) == 5
    s.peer("ACK seq=1 ack=1001 win=0")
    s.after(ms(200), "ACK seq=1001 ack=1 len=1")


def test_window_is_not_taken_from_an_old_segment() -> None:
    # RFC 9293 section 3.10.7.4 step 5: SND.WL1 and SND.WL2.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=100 win=5000", "ACK seq=101 ack=1 len=100 win=4000")
    assert c.snd_wnd == 4000
    s.peer("ACK seq=101 ack=1 win=9000")  # reordered: older than what was seen, though its SEQ is acceptable no more
    assert c.snd_wnd == 4000
    s.peer("ACK seq=201 ack=1 win=9000")
    assert c.snd_wnd == 9000


# -- the retransmission timer (RFC 6298) ------------------------------------------------------------------------------


def test_rto_backs_off_and_goes_back_to_the_start() -> None:
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(b"x" * 3000)
    assert len(s.sent()) == 3
    s.after(ms(200), "ACK seq=1 ack=1 len=1000")
    s.after(ms(400), "ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1001")
    s.expect("ACK seq=1001 ack=1 len=1000", "ACK seq=2001 ack=1 len=1000")
    s.counted(retransmission_timeout=2, retransmitted=4, retransmitted_bytes=4000)


def test_back_off_stays_until_a_fresh_sample() -> None:
    # Karn: the ACK of what was sent twice tells no round trip, and the back-off outlasts it.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(b"x" * 1000)
    s.expect("ACK seq=1 ack=1 len=1000")
    s.after(ms(200), "ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1001")
    srtt = c.rtt
    c.write(b"x" * 1000)
    s.expect("ACK seq=1001 ack=1 len=1000")
    s.after(ms(400), "ACK seq=1001 ack=1 len=1000")
    assert c.rtt == srtt
    s.peer("ACK seq=1 ack=2001")
    c.write(b"x" * 1000)
    s.expect("ACK seq=2001 ack=1 len=1000")
    s.clock.advance(ms(50))
    s.peer("ACK seq=1 ack=3001")
    assert c.rtt != srtt
    assert c.backoff == 0


def test_first_sample_and_the_next_ones_follow_rfc_6298() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 win=65535 mss=1000")
    s.expect("SYN-ACK seq=0 ack=1")
    s.clock.advance(ms(300))
    s.peer("ACK seq=1 ack=1")
    c = s.c
    assert c.rtt == (ms(300), ms(150))
    assert c.rto == ms(900)
    s.clock.advance(ms(10))
    c.write(b"x")
    s.expect("ACK seq=1 ack=1 len=1")
    s.clock.advance(ms(100))
    s.peer("ACK seq=1 ack=2")
    assert c.rtt == (ms(275), ms(162.5))  # RTTVAR first, by the old SRTT
    assert c.rto == ms(925)


def test_ack_of_new_data_restarts_the_timer() -> None:
    # Rule 5.3: never earlier than one RTO after the last transmission of it.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(b"x" * 2000)
    assert len(s.sent()) == 2
    s.clock.advance(ms(150))
    s.peer("ACK seq=1 ack=1001")
    s.expect()
    s.quiet(ms(c.rto / 1000) - 1)
    s.after(1, "ACK seq=1001 ack=1 len=1000")


def test_connection_is_given_up_after_r2() -> None:
    # MUST-20, SHLD-11: at least 100 seconds.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(b"x")
    started = s.now
    s.expect("ACK seq=1 ack=1 len=1")
    pause = ms(200)
    while s.now - started + pause < seconds(120):
        s.after(pause, "ACK seq=1 ack=1 len=1")
        pause = min(2 * pause, seconds(60))
    s.quiet(seconds(60))
    assert c.error is TcpError.TIMED_OUT
    assert s.now - started >= seconds(100)


def test_timestamps_give_a_sample_of_what_was_sent_twice() -> None:
    s = Script(listen=True, timestamps=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1012 ts=1:0", "ACK seq=1 ack=1 ts=1:0")
    c.write(b"x" * 1000)
    s.expect("ACK seq=1 ack=1 len=1000")
    s.after(ms(200), "ACK seq=1 ack=1 len=1000")
    echo = s.now // 1000
    s.clock.advance(ms(80))
    s.peer(f"ACK seq=1 ack=1001 ts=2:{echo}")
    assert c.backoff == 0
    assert c.rtt.srtt > 0


# -- GSO --------------------------------------------------------------------------------------------------------------


def test_super_frames_carry_the_segment_size() -> None:
    s = Script(listen=True, link=OFFLOAD, initial_window_segments=100)
    c = s.open_passively("SYN seq=0 win=65535 mss=1460")
    data = bytes(range(256)) * 200
    c.write(data)
    packets = s.expect(f"PSH-ACK seq=1 ack=1 len={len(data)} gso=1460")
    assert packets[0].payload_bytes() == data
    assert packets[0].vnet_flags == 1


def test_super_frame_is_a_whole_number_of_segments_within_64_kib() -> None:
    s = Script(listen=True, link=OFFLOAD, initial_window_segments=100, window_scale=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1460 ws=4", "ACK seq=1 ack=1 win=65535")
    c.write(bytes(200_000))
    first, second, *_ = s.sent()
    assert first.payload_len == second.payload_len == 44 * 1460
    assert first.end - first.l3 <= 65_535


def test_a_single_segment_has_no_gso_size() -> None:
    s = Script(listen=True, link=OFFLOAD)
    c = s.open_passively("SYN seq=0 win=65535 mss=1460")
    c.write(bytes(1460))
    s.expect("ACK seq=1 ack=1 len=1460 gso=0")


# -- keepalive (RFC 9293 section 3.8.4) -------------------------------------------------------------------------------


def test_keepalive_is_off_by_default() -> None:
    # MUST-25.
    s = Script(listen=True)
    s.open_passively()
    s.quiet(seconds(100_000))


def test_keepalive_probes_and_gives_up() -> None:
    # MUST-26, MUST-29, SHLD-12.
    s = Script(listen=True, keepalive=seconds(7200), keepalive_interval=seconds(75), keepalive_probes=3)
    c = s.open_passively()
    s.after(seconds(7200), "ACK seq=0 ack=1 len=0")
    s.after(seconds(75), "ACK seq=0 ack=1 len=0")
    s.after(seconds(75), "ACK seq=0 ack=1 len=0")
    s.quiet(seconds(75))
    assert c.error is TcpError.TIMED_OUT
    s.counted(keepalive_probe=3, keepalive_timeout=1)


def test_an_answer_or_any_segment_puts_keepalive_off() -> None:
    s = Script(listen=True, keepalive=seconds(100), keepalive_probes=2)
    s.open_passively()
    for _ in range(5):
        s.after(seconds(100), "ACK seq=0 ack=1")
        s.peer("ACK seq=1 ack=1")
        s.expect()
    s.quiet(seconds(50))
    s.peer("ACK seq=1 ack=1 len=10")
    s.after(ms(5), "ACK seq=1 ack=11")
    s.after(seconds(100) - ms(5), "ACK seq=0 ack=11")


def test_answered_probes_are_not_counted_when_they_are_further_apart_than_the_idle_time() -> None:
    s = Script(listen=True, keepalive=seconds(10), keepalive_interval=seconds(75), keepalive_probes=2)
    s.open_passively()
    s.after(seconds(10), "ACK seq=0 ack=1")
    for _ in range(10):
        s.peer("ACK seq=1 ack=1")
        s.after(seconds(75), "ACK seq=0 ack=1")
    assert s.state == "ESTABLISHED"


def test_keepalive_does_not_run_while_data_is_outstanding() -> None:
    # MUST-26.
    s = Script(listen=True, keepalive=seconds(1), keepalive_interval=seconds(1))
    c = s.open_passively()
    c.write(b"x")
    s.expect("ACK seq=1 ack=1 len=1")
    for pause in (200, 400, 800, 1600):
        s.after(ms(pause), "ACK seq=1 ack=1 len=1")
    s.peer("ACK seq=1 ack=2")
    s.after(ms(3200) + 1, "ACK seq=1 ack=1 len=0")  # when the timer that ran for the data would have come
    s.after(seconds(1), "ACK seq=1 ack=1 len=0")


def test_a_keepalive_of_the_peer_is_answered() -> None:
    s = Script(listen=True)
    s.open_passively()
    s.peer("ACK seq=0 ack=1", "ACK seq=0 ack=1 len=1")
    s.expect("ACK seq=1 ack=1")
