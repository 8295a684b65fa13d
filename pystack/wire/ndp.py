"""Neighbour discovery: the messages of ICMPv6 that find routers and neighbours, and their options.

Read before editing: RFC 4861 sections 4 (formats), 6.1, 7.1 and 8.1 (what makes a message valid), RFC 8106 section 5
(RDNSS, DNSSL).

Solicitation and advertisement of a neighbour::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |   Type (135)  |     Code      |          Checksum             |
    |        (136)  |               |                               |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |R|S|O|                     Reserved                            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                   Target Address (16 bytes)                   |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |  Options: type, length in units of 8 bytes (never 0), data ...|
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

Advertisement of a router::

    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |   Type (134)  |     Code      |          Checksum             |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    | Cur Hop Limit |M|O|  Reserved |       Router Lifetime         |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                         Reachable Time                        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                          Retrans Timer                        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |   Options ...                                                 |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias, final

import construct as c

from pystack.counters import Counters
from pystack.errors import WireError
from pystack.wire import dns, icmpv6, ipv6
from pystack.wire.layout import Layout
from pystack.wire.packet import Packet

ROUTER_SOLICITATION: Final = 133
ROUTER_ADVERTISEMENT: Final = 134
NEIGHBOUR_SOLICITATION: Final = 135
NEIGHBOUR_ADVERTISEMENT: Final = 136
REDIRECT: Final = 137

FLAG_ROUTER: Final = 0x80
FLAG_SOLICITED: Final = 0x40
FLAG_OVERRIDE: Final = 0x20
RA_MANAGED: Final = 0x80
RA_OTHER: Final = 0x40
PREFIX_ON_LINK: Final = 0x80
PREFIX_AUTONOMOUS: Final = 0x40

OPT_SOURCE_LINK: Final = 1
OPT_TARGET_LINK: Final = 2
OPT_PREFIX: Final = 3
OPT_REDIRECTED: Final = 4
OPT_MTU: Final = 5
OPT_RDNSS: Final = 25
OPT_DNSSL: Final = 31

_HOP_LIMIT: Final = 255


class RaHeader(NamedTuple):
    """A router advertisement behind the checksum; milliseconds and seconds as RFC 4861 section 4.2 has them."""

    hop_limit: int
    flags: int
    lifetime_s: int
    reachable_ms: int
    retrans_ms: int


RA_HEADER: Final = Layout.derive(
    c.Struct(
        "hop_limit" / c.Int8ub,
        "flags" / c.Int8ub,
        "lifetime_s" / c.Int16ub,
        "reachable_ms" / c.Int32ub,
        "retrans_ms" / c.Int32ub,
    ),
    RaHeader,
)


class Prefix(NamedTuple):
    """A prefix information option (RFC 4861 section 4.6.2); 0xffffffff seconds is infinity."""

    prefix_len: int
    flags: int
    valid_s: int
    preferred_s: int
    prefix: bytes


PREFIX: Final = Layout.derive(
    c.Struct(
        "prefix_len" / c.Int8ub,
        "flags" / c.Int8ub,
        "valid_s" / c.Int32ub,
        "preferred_s" / c.Int32ub,
        c.Padding(4),
        "prefix" / c.Bytes(16),
    ),
    Prefix,
)

OPTION: Final = c.Struct(
    "kind" / c.Int8ub,
    "data" / c.Prefixed(c.ExprAdapter(c.Int8ub, c.obj_ * 8 - 2, (c.obj_ + 2) // 8), c.GreedyBytes),
)
"""One NDP option, for generators and the tests' comparison; network bytes go to `parse_untrusted`."""


@final
class NdpOptions:
    """The options of an NDP message; what is unknown or of a wrong length (but not 0) is left out.

    Attributes:
        source_link, target_link: 6 bytes, or None. mtu: None when absent. prefixes: in order.
        rdnss: (lifetime in seconds, addresses). dnssl: (lifetime in seconds, names). RFC 8106 section 5.
    """

    __slots__ = ("dnssl", "mtu", "prefixes", "rdnss", "source_link", "target_link")

    def __init__(self) -> None:
        self.source_link: bytes | None = None
        self.target_link: bytes | None = None
        self.mtu: int | None = None
        self.prefixes: tuple[Prefix, ...] = ()
        self.rdnss: tuple[tuple[int, tuple[bytes, ...]], ...] = ()
        self.dnssl: tuple[tuple[int, tuple[dns.Name, ...]], ...] = ()


