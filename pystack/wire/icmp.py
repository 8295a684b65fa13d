"""ICMP: echo, errors, and the rest.

Read before editing: RFC 792 (formats), RFC 1122 section 3.2.2 (what an error may be about), RFC 1812 section 4.3.2
(how much is quoted), RFC 1191 section 4 (next-hop MTU), RFC 4884 sections 3 to 5 (the length of the quote, extensions).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     Type      |     Code      |           Checksum            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     Identifier and Sequence Number (echo, timestamp), or      |
    |     unused | length | next-hop MTU (unreachable), or          |
    |     pointer | length | unused (parameter problem), or         |
    |     gateway address (redirect)                                |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     Data, or the IP header and what followed it of the packet |
    |     that an error is about ...                                |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

import construct as c

from pystack.counters import Counters
from pystack.frame import Buffer
from pystack.wire import checksum
from pystack.wire.ethernet import is_group
from pystack.wire.layout import Layout
from pystack.wire.packet import IP_OFFSET, PROTO_ICMP, PROTO_TCP, PROTO_UDP, Packet

ECHO_REPLY: Final = 0
UNREACHABLE: Final = 3
SOURCE_QUENCH: Final = 4
REDIRECT: Final = 5
ECHO_REQUEST: Final = 8
ROUTER_ADVERTISEMENT: Final = 9
ROUTER_SOLICITATION: Final = 10
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12
TIMESTAMP_REQUEST: Final = 13
TIMESTAMP_REPLY: Final = 14

# Codes of UNREACHABLE (RFC 792, RFC 1122 section 3.2.2.1, RFC 1812 section 5.2.7.1).
NET_UNREACHABLE: Final = 0
HOST_UNREACHABLE: Final = 1
PROTOCOL_UNREACHABLE: Final = 2
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4
SOURCE_ROUTE_FAILED: Final = 5
ADMIN_PROHIBITED: Final = 13

# Codes of TIME_EXCEEDED.
TTL_EXCEEDED: Final = 0
REASSEMBLY_TIMEOUT: Final = 1

ERRORS: Final = frozenset((UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM))
"""The types that quote the packet they are about (RFC 1122 section 3.2.2)."""

MAX_ERROR_BYTES: Final = 576
"""A whole error, IP header included, is at most this long (RFC 1812 section 4.3.2.3)."""

_IP_HEADER: Final = 20
_QUOTE_LIMIT: Final = MAX_ERROR_BYTES - _IP_HEADER - 8
_WITH_LENGTH: Final = frozenset((UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM))


class Header(NamedTuple):
    """``rest`` is the second word, whose meaning depends on the type."""

    kind: int
    code: int
    checksum: int
    rest: int


HEADER: Final = Layout.derive(
    c.Struct("kind" / c.Int8ub, "code" / c.Int8ub, "checksum" / c.Int16ub, "rest" / c.Int32ub), Header
)


@final
class Message:
    """One message, its data still in the frame.

    Attributes:
        kind, code: the type and code. rest: the second word as one number.
        start, end: the data (of an echo) or the quote (of an error) is ``frame[start:end]``. An RFC 4884 length has
            moved ``end`` in front of the extensions, which are ``frame[end:extensions_end]``.
    """

    __slots__ = ("code", "end", "extensions_end", "kind", "rest", "start")

    def __init__(self, kind: int, code: int, rest: int, start: int, end: int, extensions_end: int) -> None:
        self.kind = kind
        self.code = code
        self.rest = rest
        self.start = start
        self.end = end
        self.extensions_end = extensions_end

    @property
    def ident(self) -> int:
        """The identifier of an echo or timestamp."""
        return self.rest >> 16

    @property
    def sequence(self) -> int:
        """The sequence number of an echo or timestamp."""
        return self.rest & 0xFFFF

    @property
    def mtu(self) -> int:
        """The next hop's MTU of FRAGMENTATION_NEEDED; 0 from a router older than RFC 1191."""
        return self.rest & 0xFFFF

    @property
    def pointer(self) -> int:
        """Of a parameter problem the offset of the octet at fault."""
        return self.rest >> 24

    @property
    def gateway(self) -> bytes:
        """Of a redirect the better first hop, 4 bytes."""
        return self.rest.to_bytes(4, "big")


