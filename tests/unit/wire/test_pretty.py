"""The line for a frame: what tcpdump does not show, and what a terminal must not see. The rest is in test_vectors."""

from __future__ import annotations

import pytest

from pystack.wire import arp, dns, tftp, udp, vlan, vnet
from pystack.wire.pretty import clock, flags_text, line
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
    patch,
    tcp4,
    udp4,
)

SYN = "IP 10.0.2.100.40000 > 10.0.2.2.80: Flags [S], seq 1000, win 65535, length 0"


def test_a_line_may_start_with_the_time() -> None:
    assert line(tcp4(), at=0) == f"00:00:00.000000 {SYN}"
    assert line(tcp4(), at=86_399_999_999) == f"23:59:59.999999 {SYN}"
    assert clock(86_400_000_000 + 3_661_000_001) == "01:01:01.000001"


def test_tags_stand_in_front() -> None:
    frame = vlan.push(vlan.push(tcp4(), 5, pcp=3), 100, dei=1, tpid=0x88A8)
    assert line(frame) == f"vlan 100, p 0, DEI, vlan 5, p 3, {SYN}"
    assert line(frame[:40]) == (
        "vlan 100, p 0, DEI, vlan 5, p 3, "
        "02:00:00:00:00:64 > 52:55:0a:00:02:02, ethertype IPv4 (0x0800), length 40 [ipv4.short]"
    )


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ({"flags": vnet.F_NEEDS_CSUM, "gso_type": vnet.GSO_TCPV4, "gso_size": 1448}, " [gso tcp4 1448]"),
        ({"gso_type": vnet.GSO_TCPV6 | vnet.GSO_ECN, "gso_size": 1428}, " [gso tcp6+ecn 1428]"),
        ({"gso_type": vnet.GSO_UDP_L4, "gso_size": 1200}, " [gso udp 1200]"),
        ({"gso_type": 77, "gso_size": 1}, " [gso 77 1]"),
        ({"flags": vnet.F_NEEDS_CSUM}, " [csum partial]"),
        ({}, ""),
    ],
)
def test_offloads_stand_behind(header: dict[str, int], text: str) -> None:
    assert line(vnet.build(12, **header) + tcp4(), 12) == SYN + text


def test_a_wrong_checksum_is_said_when_asked_for() -> None:
    frame = patch(tcp4(), 50, b"\0\0")
    assert line(frame) == SYN
    assert line(frame, checksums=True) == f"{SYN} [tcp.bad_checksum]"
    assert line(vnet.build(10, flags=vnet.F_NEEDS_CSUM) + frame, 10, checksums=True) == f"{SYN} [csum partial]"


def test_a_fragment_has_its_place() -> None:
    assert line(ip4(17, bytes(16), fragment=0x2000, ident=9)) == "IP 10.0.2.100 > 10.0.2.2: frag 9:16@0+ udp"
    assert line(ip4(253, bytes(16), fragment=2, ident=9)) == "IP 10.0.2.100 > 10.0.2.2: frag 9:16@16 ip-proto-253"


def test_a_segment_across_the_wrap_of_sequence_numbers() -> None:
    frame = tcp4(b"12345", options=b"\x02\x00\x05\xb4")
    assert "seq 1000:1005" in line(frame)
    assert "options [[bad opt 2]]" in line(frame)


def test_flags_are_tcpdumps_letters() -> None:
    assert [flags_text(flags) for flags in (0, 0x02, 0x12, 0x18, 0xFF)] == ["none", "S", "S.", "P.", "FSRP.UEW"]


def test_unknown_things_are_shown_as_numbers() -> None:
    assert line(eth(0x88CC, b"lldp")).endswith("ethertype Unknown (0x88cc), length 18")
    assert line(eth(38, b"llc")).endswith("802.3, length 17")
    assert line(ip4(253, b"abc")) == "IP 10.0.2.100 > 10.0.2.2: ip-proto-253 3"
    message = arp.build(9, sha=GUEST_MAC, spa=GUEST, tha=bytes(6), tpa=GATEWAY)
    assert line(eth(0x0806, message)) == "ARP, op 9 10.0.2.100 (02:00:00:00:00:64) to 10.0.2.2, length 28"


def test_text_from_the_network_is_escaped_and_cut() -> None:
    request = tftp.build(tftp.Request(tftp.RRQ, b"\x1b[31m\xff", b"octet", ()))
    assert 'RRQ "\\x1b[31m\\xff" octet' in line(udp4(request, dport=69))
    long = tftp.build(tftp.Request(tftp.RRQ, b"a" * 300, b"octet", ()))
    assert f'"{"a" * 128}..."' in line(udp4(long, dport=69))
    query = dns.build_query(7, b"\x04\x1b[0m\0")
    assert "A? \\027[0m." in line(udp4(query, dport=53, dst=DNS_SERVER))


def test_many_answers_are_cut() -> None:
    header = dns.Header(7, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    record = dns.Record(dns.ROOT, dns.A, 1, 60, b"\1\2\3\4")
    text = line(udp4(dns.build(dns.Message(header, (), (record,) * 20)), sport=53))
    assert text.count("A 1.2.3.4") == 16
    assert " ... " in text


def test_udp_over_ipv6_names_its_ends() -> None:
    datagram = udp.build(src=GUEST6, dst=GATEWAY6, sport=5353, dport=9, payload=b"")
    assert line(ip6(17, datagram)) == "IP6 fe80::ff:fe00:64.5353 > fe80::5055:aff:fe00:202.9: [dns.short] (0)"
