"""UDP.

Read before editing: RFC 768, RFC 8200 section 8.1 (over IPv6 the checksum is not optional), RFC 1122 section 4.1.3.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |          Source Port          |       Destination Port        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |            Length             |           Checksum            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

Parsing is part of the one pass, `pystack.wire.packet`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import construct as c

from pystack.frame import Buffer
from pystack.wire import checksum
from pystack.wire.layout import Layout
from pystack.wire.packet import PROTO_UDP


class Header(NamedTuple):
    """``length`` counts the header and the payload, in bytes."""

    sport: int
    dport: int
    length: int
    checksum: int


HEADER: Final = Layout.derive(
    c.Struct("sport" / c.Int16ub, "dport" / c.Int16ub, "length" / c.Int16ub, "checksum" / c.Int16ub), Header
)


def build_header(*, src: bytes, dst: bytes, sport: int, dport: int, payload: Buffer, partial: bool = False) -> bytes:
    """The 8 bytes in front of ``payload``, which is not copied: put both in one `TxFrame`.

    Args:
        src, dst: 4 or 16 bytes, for the checksum.
        partial: leave the pseudo-header's sum alone in the field, for a link that fills in the rest
            (VIRTIO_NET_HDR_F_NEEDS_CSUM).

    Raises:
        struct.error: the payload is longer than 65,527 bytes, or a port is not 16 bits.
    """
    length = HEADER.size + len(payload)
    total = checksum.pseudo(src, dst, PROTO_UDP, length)
    if partial:
        return HEADER.struct.pack(sport, dport, length, checksum.fold(total))
    total += sport + dport + length + checksum.sum16(payload)
    return HEADER.struct.pack(sport, dport, length, checksum.finish_udp(total))


def build(*, src: bytes, dst: bytes, sport: int, dport: int, payload: Buffer) -> bytes:
    """A whole datagram with its checksum; raises as `build_header`."""
    return build_header(src=src, dst=dst, sport=sport, dport=dport, payload=payload) + payload
