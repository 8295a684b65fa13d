"""What a guest can send that no parser may believe: one row per case, as frames from 10.0.2.100 to the gateway.

Every row names the case, makes the frame, and says which counter must move. ``reader`` says who reads that far: ""
for what the one pass and the checksums refuse, else the parser of the protocol above ("tcp_options", "dhcp", ...).
Numbers in the names are the rows of the project's list of what broke other stacks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from pystack.wire import arp, dhcp, dns, icmp, ipv4, ipv6, udp, vlan
from pystack.wire.packet import ETHERTYPE_ARP, ETHERTYPE_IPV4, PROTO_ICMP, PROTO_TCP, PROTO_UDP
from tests.unit.wire.frames import (
    DNS_SERVER,
    GATEWAY,
    GATEWAY6,
    GUEST,
    GUEST6,
    GUEST_MAC,
    eth,
    ip4,
    ip6,
    ndp6,
    patch,
    tcp4,
    udp4,
)

_L3 = 14
_L4 = 34


_DISCOVER = dhcp.build(dhcp.request(GUEST_MAC, 7, {dhcp.OPT_MESSAGE_TYPE: bytes((dhcp.DISCOVER,))}))
_ECHO = icmp.build_echo(icmp.ECHO_REQUEST, 1, 1, bytes(56))
_NS_TARGET = GATEWAY6
_QUERY = dns.build_query(7, dns.name_from_text("www.example.com"))
_TFTP_WITH_STRINGS = {
    "read request": b"\0\1file\0octet\0",
    "write request": b"\0\2file\0octet\0",
    "error": b"\0\5\0\1text\0",
    "acceptance": b"\0\6tsize\0009\0",
}


class Row(NamedTuple):
    """One case. ``build`` gives a whole frame without virtio_net_hdr."""

    name: str
    build: Callable[[], bytes]
    counter: str
    reader: str = ""


def _arp_with(at: int, new: bytes) -> bytes:
    return patch(arp.build_request(sha=GUEST_MAC, spa=GUEST, tpa=GATEWAY), _L3 + at, new)


def _ip_fixed(header: bytes, payload: bytes = b"") -> bytes:
    """A frame whose IPv4 header was damaged, with the checksum made right again."""
    header = patch(header, 10, b"\0\0")
    return eth(
        ETHERTYPE_IPV4, patch(header, 10, (-int.from_bytes(header, "big") % 0xFFFF).to_bytes(2, "big")) + payload
    )


def _ip_header(payload_len: int = 8, proto: int = 253, options: bytes = b"") -> bytes:
    return ipv4.build_header(src=GUEST, dst=GATEWAY, proto=proto, payload_len=payload_len, options=options)


def _raw_udp(length: int, present: int) -> bytes:
    """A UDP header that claims ``length`` bytes over ``present`` bytes of payload."""
    return ip4(PROTO_UDP, struct.pack("!HHHH", 40_000, 7, length, 0) + bytes(present))


def _syn_with(options: bytes) -> bytes:
    return tcp4(options=options)


def _dhcp_with(options: bytes) -> bytes:
    return udp4(_DISCOVER[:240] + options, sport=dhcp.CLIENT_PORT, dport=dhcp.SERVER_PORT)


def _dhcp_patched(at: int, new: bytes) -> bytes:
    return udp4(patch(_DISCOVER, at, new), sport=dhcp.CLIENT_PORT, dport=dhcp.SERVER_PORT)


def _short_dhcp(length: int) -> bytes:
    return udp4(_DISCOVER[:length], sport=dhcp.CLIENT_PORT, dport=dhcp.SERVER_PORT)


def _dns(payload: bytes) -> bytes:
    return udp4(payload, dport=dns.PORT, dst=DNS_SERVER)


def _dns_named(name: bytes) -> bytes:
    """A query whose question's name is the raw bytes ``name``."""
    query = dns.build_query(7, dns.ROOT)
    return _dns(query[:12] + name + query[13:])


