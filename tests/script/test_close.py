"""Closing a connection: RFC 9293 section 3.6, and steps 5 and 8 of section 3.10.7.4."""

from __future__ import annotations

from typing import Any

from pystack.tcp import events
from pystack.tcp.events import TcpError
from tests.script.script import Script, ms, seconds


def test_active_close() -> None:
    s = Script()
    c = s.open_actively()
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    assert s.state == "FIN-WAIT-1"
    s.peer("ACK seq=1 ack=2")
    s.expect()
    assert s.state == "FIN-WAIT-2"
    s.peer("FIN-ACK seq=1 ack=2")
    s.expect("ACK seq=2 ack=2")
    assert s.state == "TIME-WAIT"
    assert s.events() == {c: events.SENT | events.EOF | events.CLOSED}
    s.quiet(seconds(60) - 1)
    assert len(s.engine) == 1
    s.quiet(1)
    assert len(s.engine) == 0
    assert c.error is None
    assert s.events() == {}
    s.counted()


def test_passive_close() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("FIN-ACK seq=1 ack=1")
    s.expect("ACK seq=1 ack=2")
    assert s.state == "CLOSE-WAIT"
    assert c.eof
    c.close()
    s.expect("FIN-ACK seq=1 ack=2")
    assert s.state == "LAST-ACK"
    s.peer("ACK seq=2 ack=2")
    s.expect()
    assert s.events() == {c: events.SENT | events.EOF | events.CLOSED}
    assert len(s.engine) == 0
    assert c.error is None


def test_fin_and_the_ack_of_ours_in_one_segment() -> None:
    s = Script()
    c = s.open_actively()
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("FIN-ACK seq=1 ack=2")
    s.expect("ACK seq=2 ack=2")
    assert s.state == "TIME-WAIT"


def test_simultaneous_close() -> None:
    s = Script()
    c = s.open_actively()
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("FIN-ACK seq=1 ack=1")
    s.expect("ACK seq=2 ack=2")
    assert s.state == "CLOSING"
    s.peer("ACK seq=2 ack=2")
    s.expect()
    assert s.state == "TIME-WAIT"


def test_fin_is_retransmitted_in_closing_and_given_up() -> None:
    s = Script(data_timeout=seconds(5))
    c = s.open_actively()
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("FIN-ACK seq=1 ack=1")
    s.expect("ACK seq=2 ack=2")
    for pause in (200, 400, 800, 1600, 3200, 6400):
        s.after(ms(pause), "FIN-ACK seq=1 ack=2")
    assert s.state == "CLOSING"
    s.quiet(ms(12_800))
    assert c.error is TcpError.TIMED_OUT
    s.counted(retransmission_timeout=6, retransmitted=6, gave_up=1)


def test_half_close_lets_the_other_direction_flow() -> None:
    s = Script()
    c = s.open_actively()
    c.write(b"request")
    c.shutdown()
    assert c.write(b"too late") == 0
    s.expect("FIN-ACK seq=1 ack=1 len=7")
    s.peer("ACK seq=1 ack=9")
    assert s.state == "FIN-WAIT-2"
    s.peer("ACK seq=1 ack=9 len=1000", "FIN-ACK seq=1001 ack=9 len=500")
    s.expect("ACK seq=9 ack=1502")
    assert s.state == "TIME-WAIT"
    assert c.read(10_000) == s.pattern(1, 1500)  # in TIME-WAIT, after its end, what came is still to be read
    assert c.eof


def test_peer_half_closes_and_we_go_on_sending() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("FIN-ACK seq=1 ack=1")
    s.expect("ACK seq=1 ack=2")
    c.write(b"x" * 1000)
    s.expect("ACK seq=1 ack=2 len=1000")
    s.peer("ACK seq=2 ack=1001")
    c.close()
    s.expect("FIN-ACK seq=1001 ack=2")
    assert s.state == "LAST-ACK"


