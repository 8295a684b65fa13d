"""Opening a connection: RFC 9293 section 3.5, and sections 3.10.7.2 and 3.10.7.3."""

from __future__ import annotations

import pytest

from pystack.errors import UsageError
from pystack.tcp import events
from pystack.tcp.events import TcpError
from tests.script.script import PEER, Script, config, ms, seconds


def test_passive_open() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 win=65535 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1 win=65535 mss=1460 ws=none sackok=no ts=")
    assert s.state == "SYN-RECEIVED"
    s.peer("ACK seq=1 ack=1")
    s.expect()
    assert s.state == "ESTABLISHED"
    assert s.listener is not None
    assert s.listener.take() is s.c
    assert s.events() == {s.listener: events.ACCEPT, s.c: events.OPEN | events.SENT}
    s.counted(passive_open=1, established=1)


def test_active_open() -> None:
    s = Script()
    c = s.connect()
    s.expect("SYN seq=0 win=65535 mss=1460")
    assert s.state == "SYN-SENT"
    s.peer("SYN-ACK seq=0 ack=1 mss=1460")
    s.expect("ACK seq=1 ack=1 noopt")
    assert s.state == "ESTABLISHED"
    assert s.events() == {c: events.OPEN | events.SENT}
    s.counted(active_open=1, established=1)


def test_simultaneous_open() -> None:
    s = Script()
    s.connect()
    s.expect("SYN seq=0")
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1 mss=1460")
    assert s.state == "SYN-RECEIVED"
    s.peer("SYN-ACK seq=0 ack=1")
    s.expect("ACK seq=1 ack=1")
    assert s.state == "ESTABLISHED"
    s.counted(active_open=1, simultaneous_open=1, syn_retransmitted=1, established=1)


def test_simultaneous_open_completed_by_a_plain_ack() -> None:
    s = Script()
    s.connect()
    s.expect("SYN seq=0")
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("ACK seq=1 ack=1")
    s.expect()
    assert s.state == "ESTABLISHED"


def test_the_window_of_a_simultaneous_syn_ack_is_not_scaled() -> None:
    # RFC 7323 section 2.2: the window field of a segment with SYN is never scaled.
    s = Script(window_scale=True)
    s.connect()
    s.expect("SYN seq=0 ws=4")
    s.peer("SYN seq=0 mss=1460 ws=7 win=1000")
    s.expect("SYN-ACK seq=0 ack=1 ws=4")
    s.peer("SYN-ACK seq=0 ack=1 mss=1460 ws=7 win=1000")
    s.expect("ACK seq=1 ack=1")
    assert s.c.snd_wnd == 1000
    assert s.c.max_snd_wnd == 1000


def test_reset_refuses_an_active_open() -> None:
    s = Script()
    c = s.connect()
    s.expect("SYN seq=0")
    s.peer("RST-ACK seq=0 ack=1")
    s.expect()
    assert c.error is TcpError.REFUSED
    assert s.events() == {c: events.CLOSED}
    assert len(s.engine) == 0
    s.counted(active_open=1, rst_received=1)


def test_reset_without_an_acceptable_ack_is_ignored_in_syn_sent() -> None:
    s = Script()
    s.connect()
    s.expect("SYN seq=0")
    s.peer("RST seq=0", "RST-ACK seq=0 ack=0", "RST-ACK seq=0 ack=2")
    s.expect()
    assert s.state == "SYN-SENT"
    s.counted(active_open=1, bad_ack_in_syn_sent=2)


def test_unacceptable_ack_in_syn_sent_is_answered_by_a_reset() -> None:
    # RFC 9293 section 3.10.7.3, first: <SEQ=SEG.ACK><CTL=RST>. So a half-open connection is found out (figure 9).
    s = Script()
    s.connect()
    s.expect("SYN seq=0")
    s.peer("ACK seq=300 ack=777")
    s.expect("RST seq=777")
    s.peer("SYN-ACK seq=300 ack=0")
    s.expect("RST seq=0")
    assert s.state == "SYN-SENT"
    s.counted(active_open=1, bad_ack_in_syn_sent=2, rst_sent=2)


