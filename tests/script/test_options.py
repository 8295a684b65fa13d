"""Options: MSS (RFC 9293 section 3.7.1), window scale and timestamps (RFC 7323), SACK-permitted (RFC 2018)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.script.script import Script, ms, seconds
from tests.unit.tcp.pair import Pair

# -- MSS --------------------------------------------------------------------------------------------------------------


def test_without_an_mss_option_536_is_assumed() -> None:
    # MUST-15.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535")
    c.write(b"x" * 1000)
    s.expect("ACK seq=1 ack=1 len=536")  # and the rest waits, by Nagle


def test_mss_option_is_what_the_mtu_leaves_and_on_syn_segments_only() -> None:
    # MUST-14, MUST-65, MUST-67, SHLD-5.
    s = Script(listen=True)
    s.peer("SYN seq=0 mss=9000")
    s.expect("SYN-ACK seq=0 ack=1 mss=1460")
    s.peer("ACK seq=1 ack=1")
    s.c.write(b"x" * 2000)
    s.expect("ACK seq=1 ack=1 len=1460 noopt")


def test_configured_mss_limits_both_directions() -> None:
    s = Script(listen=True, mss=1000)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1 mss=1000")
    s.peer("ACK seq=1 ack=1")
    s.c.write(b"x" * 1500)
    s.expect("ACK seq=1 ack=1 len=1000")


def test_options_are_taken_off_the_segment_size() -> None:
    # MUST-16: effective send MSS = min(...) minus the options of every segment.
    s = Script(listen=True, timestamps=True)
    c = s.open_passively("SYN seq=0 mss=1460 ts=1:0", "ACK seq=1 ack=1 ts=1:0")
    c.write(b"x" * 5000)
    assert [p.payload_len for p in s.sent()] == [1448, 1448, 1448]


# -- option parsing as the wire brings it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "mss", "bad"),
    [
        ("0101020405b4", 1460, 0),  # MUST-64: at any alignment
        ("fd0400000204044c", 1100, 0),  # MUST-6: unknown ones are skipped by their length
        ("0200", 536, 1),  # MUST-7: length 0
        ("02010204044c", 536, 1),  # length 1
        ("020a05b4", 536, 1),  # length past the end
        ("0203050204044c00", 1100, 1),  # a wrong length for its kind
        ("000000000204044c", 536, 0),  # behind the end of the list
        ("02", 536, 1),  # a kind without a length
    ],
)
def test_options_of_a_syn(options: str, mss: int, bad: int) -> None:
    s = Script(listen=True)
    s.peer(f"SYN seq=0 opt={options}")
    assert s.c.mss == mss
    s.counted(**({"bad_option": bad} if bad else {}), passive_open=1)


def test_options_are_accepted_in_any_segment() -> None:
    # MUST-5; and one that has no business there changes nothing.
    s = Script(listen=True)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=10 mss=100 ws=3 sackok opt=fd040000")
    assert c.readable == 10
    assert c.mss == 1460
    assert c.snd_wscale == 0
    s.counted()


# -- window scale -----------------------------------------------------------------------------------------------------


def test_window_scale_needs_both_sides() -> None:
    s = Script(listen=True, window_scale=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1 ws=none win=65535")
    s.peer("ACK seq=1 ack=1 win=1000")
    assert s.c.snd_wnd == 1000
    assert s.c.window_field() == 65_535


def test_window_scale_offered_to_us_alone_is_not_used() -> None:
    s = Script(listen=True, window_scale=False)
    s.peer("SYN seq=0 mss=1460 ws=7")
    s.expect("SYN-ACK seq=0 ack=1 ws=none")
    s.peer("ACK seq=1 ack=1 win=1000")
    assert s.c.snd_wnd == 1000


def test_window_scale_is_applied_to_all_but_syn_segments() -> None:
    s = Script(listen=True, window_scale=True, receive_buffer=1_000_000)
    s.peer("SYN seq=0 win=1000 mss=1460 ws=7")
    s.expect("SYN-ACK seq=0 ack=1 ws=4 win=65535")
    assert s.c.snd_wnd == 1000
    s.peer("ACK seq=1 ack=1 win=1000")
    assert s.c.snd_wnd == 128_000
    s.peer("ACK seq=1 ack=1 len=10")
    s.after(ms(5), f"ACK seq=1 ack=11 win={(1_000_000 - 10 + 15) >> 4}")


@pytest.mark.parametrize("offered", [15, 255])
def test_window_scale_above_14_is_14(offered: int) -> None:
    s = Script(listen=True, window_scale=True)
    s.peer(f"SYN seq=0 win=1000 mss=1460 ws={offered}")
    assert s.c.snd_wscale == 14
    s.counted(passive_open=1, bad_window_scale=1)


def test_window_scale_in_a_later_segment_is_ignored() -> None:
    s = Script(listen=True, window_scale=True)
    s.open_passively("SYN seq=0 win=1000 mss=1460 ws=2")
    s.peer("ACK seq=1 ack=1 win=1000 len=1 ws=9")
    assert s.c.snd_wnd == 4000


def test_windows_of_32768_and_more_are_not_negative() -> None:
    # MUST-1, REC-1.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1460")
    assert c.snd_wnd == 65_535


# -- timestamps -------------------------------------------------------------------------------------------------------


def _with_timestamps(**settings: Any) -> Script:
    s = Script(listen=True, timestamps=True, **settings)
    s.open_passively("SYN seq=0 win=65535 mss=1460 ts=1000:0", "ACK seq=1 ack=1 ts=1000:0")
    return s


def test_timestamps_are_in_every_segment_once_negotiated() -> None:
    s = Script(listen=True, timestamps=True)
    s.peer("SYN seq=0 mss=1460 ts=1000:0")
    now = s.now // 1000
    s.expect(f"SYN-ACK seq=0 ack=1 ts={now}:1000")
    s.peer(f"ACK seq=1 ack=1 ts=1001:{now}")
    s.c.write(b"x")
    s.expect(f"ACK seq=1 ack=1 len=1 ts={now}:1001")
    s.peer(f"ACK seq=1 ack=2 len=10 ts=1002:{now}")
    s.after(ms(5), f"ACK seq=2 ack=11 ts={now + 5}:1002")


def test_timestamps_are_not_used_when_not_negotiated() -> None:
    s = Script(listen=True, timestamps=True)
    s.open_passively("SYN seq=0 mss=1460", "ACK seq=1 ack=1")
    s.peer("ACK seq=1 ack=1 len=10 ts=5:5")
    s.after(ms(5), "ACK seq=1 ack=11 noopt")
    s.counted()


def test_timestamps_offered_and_not_taken_up() -> None:
    s = Script(timestamps=True)
    s.connect()
    s.expect(f"SYN seq=0 ts={s.now // 1000}:0")
    s.peer("SYN-ACK seq=0 ack=1 mss=1460")
    s.expect("ACK seq=1 ack=1 noopt")


def test_segment_without_the_negotiated_timestamp_is_dropped_but_a_reset_is_not() -> None:
    # RFC 7323 section 3.2: it may be dropped, and must not abort the connection.
    s = _with_timestamps()
    s.peer("ACK seq=1 ack=1 len=10")
    s.expect()
    assert s.c.readable == 0
    s.counted(missing_timestamp=1)
    s.peer("RST seq=1")
    assert len(s.engine) == 0


def test_paws_drops_an_old_duplicate_and_answers() -> None:
    s = _with_timestamps()
    s.peer("ACK seq=1 ack=1 len=10 ts=999:0")
    s.expect(f"ACK seq=1 ack=1 ts={s.now // 1000}:1000")
    assert s.c.readable == 0
    s.counted(paws=1)


def test_paws_works_across_the_wrap_of_the_timestamp() -> None:
    s = Script(listen=True, timestamps=True)
    c = s.open_passively("SYN seq=0 mss=1460 ts=4294967290:0", "ACK seq=1 ack=1 ts=4294967295:0")
    s.peer("ACK seq=1 ack=1 len=10 ts=3:0")
    assert c.readable == 10
    assert c.ts_recent == 3
    s.peer("ACK seq=11 ack=1 len=10 ts=4294967295:0")
    assert c.readable == 10


def test_paws_does_not_judge_a_reset() -> None:
    s = _with_timestamps()
    s.peer("RST seq=1 ts=1:0")
    assert len(s.engine) == 0


def test_ts_recent_is_invalid_after_24_days() -> None:
    # RFC 7323 section 5.5.
    s = _with_timestamps()
    s.quiet(seconds(24 * 86_400 + 1))
    s.peer("ACK seq=1 ack=1 len=10 ts=5:0")
    assert s.c.readable == 10
    assert s.c.ts_recent == 5


def test_out_of_order_segment_does_not_move_ts_recent() -> None:
    # RFC 7323 section 4.3: the echo is of the segment that Last.ACK.sent lies in, so that an RTT includes a delayed ACK
    # and excludes a hole.
    s = _with_timestamps()
    s.peer("ACK seq=11 ack=1 len=10 ts=1005:0")
    s.expect(f"ACK seq=1 ack=1 ts={s.now // 1000}:1000")
    s.peer("ACK seq=1 ack=1 len=10 ts=1007:0")  # fills the hole: this is the one to echo
    s.expect(f"ACK seq=1 ack=21 ts={s.now // 1000}:1007")


def test_delayed_ack_echoes_the_first_of_the_segments_it_covers() -> None:
    s = _with_timestamps()
    s.peer("ACK seq=1 ack=1 len=10 ts=1005:0", "ACK seq=11 ack=1 len=10 ts=1006:0")
    s.after(ms(5), f"ACK seq=1 ack=21 ts={s.now // 1000 + 5}:1005")


def test_timestamp_clock_has_an_offset_of_the_connections_own() -> None:
    # RFC 7323 section 7.1, CVE-2024-10026: the clock tells nothing of other connections.
    pair = Pair()
    pair.b.engine.listen(80)
    a, b = pair.connect(local_port=40_000), pair.connect(local_port=40_001)
    assert a.ts_offset != b.ts_offset


# -- SACK-permitted ---------------------------------------------------------------------------------------------------


def test_sack_is_permitted_only_if_both_say_so() -> None:
    s = Script(listen=True, sack=True)
    s.peer("SYN seq=0 mss=1460 sackok")
    s.expect("SYN-ACK seq=0 ack=1 sackok")
    s = Script(listen=True, sack=True)
    s.peer("SYN seq=0 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1 sackok=no")
    s = Script(listen=True, sack=False)
    s.peer("SYN seq=0 mss=1460 sackok")
    s.expect("SYN-ACK seq=0 ack=1 sackok=no")


def test_all_options_together() -> None:
    s = Script(sack=True, timestamps=True, window_scale=True)
    s.connect()
    s.expect(f"SYN seq=0 mss=1460 sackok ws=4 ts={s.now // 1000}:0")
    s.peer(f"SYN-ACK seq=0 ack=1 mss=1400 sackok ws=7 ts=77:{s.now // 1000}")
    s.expect(f"ACK seq=1 ack=1 ts={s.now // 1000}:77")
    assert s.c.mss == 1388
    assert s.c.sack_ok