def test_fin_follows_the_data_that_is_queued() -> None:
    s = Script()
    c = s.open_actively("SYN-ACK seq=0 ack=1 win=1600 mss=1000")
    c.write(b"x" * 2500)
    c.close()
    assert s.state == "FIN-WAIT-1"
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1001 win=1600")
    s.expect("ACK seq=1001 ack=1 len=1000", "FIN-ACK seq=2001 ack=1 len=500")


def test_fin_waits_for_a_place_in_the_window() -> None:
    # RFC 9293 section 3.4: FIN occupies a sequence number, which has to lie in the window as any other.
    s = Script()
    c = s.open_actively("SYN-ACK seq=0 ack=1 win=1000 mss=1460")
    c.write(b"x" * 1000)
    c.close()
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1001 win=0")
    s.expect()
    s.peer("ACK seq=1 ack=1001 win=1000")
    s.expect("FIN-ACK seq=1001 ack=1")
    s.peer("ACK seq=1 ack=1002")
    assert s.state == "FIN-WAIT-2"


def test_fin_probes_a_window_that_stays_closed() -> None:
    s = Script()
    c = s.open_actively("SYN-ACK seq=0 ack=1 win=1000 mss=1460")
    c.write(b"x" * 1000)
    c.close()
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1001 win=0")
    s.after(ms(200), "FIN-ACK seq=1001 ack=1")
    s.peer("ACK seq=1 ack=1002 win=0")
    s.expect()
    assert s.state == "FIN-WAIT-2"


def test_a_fin_just_behind_a_full_window_is_taken() -> None:
    s = Script(receive_buffer=1000)
    c = s.open_actively()
    s.peer("FIN-ACK seq=1 ack=1 len=1000")
    s.expect("ACK seq=1 ack=1002 win=0")
    assert s.state == "CLOSE-WAIT"
    c.write(b"x")
    s.expect("ACK seq=1 ack=1002 len=1 win=0")
    assert c.read(2000) == s.pattern(1, 1000)


def test_data_after_the_peers_fin_is_ignored() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("FIN-ACK seq=1 ack=1 len=5")
    s.expect("ACK seq=1 ack=7")
    s.peer("ACK seq=7 ack=1 len=100")
    assert c.readable == 5
    s.counted(text_after_fin=1)


def test_data_beyond_a_fin_that_came_out_of_order_is_cut_off() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=201 ack=1 len=100")  # lies beyond the end that the next segment states
    s.expect("ACK seq=1 ack=1")
    s.peer("FIN-ACK seq=101 ack=1 len=50")
    s.expect("ACK seq=1 ack=1")
    s.peer("ACK seq=1 ack=1 len=100")
    s.expect("ACK seq=1 ack=152")
    assert s.state == "CLOSE-WAIT"
    assert c.read(1000) == s.pattern(1, 150)
    assert c.eof


def test_fin_out_of_order_waits_for_the_hole() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("FIN-ACK seq=101 ack=1")
    s.expect("ACK seq=1 ack=1")
    assert s.state == "ESTABLISHED"
    s.peer("ACK seq=1 ack=1 len=100")
    s.expect("ACK seq=1 ack=102")
    assert s.state == "CLOSE-WAIT"
    assert not c.eof
    c.read(1000)
    assert c.eof


def test_retransmitted_fin_is_acknowledged_again() -> None:
    s = Script(listen=True)
    s.open_passively()
    s.peer("FIN-ACK seq=1 ack=1 len=5")
    s.expect("ACK seq=1 ack=7")
    s.peer("FIN-ACK seq=1 ack=1 len=5")
    s.expect("ACK seq=1 ack=7")
    s.peer("FIN-ACK seq=6 ack=1")
    s.expect("ACK seq=1 ack=7")
    s.counted(outside_window=2)


# -- close with unread data, and data after close ---------------------------------------------------------------------


def test_close_with_unread_data_resets() -> None:
    # RFC 9293 section 3.6.1, SHLD-3.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=10")
    c.close()
    s.expect("RST-ACK seq=1 ack=11 win=0")
    assert c.error is TcpError.ABORTED
    assert len(s.engine) == 0
    s.counted(rst_sent=1)