def test_segment_without_syn_is_dropped_in_syn_sent() -> None:
    s = Script()
    s.connect()
    s.expect("SYN seq=0")
    s.peer("ACK seq=1 ack=1", "FIN seq=0", "NONE seq=0")
    s.expect()
    s.counted(active_open=1, no_syn_in_syn_sent=3)


def test_syn_is_retransmitted_with_back_off_and_given_up_after_three_minutes() -> None:
    s = Script()
    c = s.connect()
    s.expect("SYN seq=0")
    for pause in (1, 2, 4, 8, 16, 32, 60):
        s.after(seconds(pause), "SYN seq=0 ack=0 len=0 mss=1460")
    s.quiet(seconds(59))
    assert s.state == "SYN-SENT"
    s.quiet(seconds(1))
    assert c.error is TcpError.TIMED_OUT
    s.counted(active_open=1, syn_retransmitted=7, retransmission_timeout=7, gave_up=1)


def test_syn_ack_is_retransmitted_and_given_up() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    c = s.c
    s.expect("SYN-ACK seq=0 ack=1")
    for pause in (1, 2, 4, 8, 16, 32, 60):
        s.after(seconds(pause), "SYN-ACK seq=0 ack=1 mss=1460")
    s.quiet(seconds(60))
    assert c.error is TcpError.TIMED_OUT
    assert s.listener is not None
    assert s.listener.pending == 0


def test_duplicate_syn_is_answered_by_the_same_syn_ack() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1 mss=1460")
    s.peer("SYN seq=0 mss=1460 len=10")
    s.expect("SYN-ACK seq=0 ack=1 mss=1460")
    s.counted(passive_open=1, duplicate_syn=2, syn_retransmitted=2)


def test_another_syn_in_syn_received_is_answered_by_an_ack() -> None:
    # RFC 9293 section 3.10.7.4, first: not acceptable, so <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>, which a peer that has
    # restarted answers by a reset.
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("SYN seq=500000 mss=1460")
    s.expect("ACK seq=1 ack=1")
    s.peer("RST seq=1")
    s.expect()
    assert len(s.engine) == 0
    s.counted(passive_open=1, syn_in_synchronized_state=1, challenge_ack=1, rst_received=1)


def test_reset_of_a_half_open_child_gives_its_place_back() -> None:
    s = Script(listen=True, backlog=1)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("RST seq=1")
    s.expect()
    assert s.listener is not None
    assert s.listener.pending == 0
    assert s.listener.take() is None
    s.connection = None
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")


def test_bad_ack_in_syn_received_is_answered_by_a_reset() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("ACK seq=1 ack=0")
    s.expect("RST seq=0")
    s.peer("ACK seq=1 ack=2")
    s.expect("RST seq=2")
    assert s.state == "SYN-RECEIVED"
    s.counted(passive_open=1, bad_ack_in_syn_received=2, rst_sent=2)


def test_handshake_ack_may_carry_data_and_fin() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("FIN-ACK seq=1 ack=1 len=10")
    s.expect("ACK seq=1 ack=12")
    assert s.state == "CLOSE-WAIT"
    assert s.c.read(100) == s.pattern(1, 10)
    assert s.c.eof


def test_data_and_fin_of_a_syn_are_left_to_be_sent_again() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460 len=100")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("ACK seq=1 ack=1 len=100")
    s.after(ms(5), "ACK seq=1 ack=101")
    assert s.c.read(1000) == s.pattern(1, 100)


def test_data_written_before_the_handshake_follows_it() -> None:
    s = Script()
    c = s.connect()
    assert c.send_space == s.config.send_buffer
    assert c.write(b"early") == 5
    c.shutdown()
    s.expect("SYN seq=0 len=0")
    s.peer("SYN-ACK seq=0 ack=1 mss=1460")
    s.expect("FIN-ACK seq=1 ack=1 len=5")
    assert s.state == "FIN-WAIT-1"


def test_close_before_the_handshake_completes() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.c.close()
    s.expect()
    s.peer("ACK seq=1 ack=1")
    s.expect("FIN-ACK seq=1 ack=1")
    assert s.state == "FIN-WAIT-1"


