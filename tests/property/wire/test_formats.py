"""Building after parsing is the identity for every format, and what construct declares is what the parsers read."""

from __future__ import annotations

import construct as c
from hypothesis import given
from hypothesis import strategies as st

from pystack.counters import Counters
from pystack.wire import arp, dhcp, dns, icmp, icmpv6, ipv4, ipv6, ndp, tcp, tftp, udp, vlan, vnet
from pystack.wire.packet import PROTO_ICMPV6, parse_untrusted
from tests.property.wire import strategies as some
from tests.unit.wire.frames import GATEWAY, GATEWAY6, GUEST, GUEST6, eth, ip6


def clean(counters: Counters) -> bool:
    return counters.snapshot() == {}


# ------------------------------------------------------------------------------------------------------ TCP options


@given(some.tcp_options, st.binary(max_size=4), st.binary(max_size=4))
def test_tcp_options_survive_building_and_parsing(area: bytes, front: bytes, tail: bytes) -> None:
    assert len(area) <= tcp.MAX_OPTIONS_BYTES
    assert len(area) % 4 == 0
    options = tcp.parse_options_untrusted(front + area + tail, len(front), len(front) + len(area), Counters())
    again = tcp.build_options(
        mss=options.mss, window_scale=options.window_scale, sack_permitted=options.sack_permitted,
        timestamps=options.timestamps, sack=options.sack,
    )  # fmt: skip
    assert tcp.parse_options_untrusted(again, 0, len(again), Counters()) == options


@given(st.binary(max_size=44) | st.binary(max_size=8).map(lambda tail: b"\x01\x01\x08\x0a" + tail))
def test_the_shortcut_for_tcp_options_equals_the_general_path(area: bytes) -> None:
    fast, general = Counters(), Counters()
    assert tcp.parse_options_untrusted(area, 0, len(area), fast) == tcp.parse_options_general_untrusted(
        area, 0, len(area), general
    )
    assert fast.snapshot() == general.snapshot()


@given(some.tcp_options)
def test_tcp_options_are_what_construct_reads(area: bytes) -> None:
    options = tcp.parse_options_untrusted(area, 0, len(area), Counters())
    found = {option.kind: option.data for option in c.GreedyRange(tcp.OPTION).parse(area)}
    assert found.get(tcp.OPT_MSS) == options.mss
    assert (tcp.OPT_SACK_PERMITTED in found) == options.sack_permitted
    scale = found.get(tcp.OPT_WINDOW_SCALE)
    assert options.window_scale == (scale if scale is None else min(scale, tcp.MAX_WINDOW_SCALE))
    assert tuple(tuple(block) for block in found.get(tcp.OPT_SACK, ())) == options.sack
    stamps = found.get(tcp.OPT_TIMESTAMPS)
    assert options.timestamps == (tuple(stamps) if stamps else None)


@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 70))
def test_tcp_options_never_read_past_their_end(frame: bytes, start: int, end: int) -> None:
    whole = tcp.parse_options_untrusted(frame, start, end, Counters())
    assert whole == tcp.parse_options_untrusted(frame[: max(0, end)], start, end, Counters())


# ----------------------------------------------------------------------------------------------------- IPv4 and IPv6


@given(some.ipv4_options)
def test_ipv4_options_survive_building_and_parsing(options: tuple[ipv4.Option, ...]) -> None:
    counters = Counters()
    area = ipv4.build_options(options)
    assert ipv4.parse_options_untrusted(area, 0, len(area), counters) == options
    kept = tuple(option for option in options if option.copied)
    area = ipv4.build_options(options, fragment=True)
    assert ipv4.parse_options_untrusted(area, 0, len(area), counters) == kept
    assert clean(counters)


