"""Resets, blind attacks and nonsense: RFC 9293 section 3.5.2, RFC 5961, and what broke other stacks."""

from __future__ import annotations

import pytest

from pystack.tcp import events
from pystack.tcp.events import TcpError
from tests.script.script import ETHERNET, OFFLOAD, US, US_PORT, Script, ms, seconds

# -- RFC 5961 ---------------------------------------------------------------------------------------------------------


def test_exact_reset_resets() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("RST seq=1")
    s.expect()
    assert c.error is TcpError.RESET
    assert s.events() == {c: events.CLOSED}
    s.counted(rst_received=1)


@pytest.mark.parametrize("seq", [2, 1000, 65_535])
def test_reset_elsewhere_in_the_window_is_challenged(seq: int) -> None:
    s = Script(listen=True)
    s.open_passively()
    s.peer(f"RST seq={seq}")
    s.expect("ACK seq=1 ack=1")
    assert s.state == "ESTABLISHED"
    s.counted(rst_challenged=1, challenge_ack=1)


@pytest.mark.parametrize("seq", [0, 65_536 + 1, -5000, 1 << 31])
def test_reset_outside_of_the_window_is_dropped(seq: int) -> None:
    s = Script(listen=True)
    s.open_passively()
    s.peer(f"RST seq={seq}")
    s.expect()
    s.counted(rst_outside_window=1)


def test_reset_may_carry_data() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("RST-ACK seq=1 ack=1 len=20")
    s.expect()
    assert c.error is TcpError.RESET


def test_reset_is_processed_although_the_window_is_closed() -> None:
    # MUST-66.
    s = Script(receive_buffer=100)
    c = s.open_actively()
    s.peer("ACK seq=1 ack=1 len=100")
    s.after(ms(5), "ACK seq=1 ack=101 win=0")
    s.peer("RST seq=101")
    assert c.error is TcpError.RESET


@pytest.mark.parametrize("state", ["FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK"])
def test_reset_ends_every_synchronized_state(state: str) -> None:
    s = Script(listen=True)
    c = s.open_passively()
    fin = 0
    if state in ("CLOSE-WAIT", "LAST-ACK"):
        s.peer("FIN-ACK seq=1 ack=1")
        s.sent()
        fin = 1
    if state in ("FIN-WAIT-1", "FIN-WAIT-2", "CLOSING", "LAST-ACK"):
        c.shutdown()
        s.sent()
    if state == "FIN-WAIT-2":
        s.peer("ACK seq=1 ack=2")
    if state == "CLOSING":
        s.peer("FIN-ACK seq=1 ack=1")
        s.sent()
        fin = 1
    assert s.state == state
    s.peer(f"RST seq={1 + fin}")
    s.expect()
    assert len(s.engine) == 0
    assert c.error is (None if state in ("CLOSING", "LAST-ACK") else TcpError.RESET)


@pytest.mark.parametrize("seq", [0, 1, 30_000, 1 << 30])
def test_syn_in_a_synchronized_state_is_challenged_wherever_it_lies(seq: int) -> None:
    s = Script(listen=True)
    s.open_passively()
    s.peer(f"SYN seq={seq} mss=1460")
    s.expect("ACK seq=1 ack=1")
    assert s.state == "ESTABLISHED"
    s.counted(syn_in_synchronized_state=1, challenge_ack=1)


def test_challenge_acks_are_throttled_per_connection() -> None:
    s = Script(listen=True)
    s.open_passively()
    for _ in range(10):
        s.peer("SYN seq=5 mss=1460")
        s.expect("ACK seq=1 ack=1")
    s.peer(*["RST seq=5"] * 20)
    s.expect()
    s.counted(syn_in_synchronized_state=10, rst_challenged=20, challenge_ack=10, challenge_ack_throttled=20)
    s.quiet(seconds(1))
    s.peer("RST seq=5")
    s.expect("ACK seq=1 ack=1")


def test_ack_of_what_was_never_sent_is_answered_and_dropped() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    c.write(b"x" * 100)
    s.expect("ACK seq=1 ack=1 len=100")
    s.peer("ACK seq=1 ack=102 len=10")
    s.expect("ACK seq=101 ack=1")
    assert c.readable == 0
    assert c.unsent_or_unacked == 100
    s.counted(ack_of_unsent=1)


def test_old_ack_within_the_largest_window_is_ignored_and_its_text_taken() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    c.write(b"x" * 100)
    s.expect("ACK seq=1 ack=1 len=100")
    s.peer("ACK seq=1 ack=101")
    s.peer("ACK seq=1 ack=1 len=10")
    s.after(ms(5), "ACK seq=101 ack=11")
    s.counted()


