"""IPv6: the header and its extension headers.

Read before editing: RFC 8200 sections 3 and 4, RFC 4302 section 2 (AH counts its length differently), RFC 2711 (router
alert), RFC 4291 sections 2.5 and 2.7 (addresses).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |Version| Traffic Class |           Flow Label                  |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |         Payload Length        |  Next Header  |   Hop Limit   |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                    Source Address (16 bytes)                  |
    |                 Destination Address (16 bytes)                |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

Hop-by-hop, destination and routing headers, and the Fragment header (44)::

    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |  Next Header  |  Hdr Ext Len  |  options (kind, length, data) |
    |               |  (8n + 8)     |  or type, segments left, ...  |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |  Next Header  |   Reserved    |      Fragment Offset    |Res|M|
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                         Identification                        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

The hot path walks them in `pystack.wire.packet`; what is in them is read here.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final, NamedTuple

import construct as c

from pystack.counters import Counters
from pystack.wire.layout import Layout
from pystack.wire.packet import Packet

HOP_BY_HOP: Final = 0
ROUTING: Final = 43
FRAGMENT: Final = 44
AUTHENTICATION: Final = 51
NO_NEXT_HEADER: Final = 59
DESTINATION: Final = 60
MOBILITY: Final = 135
EXTENSIONS: Final = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION, MOBILITY))

MIN_MTU: Final = 1280

OPT_PAD1: Final = 0
OPT_PADN: Final = 1
OPT_ROUTER_ALERT: Final = 5
OPT_JUMBO: Final = 0xC2

UNSPECIFIED: Final = bytes(16)
LOOPBACK: Final = bytes(15) + b"\x01"
ALL_NODES: Final = b"\xff\x02" + bytes(13) + b"\x01"
ALL_ROUTERS: Final = b"\xff\x02" + bytes(13) + b"\x02"

_SOLICITED_NODE: Final = b"\xff\x02" + bytes(9) + b"\x01\xff"
_LINK_LOCAL: Final = b"\xfe\x80" + bytes(6)


class Header(NamedTuple):
    """The fixed part; ``payload_length`` counts everything behind it, in bytes."""

    version: int
    traffic_class: int
    flow_label: int
    payload_length: int
    next_header: int
    hop_limit: int
    src: bytes
    dst: bytes


HEADER: Final = Layout.derive(
    c.Struct(
        "first"
        / c.BitStruct(
            "version" / c.BitsInteger(4), "traffic_class" / c.BitsInteger(8), "flow_label" / c.BitsInteger(20)
        ),
        "payload_length" / c.Int16ub,
        "next_header" / c.Int8ub,
        "hop_limit" / c.Int8ub,
        "src" / c.Bytes(16),
        "dst" / c.Bytes(16),
    ),
    Header,
)


class FragmentHeader(NamedTuple):
    """``offset`` counts 8 bytes."""

    next_header: int
    reserved: int
    offset: int
    reserved2: int
    more: int
    ident: int


FRAGMENT_HEADER: Final = Layout.derive(
    c.Struct(
        "next_header" / c.Int8ub,
        "reserved" / c.Int8ub,
        "position"
        / c.BitStruct("offset" / c.BitsInteger(13), "reserved2" / c.BitsInteger(2), "more" / c.BitsInteger(1)),
        "ident" / c.Int32ub,
    ),
    FragmentHeader,
)

OPTION: Final = c.Struct("kind" / c.Int8ub, "data" / c.If(c.this.kind != OPT_PAD1, c.Prefixed(c.Int8ub, c.GreedyBytes)))
"""One option of a hop-by-hop or destination header, for generators and the tests' comparison."""


class Extension(NamedTuple):
    """One extension header, ``frame[start:end]``, its first byte the next header's number."""

    kind: int
    start: int
    end: int


