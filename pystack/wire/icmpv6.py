"""ICMPv6: echo and errors. Neighbour discovery, which runs over it, is in `pystack.wire.ndp`.

Read before editing: RFC 4443 sections 2 to 4.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     Type      |     Code      |          Checksum             |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     Identifier and Sequence Number (echo), or                 |
    |     MTU (packet too big), or pointer (parameter problem)      |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     Data, or as much of the packet that an error is about     |
    |     as fits into 1,280 bytes ...                              |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

import construct as c

from pystack.counters import Counters
from pystack.frame import Buffer
from pystack.wire import checksum, ipv6
from pystack.wire.ethernet import is_group
from pystack.wire.layout import Layout
from pystack.wire.packet import PROTO_ICMPV6, Packet

UNREACHABLE: Final = 1
PACKET_TOO_BIG: Final = 2
TIME_EXCEEDED: Final = 3
PARAMETER_PROBLEM: Final = 4
ECHO_REQUEST: Final = 128
ECHO_REPLY: Final = 129
_REDIRECT: Final = 137  # neighbour discovery's types are in `pystack.wire.ndp`

# Codes of UNREACHABLE (RFC 4443 section 3.1).
NO_ROUTE: Final = 0
ADMIN_PROHIBITED: Final = 1
ADDRESS_UNREACHABLE: Final = 3
PORT_UNREACHABLE: Final = 4

_QUOTE_LIMIT: Final = ipv6.MIN_MTU - 40 - 8


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
    """One message, its body still in the frame: ``frame[start:end]`` is what follows the second word, ``rest``."""

    __slots__ = ("code", "end", "kind", "rest", "start")

    def __init__(self, kind: int, code: int, rest: int, start: int, end: int) -> None:
        self.kind = kind
        self.code = code
        self.rest = rest
        self.start = start
        self.end = end

    @property
    def is_error(self) -> bool:
        """Whether the body quotes a packet (RFC 4443 section 2.1)."""
        return self.kind < 128

    @property
    def ident(self) -> int:
        """The identifier of an echo."""
        return self.rest >> 16

    @property
    def sequence(self) -> int:
        """The sequence number of an echo."""
        return self.rest & 0xFFFF


def parse_untrusted(frame: bytes, start: int, end: int, counters: Counters) -> Message | None:
    """The message in ``frame[start:end]``, of any type; None (`icmpv6.short`) when its 8 bytes are not there."""
    end = min(end, len(frame))
    header = HEADER.unpack_untrusted(frame, start, end)
    if header is None:
        counters.bump("icmpv6.short")
        return None
    return Message(header.kind, header.code, header.rest, start + HEADER.size, end)


def may_report(packet: Packet, *, too_big: bool = False) -> bool:
    """Whether RFC 4443 section 2.4(e) lets an error be sent about ``packet``.

    Not about an ICMPv6 error or redirect, or what came from no single node; about what went to a multicast address
    only PACKET_TOO_BIG (``too_big``).
    """
    if packet.version != 6:
        return False
    if packet.proto == PROTO_ICMPV6:
        kind = packet.frame[packet.l4] if packet.l4 < packet.end else 0
        if kind < 128 or kind == _REDIRECT:
            return False
    if not too_big and (is_group(packet.dst_mac()) or ipv6.is_multicast(packet.dst)):
        return False
    return packet.src != ipv6.UNSPECIFIED and not ipv6.is_multicast(packet.src)


def build(*, src: bytes, dst: bytes, kind: int, code: int = 0, rest: int = 0, data: Buffer = b"") -> bytes:
    """Any message with its checksum; ``src`` and ``dst`` (16 bytes) are those of the IPv6 header."""
    total = checksum.pseudo(src, dst, PROTO_ICMPV6, HEADER.size + len(data))
    total += (kind << 8 | code) + rest + checksum.sum16(data)
    return HEADER.struct.pack(kind, code, checksum.finish(total), rest) + data


def build_echo(*, src: bytes, dst: bytes, kind: int, ident: int, sequence: int, data: Buffer = b"") -> bytes:
    """An echo request or reply (``kind``)."""
    return build(src=src, dst=dst, kind=kind, rest=ident << 16 | sequence, data=data)


def build_error(*, src: bytes, dst: bytes, kind: int, code: int, original: Buffer, extra: int = 0) -> bytes:
    """An error about the packet whose IPv6 header starts ``original``; the whole fits into 1,280 bytes.

    Of ``original`` no more is quoted than its payload length says. ``extra`` is the MTU or the pointer.
    """
    packet_len = 40 + int.from_bytes(original[4:6], "big")
    quote = bytes(original[: min(packet_len, _QUOTE_LIMIT)])
    return build(src=src, dst=dst, kind=kind, code=code, rest=extra, data=quote)
