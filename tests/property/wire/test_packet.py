"""The one pass: its shortcut agrees with the general path, its offsets stay in the frame, and the line never fails."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pystack.counters import Counters
from pystack.wire import pretty, vnet
from pystack.wire.packet import Packet, parse_general_untrusted, parse_untrusted, verify_untrusted
from tests.property.wire.strategies import any_frames, intact_frames, vnet_lengths
from tests.unit.wire.frames import tcp4


def state(packet: Packet | None) -> dict[str, object] | None:
    """Every field of a packet, to compare."""
    return None if packet is None else {name: getattr(packet, name) for name in Packet.__slots__}


@given(any_frames, vnet_lengths, st.binary(min_size=12, max_size=12))
@example(tcp4(), 0, bytes(12))
@example(tcp4(b"data"), 12, b"\x01\x01\x36\x00\xa8\x05\x22\x00\x10\x00\x00\x00")
def test_the_shortcut_equals_the_general_path(frame: bytes, vnet_hdr_len: int, vnet_hdr: bytes) -> None:
    frame = vnet_hdr[:vnet_hdr_len] + frame
    fast, general = Counters(), Counters()
    assert state(parse_untrusted(frame, vnet_hdr_len, fast)) == state(
        parse_general_untrusted(frame, vnet_hdr_len, general)
    )
    assert fast.snapshot() == general.snapshot()


@given(st.binary(max_size=30), vnet_lengths)
def test_a_short_frame_is_refused_with_one_counter(frame: bytes, vnet_hdr_len: int) -> None:
    counters = Counters()
    if parse_untrusted(frame, vnet_hdr_len, counters) is None:
        assert sum(counters.snapshot().values()) == 1
    else:
        assert counters.snapshot() == {}


@given(any_frames, vnet_lengths)
def test_offsets_stay_in_order_and_in_the_frame(frame: bytes, vnet_hdr_len: int) -> None:
    frame = bytes(vnet_hdr_len) + frame
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    if packet is not None:
        assert vnet_hdr_len == packet.eth < packet.l3 <= packet.l4 <= packet.payload <= packet.end <= len(frame)
        assert len(packet.key) in {4: (0, 12), 6: (0, 36), 0: (0,)}[packet.version]
        assert len(packet.src) == len(packet.dst) == {4: 4, 6: 16, 0: 0}[packet.version]


@given(any_frames, vnet_lengths)
def test_verifying_counts_exactly_what_it_refuses(frame: bytes, vnet_hdr_len: int) -> None:
    frame = vnet.build(vnet_hdr_len) + frame
    counters = Counters()
    packet = parse_untrusted(frame, vnet_hdr_len, counters)
    if packet is not None:
        refused = not verify_untrusted(packet, counters, rx_checksum=True)
        assert sum(counters.snapshot().values()) == refused


@given(intact_frames)
def test_what_the_builders_make_is_parsed_and_its_checksums_are_right(frame: bytes) -> None:
    counters = Counters()
    packet = parse_untrusted(frame, 0, counters)
    assert packet is not None
    assert verify_untrusted(packet, counters, rx_checksum=False)
    assert counters.snapshot() == {}


@given(any_frames, vnet_lengths, st.binary(min_size=12, max_size=12), st.booleans())
def test_the_line_is_one_line_of_printable_ascii(
    frame: bytes, vnet_hdr_len: int, vnet_hdr: bytes, checks: bool
) -> None:
    text = pretty.line(vnet_hdr[:vnet_hdr_len] + frame, vnet_hdr_len, checksums=checks)
    assert text
    assert text.isascii()
    assert text.isprintable()


@given(any_frames)
def test_a_frame_shorter_than_its_virtio_header_is_printed(frame: bytes) -> None:
    assert pretty.line(frame[:9], 12) == "[ethernet.short] length 0"