@given(st.binary(max_size=40))
def test_ipv4_options_are_what_construct_reads(area: bytes) -> None:
    options = ipv4.parse_options_untrusted(area, 0, len(area), Counters())
    if options is not None:
        found = []
        for option in c.GreedyRange(ipv4.OPTION).parse(area):
            if option.kind == ipv4.OPT_END:
                break
            if option.kind != ipv4.OPT_NOP:
                found.append((option.kind, option.data))
        assert found == list(options)
        for option in options:
            assert option.route is None or all(len(address) == 4 for address in option.route)


@given(
    some.fields_of(ipv4.HEADER), st.binary(max_size=40).filter(lambda area: not len(area) % 4), st.integers(0, 65_000)
)
def test_an_ipv4_header_holds_what_it_was_built_from(header: ipv4.Header, options: bytes, payload_len: int) -> None:
    fragment = header.df << 14 | header.mf << 13 | header.fragment_offset
    raw = ipv4.build_header(
        src=header.src, dst=header.dst, proto=header.proto, payload_len=payload_len, ident=header.ident,
        ttl=header.ttl, tos=header.tos, fragment=fragment, options=options,
    )  # fmt: skip
    built = ipv4.HEADER.unpack_from(raw)
    total = 20 + len(options) + payload_len
    assert built == header._replace(
        version=4, header_words=5 + len(options) // 4, total_length=total, reserved=0, checksum=built.checksum
    )
    assert int.from_bytes(raw, "big") % 0xFFFF == 0


@given(some.fields_of(ipv6.HEADER))
def test_an_ipv6_header_holds_what_it_was_built_from(header: ipv6.Header) -> None:
    raw = ipv6.build_header(
        src=header.src, dst=header.dst, next_header=header.next_header, payload_len=header.payload_length,
        hop_limit=header.hop_limit, traffic_class=header.traffic_class, flow_label=header.flow_label,
    )  # fmt: skip
    assert ipv6.HEADER.unpack_from(raw) == header._replace(version=6)


ipv6_options = st.lists(st.builds(ipv6.Option, st.integers(2, 255), st.binary(max_size=30)), max_size=4).map(tuple)


@given(ipv6_options, st.integers(0, 255))
def test_ipv6_options_survive_building_and_parsing(options: tuple[ipv6.Option, ...], next_header: int) -> None:
    counters = Counters()
    raw = ipv6.build_options_header(next_header, options)
    assert len(raw) == 8 + 8 * raw[1]
    assert ipv6.parse_options_untrusted(raw, 0, len(raw), counters) == options
    assert clean(counters)
    found = [(o.kind, o.data) for o in c.GreedyRange(ipv6.OPTION).parse(raw[2:]) if o.kind > ipv6.OPT_PADN]
    assert found == list(options)


@given(st.lists(st.sampled_from((0, 43, 51, 60)), max_size=5), ipv6_options)
def test_the_walk_finds_the_extensions_that_the_one_pass_skipped(
    kinds: list[int], options: tuple[ipv6.Option, ...]
) -> None:
    payload, following = b"", ipv6.NO_NEXT_HEADER
    for kind in reversed(kinds):
        if kind == ipv6.AUTHENTICATION:
            payload = bytes((following, 4)) + bytes(22) + payload
        else:
            payload = ipv6.build_options_header(following, options) + payload
        following = kind
    packet = parse_untrusted(ip6(following, payload), 0, Counters())
    assert packet is not None
    assert packet.proto == ipv6.NO_NEXT_HEADER
    found = ipv6.walk_untrusted(packet)
    assert [extension.kind for extension in found] == kinds
    assert not found or (found[0].start, found[-1].end) == (packet.l3 + 40, packet.l4)


# --------------------------------------------------------------------------------------- ARP, tags, vnet, UDP, ICMP


@given(some.fields_of(arp.HEADER), st.binary(max_size=20))
def test_arp_survives_building_and_parsing(message: arp.Arp, padding: bytes) -> None:
    raw = arp.build(message.op, sha=message.sha, spa=message.spa, tha=message.tha, tpa=message.tpa)
    parsed = arp.parse_untrusted(raw + padding, 0, len(raw + padding), Counters())
    assert parsed == message._replace(htype=1, ptype=0x0800, hlen=6, plen=4)


