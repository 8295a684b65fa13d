"""TCP: the header and its options.

Read before editing: RFC 9293 sections 3.1 and 3.2, RFC 7323 sections 2.2, 2.3 and 3.2, RFC 2018 sections 2 and 3.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |          Source Port          |       Destination Port        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                        Sequence Number                        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                    Acknowledgment Number                      |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |  Data |       |C|E|U|A|P|R|S|F|                               |
    | Offset| Rsrvd |W|C|R|C|S|S|Y|I|            Window             |
    |       |       |R|E|G|K|H|T|N|N|                               |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |           Checksum            |         Urgent Pointer        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                           [Options]                           |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

The hot path reads the header in `pystack.wire.packet`; here are its declaration, its builder, and the options.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple, final

import construct as c

from pystack.counters import Counters
from pystack.frame import Buffer
from pystack.wire import checksum
from pystack.wire.layout import Layout

MAX_OPTIONS_BYTES: Final = 40
"""The data offset counts at most 15 words, of which the fixed header takes 5 (RFC 9293 section 3.1)."""

MAX_WINDOW_SCALE: Final = 14
"""RFC 7323 section 2.3."""

OPT_END: Final = 0
OPT_NOP: Final = 1
OPT_MSS: Final = 2
OPT_WINDOW_SCALE: Final = 3
OPT_SACK_PERMITTED: Final = 4
OPT_SACK: Final = 5
OPT_TIMESTAMPS: Final = 8

_PROTO_TCP: Final = 6
_TIMESTAMPS_ALONE: Final = b"\x01\x01\x08\x0a"
_TWO_WORDS: Final = struct.Struct("!II")


class Header(NamedTuple):
    """The fixed part. ``data_offset`` in 32-bit words; ``flags`` is the byte CWR..FIN."""

    sport: int
    dport: int
    seq: int
    ack: int
    data_offset: int
    reserved: int
    flags: int
    window: int
    checksum: int
    urgent: int


HEADER: Final = Layout.derive(
    c.Struct(
        "sport" / c.Int16ub,
        "dport" / c.Int16ub,
        "seq" / c.Int32ub,
        "ack" / c.Int32ub,
        "offset_and_flags"
        / c.BitStruct("data_offset" / c.BitsInteger(4), "reserved" / c.BitsInteger(4), "flags" / c.BitsInteger(8)),
        "window" / c.Int16ub,
        "checksum" / c.Int16ub,
        "urgent" / c.Int16ub,
    ),
    Header,
)

OPTION: Final = c.Struct(
    "kind" / c.Int8ub,
    "data"
    / c.If(
        c.this.kind > OPT_NOP,
        c.Prefixed(
            c.ExprAdapter(c.Int8ub, c.obj_ - 2, c.obj_ + 2),  # the length counts kind and itself
            c.Switch(
                c.this.kind,
                {
                    OPT_MSS: c.Int16ub,
                    OPT_WINDOW_SCALE: c.Int8ub,
                    OPT_SACK_PERMITTED: c.Pass,
                    OPT_SACK: c.GreedyRange(c.Sequence(c.Int32ub, c.Int32ub)),
                    OPT_TIMESTAMPS: c.Sequence(c.Int32ub, c.Int32ub),
                },
                default=c.GreedyBytes,
            ),
        ),
    ),
)
"""One option, for traces, generators and the tests' comparison; the receive path is `parse_options_untrusted`."""


@final
class TcpOptions:
    """What a segment's options say; None (or False, or empty) for what is absent.

    Attributes:
        mss: RFC 9293 section 3.7.1, as sent: 0 and 1 are possible, what to make of them is the TCP's decision.
        window_scale: the shift count, 0 to 14 (RFC 7323 section 2).
        sack_permitted: RFC 2018 section 2.
        sack: blocks of (left edge, right edge) as sent, not compared with anything (RFC 2018 section 3).
        timestamps: (TSval, TSecr) (RFC 7323 section 3).
    """

    __slots__ = ("mss", "sack", "sack_permitted", "timestamps", "window_scale")

    def __init__(
        self,
        mss: int | None = None,
        window_scale: int | None = None,
        sack_permitted: bool = False,
        sack: tuple[tuple[int, int], ...] = (),
        timestamps: tuple[int, int] | None = None,
    ) -> None:
        self.mss = mss
        self.window_scale = window_scale
        self.sack_permitted = sack_permitted
        self.sack = sack
        self.timestamps = timestamps

    def _all(self) -> tuple[object, ...]:
        return self.mss, self.window_scale, self.sack_permitted, self.sack, self.timestamps

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TcpOptions) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        fields = zip(("mss", "window_scale", "sack_permitted", "sack", "timestamps"), self._all(), strict=True)
        present = [f"{name}={value!r}" for name, value in fields if value not in (None, ()) and value is not False]
        return f"TcpOptions({', '.join(present)})"


