"""Software segmentation and checksum completion."""

from __future__ import annotations

import pytest

from pystack.counters import Counters
from pystack.link.segment import MAX_SEGMENTS, complete_untrusted, to_wire_untrusted
from pystack.testing.frames import Crafter
from pystack.wire import vnet
from pystack.wire.packet import ACK, CWR, FIN, PSH, Packet, parse_untrusted, verify_untrusted

_WIRE = Crafter("10.0.0.1", "10.0.0.2")


def _wire(header: bytes, frame: bytes) -> list[Packet]:
    counters = Counters()
    packets = []
    for data in to_wire_untrusted(header + frame, len(header), counters):
        packet = parse_untrusted(data, 0, counters)
        assert packet is not None, counters.snapshot()
        assert verify_untrusted(packet, counters, rx_checksum=False), counters.snapshot()
        packets.append(packet)
    return packets


def _gso(gso_type: int, size: int) -> bytes:
    return vnet.build(10, flags=vnet.F_NEEDS_CSUM, gso_type=gso_type, gso_size=size, csum_start=34, csum_offset=16)


def test_a_frame_without_a_header_is_itself() -> None:
    assert to_wire_untrusted(b"anything", 0, Counters()) == [b"anything"]


def test_an_empty_header_is_cut_off() -> None:
    assert to_wire_untrusted(bytes(12) + b"anything", 12, Counters()) == [b"anything"]


def test_tcp_segments_carry_their_place_and_the_flags_that_belong_there() -> None:
    payload = bytes(n & 0xFF for n in range(2500))
    frame = _WIRE.tcp(sport=1, dport=2, flags=ACK | PSH | FIN | CWR, seq=0xFFFF_FC00, payload=payload)
    packets = _wire(_gso(vnet.GSO_TCPV4 | vnet.GSO_ECN, 1000), frame)
    assert [packet.seq for packet in packets] == [0xFFFF_FC00, 0xFFFF_FFE8, 0x3D0]
    assert [packet.flags for packet in packets] == [ACK | CWR, ACK, ACK | PSH | FIN]
    assert b"".join(packet.payload_bytes() for packet in packets) == payload
    first = parse_untrusted(frame, 0, Counters())
    assert first is not None
    assert [packet.ident for packet in packets] == [(first.ident + n) & 0xFFFF for n in range(3)]


def test_udp_segments_are_datagrams_of_the_size_asked_for() -> None:
    payload = bytes(range(250))
    packets = _wire(_gso(vnet.GSO_UDP_L4, 100), _WIRE.udp(1, 2, payload))
    assert [packet.payload_bytes() for packet in packets] == [payload[:100], payload[100:200], payload[200:]]


def test_a_segment_that_fits_is_one_segment() -> None:
    (packet,) = _wire(_gso(vnet.GSO_TCPV4, 1000), _WIRE.tcp(sport=1, dport=2, flags=ACK | PSH, payload=b"x"))
    assert packet.flags == ACK | PSH


def test_a_checksum_left_undone_is_completed() -> None:
    frame = _WIRE.udp(1, 2, bytes(range(101)))
    partial = _partial(frame, 34, 6)
    header = vnet.build(12, flags=vnet.F_NEEDS_CSUM, csum_start=34, csum_offset=6)
    assert to_wire_untrusted(header + partial, 12, Counters()) == [frame]
    assert complete_untrusted(header + partial, 12) == frame


def test_ethernet_padding_is_not_part_of_a_checksum() -> None:
    frame = _WIRE.udp(1, 2, b"x")
    header = vnet.build(10, flags=vnet.F_NEEDS_CSUM, csum_start=34, csum_offset=6)
    padding = b"\xff" * 17
    assert to_wire_untrusted(header + _partial(frame, 34, 6) + padding, 10, Counters()) == [frame + padding]


def test_a_large_segment_is_completed_in_one_piece_for_showing() -> None:
    frame = _WIRE.tcp(sport=1, dport=2, flags=ACK, payload=bytes(60_000))
    shown = complete_untrusted(_gso(vnet.GSO_TCPV4, 1448) + _partial(frame, 34, 16), 10)
    assert shown == frame


def test_a_nonsense_header_does_not_keep_a_frame_from_being_shown() -> None:
    header = vnet.build(10, flags=vnet.F_NEEDS_CSUM, csum_start=60_000, csum_offset=0)
    assert complete_untrusted(header + b"frame", 10) == b"frame"
    assert complete_untrusted(b"abc", 10) == b""


@pytest.mark.parametrize(
    ("gso_type", "size", "frame"),
    [
        (vnet.GSO_TCPV4, 0, _WIRE.tcp(sport=1, dport=2, flags=ACK, payload=bytes(10))),
        (vnet.GSO_TCPV4, 1, _WIRE.tcp(sport=1, dport=2, flags=ACK, payload=bytes(MAX_SEGMENTS + 1))),
        (vnet.GSO_TCPV6, 9, _WIRE.tcp(sport=1, dport=2, flags=ACK, payload=bytes(10))),
        (vnet.GSO_UDP_L4, 9, _WIRE.tcp(sport=1, dport=2, flags=ACK, payload=bytes(10))),
        (vnet.GSO_TCPV4, 9, _WIRE.udp(1, 2, bytes(10))),
        (vnet.GSO_UDP, 9, _WIRE.udp(1, 2, bytes(10))),
        (vnet.GSO_TCPV4, 9, b"runt"),
        (vnet.GSO_TCPV4, 9, bytes(60)),
    ],
)
def test_a_header_that_contradicts_its_frame_gives_nothing(gso_type: int, size: int, frame: bytes) -> None:
    counters = Counters()
    assert to_wire_untrusted(_gso(gso_type, size) + frame, 10, counters) == []
    assert counters.snapshot() == {"segment.bad_vnet_hdr": 1}


def _partial(frame: bytes, start: int, offset: int) -> bytes:
    """``frame`` with the pseudo-header's sum where its checksum was, as the kernel hands it over."""
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    length = packet.end - packet.l4
    total = sum(packet.src[i] << 8 | packet.src[i + 1] for i in (0, 2)) + packet.proto + length
    total += sum(packet.dst[i] << 8 | packet.dst[i + 1] for i in (0, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    at = start + offset
    return frame[:at] + total.to_bytes(2, "big") + frame[at + 2 :]