@given(st.lists(some.fields_of(vlan.TAG), min_size=1, max_size=2), some.payloads)
def test_tags_survive_pushing_and_popping(tags: list[vlan.Tag], payload: bytes) -> None:
    frame = eth(0x0806, payload)
    tagged = frame
    tags = [tag._replace(tpid=0x8100) for tag in tags]
    for tag in reversed(tags):
        tagged = vlan.push(tagged, tag.vid, pcp=tag.pcp, dei=tag.dei, tpid=tag.tpid)
    assert vlan.read_tags_untrusted(tagged) == tuple(tags)
    for _ in tags:
        tagged = vlan.pop(tagged)
    assert tagged == frame == vlan.pop(frame)


@given(some.fields_of(vnet.HEADER), st.sampled_from((10, 12)))
def test_a_vnet_header_survives_building_and_parsing(header: vnet.Header, length: int) -> None:
    raw = vnet.build(length, **header._asdict())
    assert len(raw) == length
    assert vnet.parse_untrusted(raw, length) == header
    assert vnet.parse_untrusted(raw[:-1], length) is None
    assert vnet.build(0) == b""


@given(some.u16, some.u16, some.payloads)
def test_a_datagram_holds_what_it_was_built_from(sport: int, dport: int, payload: bytes) -> None:
    raw = udp.build(src=GUEST, dst=GATEWAY, sport=sport, dport=dport, payload=payload)
    header = udp.HEADER.unpack_from(raw)
    assert (header.sport, header.dport, header.length, raw[8:]) == (sport, dport, 8 + len(payload), payload)
    partial = udp.build_header(src=GUEST, dst=GATEWAY, sport=sport, dport=dport, payload=payload, partial=True)
    assert partial[:6] == raw[:6]


@given(some.icmp_messages, st.binary(max_size=3))
def test_icmp_survives_building_and_parsing(raw: bytes, front: bytes) -> None:
    message = icmp.parse_untrusted(front + raw, len(front), len(front) + len(raw), Counters())
    if message is None:
        assert raw[0] in icmp.ERRORS
    else:
        body = (front + raw)[message.start : message.extensions_end]
        assert icmp.build(message.kind, message.code, message.rest, body) == raw


@given(st.sampled_from(sorted(icmp.ERRORS)), some.u8, st.binary(min_size=28, max_size=700), some.u32)
def test_an_icmp_error_quotes_no_more_than_the_packet_and_576_bytes(
    kind: int, code: int, packet: bytes, extra: int
) -> None:
    total = int.from_bytes(packet[2:4], "big") % 700
    packet = packet[:2] + total.to_bytes(2, "big") + packet[4:]
    raw = icmp.build_error(kind, code, memoryview(packet), extra)
    assert raw[8:] == packet[: min(total, 548)]
    assert int.from_bytes(raw + bytes(len(raw) % 2), "big") % 0xFFFF == 0


@given(st.binary(max_size=60))
def test_a_quote_is_read_within_its_bytes(quote: bytes) -> None:
    counters = Counters()
    found = icmp.parse_quote_untrusted(quote, 0, len(quote), counters)
    if found is None:
        assert counters.snapshot() == {"icmp.bad_quote": 1}
    else:
        assert len(quote) >= 28
        assert (found.src, found.dst) == (quote[12:16], quote[16:20])
        assert len(found.key) in (0, 12)