def test_data_that_arrives_after_close_resets() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("ACK seq=1 ack=2")
    s.peer("ACK seq=1 ack=2 len=10")
    s.expect("RST-ACK seq=2 ack=1")
    assert c.error is TcpError.ABORTED
    s.counted(data_after_close=1, rst_sent=1)


def test_after_shutdown_alone_data_is_still_taken() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    c.shutdown()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("ACK seq=1 ack=2 len=10")
    s.after(ms(5), "ACK seq=2 ack=11")
    assert c.read(100) == s.pattern(1, 10)


def test_abort_resets_and_frees() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    c.write(b"never sent")
    c.abort()
    s.expect("RST-ACK seq=1 ack=1 win=0")
    assert c.error is TcpError.ABORTED
    assert s.events() == {c: events.CLOSED}
    assert len(s.engine) == 0
    assert c.unsent_or_unacked == 0


def test_a_dead_connection_takes_every_call() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=10", "RST seq=11")
    assert c.error is TcpError.RESET
    assert c.read(3) == s.pattern(1, 3)  # what had arrived in order stays readable
    c.consume(100)
    assert c.write(b"x") == 0
    assert c.send_space == 0
    c.shutdown()
    c.close()
    c.abort()
    c.accept()
    c.refuse()
    s.expect()
    assert not c.peek()
    s.quiet(seconds(600))


def test_after_a_timeout_a_reset_carries_the_highest_number_sent() -> None:
    # SND.NXT of the RFC is the highest one: the peer may have all of it, and would take no reset at SND.UNA.
    s = Script()
    c = s.open_actively("SYN-ACK seq=0 ack=1 mss=1000")
    c.write(b"x" * 5000)
    assert len(s.sent()) == 5
    s.quiet(ms(199))
    s.clock.advance(ms(1))
    s.timers.fire(s.now)
    c.abort()
    s.expect("RST-ACK seq=5001 ack=1")


def test_a_reset_lies_inside_the_peers_window() -> None:
    s = Script()
    c = s.open_actively("SYN-ACK seq=0 ack=1 win=0 mss=1000")
    c.write(b"xy")
    s.after(ms(200), "ACK seq=1 ack=1 len=1")  # a probe
    c.abort()
    s.expect("RST-ACK seq=1 ack=1")


# -- FIN-WAIT-2 -------------------------------------------------------------------------------------------------------


def test_orphan_in_fin_wait_2_is_given_up() -> None:
    s = Script()
    c = s.open_actively()
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("ACK seq=1 ack=2")
    s.quiet(seconds(60) - 1)
    assert s.state == "FIN-WAIT-2"
    s.quiet(1)
    assert s.state == "CLOSED"
    assert c.error is None
    s.counted(fin_wait_2_timeout=1)


def test_fin_wait_2_with_a_reader_lasts() -> None:
    s = Script()
    c = s.open_actively()
    c.shutdown()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("ACK seq=1 ack=2")
    s.quiet(seconds(3600))
    assert s.state == "FIN-WAIT-2"
    c.close()  # the time runs from here, not from the last segment
    s.quiet(seconds(59))
    assert s.state == "FIN-WAIT-2"
    s.quiet(seconds(1))
    assert len(s.engine) == 0


# -- TIME-WAIT --------------------------------------------------------------------------------------------------------


def _in_time_wait(**settings: Any) -> Script:
    s = Script(listen=True, **settings)
    c = s.open_passively()
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("FIN-ACK seq=1 ack=2")
    s.expect("ACK seq=2 ack=2")
    assert s.state == "TIME-WAIT"
    s.counted()
    s.events()
    return s


