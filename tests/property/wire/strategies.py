"""Frames for property tests: arbitrary bytes, valid frames of every format, and valid frames with damage."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from pystack.wire import arp, dhcp, dns, icmp, icmpv6, ipv4, ipv6, ndp, tcp, tftp, udp, vlan
from pystack.wire.layout import Layout
from pystack.wire.packet import (
    ETHERTYPE_ARP,
    ETHERTYPE_QINQ,
    ETHERTYPE_VLAN,
    IP_MF,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
)
from tests.unit.wire.frames import GATEWAY, GATEWAY6, GUEST, GUEST6, eth, ip4, ip6

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
address4 = st.binary(min_size=4, max_size=4)
address6 = st.binary(min_size=16, max_size=16)
mac = st.binary(min_size=6, max_size=6)
payloads = st.binary(max_size=64)

labels = st.binary(min_size=1, max_size=63)


def names() -> st.SearchStrategy[bytes]:
    """Domain names in wire form, within 255 bytes."""
    return (
        st.lists(labels, max_size=6)
        .map(lambda parts: b"".join([bytes((len(part),)) + part for part in parts]) + b"\0")
        .filter(lambda name: len(name) <= 255)
    )


# ------------------------------------------------------------------------------------------------ values of layouts


def fields_of(layout: Layout[Any]) -> st.SearchStrategy[Any]:
    """Values of a layout's NamedTuple that fit its fields."""
    widths: dict[str, st.SearchStrategy[Any]] = {}
    sizes = _sizes(layout.declaration)
    for name in layout.names:
        if name in layout.bits:
            widths[name] = st.integers(0, layout.bits[name].mask)
        else:
            kind, size = sizes[name]
            widths[name] = st.binary(min_size=size, max_size=size) if kind is bytes else st.integers(0, 256**size - 1)
    value_type = type(layout.unpack_from(bytes(layout.size)))
    return st.builds(value_type, **widths)


def _sizes(declaration: Any) -> dict[str, tuple[type, int]]:
    """Of every field outside bit groups whether it is a number or bytes, and its size."""
    sizes = {}
    zero = declaration.parse(bytes(declaration.sizeof()))
    for member in declaration.subcons:
        if member.name and isinstance(zero[member.name], int | bytes):
            sizes[member.name] = (type(zero[member.name]), member.sizeof())
    return sizes


# ------------------------------------------------------------------------------------------------- protocol messages

tcp_options = st.builds(
    tcp.build_options,
    mss=st.none() | u16,
    window_scale=st.none() | u8,
    sack_permitted=st.booleans(),
    timestamps=st.none() | st.tuples(u32, u32),
    sack=st.lists(st.tuples(u32, u32), max_size=5),
)

ipv4_options = (
    st.lists(
        st.builds(ipv4.Option, st.integers(2, 255), st.binary(max_size=12)),
        max_size=3,
    )
    .filter(lambda options: sum(len(data) + 2 for _, data in options) <= ipv4.MAX_OPTIONS_BYTES)
    .map(tuple)
)

arps = st.builds(arp.build, st.integers(1, 2), sha=mac, spa=address4, tha=mac, tpa=address4)

dhcp_options = st.dictionaries(
    st.integers(1, 254).filter(lambda code: code != dhcp.OPT_OVERLOAD), st.binary(max_size=300), max_size=6
)
dhcp_messages = st.builds(
    lambda header, options: dhcp.Message(header._replace(hlen=header.hlen % 17), options),
    fields_of(dhcp.HEADER),
    dhcp_options,
)

dns_records = st.one_of(
    st.builds(dns.Record, names(), st.sampled_from((dns.A, dns.TXT, dns.OPT, 99)), u16, u32, payloads),
    st.builds(dns.Record, names(), st.sampled_from((dns.NS, dns.CNAME, dns.PTR)), u16, u32, names()),
    st.builds(
        lambda name, host, head: dns.Record(name, dns.MX, 1, 60, head + host),
        names(),
        names(),
        st.binary(min_size=2, max_size=2),
    ),
    st.builds(lambda name, a, b: dns.Record(name, dns.SOA, 1, 60, a + b + bytes(20)), names(), names(), names()),
)
_sections = st.lists(dns_records, max_size=3).map(tuple)
dns_messages = st.builds(
    dns.Message,
    fields_of(dns.HEADER),
    st.lists(st.builds(dns.Question, names(), u16, u16), max_size=2).map(tuple),
    _sections,
    _sections,
    _sections,
)

_text = st.binary(max_size=20).map(lambda text: text.replace(b"\0", b"x"))
_pairs = st.lists(st.tuples(_text.map(bytes.lower), _text), max_size=4).map(tuple)
tftp_messages: st.SearchStrategy[tftp.Message] = st.one_of(
    st.builds(tftp.Request, st.sampled_from((tftp.RRQ, tftp.WRQ)), _text.filter(bool), _text.map(bytes.lower), _pairs),
    st.builds(tftp.Data, u16, payloads),
    st.builds(tftp.Ack, u16),
    st.builds(tftp.Error, u16, _text),
    st.builds(tftp.Oack, _pairs.filter(bool)),
)

icmp_messages = st.one_of(
    st.builds(icmp.build, u8, u8, u32, payloads),
    st.builds(icmp.build_echo, st.sampled_from((icmp.ECHO_REQUEST, icmp.ECHO_REPLY)), u16, u16, payloads),
)