def parse_options_untrusted(frame: bytes, start: int, end: int, counters: Counters) -> TcpOptions:
    """Read the options in ``frame[start:end]``. Never fails: what cannot be read is left out and counted.

    An option whose length is below 2 or passes ``end`` ends the reading (`tcp.bad_option`); what was read before it
    stands. An option of a known kind with the wrong length is skipped (`tcp.bad_option`); one of an unknown kind is
    skipped silently (RFC 9293 section 3.1, MUST-6). A window scale above 14 is 14 (`tcp.bad_window_scale`, RFC 7323
    section 2.3). Of an option that is there twice the last one counts.
    """
    # What nearly every segment of an established connection carries, and nothing else.
    if end - start == 12 and frame[start : start + 4] == _TIMESTAMPS_ALONE:
        options = TcpOptions.__new__(TcpOptions)
        options.mss = options.window_scale = None
        options.sack_permitted = False
        options.sack = ()
        options.timestamps = _TWO_WORDS.unpack_from(frame, start + 4)
        return options
    return parse_options_general_untrusted(frame, start, end, counters)


def parse_options_general_untrusted(frame: bytes, start: int, end: int, counters: Counters) -> TcpOptions:
    """`parse_options_untrusted` without its shortcut: one option after the other."""
    options = TcpOptions()
    end = min(end, len(frame))
    at = start
    while at < end:
        kind = frame[at]
        if kind == OPT_END:
            break
        if kind == OPT_NOP:
            at += 1
            continue
        length = frame[at + 1] if at + 1 < end else 0
        if length < 2 or at + length > end:
            counters.bump("tcp.bad_option")
            break
        if not _read_option(options, kind, frame[at + 2 : at + length], counters):
            counters.bump("tcp.bad_option")
        at += length
    return options


def _read_option(options: TcpOptions, kind: int, data: bytes, counters: Counters) -> bool:
    """Note one option; False when its length is not the one of its kind."""
    length = len(data)
    if kind == OPT_MSS and length == 2:
        options.mss = data[0] << 8 | data[1]
    elif kind == OPT_WINDOW_SCALE and length == 1:
        options.window_scale = data[0]
        if data[0] > MAX_WINDOW_SCALE:
            options.window_scale = MAX_WINDOW_SCALE
            counters.bump("tcp.bad_window_scale")
    elif kind == OPT_SACK_PERMITTED and length == 0:
        options.sack_permitted = True
    elif kind == OPT_SACK and length and not length % 8:
        options.sack = tuple(_TWO_WORDS.iter_unpack(data))
    elif kind == OPT_TIMESTAMPS and length == 8:
        options.timestamps = _TWO_WORDS.unpack(data)
    else:
        return kind not in (OPT_MSS, OPT_WINDOW_SCALE, OPT_SACK_PERMITTED, OPT_SACK, OPT_TIMESTAMPS)
    return True


def build_options(
    *,
    mss: int | None = None,
    window_scale: int | None = None,
    sack_permitted: bool = False,
    timestamps: tuple[int, int] | None = None,
    sack: Sequence[tuple[int, int]] = (),
) -> bytes:
    """The options area, a multiple of 4 and at most `MAX_OPTIONS_BYTES` bytes long, padded with NOPs.

    The order is the one that Linux uses, which every middlebox has seen: MSS, SACK-permitted and timestamps sharing
    three words, window scale; on other segments timestamps, then as many of the SACK blocks, from the first on, as fit.
    """
    parts = b""
    if mss is not None:
        parts = struct.pack("!BBH", OPT_MSS, 4, mss)
    if timestamps is not None:
        parts += bytes((OPT_SACK_PERMITTED, 2)) if sack_permitted else b"\x01\x01"
        parts += b"\x08\x0a" + _TWO_WORDS.pack(*timestamps)
    elif sack_permitted:
        parts += bytes((OPT_NOP, OPT_NOP, OPT_SACK_PERMITTED, 2))
    if window_scale is not None:
        parts += bytes((OPT_NOP, OPT_WINDOW_SCALE, 3, window_scale))
    blocks = sack[: max(0, (MAX_OPTIONS_BYTES - len(parts) - 4) // 8)]
    if blocks:
        parts += bytes((OPT_NOP, OPT_NOP, OPT_SACK, 2 + 8 * len(blocks)))
        parts += b"".join([_TWO_WORDS.pack(*block) for block in blocks])
    return parts


def build(
    *,
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    seq: int = 0,
    ack: int = 0,
    flags: int = 0,
    window: int = 65_535,
    urgent: int = 0,
    options: bytes = b"",
    payload: Buffer = b"",
) -> bytes:
    """A whole segment with its checksum: header, ``options`` (padded with zeros to a multiple of 4), ``payload``.

    ``src`` and ``dst`` are 4 or 16 bytes. For tests, resets and other rare segments: a connection fills templates.

    Raises:
        ValueError: the options are longer than 40 bytes.
    """
    options += bytes(-len(options) % 4)
    if len(options) > MAX_OPTIONS_BYTES:
        raise ValueError(f"{len(options)} bytes of TCP options do not fit in {MAX_OPTIONS_BYTES}")
    header_len = HEADER.size + len(options)
    word = (header_len // 4) << 12 | flags
    head = HEADER.struct.pack(sport, dport, seq, ack, word, window, 0, urgent) + options
    total = checksum.pseudo(src, dst, _PROTO_TCP, header_len + len(payload))
    total += checksum.sum16(head) + checksum.sum16(payload)
    return head[:16] + checksum.finish(total).to_bytes(2, "big") + head[18:] + payload