def test_close_in_syn_sent_ends_it_silently() -> None:
    s = Script()
    c = s.connect()
    s.expect("SYN seq=0")
    c.close()
    s.expect()
    assert c.error is TcpError.ABORTED
    assert len(s.engine) == 0


def test_abort_in_syn_received_sends_a_reset() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.c.abort()
    s.expect("RST-ACK seq=1 ack=1 win=0")


# -- after a lost SYN -------------------------------------------------------------------------------------------------


def test_after_a_lost_syn_the_timeout_is_three_seconds() -> None:
    # RFC 6298 rule 5.7. No sample was taken (Karn), the back-off of the SYN is over.
    s = Script()
    c = s.connect()
    s.expect("SYN seq=0")
    s.after(seconds(1), "SYN seq=0 ack=0")
    s.peer("SYN-ACK seq=0 ack=1 mss=1460")
    s.expect("ACK seq=1 ack=1")
    c.write(b"x")
    s.expect("ACK seq=1 ack=1 len=1")
    s.after(seconds(3), "ACK seq=1 ack=1 len=1")
    s.after(seconds(6), "ACK seq=1 ack=1 len=1")


def test_after_a_lost_syn_ack_the_timeout_is_three_seconds() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.after(seconds(1), "SYN-ACK seq=0 ack=1")
    s.peer("ACK seq=1 ack=1")
    s.c.write(b"x")
    s.expect("ACK seq=1 ack=1 len=1")
    s.after(seconds(3), "ACK seq=1 ack=1 len=1")


@pytest.mark.parametrize(("losses", "segments"), [(0, 10), (1, 10), (2, 1)])
def test_initial_window_is_one_segment_after_two_lost_syns(losses: int, segments: int) -> None:
    # RFC 5681 section 3.1, as RFC 6928 section 2 relaxes it: a single loss may be a spurious time-out.
    s = Script()
    c = s.connect()
    s.expect("SYN seq=0")
    for n in range(losses):
        s.after(seconds(1 << n), "SYN seq=0 ack=0")
    s.peer("SYN-ACK seq=0 ack=1 mss=1000")
    s.expect("ACK seq=1 ack=1")
    c.write(bytes(20_000))
    assert [p.payload_len for p in s.sent()] == [1000] * segments


# -- the listener -----------------------------------------------------------------------------------------------------


def test_backlog_bounds_half_open_and_untaken_connections() -> None:
    s = Script(listen=True, backlog=2)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("ACK seq=1 ack=1")
    s.peer_port += 1
    s.peer_next = s.us_next = 0
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer_port += 1
    s.peer("SYN seq=0 mss=1460")
    s.expect()
    s.counted(passive_open=2, established=1, listen_overflow=1)
    assert s.listener is not None
    assert s.listener.pending == 2
    assert s.listener.take() is not None
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")


def test_a_dead_connection_that_nobody_took_holds_its_place() -> None:
    s = Script(listen=True, backlog=1)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("ACK seq=1 ack=1", "RST seq=1")
    assert s.listener is not None
    assert s.listener.full
    c = s.listener.take()
    assert c is not None
    assert c.error is TcpError.RESET
    assert s.listener.pending == 0
    s.us_next = 0
    s.peer_port += 1
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")


def test_closing_a_listener_resets_what_was_not_taken() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("ACK seq=1 ack=1")
    s.peer_port += 1
    s.us_next = 0
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    assert s.listener is not None
    s.listener.close()
    s.expect("RST-ACK seq=1 ack=1", "RST-ACK seq=1 ack=1")
    assert len(s.engine) == 0
    s.peer("SYN seq=0 mss=1460")
    s.expect("RST-ACK seq=0 ack=1")


def test_a_connection_that_was_taken_survives_its_listener() -> None:
    s = Script(listen=True)
    s.open_passively()
    assert s.listener is not None
    s.listener.close()
    s.expect()
    assert s.state == "ESTABLISHED"