def parse_untrusted(frame: bytes, start: int, end: int, counters: Counters) -> Message | None:
    """The message in ``frame[start:end]``, of any type.

    Returns:
        None (`icmp.short`) when its 8 bytes are not there, or when an error quotes less than an IP header and 8 bytes
        (RFC 792).
    """
    end = min(end, len(frame))
    header = HEADER.unpack_untrusted(frame, start, end)
    if header is None:
        counters.bump("icmp.short")
        return None
    kind, code, _, rest = header
    message = Message(kind, code, rest, start + 8, end, end)
    if kind in ERRORS:
        length = (rest >> 16 & 0xFF) * 4 if kind in _WITH_LENGTH else 0
        # A length that is impossible is one that its sender did not mean as RFC 4884 does: 128 is the least there.
        if 128 <= length <= end - message.start:
            message.end = message.start + length
        if message.end - message.start < _IP_HEADER + 8:
            counters.bump("icmp.short")
            return None
    return message


class Quote(NamedTuple):
    """What an error quotes of the packet it is about, as that packet's sender sent it.

    ``key`` is src, dst, sport and dport in 12 bytes (ports for TCP and UDP, else b""); ``seq`` is TCP's sequence
    number, for ICMP the identifier and sequence number as one number; 0 otherwise.
    """

    proto: int
    src: bytes
    dst: bytes
    key: bytes
    seq: int
    total_length: int
    fragment: int


def parse_quote_untrusted(frame: bytes, start: int, end: int, counters: Counters) -> Quote | None:
    """The IPv4 header and 8 bytes more in ``frame[start:end]``, which is all that an error is sure to hold (RFC 792).

    Returns:
        None when there is no such thing (`icmp.bad_quote`). Checksums and total length are not looked at: routers
        change the one, and the other is of the whole packet.
    """
    end = min(end, len(frame))
    header_len = (frame[start] & 15) * 4 if start < end else 0
    if header_len < _IP_HEADER or frame[start] >> 4 != 4 or start + header_len + 8 > end:
        counters.bump("icmp.bad_quote")
        return None
    l4 = start + header_len
    proto = frame[start + 9]
    src, dst = frame[start + 12 : start + 16], frame[start + 16 : start + 20]
    fragment = frame[start + 6] << 8 | frame[start + 7]
    key, seq = b"", 0
    if not fragment & IP_OFFSET:
        if proto in (PROTO_TCP, PROTO_UDP):
            key = src + dst + frame[l4 : l4 + 4]
        if proto in (PROTO_TCP, PROTO_ICMP):
            seq = int.from_bytes(frame[l4 + 4 : l4 + 8], "big")
    return Quote(proto, src, dst, key, seq, frame[start + 2] << 8 | frame[start + 3], fragment)


def may_report(packet: Packet) -> bool:
    """Whether RFC 1122 section 3.2.2 lets an ICMP error be sent about ``packet``, as far as it shows.

    Not about an ICMP error, a fragment other than the first, what went to a broadcast or multicast address of either
    layer, or what came from no single host. A subnet's directed broadcast is for the caller to know.
    """
    if packet.version != 4 or packet.frag & IP_OFFSET:
        return False
    if packet.proto == PROTO_ICMP:
        # A type that is not there, or that is not known, could be an error's: it stays unanswered (RFC 1812 4.3.2.7).
        kind = packet.frame[packet.l4] if packet.l4 < packet.end else UNREACHABLE
        if kind not in (ECHO_REPLY, ECHO_REQUEST, TIMESTAMP_REQUEST, TIMESTAMP_REPLY):
            return False
    if is_group(packet.dst_mac()) or packet.dst[0] >= 224:
        return False
    return 0 < packet.src[0] < 224 and packet.src[0] != 127


def build(kind: int, code: int, rest: int, data: Buffer = b"") -> bytes:
    """Any message with its checksum."""
    total = (kind << 8 | code) + rest + checksum.sum16(data)
    return HEADER.struct.pack(kind, code, checksum.finish(total), rest) + data


def build_echo(kind: int, ident: int, sequence: int, data: Buffer = b"") -> bytes:
    """An echo request or reply (``kind``) with its checksum."""
    return build(kind, 0, ident << 16 | sequence, data)


def build_error(kind: int, code: int, original: Buffer, extra: int = 0) -> bytes:
    """An error about the packet whose IP header starts ``original``, with its checksum.

    It quotes as much as fits into 576 bytes (RFC 1812 section 4.3.2.3) and of ``original`` no more than the total
    length in it, so that Ethernet padding and other bytes behind it do not leak. No extensions (RFC 4884).

    Args:
        extra: the second word: the next hop's MTU, ``pointer << 24``, or the gateway's address.
    """
    packet_len = int.from_bytes(original[2:4], "big")
    return build(kind, code, extra, bytes(original[: min(packet_len, _QUOTE_LIMIT)]))