def walk_untrusted(packet: Packet) -> tuple[Extension, ...]:
    """The extension headers of ``packet``, which the one pass has parsed and so found to be whole, in order.

    Behind a Fragment header that is not atomic there are none to be seen.
    """
    if packet.version != 6:
        return ()
    frame = packet.frame
    found = []
    at = packet.l3 + HEADER.size
    kind = frame[packet.l3 + 6]
    while at < packet.l4:
        units = frame[at + 1]
        size = 8 if kind == FRAGMENT else 8 + 4 * units if kind == AUTHENTICATION else 8 + 8 * units
        found.append(Extension(kind, at, at + size))
        kind = frame[at]
        at += size
    return tuple(found)


class Option(NamedTuple):
    """One option other than padding."""

    kind: int
    data: bytes

    @property
    def if_unknown(self) -> int:
        """What to do when it is not understood: 0 skip, 1 discard, 2 and report it, 3 unless multicast."""
        return self.kind >> 6


def parse_options_untrusted(frame: bytes, start: int, end: int, counters: Counters) -> tuple[Option, ...] | None:
    """The options of the hop-by-hop or destination header ``frame[start:end]``, without padding.

    Returns:
        None (`ipv6.bad_option`) when one passes the end.
    """
    options = []
    end = min(end, len(frame))
    at = start + 2
    while at < end:
        kind = frame[at]
        if kind == OPT_PAD1:
            at += 1
            continue
        if at + 2 > end or at + 2 + frame[at + 1] > end:
            counters.bump("ipv6.bad_option")
            return None
        after = at + 2 + frame[at + 1]
        if kind != OPT_PADN:
            options.append(Option(kind, frame[at + 2 : after]))
        at = after
    return tuple(options)


def build_header(
    *,
    src: bytes,
    dst: bytes,
    next_header: int,
    payload_len: int,
    hop_limit: int = 64,
    traffic_class: int = 0,
    flow_label: int = 0,
) -> bytes:
    """The 40 bytes in front of ``payload_len`` bytes of extension headers and payload.

    Raises:
        struct.error: a number does not fit in its field.
    """
    first = 6 << 28 | traffic_class << 20 | flow_label
    return HEADER.struct.pack(first, payload_len, next_header, hop_limit, src, dst)


def build_options_header(next_header: int, options: tuple[Option, ...] = ()) -> bytes:
    """A hop-by-hop or destination header with ``options``, padded to a multiple of 8 bytes.

    The options' own alignment (RFC 8200 section 4.2) is the caller's: put padding among them.
    """
    area = b"".join([bytes((kind, len(data))) + data for kind, data in options])
    room = -(len(area) + 2) % 8
    if room == 1:
        area += bytes((OPT_PAD1,))
    elif room:
        area += bytes((OPT_PADN, room - 2)) + bytes(room - 2)
    return bytes((next_header, (len(area) + 2) // 8 - 1)) + area


def build_fragment_header(next_header: int, *, offset: int, more: bool, ident: int) -> bytes:
    """The 8 bytes in front of a fragment whose data starts ``offset`` * 8 bytes into the packet's fragmentable part."""
    return FRAGMENT_HEADER.struct.pack(next_header, 0, offset << 3 | more, ident)


def is_multicast(address: bytes) -> bool:
    """Whether ``address`` is ff00::/8."""
    return address[0] == 0xFF


def is_link_local(address: bytes) -> bool:
    """Whether ``address`` is fe80::/10."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def solicited_node(address: bytes) -> bytes:
    """The multicast group that a neighbour solicitation for ``address`` goes to (RFC 4291 section 2.7.1)."""
    return _SOLICITED_NODE + address[13:]


def link_local(mac: bytes) -> bytes:
    """The link-local address made from a MAC (RFC 4862 section 5.3, RFC 2464 section 4)."""
    return _LINK_LOCAL + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


def text(address: bytes) -> str:
    """``fe80::1``, of 16 bytes (RFC 5952)."""
    return str(IPv6Address(address))
