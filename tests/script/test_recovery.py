"""Loss: fast retransmit and recovery with SACK (RFC 6675) and without (RFC 6582), and after a time-out."""

from __future__ import annotations

from typing import Any

from pystack.tcp.tcb import Connection
from tests.script.script import Script, ms


def _sending(*, sack: bool, segments: int = 10, **settings: Any) -> tuple[Script, Connection]:
    """``segments`` segments of 1,000 bytes are out, and as many wait."""
    s = Script(listen=True, sack=sack, initial_window_segments=segments, **settings)
    s.open_passively("SYN seq=0 win=65535 mss=1000" + (" sackok" if sack else ""))
    s.c.write(bytes(2000 * segments))
    assert len(s.sent()) == segments
    s.counted()
    return s, s.c


# -- with SACK (RFC 6675) ---------------------------------------------------------------------------------------------


def test_three_sacked_segments_start_recovery() -> None:
    s, c = _sending(sack=True)
    s.peer("ACK seq=1 ack=1 sack=1001:2001")
    s.expect("ACK seq=10001 ack=1 len=1000")  # what was reported has left: one more may go
    s.peer("ACK seq=1 ack=1 sack=1001:3001")
    s.expect("ACK seq=11001 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1 sack=1001:4001")
    s.expect("ACK seq=1 ack=1 len=1000")
    assert s.recovering()
    assert c.recover == c.iss + 12_001
    assert c.cc.cwnd == c.cc.ssthresh == 6000  # half of 12,000 in flight: RFC 5681 equation 4
    s.counted(fast_recovery=1, retransmitted=1, retransmitted_bytes=1000)


def test_recovery_ends_at_its_recovery_point() -> None:
    s, c = _sending(sack=True)
    s.peer("ACK seq=1 ack=1 sack=1001:4001")
    s.expect("ACK seq=1 ack=1 len=1000")
    recover = c.recover - c.iss
    s.peer(f"ACK seq=1 ack={recover - 1} win=65535")
    s.sent()
    assert s.recovering()
    s.peer(f"ACK seq=1 ack={recover}")
    assert not s.recovering()
    assert c.cc.cwnd >= 2000


def test_several_holes_are_filled_in_order_as_the_pipe_allows() -> None:
    s, c = _sending(sack=True, segments=20)
    # Segments 1, 5 and 9 (of 20) are lost.
    s.peer("ACK seq=1 ack=1 sack=1001:4001")
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1 sack=5001:8001,1001:4001")
    s.expect()
    s.peer("ACK seq=1 ack=1 sack=9001:20001,5001:8001,1001:4001")
    packets = s.sent()
    assert [s.show(p).split()[1] for p in packets][:2] == ["seq=4001", "seq=8001"]
    s.counted(fast_recovery=1, retransmitted=3, retransmitted_bytes=3000)
    s.peer(f"ACK seq=1 ack={c.recover - c.iss}")
    assert not s.recovering()


def test_nothing_that_was_sacked_is_sent_again() -> None:
    s, _ = _sending(sack=True)
    s.peer("ACK seq=1 ack=1 sack=1001:2001", "ACK seq=1 ack=1 sack=3001:10001,1001:2001")
    s.expect(
        "ACK seq=1 ack=1 len=1000",
        "ACK seq=2001 ack=1 len=1000",
        *[f"ACK seq={10_001 + 1000 * n} ack=1 len=1000" for n in range(3)],
    )


def test_a_cumulative_ack_starts_the_count_of_duplicates_again() -> None:
    # RFC 6675 section 5: "the TCP MUST reset DupAcks to zero".
    s, c = _sending(sack=True)
    s.peer("ACK seq=1 ack=1 sack=1001:1501", "ACK seq=1 ack=1 sack=1001:2001")
    assert c.dup_acks == 2
    s.peer("ACK seq=1 ack=2001 sack=3001:3501")
    assert c.dup_acks == 1
    assert not s.recovering()


def test_ack_without_news_counts_as_no_duplicate_of_a_sack_peer() -> None:
    s, c = _sending(sack=True)
    s.peer(*["ACK seq=1 ack=1"] * 5, *["ACK seq=1 ack=1 sack=1001:2001"] * 5)
    assert c.dup_acks == 1
    assert not s.recovering()


def test_d_sack_is_tolerated() -> None:
    # RFC 2883: the first block may lie below the ACK, or inside of the second one.
    s, c = _sending(sack=True)
    s.peer("ACK seq=1 ack=5001")
    s.sent()
    s.peer("ACK seq=1 ack=5001 sack=1001:2001")
    assert not c.board
    s.peer("ACK seq=1 ack=5001 sack=6001:6501,6001:7001")
    assert c.board.sacked == 1000
    s.counted()