class RouterSolicitation(NamedTuple):
    """RFC 4861 section 4.1."""

    options: NdpOptions


class RouterAdvertisement(NamedTuple):
    """RFC 4861 section 4.2."""

    header: RaHeader
    options: NdpOptions


class NeighbourSolicitation(NamedTuple):
    """RFC 4861 section 4.3."""

    target: bytes
    options: NdpOptions


class NeighbourAdvertisement(NamedTuple):
    """RFC 4861 section 4.4; ``flags`` of FLAG_ROUTER, FLAG_SOLICITED, FLAG_OVERRIDE."""

    flags: int
    target: bytes
    options: NdpOptions


class Redirect(NamedTuple):
    """RFC 4861 section 4.5: ``target`` is the better first hop to ``destination``."""

    target: bytes
    destination: bytes
    options: NdpOptions


Ndp: TypeAlias = RouterSolicitation | RouterAdvertisement | NeighbourSolicitation | NeighbourAdvertisement | Redirect

# Bytes in front of the options, from the ICMPv6 header on.
_FIXED: Final = {
    ROUTER_SOLICITATION: 8,
    ROUTER_ADVERTISEMENT: 16,
    NEIGHBOUR_SOLICITATION: 24,
    NEIGHBOUR_ADVERTISEMENT: 24,
    REDIRECT: 40,
}


def parse_untrusted(packet: Packet, counters: Counters) -> Ndp | None:
    """The neighbour discovery message that the ICMPv6 ``packet`` holds, its checksum verified already.

    Returns:
        None and one counter when RFC 4861 sections 6.1, 7.1 and 8.1 demand that it be discarded: `icmpv6.bad_hop_limit`
        (a router has forwarded it), `icmpv6.bad_ndp` (type, code, length, or addresses that do not go together), or
        `icmpv6.bad_option` (an option of length 0 or longer than the message).
    """
    try:
        return _parse(packet)
    except WireError as error:
        counters.bump(error.reason)
        return None


def _parse(packet: Packet) -> Ndp:
    if packet.ttl != _HOP_LIMIT:
        raise WireError("icmpv6.bad_hop_limit")
    frame, at, end = packet.frame, packet.l4, packet.end
    header = icmpv6.HEADER.unpack_untrusted(frame, at, end)
    fixed = _FIXED.get(header.kind) if header else None
    if header is None or fixed is None or header.code or end - at < fixed:
        raise WireError("icmpv6.bad_ndp")
    options = _read_options(frame, at + fixed, end)
    target = frame[at + 8 : at + 24]
    message: Ndp
    if header.kind == ROUTER_SOLICITATION:
        message = RouterSolicitation(options)
    elif header.kind == ROUTER_ADVERTISEMENT:
        message = RouterAdvertisement(RA_HEADER.unpack_from(frame, at + 4), options)
    elif header.kind == NEIGHBOUR_SOLICITATION:
        message = NeighbourSolicitation(target, options)
    elif header.kind == NEIGHBOUR_ADVERTISEMENT:
        message = NeighbourAdvertisement(frame[at + 4], target, options)
    else:
        message = Redirect(target, frame[at + 24 : at + 40], options)
    if not _valid(message, packet):
        raise WireError("icmpv6.bad_ndp")
    return message


def _valid(message: Ndp, packet: Packet) -> bool:
    """The rules about addresses."""
    match message:
        case RouterSolicitation(options):
            return packet.src != ipv6.UNSPECIFIED or options.source_link is None
        case RouterAdvertisement():
            return ipv6.is_link_local(packet.src)
        case NeighbourSolicitation(target, options):
            if ipv6.is_multicast(target):
                return False
            if packet.src == ipv6.UNSPECIFIED:
                return options.source_link is None and packet.dst == ipv6.solicited_node(target)
            return True
        case NeighbourAdvertisement(flags, target, _):
            return not ipv6.is_multicast(target) and not (ipv6.is_multicast(packet.dst) and flags & FLAG_SOLICITED)
        case Redirect(target, destination, _):
            return (
                ipv6.is_link_local(packet.src)
                and not ipv6.is_multicast(destination)
                and (target == destination or ipv6.is_link_local(target))
            )