def test_ack_from_before_the_largest_window_is_challenged() -> None:
    # RFC 5961 section 5.2: SND.UNA - MAX.SND.WND <= SEG.ACK.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=-65534 len=10")
    assert c.readable == 10
    s.peer("ACK seq=11 ack=-65535 len=10")
    s.expect("ACK seq=1 ack=11")
    assert c.readable == 10
    s.counted(ack_too_old=1, challenge_ack=1)


def test_segment_without_ack_is_dropped() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("NONE seq=1 len=10", "FIN seq=1")
    s.expect()
    assert c.readable == 0
    s.counted(no_ack_flag=2)


def test_all_flags_at_once_reset_as_an_exact_rst_does() -> None:
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("FIN-SYN-RST-PSH-ACK-URG seq=1 ack=1 urg=65535")
    s.expect()
    assert c.error is TcpError.RESET


def test_two_ends_that_disagree_do_not_answer_each_other_for_ever() -> None:
    s = Script(listen=True)
    s.open_passively()
    answers = 0
    for _ in range(100):
        s.peer("ACK seq=-100 ack=1")
        answers += len(s.sent())
    assert answers == 10
    s.counted(outside_window=100, challenge_ack=10, challenge_ack_throttled=90)


def test_syn_and_fin_together_open_nothing() -> None:
    s = Script(listen=True)
    s.peer("SYN-FIN seq=0 mss=1460", "SYN-FIN-PSH-URG seq=0 urg=9")
    s.expect()
    assert len(s.engine) == 0
    s.counted(not_a_syn=2)


def test_reset_is_never_answered_by_a_reset() -> None:
    s = Script()
    s.peer("RST seq=0", "RST-ACK seq=0 ack=0", "SYN-RST seq=0")
    s.expect()


# -- urgent data (CVE-2026-9539) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("link_has_offload", [False, True])
@pytest.mark.parametrize("fin", ["", "FIN-"])
@pytest.mark.parametrize("urgent", [0, 1, 9, 10, 11, 1000, 65_535])
def test_urgent_pointer_is_a_number_and_nothing_more(urgent: int, fin: str, link_has_offload: bool) -> None:
    s = Script(listen=True, link=OFFLOAD if link_has_offload else ETHERNET)
    c = s.open_passively()
    s.peer(f"{fin}URG-ACK seq=1 ack=1 len=10 urg={urgent}")
    assert c.readable == 10
    assert c.read(100_000) == s.pattern(1, 10)
    assert c.urgent_until == (c.irs + 1 + urgent if urgent else 0)
    s.counted(urgent=1)


def test_urgent_pointer_moves_forward_only_and_is_told() -> None:
    # MUST-32, MUST-33: the owner hears of each advance and knows how much is left.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("URG-ACK seq=1 ack=1 urg=100")
    assert s.events() == {c: events.URGENT}
    s.peer("URG-ACK seq=1 ack=1 urg=50")
    assert s.events() == {}
    s.peer("URG-ACK seq=1 ack=1 urg=101")
    assert s.events() == {c: events.URGENT}
    assert c.urgent_until - c.rcv_nxt == 101


def test_urgent_pointer_is_noted_although_the_window_is_closed() -> None:
    # MUST-66.
    s = Script(receive_buffer=100)
    c = s.open_actively()
    s.peer("ACK seq=1 ack=1 len=100")
    s.after(ms(5), "ACK seq=1 ack=101 win=0")
    s.peer("URG-ACK seq=101 ack=1 len=1 urg=7")
    assert c.urgent_until == c.rcv_nxt + 7
    assert c.readable == 100


# -- ICMP errors (RFC 9293 section 3.9.2.2, RFC 5927) -----------------------------------------------------------------


def test_hard_icmp_error_ends_an_open_under_way() -> None:
    s = Script()
    c = s.connect()
    s.expect("SYN seq=0")
    s.engine.on_icmp_error(c.key, s.us_isn, hard=True, text="port unreachable")
    assert c.error is TcpError.UNREACHABLE
    s.counted(active_open=1, icmp_hard_error=1)


@pytest.mark.parametrize("hard", [False, True])
def test_icmp_error_never_ends_an_established_connection(hard: bool) -> None:
    # MUST-56; for hard errors RFC 5927 section 5.2: anyone can forge them.
    s = Script(listen=True)
    c = s.open_passively()
    c.write(b"x")
    s.expect("ACK seq=1 ack=1 len=1")
    s.engine.on_icmp_error(c.key, (s.us_isn + 1) & 0xFFFF_FFFF, hard=hard, text="host unreachable")
    assert s.events() == {c: events.SOFT_ERROR}
    assert c.soft_error == "host unreachable"
    assert s.state == "ESTABLISHED"
    s.counted(icmp_soft_error=1)