def test_time_wait_acknowledges_a_retransmitted_fin_and_begins_anew() -> None:
    s = _in_time_wait()
    s.quiet(seconds(59))
    s.peer("FIN-ACK seq=1 ack=2")
    s.expect("ACK seq=2 ack=2")
    s.quiet(seconds(59))
    assert s.state == "TIME-WAIT"
    s.quiet(seconds(1))
    assert len(s.engine) == 0
    s.counted(outside_window=1)


def test_time_wait_ends_with_a_reset() -> None:
    s = _in_time_wait()
    s.peer("RST seq=2")
    s.expect()
    assert len(s.engine) == 0
    assert s.c.error is None


def test_time_wait_takes_a_newer_syn() -> None:
    # MAY-2: the ISN of the new connection is larger than all that the old one has used.
    s = _in_time_wait()
    s.connection = None
    s.peer("SYN seq=1000 mss=1460")
    (answer,) = s.sent()
    assert s.show(answer).startswith(f"SYN-ACK seq={2 + 65_536} ack=1001")
    assert s.state == "SYN-RECEIVED"
    s.counted(passive_open=1)


def test_time_wait_challenges_an_old_syn() -> None:
    s = _in_time_wait()
    s.peer("SYN seq=1 mss=1460")
    s.expect("ACK seq=2 ack=2")
    assert s.state == "TIME-WAIT"
    s.counted(syn_in_synchronized_state=1, challenge_ack=1)


def test_time_wait_takes_an_old_syn_with_a_newer_timestamp() -> None:
    # RFC 6191 section 2.
    s = Script(listen=True, timestamps=True)
    c = s.open_passively("SYN seq=0 mss=1460 ts=100:0", "ACK seq=1 ack=1 ts=101:0")
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("FIN-ACK seq=1 ack=2 ts=102:0")
    s.expect("ACK seq=2 ack=2")
    s.peer("SYN seq=0 mss=1460 ts=102:0")  # not newer: an old duplicate
    s.expect("ACK seq=2 ack=2")
    s.peer("SYN seq=0 mss=1460 ts=103:0")
    (answer,) = s.sent()
    assert s.show(answer).startswith("SYN-ACK")


def test_time_wait_ignores_text_and_urgent_and_icmp_errors() -> None:
    s = _in_time_wait()
    s.peer("ACK seq=2 ack=2 len=10", "URG-ACK seq=2 ack=2 urg=10")
    s.engine.on_icmp_error(s.c.key, s.us_isn + 2, hard=True, text="x")
    assert s.events() == {}
    assert s.state == "TIME-WAIT"


def test_keepalive_does_not_run_in_time_wait() -> None:
    s = _in_time_wait(keepalive=seconds(10), keepalive_interval=seconds(1))
    s.quiet(seconds(61))
    assert len(s.engine) == 0
    s.counted()


def test_active_open_takes_over_a_time_wait() -> None:
    s = _in_time_wait()
    s.connect()
    (syn,) = s.sent()
    assert s.show(syn).startswith(f"SYN seq={2 + 65_536}")


# -- resets in the last states ----------------------------------------------------------------------------------------


def test_reset_in_last_ack_with_all_data_acknowledged_is_an_orderly_end() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("FIN-ACK seq=1 ack=1")
    c.close()
    s.expect("FIN-ACK seq=1 ack=2")
    s.peer("RST seq=2")
    assert c.error is None
    assert len(s.engine) == 0


def test_reset_in_last_ack_that_loses_data_is_an_error() -> None:
    # MUST-12: the application can tell an orderly end from an abort.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("FIN-ACK seq=1 ack=1")
    c.write(b"x" * 100)
    c.close()
    s.expect("FIN-ACK seq=1 ack=2 len=100")
    s.peer("RST seq=2")
    assert c.error is TcpError.RESET


def test_data_and_fin_of_a_closed_reader_that_were_read_before_do_not_reset() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=10")
    c.read(10)
    c.close()
    s.expect("FIN-ACK seq=1 ack=11")
    s.peer("ACK seq=1 ack=1 len=10")  # a retransmission of what was read
    s.expect("ACK seq=2 ack=11")
    assert s.state == "FIN-WAIT-1"
