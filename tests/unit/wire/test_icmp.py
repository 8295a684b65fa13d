"""ICMP and ICMPv6 messages: what is quoted, what may be reported, and to whom."""

from __future__ import annotations

import pytest

from pystack.counters import Counters
from pystack.wire import icmp, icmpv6, ipv6, ndp, tcp, udp
from pystack.wire.packet import IP_MF, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet, parse_untrusted
from tests.unit.wire.frames import GATEWAY, GATEWAY6, GUEST, GUEST6, ip4, ip6, ndp6, patch, tcp4, udp4


def parse(frame: bytes) -> Packet:
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    return packet


def quote(original: bytes) -> icmp.Quote:
    raw = icmp.build_error(icmp.UNREACHABLE, icmp.HOST_UNREACHABLE, original)
    message = icmp.parse_untrusted(raw, 0, len(raw), Counters())
    assert message is not None
    found = icmp.parse_quote_untrusted(raw, message.start, message.end, Counters())
    assert found is not None
    return found


def test_a_quote_identifies_the_connection_and_the_segment() -> None:
    found = quote(tcp4()[14:])
    assert found.key == parse(tcp4()).key
    assert (found.proto, found.seq, found.total_length) == (PROTO_TCP, 1000, 40)


def test_a_quoted_datagram_has_a_key_and_no_sequence_number() -> None:
    found = quote(udp4(b"data")[14:])
    assert (found.key, found.seq) == (parse(udp4(b"data")).key, 0)


def test_a_quoted_echo_has_its_identifier_and_sequence() -> None:
    found = quote(ip4(PROTO_ICMP, icmp.build_echo(icmp.ECHO_REQUEST, 0x12, 0x34))[14:])
    assert (found.key, found.seq) == (b"", 0x0012_0034)


def test_a_quoted_later_fragment_has_no_key() -> None:
    found = quote(ip4(PROTO_UDP, bytes(40), fragment=5)[14:])
    assert (found.key, found.seq, found.fragment) == (b"", 0, 5)


def test_an_error_never_quotes_what_is_behind_the_packet() -> None:
    original = udp4(b"x")[14:]
    assert icmp.build_error(icmp.UNREACHABLE, 3, original + b"left in the buffer")[8:] == original


def test_an_rfc_4884_length_keeps_extensions_out_of_the_quote() -> None:
    original = udp4(bytes(100))[14:].ljust(128, b"\0")
    extensions = b"\x20\0\0\0" + bytes(8)
    raw = icmp.build(icmp.TIME_EXCEEDED, 0, 32 << 16, original + extensions)
    message = icmp.parse_untrusted(raw, 0, len(raw), Counters())
    assert message is not None
    assert raw[message.start : message.end] == original
    assert raw[message.end : message.extensions_end] == extensions


def test_the_words_of_the_second_field() -> None:
    def second(kind: int, rest: int) -> icmp.Message:
        raw = icmp.build(kind, 4, rest, udp4(b"")[14:])
        message = icmp.parse_untrusted(raw, 0, len(raw), Counters())
        assert message is not None
        return message

    assert second(icmp.UNREACHABLE, 1400).mtu == 1400
    assert second(icmp.PARAMETER_PROBLEM, 20 << 24).pointer == 20
    assert second(icmp.REDIRECT, 0x0A000203).gateway == bytes((10, 0, 2, 3))
    assert (second(icmp.ECHO_REPLY, 0x00010002).ident, second(icmp.ECHO_REPLY, 0x00010002).sequence) == (1, 2)


def test_an_error_may_be_sent_about_ordinary_packets() -> None:
    for frame in (tcp4(), udp4(b""), ip4(PROTO_ICMP, icmp.build_echo(8, 1, 1)), ip4(253, b"")):
        assert icmp.may_report(parse(frame))
    assert icmp.may_report(parse(ip4(PROTO_UDP, bytes(16), fragment=IP_MF)))


@pytest.mark.parametrize(
    "frame",
    [
        ip4(PROTO_ICMP, icmp.build_error(3, 3, udp4(b"")[14:])),
        ip4(PROTO_ICMP, icmp.build(200, 0, 0)),
        ip4(PROTO_ICMP, b""),
        ip4(PROTO_UDP, bytes(16), fragment=1),
        ip4(PROTO_UDP, bytes((0, 1, 0, 2, 0, 8, 0, 0)), dst=b"\xff\xff\xff\xff"),
        ip4(PROTO_UDP, bytes((0, 1, 0, 2, 0, 8, 0, 0)), dst=bytes((224, 0, 0, 1))),
        ip4(PROTO_UDP, bytes((0, 1, 0, 2, 0, 8, 0, 0)), src=bytes(4)),
        ip4(PROTO_UDP, bytes((0, 1, 0, 2, 0, 8, 0, 0)), src=bytes((127, 0, 0, 1))),
        ip4(PROTO_UDP, bytes((0, 1, 0, 2, 0, 8, 0, 0)), src=bytes((224, 0, 0, 1))),
        ip4(PROTO_UDP, bytes((0, 1, 0, 2, 0, 8, 0, 0)), src=b"\xff\xff\xff\xff"),
        patch(udp4(b""), 0, b"\xff" * 6),
        ip6(PROTO_UDP, udp.build(src=GUEST6, dst=GATEWAY6, sport=1, dport=2, payload=b"")),
    ],
)
def test_no_error_is_sent_about_what_rfc_1122_excludes(frame: bytes) -> None:
    assert not icmp.may_report(parse(frame))