def test_soft_icmp_error_does_not_end_an_open() -> None:
    s = Script()
    c = s.connect()
    s.expect("SYN seq=0")
    s.engine.on_icmp_error(c.key, s.us_isn, hard=False, text="network unreachable")
    assert s.state == "SYN-SENT"
    s.counted(active_open=1, icmp_soft_error=1)


@pytest.mark.parametrize("seq", [-1, 102, 1 << 31])
def test_icmp_error_that_quotes_what_is_not_in_flight_is_forged(seq: int) -> None:
    s = Script(listen=True)
    c = s.open_passively()
    c.write(b"x" * 100)
    s.expect("ACK seq=1 ack=1 len=100")
    s.engine.on_icmp_error(c.key, (s.us_isn + seq) & 0xFFFF_FFFF, hard=True, text="x", mtu=600)
    s.engine.on_icmp_error(bytes(12), 0, hard=True, text="x")
    assert s.events() == {}
    s.counted(icmp_not_ours=2)


def test_packet_too_big_lowers_the_segment_size_and_sends_again() -> None:
    # RFC 1191 sections 3 and 6.4: what was too big goes again at once, in pieces that fit.
    s = Script(listen=True)
    c = s.open_passively()
    c.write(b"x" * 1460)
    s.expect("ACK seq=1 ack=1 len=1460")
    s.engine.on_icmp_error(c.key, (s.us_isn + 1) & 0xFFFF_FFFF, hard=False, text="", mtu=1000)
    s.expect("ACK seq=1 ack=1 len=960", "ACK seq=961 ack=1 len=500")
    s.engine.on_icmp_error(c.key, (s.us_isn + 1) & 0xFFFF_FFFF, hard=False, text="", mtu=1400)  # never up
    s.expect()
    assert c.mss == 960
    s.counted(icmp_mtu_lowered=1, icmp_mtu_ignored=1, retransmitted=2, retransmitted_bytes=1460)


def test_packet_too_big_never_goes_below_68_bytes() -> None:
    s = Script(listen=True, timestamps=True)
    c = s.open_passively("SYN seq=0 mss=1460 ts=1:0", "ACK seq=1 ack=1 ts=1:0")
    c.write(b"x" * 50)
    assert len(s.sent()) == 1
    s.engine.on_icmp_error(c.key, (s.us_isn + 1) & 0xFFFF_FFFF, hard=False, text="", mtu=1)
    assert c.path.mtu == 68
    assert [p.end - p.l3 for p in s.sent()] == [68, 68, 68, 54]


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_tiny_mss_is_not_believed() -> None:
    # CVE-2019-11479: an MSS of 1 makes each byte cost a packet.
    for mss in (0, 1, 63):
        s = Script(listen=True)
        c = s.open_passively(f"SYN seq=0 win=65535 mss={mss}")
        assert c.mss == 64


def test_small_segments_do_not_push_the_window_past_the_buffer() -> None:
    # The edge is rounded up to the window's unit; not again and again, byte by byte.
    s = Script(listen=True, receive_buffer=1 << 20, window_scale=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1460 ws=7")
    at = 1
    for size in (*[30_000] * 34, 27_576):
        s.peer(f"ACK seq={at} ack=1 len={size}")
        at += size
        s.sent()
    for _ in range(3000):
        s.peer(f"ACK seq={at} ack=1 len=1")
        at += 1
        s.sent()
    assert c.readable < (1 << 20) + 16
    assert c.window_field() == 0


def test_out_of_order_pieces_are_bounded() -> None:
    s = Script(listen=True, max_out_of_order=10)
    c = s.open_passively()
    s.peer(*[f"ACK seq={3 + 2 * n} ack=1 len=1" for n in range(50)])
    assert c.assembler is not None
    assert c.assembler.pieces == 10
    s.counted(out_of_order=50, out_of_order_full=40)


def test_land_is_a_connection_to_oneself_that_ends() -> None:
    # The network layer drops our own address as a source; the engine survives it all the same.
    s = Script()
    c = s.engine.connect((US, US_PORT), (US, US_PORT), s.now)
    (syn,) = s.sent()
    s.deliver(syn.frame)
    for _ in range(5):
        for packet in s.sent():
            s.deliver(packet.frame)
    assert c.state_name in ("ESTABLISHED", "SYN-RECEIVED")
    c.abort()
    for packet in s.sent():
        s.deliver(packet.frame)
    assert len(s.engine) == 0