def _tftp(payload: bytes) -> bytes:
    return udp4(payload, dport=69)


def _error_quoting(quote: bytes) -> bytes:
    return ip4(PROTO_ICMP, icmp.build(icmp.UNREACHABLE, icmp.PORT_UNREACHABLE, 0, quote))


def _bad_checksum(frame: bytes, at: int) -> bytes:
    return patch(frame, at, bytes((frame[at] ^ 0x55,)))


ROWS: list[Row] = [
    *(Row(f"frame of {length} bytes", partial(bytes, length), "ethernet.short") for length in (0, 1, 13)),
    Row("20: VLAN tag cut off", lambda: vlan.push(eth(ETHERTYPE_ARP, b""), 5)[:16], "vlan.short"),
    Row(
        "three VLAN tags",
        lambda: vlan.push(vlan.push(vlan.push(tcp4(), 1), 2), 3, tpid=0x88A8),
        "vlan.too_many_tags",
    ),
    # ARP
    Row("21: ARP shorter than its header", lambda: _arp_with(0, b"")[: _L3 + 27], "arp.short", "arp"),
    Row("21: ARP with nothing in it", lambda: eth(ETHERTYPE_ARP, b""), "arp.short", "arp"),
    Row("21: ARP with HLEN 255", lambda: _arp_with(4, b"\xff"), "arp.bad_type", "arp"),
    Row("21: ARP with HLEN 0", lambda: _arp_with(4, b"\0"), "arp.bad_type", "arp"),
    Row("21: ARP with PLEN 16", lambda: _arp_with(5, b"\x10"), "arp.bad_type", "arp"),
    Row("ARP of another hardware", lambda: _arp_with(0, b"\0\x06"), "arp.bad_type", "arp"),
    Row("ARP for another protocol", lambda: _arp_with(2, b"\x86\xdd"), "arp.bad_type", "arp"),
    # IPv4
    Row("20: IPv4 with nothing in it", lambda: eth(ETHERTYPE_IPV4, b""), "ipv4.short"),
    Row("20: IPv4 header cut off", lambda: ip4(253, b"")[: _L3 + 19], "ipv4.short"),
    Row("IPv4 that says version 5", lambda: _ip_fixed(patch(_ip_header(0), 0, b"\x55")), "ipv4.bad_version"),
    Row("IPv4 with IHL 4", lambda: _ip_fixed(patch(_ip_header(0), 0, b"\x44")), "ipv4.bad_header_length"),
    Row("IPv4 with IHL 0", lambda: _ip_fixed(patch(_ip_header(0), 0, b"\x40")), "ipv4.bad_header_length"),
    Row("IPv4 with IHL past the packet", lambda: _ip_fixed(patch(_ip_header(0), 0, b"\x4f")), "ipv4.bad_total_length"),
    Row("IPv4 total length above the frame", lambda: _ip_fixed(_ip_header(100), bytes(99)), "ipv4.bad_total_length"),
    Row(
        "IPv4 total length below its header",
        lambda: _ip_fixed(patch(_ip_header(8), 2, b"\0\x13"), bytes(8)),
        "ipv4.bad_total_length",
    ),
    Row("IPv4 total length 0", lambda: _ip_fixed(patch(_ip_header(8), 2, b"\0\0"), bytes(8)), "ipv4.bad_total_length"),
    Row("IPv4 with a wrong checksum", lambda: _bad_checksum(tcp4(), _L3 + 10), "ipv4.bad_checksum"),
    Row(
        "IPv4 option of length 0",
        lambda: ip4(PROTO_ICMP, _ECHO, options=b"\x07\0\0\0"),
        "ipv4.bad_option",
        "ipv4_options",
    ),
    Row(
        "IPv4 option of length 1",
        lambda: ip4(PROTO_ICMP, _ECHO, options=b"\x83\x01\0\0"),
        "ipv4.bad_option",
        "ipv4_options",
    ),
    Row(
        "IPv4 option past the header",
        lambda: ip4(PROTO_ICMP, _ECHO, options=b"\x44\x28\x05\0"),
        "ipv4.bad_option",
        "ipv4_options",
    ),
    Row(
        "IPv4 option without a length",
        lambda: ip4(PROTO_ICMP, _ECHO, options=b"\x01\x01\x01\x94"),
        "ipv4.bad_option",
        "ipv4_options",
    ),
    # UDP
    Row("25: UDP header cut off", lambda: ip4(PROTO_UDP, bytes(7)), "udp.short"),
    Row("25: UDP with nothing in it", lambda: ip4(PROTO_UDP, b""), "udp.short"),
    Row("25: UDP length above the packet", lambda: _raw_udp(9, 0), "udp.bad_length"),
    Row("25: UDP length 65535", lambda: _raw_udp(0xFFFF, 16), "udp.bad_length"),
    Row("25: UDP length below its header", lambda: _raw_udp(7, 16), "udp.bad_length"),
    Row("25: UDP length 0", lambda: _raw_udp(0, 16), "udp.bad_length"),
    Row("UDP with a wrong checksum", lambda: _bad_checksum(udp4(b"data"), _L4 + 6), "udp.bad_checksum"),
    # TCP
    Row("TCP header cut off", lambda: ip4(PROTO_TCP, bytes(19)), "tcp.short"),
    Row("TCP with nothing in it", lambda: ip4(PROTO_TCP, b""), "tcp.short"),
    Row("TCP data offset 4", lambda: patch(tcp4(), _L4 + 12, b"\x40"), "tcp.bad_data_offset"),
    Row("TCP data offset 0", lambda: patch(tcp4(), _L4 + 12, b"\x00"), "tcp.bad_data_offset"),
    Row("TCP data offset past the segment", lambda: patch(tcp4(), _L4 + 12, b"\x60"), "tcp.bad_data_offset"),
    Row("TCP with a wrong checksum", lambda: _bad_checksum(tcp4(), _L4 + 16), "tcp.bad_checksum"),
    Row("TCP option of length 0", lambda: _syn_with(b"\x02\x00\x05\xb4"), "tcp.bad_option", "tcp_options"),
    Row("TCP option of length 1", lambda: _syn_with(b"\x02\x01\x05\xb4"), "tcp.bad_option", "tcp_options"),
    Row("TCP option past the header", lambda: _syn_with(b"\x01\x01\x02\x04"), "tcp.bad_option", "tcp_options"),
    Row("TCP option without a length", lambda: _syn_with(b"\x01\x01\x01\x08"), "tcp.bad_option", "tcp_options"),
    Row("TCP MSS of length 3", lambda: _syn_with(b"\x02\x03\x05\x01"), "tcp.bad_option", "tcp_options"),
    Row("TCP timestamps of length 6", lambda: _syn_with(b"\x08\x06\0\0\0\0\x01\x01"), "tcp.bad_option", "tcp_options"),
    Row("TCP SACK of half a block", lambda: _syn_with(b"\x05\x06\0\0\0\0\x01\x01"), "tcp.bad_option", "tcp_options"),
    Row("TCP SACK of no block", lambda: _syn_with(b"\x05\x02\x01\x01"), "tcp.bad_option", "tcp_options"),
    Row("TCP window scale 15", lambda: _syn_with(b"\x01\x03\x03\x0f"), "tcp.bad_window_scale", "tcp_options"),
    Row("TCP window scale 255", lambda: _syn_with(b"\x01\x03\x03\xff"), "tcp.bad_window_scale", "tcp_options"),
    # ICMP
    Row("ICMP with nothing in it", lambda: ip4(PROTO_ICMP, b""), "icmp.short", "icmp"),
    Row("ICMP header cut off", lambda: ip4(PROTO_ICMP, bytes(7)), "icmp.short", "icmp"),
    Row("ICMP with a wrong checksum", lambda: _bad_checksum(ip4(PROTO_ICMP, _ECHO), _L4 + 2), "icmp.bad_checksum"),
    Row("ICMP error that quotes nothing", lambda: _error_quoting(b""), "icmp.short", "icmp"),
    Row("ICMP error that quotes 27 bytes", lambda: _error_quoting(tcp4()[_L3 : _L3 + 27]), "icmp.short", "icmp"),
    Row(
        "ICMP error that quotes IHL 4",
        lambda: _error_quoting(b"\x44" + tcp4()[_L3 + 1 : _L3 + 28]),
        "icmp.bad_quote",
        "icmp",
    ),
    Row(
        "ICMP error that quotes IHL 15 in 28 bytes",
        lambda: _error_quoting(b"\x4f" + tcp4()[_L3 + 1 : _L3 + 28]),
        "icmp.bad_quote",
        "icmp",
    ),
    Row(
        "ICMP error that quotes IPv6",
        lambda: _error_quoting(b"\x65" + tcp4()[_L3 + 1 : _L3 + 28]),
        "icmp.bad_quote",
        "icmp",
    ),
    # DHCP
    Row("5: DHCP option past the end", lambda: _dhcp_with(b"\x35\x01\x01\x0c\xff\x61"), "dhcp.bad_option", "dhcp"),
    Row("5: DHCP option without a length", lambda: _dhcp_with(b"\x35\x01\x01\x0c"), "dhcp.bad_option", "dhcp"),
    Row("23: BOOTP without room for options", lambda: _short_dhcp(239), "dhcp.short", "dhcp"),
    Row("23: DHCP of one byte", lambda: _short_dhcp(1), "dhcp.short", "dhcp"),
    Row("23: DHCP with nothing in it", lambda: _short_dhcp(0), "dhcp.short", "dhcp"),
    Row("DHCP with another cookie", lambda: _dhcp_patched(236, bytes(4)), "dhcp.bad_cookie", "dhcp"),
    Row("DHCP with HLEN 255", lambda: _dhcp_patched(2, b"\xff"), "dhcp.bad_hardware_address", "dhcp"),
    Row(
        "DHCP option past the end of an overloaded file",
        lambda: udp4(
            patch(dhcp.build(dhcp.request(GUEST_MAC, 7, {dhcp.OPT_OVERLOAD: b"\x01"})), 108, b"\x0c\xff"),
            sport=dhcp.CLIENT_PORT,
            dport=dhcp.SERVER_PORT,
        ),
        "dhcp.bad_option",
        "dhcp",
    ),
    # DNS
    Row("DNS header cut off", lambda: _dns(_QUERY[:11]), "dns.short", "dns"),
    Row("DNS with nothing in it", lambda: _dns(b""), "dns.short", "dns"),
    Row("DNS question cut off", lambda: _dns(_QUERY[:-1]), "dns.short", "dns"),
    Row("DNS name cut off", lambda: _dns(_QUERY[:20]), "dns.short", "dns"),
    Row("DNS question that is not there", lambda: _dns(_QUERY[:12]), "dns.short", "dns"),
    Row("DNS name that points to itself", lambda: _dns_named(b"\xc0\x0c"), "dns.bad_name", "dns"),
    Row("DNS name that points into itself", lambda: _dns_named(b"\x01a\xc0\x0c"), "dns.bad_name", "dns"),
    Row("DNS name that points ahead", lambda: _dns_named(b"\xc0\x0e"), "dns.bad_name", "dns"),
    Row("DNS pointer cut in half", lambda: _dns(_QUERY[:12] + b"\xc0"), "dns.short", "dns"),
    Row("DNS label of a reserved type", lambda: _dns_named(b"\x41a\0"), "dns.bad_name", "dns"),
    Row("DNS name of 256 bytes", lambda: _dns_named((b"\x3f" + b"a" * 63) * 4 + b"\0"), "dns.bad_name", "dns"),
    Row("DNS with 65,535 questions", lambda: _dns(patch(_QUERY, 4, b"\xff\xff")), "dns.too_many_records", "dns"),
    # TFTP
    *(
        Row(f"26: TFTP of {length} bytes", partial(_tftp, b"\0\1ab"[:length]), "tftp.short", "tftp")
        for length in range(4)
    ),
    *(
        Row(f"26: TFTP {name} cut at byte {length}", partial(_tftp, message[:length]), "tftp.bad_string", "tftp")
        for name, message in _TFTP_WITH_STRINGS.items()
        for length in range(4, len(message))
    ),
    Row("26: TFTP error without its zero", lambda: _tftp(b"\0\5\0\1text"), "tftp.bad_string", "tftp"),
    Row("26: TFTP option without a value", lambda: _tftp(b"\0\1f\0octet\0blksize\0"), "tftp.bad_string", "tftp"),
    Row("26: TFTP with 17 options", lambda: _tftp(b"\0\1f\0octet\0" + b"a\0b\0" * 17), "tftp.bad_string", "tftp"),
    Row("TFTP request of 600 bytes", lambda: _tftp(b"\0\1" + b"f" * 600 + b"\0octet\0"), "tftp.bad_string", "tftp"),
    Row("TFTP without a file name", lambda: _tftp(b"\0\1\0octet\0"), "tftp.bad_string", "tftp"),
    Row("TFTP with opcode 0", lambda: _tftp(b"\0\0abcd"), "tftp.bad_opcode", "tftp"),
    Row("TFTP with opcode 7", lambda: _tftp(b"\0\7abcd"), "tftp.bad_opcode", "tftp"),
    # IPv6 and neighbour discovery
    Row("20: IPv6 header cut off", lambda: ip6(59, b"")[:-1], "ipv6.short"),
    Row("19: IPv6 payload length above the frame", lambda: ip6(58, bytes(8))[:-1], "ipv6.bad_payload_length"),
    Row("IPv6 extension cut off", lambda: ip6(ipv6.HOP_BY_HOP, bytes(7)), "ipv6.short_extension"),
    Row("IPv6 extension past the packet", lambda: ip6(ipv6.HOP_BY_HOP, b"\x3b\x01" + bytes(6)), "ipv6.short_extension"),
    Row("IPv6 with 17 extensions", lambda: ip6(60, b"\x3c\0\1\4\0\0\0\0" * 17), "ipv6.too_many_extensions"),
    Row("24: UDP over IPv6 cut off", lambda: ip6(PROTO_UDP, bytes(7)), "udp.short"),
    Row("24: UDP over IPv6 without checksum", lambda: ip6(PROTO_UDP, b"\0\1\0\1\0\x08\0\0"), "udp.zero_checksum"),
    Row(
        "24: UDP over IPv6 with a wrong length",
        lambda: ip6(PROTO_UDP, udp.build(src=GUEST6, dst=GATEWAY6, sport=1, dport=2, payload=b"abc")[:-1]),
        "udp.bad_length",
    ),
    Row("NDP option of length 0", lambda: ndp6(135, _NS_TARGET + b"\x01\0" + GUEST_MAC), "icmpv6.bad_option", "ndp"),
    Row(
        "NDP option past the message",
        lambda: ndp6(135, _NS_TARGET + b"\x01\x02" + GUEST_MAC),
        "icmpv6.bad_option",
        "ndp",
    ),
    Row("NDP that a router has forwarded", lambda: ndp6(135, _NS_TARGET, hop_limit=64), "icmpv6.bad_hop_limit", "ndp"),
    Row("NDP solicitation cut off", lambda: ndp6(135, _NS_TARGET[:15]), "icmpv6.bad_ndp", "ndp"),
    Row("NDP solicitation for a group", lambda: ndp6(135, ipv6.ALL_NODES), "icmpv6.bad_ndp", "ndp"),
]
"""All of them; names are unique."""