def test_report_that_was_overtaken_by_an_ack_is_no_lie() -> None:
    s, c = _sending(sack=True)
    s.peer("ACK seq=1 ack=3001")
    s.sent()
    s.peer("ACK seq=1 ack=1 sack=1001:2001")  # reordered: below what is acknowledged by now
    s.peer("ACK seq=1 ack=1 sack=2001:5001")
    assert c.board.sacked == 2000
    s.counted()


def test_sack_blocks_that_lie_are_counted_and_ignored() -> None:
    s, c = _sending(sack=True)
    s.peer(
        "ACK seq=1 ack=1 sack=3001:2001",  # reversed
        "ACK seq=1 ack=1 sack=2001:2001",  # empty
        "ACK seq=1 ack=1 sack=20001:21001",  # never sent
        "ACK seq=1 ack=1 sack=2001:2000000000",
    )
    assert not c.board
    s.expect()
    s.counted(bad_sack=4)


def test_sack_blocks_of_a_peer_that_did_not_negotiate_are_ignored() -> None:
    s, c = _sending(sack=False)
    s.peer("ACK seq=1 ack=1 sack=1001:4001")
    assert not c.board


def test_scoreboard_is_bounded() -> None:
    # CVE-2019-11478: a peer that reports every other byte.
    s, c = _sending(sack=True)
    for n in range(1000):
        s.peer(f"ACK seq=1 ack=1 sack={1003 + 4 * n}:{1005 + 4 * n}")
    assert len(c.board._ranges) <= 512


def test_sacked_data_stays_until_it_is_acknowledged() -> None:
    # RFC 2018 section 8: the peer may renege. After a second time-out the reports are forgotten.
    s, c = _sending(sack=True, segments=4)
    s.peer("ACK seq=1 ack=1 sack=2001:4001")
    s.sent()
    s.clock.advance(ms(200))
    s.timers.fire(s.now)
    s.expect("ACK seq=1 ack=1 len=1000")  # the first time-out skips what was reported
    assert c.board
    s.after(ms(400), "ACK seq=1 ack=1 len=1000")
    assert not c.board
    s.peer("ACK seq=1 ack=2001")
    s.expect(*[f"ACK seq={2001 + 1000 * n} ack=1 len=1000" for n in range(3)])