def _read_options(frame: bytes, at: int, end: int) -> NdpOptions:
    """RFC 4861 section 4.6: length 0 makes the whole message invalid, whatever is unknown is skipped."""
    options = NdpOptions()
    while at < end:
        length = frame[at + 1] * 8 if at + 1 < end else 0
        if not length or at + length > end:
            raise WireError("icmpv6.bad_option")
        _read_option(options, frame[at], frame[at + 2 : at + length])
        at += length
    return options


def _read_option(options: NdpOptions, kind: int, data: bytes) -> None:
    if kind == OPT_SOURCE_LINK and len(data) == 6:
        options.source_link = data
    elif kind == OPT_TARGET_LINK and len(data) == 6:
        options.target_link = data
    elif kind == OPT_MTU and len(data) == 6:
        options.mtu = int.from_bytes(data[2:], "big")
    elif kind == OPT_PREFIX and len(data) == 30 and data[0] <= 128:
        options.prefixes += (PREFIX.unpack_from(data),)
    elif kind == OPT_RDNSS and len(data) >= 22:
        addresses = tuple(data[at : at + 16] for at in range(6, len(data) - 15, 16))
        options.rdnss += ((int.from_bytes(data[2:6], "big"), addresses),)
    elif kind == OPT_DNSSL and len(data) >= 14:
        names = _search_list(data[6:])
        if names:
            options.dnssl += ((int.from_bytes(data[2:6], "big"), names),)


def _search_list(data: bytes) -> tuple[dns.Name, ...]:
    """Names padded with zeros (RFC 8106 section 5.2); none when one of them is malformed."""
    names = []
    at = 0
    try:
        while at < len(data) and data[at]:
            name, at = dns.read_name_untrusted(data, at)
            names.append(name)
    except WireError:
        return ()
    return tuple(names)


def build_neighbour_solicitation(*, src: bytes, dst: bytes, target: bytes, source_link: bytes | None) -> bytes:
    """RFC 4861 section 4.3; send it with hop limit 255. ``source_link`` is None when ``src`` is unspecified."""
    data = target + (link_option(OPT_SOURCE_LINK, source_link) if source_link else b"")
    return icmpv6.build(src=src, dst=dst, kind=NEIGHBOUR_SOLICITATION, data=data)


def build_neighbour_advertisement(*, src: bytes, dst: bytes, target: bytes, flags: int, target_link: bytes) -> bytes:
    """RFC 4861 section 4.4; send it with hop limit 255."""
    data = target + link_option(OPT_TARGET_LINK, target_link)
    return icmpv6.build(src=src, dst=dst, kind=NEIGHBOUR_ADVERTISEMENT, rest=flags << 24, data=data)


def build_router_advertisement(*, src: bytes, dst: bytes, header: RaHeader, options: Iterable[bytes] = ()) -> bytes:
    """RFC 4861 section 4.2; ``options`` from the functions below; send it with hop limit 255."""
    body = RA_HEADER.struct.pack(*header)
    rest = int.from_bytes(body[:4], "big")
    return icmpv6.build(src=src, dst=dst, kind=ROUTER_ADVERTISEMENT, rest=rest, data=body[4:] + b"".join(options))


def link_option(kind: int, mac: bytes) -> bytes:
    """OPT_SOURCE_LINK or OPT_TARGET_LINK."""
    return bytes((kind, 1)) + mac


def mtu_option(mtu: int) -> bytes:
    """RFC 4861 section 4.6.4."""
    return struct.pack("!BBHI", OPT_MTU, 1, 0, mtu)


def prefix_option(prefix: Prefix) -> bytes:
    """RFC 4861 section 4.6.2."""
    return bytes((OPT_PREFIX, 4)) + PREFIX.struct.pack(*prefix)


def rdnss_option(lifetime_s: int, addresses: Iterable[bytes]) -> bytes:
    """RFC 8106 section 5.1; at least one address."""
    data = b"".join(addresses)
    return struct.pack("!BBHI", OPT_RDNSS, 1 + len(data) // 8, 0, lifetime_s) + data


def dnssl_option(lifetime_s: int, names: Iterable[dns.Name]) -> bytes:
    """RFC 8106 section 5.2; at least one name."""
    data = b"".join(names)
    data += bytes(-len(data) % 8)
    return struct.pack("!BBHI", OPT_DNSSL, 1 + len(data) // 8, 0, lifetime_s) + data