def test_no_icmpv6_error_is_sent_about_what_rfc_4443_excludes() -> None:
    datagram = udp.build(src=GUEST6, dst=ipv6.ALL_NODES, sport=1, dport=2, payload=b"")
    to_all = parse(ip6(PROTO_UDP, datagram, dst=ipv6.ALL_NODES))
    assert not icmpv6.may_report(to_all)
    assert icmpv6.may_report(to_all, too_big=True)
    error = icmpv6.build_error(src=GUEST6, dst=GATEWAY6, kind=1, code=4, original=ip6(PROTO_UDP, datagram)[14:])
    assert not icmpv6.may_report(parse(ip6(PROTO_ICMPV6, error)))
    assert not icmpv6.may_report(parse(ndp6(ndp.REDIRECT, bytes(32))))
    assert not icmpv6.may_report(parse(ip6(59, b"", src=ipv6.UNSPECIFIED)))
    assert not icmpv6.may_report(parse(tcp4()))
    echo = icmpv6.build_echo(src=GUEST6, dst=GATEWAY6, kind=icmpv6.ECHO_REQUEST, ident=1, sequence=1)
    assert icmpv6.may_report(parse(ip6(PROTO_ICMPV6, echo)))


def test_an_icmpv6_error_fits_into_1280_bytes_and_quotes_no_more_than_the_packet() -> None:
    long = ip6(59, bytes(1400))[14:]
    raw = icmpv6.build_error(src=GUEST6, dst=GATEWAY6, kind=2, code=0, original=long, extra=1280)
    assert (len(raw) + 40, raw[4:8]) == (1280, (1280).to_bytes(4, "big"))
    short = ip6(59, bytes(8))[14:]
    raw = icmpv6.build_error(src=GUEST6, dst=GATEWAY6, kind=1, code=0, original=short + b"left in the buffer")
    assert raw[8:] == short


def solicit(**changes: bytes) -> bytes:
    wanted: dict[str, bytes] = {"src": GUEST6, "dst": GATEWAY6, "target": GATEWAY6} | changes
    link = wanted.pop("source_link", b"")
    message = ndp.build_neighbour_solicitation(**wanted, source_link=link or None)
    return ip6(PROTO_ICMPV6, message, hop_limit=255, src=wanted["src"], dst=wanted["dst"])


def test_a_probe_for_a_duplicate_goes_to_the_targets_group_without_a_link_address() -> None:
    group = ipv6.solicited_node(GUEST6)
    probe = parse(solicit(src=ipv6.UNSPECIFIED, dst=group, target=GUEST6))
    assert isinstance(ndp.parse_untrusted(probe, Counters()), ndp.NeighbourSolicitation)
    for wrong in (
        solicit(src=ipv6.UNSPECIFIED, dst=GATEWAY6, target=GUEST6),
        solicit(src=ipv6.UNSPECIFIED, dst=group, target=GUEST6, source_link=bytes(6)),
    ):
        counters = Counters()
        assert ndp.parse_untrusted(parse(wrong), counters) is None
        assert counters.snapshot() == {"icmpv6.bad_ndp": 1}


def test_an_advertisement_to_all_nodes_is_not_solicited() -> None:
    for flags, good in ((ndp.FLAG_OVERRIDE, True), (ndp.FLAG_OVERRIDE | ndp.FLAG_SOLICITED, False)):
        raw = ndp.build_neighbour_advertisement(
            src=GUEST6, dst=ipv6.ALL_NODES, target=GUEST6, flags=flags, target_link=bytes(6)
        )
        packet = parse(ip6(PROTO_ICMPV6, raw, hop_limit=255, dst=ipv6.ALL_NODES))
        found = ndp.parse_untrusted(packet, Counters())
        assert isinstance(found, ndp.NeighbourAdvertisement) == good


def test_a_router_advertises_from_its_link_local_address() -> None:
    header = ndp.RaHeader(64, 0, 0, 0, 0)
    for src, good in ((GUEST6, True), (b"\x20\x01" + bytes(14), False)):
        raw = ndp.build_router_advertisement(src=src, dst=GATEWAY6, header=header)
        found = ndp.parse_untrusted(parse(ip6(PROTO_ICMPV6, raw, hop_limit=255, src=src)), Counters())
        assert isinstance(found, ndp.RouterAdvertisement) == good


def test_a_prefix_longer_than_an_address_is_left_out() -> None:
    option = ndp.prefix_option(ndp.Prefix(129, 0, 1, 1, bytes(16)))
    raw = ndp.build_router_advertisement(
        src=GUEST6, dst=GATEWAY6, header=ndp.RaHeader(64, 0, 0, 0, 0), options=(option, option)
    )
    found = ndp.parse_untrusted(parse(ip6(PROTO_ICMPV6, raw, hop_limit=255)), Counters())
    assert isinstance(found, ndp.RouterAdvertisement)
    assert found.options.prefixes == ()


def test_a_quoted_tcp_segment_of_a_gateway_is_the_one_it_sent() -> None:
    ours = tcp.build(src=GATEWAY, dst=GUEST, sport=80, dport=40_000, seq=7)
    found = quote(ip4(PROTO_TCP, ours, src=GATEWAY, dst=GUEST)[14:])
    assert found.key == GATEWAY + GUEST + (80).to_bytes(2, "big") + (40_000).to_bytes(2, "big")
    assert found.seq == 7
