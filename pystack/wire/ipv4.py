"""IPv4: the header and its options.

Read before editing: RFC 791 section 3.1, RFC 2113 (router alert), RFC 1122 section 3.2.1.8, RFC 2474 section 3 and
RFC 3168 section 5 (what became of the type of service), RFC 6864 (the identification).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |Version|  IHL  |   DSCP    |ECN|          Total Length         |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |         Identification        |0|D|M|     Fragment Offset     |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |  Time to Live |    Protocol   |         Header Checksum       |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                       Source Address                          |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                    Destination Address                        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                    Options                    |    Padding    |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

The hot path reads the header in `pystack.wire.packet`; here are its declaration, its builder, and the options.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import construct as c

from pystack.counters import Counters
from pystack.wire.layout import Layout
from pystack.wire.packet import IP_DF

MAX_OPTIONS_BYTES: Final = 40
MAX_TOTAL_LENGTH: Final = 65_535

OPT_END: Final = 0
OPT_NOP: Final = 1
OPT_RECORD_ROUTE: Final = 7
OPT_TIMESTAMP: Final = 68
OPT_LOOSE_ROUTE: Final = 131
OPT_STRICT_ROUTE: Final = 137
OPT_ROUTER_ALERT: Final = 148

_COPIED: Final = 0x80
_ROUTES: Final = frozenset((OPT_RECORD_ROUTE, OPT_LOOSE_ROUTE, OPT_STRICT_ROUTE))


class Header(NamedTuple):
    """The fixed part. ``header_words`` and ``fragment_offset`` count 4 and 8 bytes; ``tos`` holds DSCP and ECN."""

    version: int
    header_words: int
    tos: int
    total_length: int
    ident: int
    reserved: int
    df: int
    mf: int
    fragment_offset: int
    ttl: int
    proto: int
    checksum: int
    src: bytes
    dst: bytes


HEADER: Final = Layout.derive(
    c.Struct(
        "first" / c.BitStruct("version" / c.BitsInteger(4), "header_words" / c.BitsInteger(4)),
        "tos" / c.Int8ub,
        "total_length" / c.Int16ub,
        "ident" / c.Int16ub,
        "fragment"
        / c.BitStruct(
            "reserved" / c.BitsInteger(1),
            "df" / c.BitsInteger(1),
            "mf" / c.BitsInteger(1),
            "fragment_offset" / c.BitsInteger(13),
        ),
        "ttl" / c.Int8ub,
        "proto" / c.Int8ub,
        "checksum" / c.Int16ub,
        "src" / c.Bytes(4),
        "dst" / c.Bytes(4),
    ),
    Header,
)

OPTION: Final = c.Struct(
    "kind" / c.Int8ub,
    "data" / c.If(c.this.kind > OPT_NOP, c.Prefixed(c.ExprAdapter(c.Int8ub, c.obj_ - 2, c.obj_ + 2), c.GreedyBytes)),
)
"""One option, for traces, generators and the tests' comparison; network bytes go to `parse_options_untrusted`."""


class Option(NamedTuple):
    """One option other than END and NOP: its type byte and what follows its length byte."""

    kind: int
    data: bytes

    @property
    def copied(self) -> bool:
        """Whether every fragment carries it (RFC 791 section 3.1)."""
        return bool(self.kind & _COPIED)

    @property
    def route(self) -> tuple[bytes, ...] | None:
        """Of a record or source route the addresses filled so far; None of another option, or one without room.

        The pointer counts octets from the option's first one, from 1, and is at least 4.
        """
        if self.kind not in _ROUTES or not self.data or self.data[0] < 4:
            return None
        filled = self.data[1 : max(1, self.data[0] - 3)]
        return tuple(filled[at : at + 4] for at in range(0, len(filled) - 3, 4))

    @property
    def router_alert(self) -> int | None:
        """The value of a router alert (RFC 2113: 0 = examine packet), None of another option."""
        if self.kind != OPT_ROUTER_ALERT or len(self.data) != 2:
            return None
        return self.data[0] << 8 | self.data[1]


def parse_options_untrusted(frame: bytes, start: int, end: int, counters: Counters) -> tuple[Option, ...] | None:
    """The options in ``frame[start:end]``, which is ``frame[packet.l3 + 20:packet.l4]``, without END and NOP.

    Returns:
        None (`ipv4.bad_option`) when a length is below 2 or passes ``end``. What an option means is the reader's
        business; one that is not understood is to be ignored (RFC 1122 section 3.2.1.8).
    """
    options = []
    end = min(end, len(frame))
    at = start
    while at < end and (kind := frame[at]) != OPT_END:
        if kind == OPT_NOP:
            at += 1
            continue
        length = frame[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            counters.bump("ipv4.bad_option")
            return None
        options.append(Option(kind, frame[at + 2 : at + length]))
        at += length
    return tuple(options)


def build_options(options: tuple[Option, ...] | list[Option], *, fragment: bool = False) -> bytes:
    """The options area, padded with END to a multiple of 4 bytes; for a later ``fragment`` only those to be copied.

    Raises:
        ValueError: they take more than 40 bytes.
    """
    wanted = [option for option in options if option.copied or not fragment]
    area = b"".join([bytes((kind, len(data) + 2)) + data for kind, data in wanted])
    area += bytes(-len(area) % 4)
    if len(area) > MAX_OPTIONS_BYTES:
        raise ValueError(f"{len(area)} bytes of IPv4 options do not fit in {MAX_OPTIONS_BYTES}")
    return area


def build_header(
    *,
    src: bytes,
    dst: bytes,
    proto: int,
    payload_len: int,
    ident: int = 0,
    ttl: int = 64,
    tos: int = 0,
    fragment: int = IP_DF,
    options: bytes = b"",
) -> bytes:
    """The header with its checksum, for ``payload_len`` bytes of payload.

    Args:
        fragment: the 16 bits of flags and offset (`IP_DF`, `IP_MF`, offset in units of 8 bytes).
        options: a multiple of 4 bytes (see `build_options`).

    Raises:
        struct.error: a number does not fit in its field, such as a total length above 65,535.
    """
    header_len = 20 + len(options)
    header = HEADER.struct.pack(
        0x40 | header_len >> 2, tos, header_len + payload_len, ident, fragment, ttl, proto, 0, src, dst
    )
    header += options
    checksum = -int.from_bytes(header, "big") % 0xFFFF
    return b"".join((header[:10], checksum.to_bytes(2, "big"), header[12:]))


def text(address: bytes) -> str:
    """``10.0.2.15``, of 4 bytes."""
    return ".".join(map(str, address))