def test_fin_in_the_hole_is_sent_again() -> None:
    s = Script(listen=True, sack=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000 sackok")
    c.write(bytes(4000))
    c.shutdown()
    assert len(s.sent()) == 4
    s.peer("ACK seq=1 ack=1 sack=1001:4001")  # all but the first, and a receiver that cut off the FIN
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=4001")
    s.expect("FIN-ACK seq=4001 ack=1")
    s.peer("ACK seq=1 ack=4002")
    assert s.state == "FIN-WAIT-2"


def test_last_data_and_fin_lost_together() -> None:
    s = Script(listen=True, sack=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000 sackok")
    c.write(bytes(4000))
    c.shutdown()
    assert len(s.sent()) == 4
    s.peer("ACK seq=1 ack=3001")
    s.expect()
    s.after(ms(200), "FIN-ACK seq=3001 ack=1 len=1000")
    s.peer("ACK seq=1 ack=4002")
    assert s.state == "FIN-WAIT-2"


def test_fin_is_resent_within_recovery_of_a_peer_without_sack() -> None:
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(bytes(5000))
    c.shutdown()
    assert len(s.sent()) == 5
    s.peer("ACK seq=1 ack=4001", *["ACK seq=1 ack=4001"] * 3)
    s.expect("FIN-ACK seq=4001 ack=1 len=1000")
    s.peer("ACK seq=1 ack=5002")
    assert s.state == "FIN-WAIT-2"
    assert not s.recovering()


# -- without SACK (RFC 5681 section 3.2, RFC 6582) --------------------------------------------------------------------


def test_third_duplicate_ack_retransmits() -> None:
    s, c = _sending(sack=False)
    s.peer("ACK seq=1 ack=1")
    s.expect("ACK seq=10001 ack=1 len=1000")  # limited transmit: RFC 3042
    s.peer("ACK seq=1 ack=1")
    s.expect("ACK seq=11001 ack=1 len=1000")
    s.peer("ACK seq=1 ack=1")
    s.expect("ACK seq=1 ack=1 len=1000")
    assert s.recovering()
    assert c.cc.ssthresh == 6000
    s.counted(duplicate_ack=3, fast_recovery=1, retransmitted=1, retransmitted_bytes=1000)


def test_further_duplicates_let_new_data_go() -> None:
    s, _ = _sending(sack=False)
    s.peer(*["ACK seq=1 ack=1"] * 3)
    s.expect("ACK seq=1 ack=1 len=1000")
    sent = 0
    for _n in range(6):
        s.peer("ACK seq=1 ack=1")
        sent += len(s.sent())
    assert 3 <= sent <= 5


def test_partial_ack_shows_the_next_loss() -> None:
    # RFC 6582 section 3.2 step 3.
    s, c = _sending(sack=False)
    s.peer(*["ACK seq=1 ack=1"] * 3)
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=4001")
    assert s.show(s.sent()[0]).startswith("ACK seq=4001")
    assert s.recovering()
    s.peer("ACK seq=1 ack=10001")
    assert not s.recovering()
    assert c.cc.cwnd <= 6000


def test_no_second_recovery_for_the_same_window() -> None:
    # RFC 6582 section 3.2 step 2: duplicates at the recovery point come from what was sent needlessly.
    s, c = _sending(sack=False)
    s.peer(*["ACK seq=1 ack=1"] * 3)
    s.sent()
    s.peer(f"ACK seq=1 ack={c.recover - c.iss}")
    s.sent()
    assert not s.recovering()
    s.peer(*[f"ACK seq=1 ack={c.recover - c.iss}"] * 4)
    assert not s.recovering()
    assert s.counters["tcp.fast_recovery"] == 1


def test_no_recovery_by_duplicates_after_a_timeout() -> None:
    s, _ = _sending(sack=False)
    s.clock.advance(ms(200))
    s.timers.fire(s.now)
    s.expect("ACK seq=1 ack=1 len=1000")
    s.peer(*["ACK seq=1 ack=1"] * 5)
    assert not s.recovering()


def test_what_is_no_duplicate_ack() -> None:
    # RFC 5681 section 2: no data, no SYN or FIN, the same window, something outstanding.
    s, c = _sending(sack=False)
    s.peer(*[f"ACK seq={1 + n} ack=1 len=1" for n in range(5)])
    assert c.dup_acks == 0
    s.peer(*[f"ACK seq=6 ack=1 win={60_000 - n}" for n in range(5)])
    assert c.dup_acks == 0
    s.peer("ACK seq=6 ack=20001" if c.snd_max - c.iss >= 20_001 else f"ACK seq=6 ack={c.snd_max - c.iss}")
    s.sent()
    s.peer(f"ACK seq=6 ack={c.snd_max - c.iss}")
    s.sent()
    s.peer(*[f"ACK seq=6 ack={c.snd_max - c.iss}"] * 5)
    assert c.dup_acks == 0


# -- after a time-out -------------------------------------------------------------------------------------------------


def test_timeout_begins_slow_start_with_one_segment() -> None:
    # RFC 5681 section 3.1, equation 4 and the loss window.
    s, c = _sending(sack=False)
    s.after(ms(200), "ACK seq=1 ack=1 len=1000")
    assert c.cc.cwnd == 1000
    assert c.cc.ssthresh == 5000
    s.after(ms(400), "ACK seq=1 ack=1 len=1000")
    assert c.cc.ssthresh == 5000  # the second time-out of the same data does not halve it again
    s.peer("ACK seq=1 ack=1001")
    s.expect("ACK seq=1001 ack=1 len=1000", "ACK seq=2001 ack=1 len=1000")


def test_ack_beyond_the_retransmission_skips_what_had_arrived() -> None:
    s, _ = _sending(sack=False)
    s.after(ms(200), "ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=10001")
    assert s.show(s.sent()[0]).startswith("ACK seq=10001")
    s.counted(retransmission_timeout=1, retransmitted=1, retransmitted_bytes=1000)


def test_growth_is_linear_above_ssthresh() -> None:
    s, c = _sending(sack=False, segments=4)
    s.after(ms(200), "ACK seq=1 ack=1 len=1000")
    s.peer("ACK seq=1 ack=4001")
    s.sent()
    c.cc.ssthresh = c.cc.cwnd
    before = c.cc.cwnd
    c.write(bytes(60_000))
    at = 4001
    s.sent()
    while c.cc.cwnd == before:
        at += 1000
        s.peer(f"ACK seq=1 ack={at}")
        s.sent()
    assert c.cc.cwnd == before + 1000
    assert at - 4001 >= before