@given(some.ndp_bodies, st.sampled_from((64, 255)))
def test_neighbour_discovery_is_parsed_or_refused_with_one_counter(body: tuple[int, bytes], hop_limit: int) -> None:
    message = icmpv6.build(src=GUEST6, dst=GATEWAY6, kind=body[0], data=body[1])
    packet = parse_untrusted(ip6(PROTO_ICMPV6, message, hop_limit=hop_limit), 0, Counters())
    assert packet is not None
    counters = Counters()
    parsed = ndp.parse_untrusted(packet, counters)
    assert sum(counters.snapshot().values()) == (parsed is None)
    assert hop_limit == 255 or parsed is None


@given(
    some.fields_of(ndp.RA_HEADER), some.u32, some.fields_of(ndp.PREFIX), some.mac,
    st.lists(some.address6, min_size=1, max_size=3),
    st.lists(some.names().filter(lambda name: len(name) > 1), min_size=1, max_size=3),
)  # fmt: skip
def test_a_router_advertisement_survives_building_and_parsing(
    header: ndp.RaHeader, mtu: int, prefix: ndp.Prefix, mac: bytes, servers: list[bytes], names: list[bytes]
) -> None:
    prefix = prefix._replace(prefix_len=prefix.prefix_len % 129)
    options = (
        ndp.link_option(ndp.OPT_SOURCE_LINK, mac), ndp.mtu_option(mtu), ndp.prefix_option(prefix),
        ndp.rdnss_option(60, servers), ndp.dnssl_option(60, names) if sum(map(len, names)) < 2000 else b"",
    )  # fmt: skip
    raw = ndp.build_router_advertisement(src=GUEST6, dst=GATEWAY6, header=header, options=options)
    packet = parse_untrusted(ip6(PROTO_ICMPV6, raw, hop_limit=255), 0, Counters())
    assert packet is not None
    parsed = ndp.parse_untrusted(packet, Counters())
    assert isinstance(parsed, ndp.RouterAdvertisement)
    found = parsed.options
    assert (parsed.header, found.mtu, found.prefixes, found.source_link) == (header, mtu, (prefix,), mac)
    assert found.rdnss == ((60, tuple(servers)),)
    assert found.dnssl == ((60, tuple(names)),)
    kinds = [option.kind for option in c.GreedyRange(ndp.OPTION).parse(raw[16:])]
    assert kinds == [ndp.OPT_SOURCE_LINK, ndp.OPT_MTU, ndp.OPT_PREFIX, ndp.OPT_RDNSS, ndp.OPT_DNSSL]


# ------------------------------------------------------------------------------------------------- DHCP, DNS, TFTP


@given(some.dhcp_messages)
def test_dhcp_survives_building_and_parsing(message: dhcp.Message) -> None:
    raw = dhcp.build(message)
    parsed = dhcp.parse_untrusted(raw, Counters())
    assert parsed is not None
    assert (parsed.header, parsed.options) == message
    assert dhcp.build(parsed) == raw
    declared = dhcp.MESSAGE.parse(raw)
    assert dhcp.HEADER.flatten(declared.header) == message.header
    joined: dict[int, bytes] = {}
    for option in declared.options:
        if option.code not in (dhcp.PAD, dhcp.END):
            joined[option.code] = joined.get(option.code, b"") + option.data
    assert joined == message.options