def test_specific_listener_is_preferred_to_the_one_of_all_addresses() -> None:
    s = Script(listen=True)
    specific = s.engine.listen(80, address=bytes([10, 0, 0, 1]))
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    assert specific.pending == 1


def test_a_full_table_refuses_a_syn_unless_a_time_wait_can_go() -> None:
    s = Script(listen=True, max_connections=1)
    c = s.open_passively()
    s.peer_port += 1
    s.peer("SYN seq=0 mss=1460")
    s.expect()
    s.counted(listen_overflow=1, table_full=1)
    s.peer_port -= 1
    c.close()
    s.expect("FIN-ACK seq=1 ack=1")
    s.peer("FIN-ACK seq=1 ack=2")
    s.expect("ACK seq=2 ack=2")
    assert s.state == "TIME-WAIT"
    s.peer_port += 1
    s.us_next = 0
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.counted(passive_open=1, time_wait_evicted=1)
    assert len(s.engine) == 1


# -- deferred connections ---------------------------------------------------------------------------------------------


def test_deferred_connection_answers_nothing_until_it_is_accepted() -> None:
    s = Script(deferred=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect()
    assert s.listener is not None
    assert s.events() == {s.listener: events.ACCEPT}
    c = s.listener.take()
    assert c is not None
    s.quiet(seconds(5))
    s.peer("SYN seq=0 mss=1460", "SYN seq=0 mss=1460")
    s.expect()
    c.accept()
    s.expect("SYN-ACK seq=0 ack=1 mss=1460")
    s.peer("ACK seq=1 ack=1")
    assert s.state == "ESTABLISHED"
    s.counted(passive_open=1, duplicate_syn=2, established=1)


def test_refused_connection_gets_exactly_the_reset_of_a_closed_port() -> None:
    s = Script(deferred=True)
    s.peer("SYN seq=0 mss=1460")
    c = s.c
    c.refuse()
    (reset,) = s.expect("RST-ACK seq=0 ack=1 win=0 noopt")
    assert reset.seq == 0
    assert c.error is TcpError.REFUSED
    s.counted(passive_open=1, refused=1)
    s.peer("SYN seq=0 mss=1460")  # the peer's next try is a new request
    s.expect()
    assert len(s.engine) == 1


def test_silent_refusal_sends_nothing() -> None:
    s = Script(deferred=True)
    s.peer("SYN seq=0 mss=1460")
    s.c.refuse(silent=True)
    s.expect()
    assert len(s.engine) == 0


def test_reset_during_deferral_ends_the_request() -> None:
    s = Script(deferred=True)
    s.peer("SYN seq=0 mss=1460")
    c = s.c
    s.peer("RST seq=1")
    s.expect()
    assert c.state_name == "CLOSED"
    c.accept()
    c.refuse()
    s.expect()
    s.counted(passive_open=1, rst_received=1)


def test_nothing_answers_segments_of_a_deferred_connection_but_a_reset_of_a_false_ack() -> None:
    s = Script(deferred=True)
    s.peer("SYN seq=0 mss=1460")
    s.peer("SYN seq=5000 mss=1460", "RST seq=2", "NONE seq=1", "FIN seq=1")
    s.expect()
    s.peer("ACK seq=1 ack=1")
    s.expect("RST seq=1")
    s.counted(
        passive_open=1,
        syn_in_synchronized_state=1,
        rst_challenged=1,
        no_ack_flag=2,
        bad_ack_in_syn_received=1,
        rst_sent=1,
    )


def test_closing_a_deferred_connection_refuses_it() -> None:
    s = Script(deferred=True)
    s.peer("SYN seq=0 mss=1460")
    s.c.close()
    s.expect("RST-ACK seq=0 ack=1")
    assert len(s.engine) == 0


def test_active_open_to_a_four_tuple_in_use_is_refused() -> None:
    s = Script()
    s.open_actively()
    with pytest.raises(UsageError, match="exists already"):
        s.engine.connect((bytes([10, 0, 0, 1]), 80), (PEER, s.peer_port), s.now, config())


# -- no connection, no listener ---------------------------------------------------------------------------------------


def test_closed_port_answers_by_resets() -> None:
    # RFC 9293 section 3.10.7.1.
    s = Script()
    s.peer("SYN seq=0 mss=1460")
    s.expect("RST-ACK seq=0 ack=1")
    s.peer("FIN seq=7 len=10")
    s.expect("RST-ACK seq=0 ack=18")
    s.peer("ACK seq=1 ack=4711 len=5")
    s.expect("RST seq=4711")
    s.peer("RST seq=1", "RST-ACK seq=1 ack=1")
    s.expect()
    s.counted(no_connection=3, rst_sent=3, rst_ignored=2)


def test_listener_resets_acks_and_ignores_the_rest() -> None:
    # RFC 9293 section 3.10.7.2.
    s = Script(listen=True)
    s.peer("RST seq=0", "FIN seq=0", "NONE seq=0", "SYN-FIN seq=0", "SYN-RST seq=0")
    s.expect()
    s.peer("ACK seq=1 ack=9")
    s.expect("RST seq=9")
    s.peer("SYN-ACK seq=1 ack=9")
    s.expect("RST seq=9")
    s.counted(rst_ignored=2, not_a_syn=5, rst_sent=2)
    assert len(s.engine) == 0


def test_segment_with_a_bad_checksum_causes_nothing() -> None:
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=1460 csum=bad")
    s.expect()
    s.counted(bad_checksum=1)


def test_syn_from_port_zero_is_dropped() -> None:
    s = Script(listen=True)
    s.peer_port = 0
    s.peer("SYN seq=0 mss=1460")
    s.expect()
    s.counted(port_zero=1)


def test_unresolved_neighbour_holds_the_syn_back_and_the_attempt_ends() -> None:
    s = Script(resolved=False)
    c = s.connect()
    s.quiet(seconds(1) + ms(500))
    s.paths[0].dst_mac = b"\x02\0\0\0\0\x02"
    s.engine.paths_ready(s.paths)
    s.expect("SYN seq=0")
    s.peer("SYN-ACK seq=0 ack=1 mss=1460")
    s.expect("ACK seq=1 ack=1")
    assert c.state_name == "ESTABLISHED"


def test_neighbour_that_never_resolves_times_the_attempt_out() -> None:
    s = Script(resolved=False)
    c = s.connect()
    s.quiet(seconds(190))
    assert c.error is TcpError.TIMED_OUT


def test_half_open_connection_is_found_out_when_the_peer_restarts() -> None:
    # RFC 9293 figure 9, with the challenge of RFC 5961.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("SYN seq=777000 mss=1460")
    s.expect("ACK seq=1 ack=1")
    s.peer("RST seq=1")  # what a peer in SYN-SENT makes of that ACK: <SEQ=SEG.ACK><CTL=RST>
    s.expect()
    assert c.error is TcpError.RESET
    s.connection = None
    s.us_next = 0
    s.peer_isn = (s.peer_isn + 777_000) & 0xFFFF_FFFF
    s.peer_next = 0
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")


def test_the_last_syn_of_a_deferred_connection_says_which_options_it_has() -> None:
    # Some systems leave options out when they try again; a timestamp that nobody sends would be missed for ever.
    s = Script(deferred=True, timestamps=True, sack=True, window_scale=True)
    s.peer("SYN seq=0 mss=1460 sackok ws=7 ts=1:0")
    s.peer("SYN seq=0 mss=1400")
    s.c.accept()
    s.expect("SYN-ACK seq=0 ack=1 mss=1460 ws=none sackok=no ts=")
    s.peer("ACK seq=1 ack=1 len=10")
    assert s.c.readable == 10
    assert s.c.mss == 1400
    s.counted(passive_open=1, duplicate_syn=1, established=1)


def test_a_duplicate_syn_without_its_timestamp_is_answered_all_the_same() -> None:
    s = Script(listen=True, timestamps=True)
    s.peer("SYN seq=0 mss=1460 ts=1:0")
    s.expect("SYN-ACK seq=0 ack=1")
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1")
    s.counted(passive_open=1, duplicate_syn=1, syn_retransmitted=1)