def _ndp_options() -> st.SearchStrategy[bytes]:
    one = st.one_of(
        st.builds(ndp.link_option, st.sampled_from((ndp.OPT_SOURCE_LINK, ndp.OPT_TARGET_LINK)), mac),
        st.builds(ndp.mtu_option, u32),
        st.builds(ndp.prefix_option, fields_of(ndp.PREFIX)),
        st.builds(ndp.rdnss_option, u32, st.lists(address6, min_size=1, max_size=3)),
        st.builds(ndp.dnssl_option, u32, st.lists(names().filter(lambda name: len(name) > 1), min_size=1, max_size=2)),
    )
    return st.lists(one, max_size=3).map(b"".join)


ndp_bodies = st.one_of(
    st.tuples(st.just(133), _ndp_options()),
    st.tuples(
        st.just(134), st.builds(lambda head, options: head + options, st.binary(min_size=8, max_size=8), _ndp_options())
    ),
    st.tuples(st.sampled_from((135, 136)), st.builds(lambda head, options: head + options, address6, _ndp_options())),
    st.tuples(st.just(137), st.builds(lambda a, b, options: a + b + options, address6, address6, _ndp_options())),
)


# ------------------------------------------------------------------------------------------------------------ frames


def _segment(src: bytes, dst: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(
        tcp.build, src=st.just(src), dst=st.just(dst), sport=u16, dport=u16, seq=u32, ack=u32, flags=u8, window=u16,
        urgent=u16, options=tcp_options, payload=payloads,
    )  # fmt: skip


def _datagram(src: bytes, dst: bytes) -> st.SearchStrategy[bytes]:
    ports = st.sampled_from((53, 67, 68, 69, 7, 40_000))
    contents = st.one_of(
        payloads, dhcp_messages.map(dhcp.build), dns_messages.map(dns.build), tftp_messages.map(tftp.build)
    )
    return st.builds(udp.build, src=st.just(src), dst=st.just(dst), sport=ports, dport=ports, payload=contents)


_fragments = st.one_of(st.just(0), st.just(0x4000), st.integers(0, 20), st.just(IP_MF))

_intact4 = st.one_of(
    _segment(GUEST, GATEWAY).map(lambda segment: ip4(PROTO_TCP, segment)),
    _datagram(GUEST, GATEWAY).map(lambda datagram: ip4(PROTO_UDP, datagram)),
    icmp_messages.map(lambda message: ip4(PROTO_ICMP, message)),
    arps.map(lambda message: eth(ETHERTYPE_ARP, message)),
)

# IPv4 is right, what it carries need not be.
_packets4 = st.builds(
    lambda proto, payload, fragment, options: ip4(proto, payload, fragment=fragment, options=options),
    st.sampled_from((PROTO_TCP, PROTO_UDP, PROTO_ICMP, 253)),
    st.binary(min_size=20, max_size=60),
    _fragments,
    ipv4_options.map(ipv4.build_options),
)


@st.composite
def _intact6(draw: st.DrawFn, *, fragments: bool) -> bytes:
    """An IPv6 frame with extension headers in front of TCP, UDP or ICMPv6; ``fragments`` may be pieces of a packet."""
    proto, payload = draw(
        st.one_of(
            st.tuples(st.just(PROTO_TCP), _segment(GUEST6, GATEWAY6)),
            st.tuples(st.just(PROTO_UDP), _datagram(GUEST6, GATEWAY6)),
            st.tuples(
                st.just(PROTO_ICMPV6),
                ndp_bodies.map(lambda body: icmpv6.build(src=GUEST6, dst=GATEWAY6, kind=body[0], data=body[1])),
            ),
        )
    )
    options = st.lists(st.builds(ipv6.Option, st.integers(2, 255), st.binary(max_size=10)), max_size=2).map(tuple)
    for kind in draw(st.lists(st.sampled_from((0, 43, 44, 51, 60)), max_size=3)):
        if kind == ipv6.FRAGMENT:
            whole, pieces = [(0, False)], [(0, True), (3, True), (3, False)]
            offset, more = draw(st.sampled_from(whole + pieces * fragments))
            payload = ipv6.build_fragment_header(proto, offset=offset, more=more, ident=draw(u32)) + payload
        elif kind == ipv6.AUTHENTICATION:
            payload = bytes((proto, 4)) + bytes(22) + payload
        else:
            payload = ipv6.build_options_header(proto, draw(options)) + payload
        proto = kind
    return ip6(proto, payload, hop_limit=draw(st.sampled_from((64, 255))))


@st.composite
def _tagged(draw: st.DrawFn, frames: st.SearchStrategy[bytes]) -> bytes:
    frame = draw(frames)
    for tpid in draw(st.lists(st.sampled_from((ETHERTYPE_VLAN, ETHERTYPE_QINQ)), max_size=2)):
        frame = vlan.push(frame, draw(st.integers(0, 4095)), pcp=draw(st.integers(0, 7)), tpid=tpid)
    return frame


intact_frames = _tagged(st.one_of(_intact4, _intact6(fragments=False)))
"""Whole packets, tagged or not, whose checksums are right."""

valid_frames = _tagged(st.one_of(_intact4, _packets4, _intact6(fragments=True)))
"""Also fragments, and IPv4 whose payload is not what its protocol says."""


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    """A valid frame with up to four bytes overwritten, then cut or padded."""
    frame = bytearray(draw(valid_frames))
    # The headers are where damage changes what is parsed.
    for at, value in draw(st.lists(st.tuples(st.integers(0, min(len(frame) - 1, 90)), u8), max_size=4)):
        frame[at] = value
    cut = draw(st.one_of(st.just(len(frame)), st.integers(0, len(frame))))
    return bytes(frame[:cut]) + draw(st.sampled_from((b"", bytes(6), b"\xff" * 3)))


any_frames = st.one_of(st.binary(max_size=120), valid_frames, damaged_frames())
vnet_lengths = st.sampled_from((0, 10, 12))