@given(st.lists(some.names(), max_size=3), st.lists(st.tuples(some.address4, st.integers(0, 32), some.address4)))
def test_dhcp_lists_survive_encoding_and_decoding(names: list[bytes], routes: list[tuple[bytes, int, bytes]]) -> None:
    assert dhcp.decode_domain_search_untrusted(b"".join(names)) == tuple(names)
    wanted = [dhcp.Route(network[: (plen + 7) // 8].ljust(4, b"\0"), plen, router) for network, plen, router in routes]
    assert dhcp.decode_routes_untrusted(dhcp.encode_routes(wanted)) == tuple(wanted)


@given(st.binary(max_size=60))
def test_dhcp_lists_are_decoded_or_refused(data: bytes) -> None:
    for route in dhcp.decode_routes_untrusted(data) or ():
        assert len(route.network) == len(route.router) == 4
    for name in dhcp.decode_domain_search_untrusted(data) or ():
        assert len(name) <= 255
        assert dns.read_name_untrusted(name, 0) == (name, len(name))


@given(some.dns_messages)
def test_dns_survives_building_and_parsing(message: dns.Message) -> None:
    raw = dns.build(message)
    parsed = dns.parse_untrusted(raw, Counters())
    assert parsed is not None
    assert parsed[1:] == message[1:]
    assert dns.build(parsed) == raw
    assert dns.parse_question_untrusted(raw, Counters()) == (
        parsed.header, message.questions[0] if message.questions else None,
    )  # fmt: skip
    declared = dns.MESSAGE.parse(raw)
    assert dns.HEADER.flatten(declared.header) == parsed.header
    assert [(tuple(q.name), q.qtype, q.qclass) for q in declared.questions] == [
        ((*dns.name_labels(q.name), b""), q.qtype, q.qclass) for q in message.questions
    ]
    assert [(r.rtype, r.rclass, r.ttl, r.rdata) for r in declared.answers] == [r[1:] for r in message.answers]


@given(some.names(), some.names())
def test_a_compressed_name_reads_as_the_whole_one(name: bytes, suffix: bytes) -> None:
    message = suffix + name[:-1] + b"\xc0\x00"
    if len(name) - 1 + len(suffix) <= 255:
        assert dns.read_name_untrusted(message, len(suffix)) == (name[:-1] + suffix, len(message))


@given(some.names())
def test_a_name_as_text_is_printable_and_ends_with_a_dot(name: bytes) -> None:
    text = dns.name_text(name)
    assert text.isascii()
    assert text.isprintable()
    assert text.endswith(".")


@given(st.from_regex(r"([a-z0-9-]{1,20}\.){1,5}", fullmatch=True))
def test_a_name_survives_its_text_form(text: str) -> None:
    assert dns.name_text(dns.name_from_text(text)) == text
    assert dns.name_from_text(text) == dns.name_from_text(text.removesuffix("."))


@given(some.tftp_messages)
def test_tftp_survives_building_and_parsing(message: tftp.Message) -> None:
    raw = tftp.build(message)
    assert tftp.parse_untrusted(raw, Counters()) == message
    assert tftp.MESSAGE.build(tftp.MESSAGE.parse(raw)) == raw


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode))
def test_a_safe_name_stays_below_its_directory(name: bytes) -> None:
    parts = tftp.safe_name(name)
    if parts is not None:
        assert parts
        for part in parts:
            assert part not in ("", ".", "..")
            assert not set(part) & set("/\\:\0")


# --------------------------------------------------------------------------------------- any bytes into any reader


@given(st.binary(max_size=400), st.integers(0, 50))
def test_no_reader_raises_and_each_refusal_is_counted_once(data: bytes, start: int) -> None:
    end = len(data)
    readers = (
        lambda n: arp.parse_untrusted(data, start, end, n),
        lambda n: icmp.parse_untrusted(data, start, end, n),
        lambda n: icmp.parse_quote_untrusted(data, start, end, n),
        lambda n: icmpv6.parse_untrusted(data, start, end, n),
        lambda n: ipv4.parse_options_untrusted(data, start, end, n),
        lambda n: ipv6.parse_options_untrusted(data, start, end, n),
        lambda n: dhcp.parse_untrusted(data, n),
        lambda n: dhcp.parse_untrusted(bytes(236) + dhcp.COOKIE + data, n),
        lambda n: dns.parse_untrusted(data, n),
        lambda n: dns.parse_question_untrusted(data, n),
        lambda n: tftp.parse_untrusted(data, n),
        lambda n: tftp.parse_untrusted(b"\0" + data, n),
    )
    for reader in readers:
        counters = Counters()
        result: object = reader(counters)
        assert sum(counters.snapshot().values()) == (result is None)
