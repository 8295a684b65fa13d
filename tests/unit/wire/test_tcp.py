"""TCP's header and options (RFC 9293 sections 3.1 and 3.2, RFC 7323, RFC 2018)."""

from __future__ import annotations

import pytest

from pystack.counters import Counters
from pystack.wire import tcp
from pystack.wire.packet import ACK, PSH, SYN, parse_untrusted, verify_untrusted
from pystack.wire.tcp import TcpOptions
from tests.unit.wire.frames import GATEWAY, GUEST, ip4, patch, tcp4


def read(area: bytes) -> tuple[TcpOptions, dict[str, int]]:
    counters = Counters()
    return tcp.parse_options_untrusted(area, 0, len(area), counters), counters.snapshot()


def test_a_syn_has_its_options_where_linux_puts_them() -> None:
    area = tcp.build_options(mss=1460, window_scale=7, sack_permitted=True, timestamps=(1, 0))
    assert area.hex() == "020405b4" + "0402" + "080a0000000100000000" + "01" + "030307"
    assert read(area) == (TcpOptions(1460, 7, True, (), (1, 0)), {})


def test_every_combination_of_syn_options_is_aligned_and_read_back() -> None:
    for mss in (None, 0, 1, 536, 65_535):
        for scale in (None, 0, 14):
            for permitted in (False, True):
                for stamps in (None, (0, 0), (0xFFFFFFFF, 1)):
                    area = tcp.build_options(mss=mss, window_scale=scale, sack_permitted=permitted, timestamps=stamps)
                    assert len(area) % 4 == 0
                    assert read(area) == (TcpOptions(mss, scale, permitted, (), stamps), {})


@pytest.mark.parametrize(("stamps", "fit"), [(None, 4), ((1, 2), 3)])
def test_as_many_sack_blocks_are_sent_as_fit(stamps: tuple[int, int] | None, fit: int) -> None:
    blocks = [(10 * n, 10 * n + 5) for n in range(6)]
    area = tcp.build_options(timestamps=stamps, sack=blocks)
    assert len(area) <= tcp.MAX_OPTIONS_BYTES
    assert read(area)[0].sack == tuple(blocks[:fit])


def test_a_syn_with_everything_leaves_room_for_two_sack_blocks() -> None:
    area = tcp.build_options(
        mss=1, window_scale=1, sack_permitted=True, timestamps=(1, 2), sack=[(1, 2), (3, 4), (5, 6)]
    )
    assert len(area) <= tcp.MAX_OPTIONS_BYTES
    assert read(area)[0].sack == ((1, 2), (3, 4))


def test_end_of_options_hides_what_follows() -> None:
    assert read(b"\x01\x00\x02\x04\x05\xb4") == (TcpOptions(), {})


def test_an_unknown_option_is_skipped_by_its_length() -> None:
    assert read(b"\xfd\x06abcd\x02\x04\x05\xb4") == (TcpOptions(mss=1460), {})


@pytest.mark.parametrize(
    "area", [b"\x03\x03\x07\x02\x00\x05\xb4", b"\x03\x03\x07\x02\x01", b"\x03\x03\x07\x02\xff\x05\xb4"]
)
def test_an_illegal_length_ends_the_reading_and_keeps_what_was_read(area: bytes) -> None:
    assert read(area) == (TcpOptions(window_scale=7), {"tcp.bad_option": 1})


def test_an_option_of_the_wrong_length_is_skipped_and_counted() -> None:
    assert read(b"\x02\x03\x05\x03\x03\x07") == (TcpOptions(window_scale=7), {"tcp.bad_option": 1})


def test_a_window_scale_above_14_counts_as_14() -> None:
    assert read(b"\x03\x03\x0f") == (TcpOptions(window_scale=14), {"tcp.bad_window_scale": 1})


def test_of_a_repeated_option_the_last_one_counts() -> None:
    assert read(b"\x02\x04\x00\x01\x02\x04\x00\x02")[0].mss == 2


def test_options_are_read_in_a_segment_that_is_not_a_syn() -> None:
    frame = tcp4(b"data", flags=ACK, options=tcp.build_options(mss=900))
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    assert tcp.parse_options_untrusted(frame, packet.l4 + 20, packet.payload, Counters()).mss == 900
    assert packet.payload_bytes() == b"data"


def test_a_window_of_32768_or_more_is_not_negative() -> None:
    segment = tcp.build(src=GUEST, dst=GATEWAY, sport=1, dport=2, flags=ACK, window=0xFFFF)
    packet = parse_untrusted(ip4(6, segment), 0, Counters())
    assert packet is not None
    assert packet.window == 65_535


def test_a_segment_is_built_with_its_checksum_and_refused_with_any_bit_changed() -> None:
    frame = tcp4(b"odd", flags=SYN | PSH)
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    assert verify_untrusted(packet, Counters(), rx_checksum=False)
    for at in range(packet.l4 + 4, len(frame)):
        counters = Counters()
        damaged = parse_untrusted(patch(frame, at, bytes((frame[at] ^ 1,))), 0, counters)
        assert damaged is None or not verify_untrusted(damaged, counters, rx_checksum=False)
        assert sum(counters.snapshot().values()) == 1


def test_more_than_forty_bytes_of_options_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit in 40"):
        tcp.build(src=GUEST, dst=GATEWAY, sport=1, dport=2, options=bytes(41))


def test_options_show_what_is_there() -> None:
    assert repr(TcpOptions(mss=0, window_scale=0)) == "TcpOptions(mss=0, window_scale=0)"
    assert hash(TcpOptions(mss=1)) == hash(TcpOptions(mss=1))
