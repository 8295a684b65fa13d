"""The one pass over a frame (pystack.wire.packet), case by case; the property tests hold it in general."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pystack.counters import Counters
from pystack.wire import ipv6, udp, vnet
from pystack.wire.packet import (
    ETHERTYPE_ARP,
    IP_DF,
    IP_MF,
    PROTO_TCP,
    PROTO_UDP,
    VNET_DATA_VALID,
    VNET_NEEDS_CSUM,
    Packet,
    parse_untrusted,
    verify_untrusted,
)
from tests.unit.wire.frames import GATEWAY, GATEWAY6, GUEST, GUEST6, GUEST_MAC, eth, ip4, ip6, patch, tcp4, udp4


def parse(frame: bytes, vnet_hdr_len: int = 0) -> Packet:
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    assert packet is not None
    return packet


def test_the_hot_parse_does_not_load_construct() -> None:
    code = "import sys, pystack.wire.packet; sys.exit('construct' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_padding_to_sixty_bytes_is_outside_the_payload() -> None:
    packet = parse(udp4(b"x") + bytes(17))
    assert packet.payload_bytes() == b"x"
    packet = parse(tcp4(b"") + bytes(6))
    assert packet.payload_len == 0


def test_bytes_behind_a_short_udp_length_are_outside_the_payload() -> None:
    datagram = udp.build(src=GUEST, dst=GATEWAY, sport=1, dport=2, payload=b"x")
    packet = parse(ip4(PROTO_UDP, datagram + b"hidden"))
    assert packet.payload_bytes() == b"x"


def test_the_key_is_addresses_and_ports() -> None:
    packet = parse(tcp4())
    assert packet.key == GUEST + GATEWAY + (40_000).to_bytes(2, "big") + (80).to_bytes(2, "big")
    packet = parse(ip6(PROTO_UDP, udp.build(src=GUEST6, dst=GATEWAY6, sport=1, dport=2, payload=b"")))
    assert packet.key == GUEST6 + GATEWAY6 + b"\0\1\0\2"


@pytest.mark.parametrize("fragment", [IP_MF, IP_MF | 5, 5])
def test_a_fragment_has_no_ports(fragment: int) -> None:
    packet = parse(ip4(PROTO_TCP, bytes(40), fragment=fragment, ident=9))
    assert packet.is_fragment
    assert (packet.key, packet.sport, packet.ident, packet.payload_len) == (b"", 0, 9, 40)
    assert verify_untrusted(packet, Counters(), rx_checksum=False)


def test_dont_fragment_does_not_make_a_fragment() -> None:
    assert not parse(ip4(PROTO_UDP, udp4(b"")[34:], fragment=IP_DF)).is_fragment


def test_an_atomic_ipv6_fragment_is_read_through() -> None:
    datagram = udp.build(src=GUEST6, dst=GATEWAY6, sport=1, dport=2, payload=b"x")
    packet = parse(ip6(44, ipv6.build_fragment_header(PROTO_UDP, offset=0, more=False, ident=7) + datagram))
    assert (packet.frag, packet.is_fragment, packet.dport, packet.ident) == (-1, False, 2, 7)


def test_an_ipv6_fragment_ends_the_walk() -> None:
    packet = parse(ip6(44, ipv6.build_fragment_header(PROTO_TCP, offset=3, more=True, ident=7) + bytes(24)))
    assert (packet.frag, packet.is_fragment, packet.proto, packet.key) == (IP_MF | 3, True, PROTO_TCP, b"")


def test_what_is_unknown_is_a_packet_without_version() -> None:
    packet = parse(eth(0x88CC, b"lldp"))
    assert (packet.version, packet.key, packet.payload_bytes()) == (0, b"", b"lldp")
    assert parse(eth(0x0026, b"802.3 length")).version == 0
    assert parse(eth(ETHERTYPE_ARP, bytes(28))).src_mac() == GUEST_MAC


def test_the_virtio_header_is_read_and_the_frame_behind_it() -> None:
    header = vnet.build(12, flags=VNET_NEEDS_CSUM, gso_type=vnet.GSO_TCPV4, gso_size=1448, hdr_len=54)
    packet = parse(header + tcp4(b"data"), 12)
    assert (packet.vnet_flags, packet.gso_type, packet.gso_size) == (VNET_NEEDS_CSUM, vnet.GSO_TCPV4, 1448)
    assert (packet.eth, packet.l3, packet.payload_bytes()) == (12, 26, b"data")


@pytest.mark.parametrize("flags", [VNET_NEEDS_CSUM, VNET_DATA_VALID])
def test_a_link_that_vouches_for_checksums_is_believed_only_when_it_may(flags: int) -> None:
    frame = vnet.build(10, flags=flags) + patch(tcp4(), 50, b"\0\0")
    assert verify_untrusted(parse(frame, 10), Counters(), rx_checksum=True)
    counters = Counters()
    assert not verify_untrusted(parse(frame, 10), counters, rx_checksum=False)
    assert counters.snapshot() == {"tcp.bad_checksum": 1}


def test_the_ipv4_header_is_verified_whatever_the_link_says() -> None:
    frame = vnet.build(10, flags=VNET_DATA_VALID) + patch(tcp4(), 24, b"\0\0")
    assert not verify_untrusted(parse(frame, 10), Counters(), rx_checksum=True)


def test_udp_without_checksum_passes_over_ipv4() -> None:
    frame = patch(udp4(b"data"), 40, b"\0\0")
    assert verify_untrusted(parse(frame), Counters(), rx_checksum=False)
