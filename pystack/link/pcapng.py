"""pcapng files: what Wireshark writes, with directions, comments and nanoseconds.

Read before editing: draft-ietf-opsawg-pcapng, sections 3 (blocks and options) and 4.1 to 4.4.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                          Block Type                           |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                      Block Total Length                       |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    /                Block Body, padded to 32 bits                  /
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                      Block Total Length                       |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+

The byte order is that of the section's header. The library python-pcapng does not read files here: it fails on valid
ones (an interface with an IPv6 address), trusts declared lengths, and takes 37 us a frame. It checks ours in tests.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Self, final

from pystack.frame import Buffer
from pystack.link import records
from pystack.link.records import LINKTYPE_ETHERNET, MAX_RECORD_BYTES, UNKNOWN, Record, Source

SECTION_HEADER: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_OBSOLETE_PACKET: Final = 2
_SIMPLE_PACKET: Final = 3
_ENHANCED_PACKET: Final = 6

_BYTE_ORDER: Final = 0x1A2B3C4D
_MAX_BLOCK_BYTES: Final = 16 << 20  # as libpcap

_OPT_COMMENT: Final = 1
_SHB_USERAPPL: Final = 4
_IF_NAME: Final = 2
_IF_TSRESOL: Final = 9
_IF_TSOFFSET: Final = 14
_EPB_FLAGS: Final = 2

_NANO: Final = 10**9
_MAX_OPTION_BYTES: Final = 0xFFFF


# ------------------------------------------------------------------------------------------------------------ reading


class _Interface(NamedTuple):
    link_type: int
    snaplen: int
    ticks_per_second: int
    offset_seconds: int


def read(source: Source) -> Iterator[Record]:
    """The frames of a pcapng file that starts at its first section header.

    Blocks of other kinds are passed over.

    Raises:
        UsageError: the file is damaged, or a frame is not Ethernet; the frames before that have been given.
    """
    order = ""
    interfaces: list[_Interface] = []
    while (start := source.start(8)) is not None:
        if int.from_bytes(start[:4], "big") == SECTION_HEADER:
            order = _byte_order(source)
            _skip_section_header(source, order, start)
            interfaces.clear()
            continue
        if not order:
            raise source.error("does not start with a pcapng section header")
        kind, length = struct.unpack(order + "II", start)
        body = _body(source, order, length, already=8)
        try:
            if kind == _INTERFACE:
                interfaces.append(_interface(order, body))
            elif kind in _PACKETS:
                record = _PACKETS[kind](order, body, interfaces)
                source.records += 1
                yield record
        except (struct.error, IndexError, _BadBlockError) as error:
            what = str(error) if isinstance(error, _BadBlockError) else f"has a damaged block of type {kind}"
            raise source.error(what) from None


class _BadBlockError(Exception):
    """A block that cannot be understood; the text continues a sentence that starts with the file's name."""


def _byte_order(source: Source) -> str:
    magic = source.exactly(4)
    for order in ("<", ">"):
        if magic == struct.pack(order + "I", _BYTE_ORDER):
            return order
    raise source.error("has a pcapng section without a byte order")


def _skip_section_header(source: Source, order: str, start: bytes) -> None:
    (length,) = struct.unpack(order + "I", start[4:])
    body = _body(source, order, length, already=12)
    if len(body) < 12:
        raise source.error("has a pcapng section header that is too short")
    (major,) = struct.unpack_from(order + "H", body)
    if major != 1:
        raise source.error(f"is of pcapng version {major}, and only 1 is known")


def _body(source: Source, order: str, length: int, *, already: int) -> bytes:
    """The rest of a block of which ``already`` bytes were read, without the length at its end."""
    if length % 4 or not already + 4 <= length <= _MAX_BLOCK_BYTES:
        raise source.error(f"has a block of {length} bytes, which cannot be")
    rest = source.exactly(length - already)
    if struct.unpack_from(order + "I", rest, len(rest) - 4) != (length,):
        raise source.error("has a block whose two lengths differ")
    return rest[:-4]


def _options(order: str, body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """The options from ``at`` on; what is cut short ends them, since they only decorate."""
    while len(body) >= at + 4:
        code, length = struct.unpack_from(order + "HH", body, at)
        if not code or len(body) < at + 4 + length:
            return
        yield code, body[at + 4 : at + 4 + length]
        at += 4 + (length + 3 & ~3)


def _interface(order: str, body: bytes) -> _Interface:
    link_type, _, snaplen = struct.unpack_from(order + "HHI", body)
    ticks, offset = 10**6, 0
    for code, value in _options(order, body, 8):
        if code == _IF_TSRESOL and len(value) == 1:
            ticks = (2 if value[0] & 0x80 else 10) ** (value[0] & 0x7F)
        elif code == _IF_TSOFFSET and len(value) == 8:
            (offset,) = struct.unpack(order + "q", value)
    return _Interface(link_type, snaplen, ticks, offset)


def _enhanced(order: str, body: bytes, interfaces: Sequence[_Interface]) -> Record:
    index, high, low, captured, length = struct.unpack_from(order + "IIIII", body)
    return _packet(order, body, interfaces, index, high << 32 | low, captured, length)


def _obsolete(order: str, body: bytes, interfaces: Sequence[_Interface]) -> Record:
    index, _, high, low, captured, length = struct.unpack_from(order + "HHIIII", body)
    return _packet(order, body, interfaces, index, high << 32 | low, captured, length)


def _packet(
    order: str, body: bytes, interfaces: Sequence[_Interface], index: int, ticks: int, captured: int, length: int
) -> Record:
    interface = _ethernet(interfaces, index)
    data = _data(body, 20, captured)
    direction = UNKNOWN
    comments: list[str] = []
    for code, value in _options(order, body, 20 + (captured + 3 & ~3)):
        if code == _OPT_COMMENT:
            comments.append(value.decode(errors="replace"))
        elif code == _EPB_FLAGS and len(value) == 4:
            direction = struct.unpack(order + "I", value)[0] & 3
    at = ticks * _NANO // interface.ticks_per_second + interface.offset_seconds * _NANO
    return Record(data, at, max(length, captured), direction % 3, tuple(comments), index)


def _simple(order: str, body: bytes, interfaces: Sequence[_Interface]) -> Record:
    (length,) = struct.unpack_from(order + "I", body)
    interface = _ethernet(interfaces, 0)
    captured = min(length, interface.snaplen or length)
    return Record(_data(body, 4, captured), 0, length)


def _ethernet(interfaces: Sequence[_Interface], index: int) -> _Interface:
    if index >= len(interfaces):
        raise _BadBlockError(f"has a frame of interface {index}, which it does not describe")
    interface = interfaces[index]
    if interface.link_type != LINKTYPE_ETHERNET:
        raise _BadBlockError(f"has frames of link type {interface.link_type}, and only Ethernet (1) can be read")
    return interface


def _data(body: bytes, start: int, captured: int) -> bytes:
    if captured > MAX_RECORD_BYTES or start + captured > len(body):
        raise _BadBlockError(f"has a frame of {captured} bytes, which cannot be")
    return body[start : start + captured]


_PACKETS: Final = {_ENHANCED_PACKET: _enhanced, _SIMPLE_PACKET: _simple, _OBSOLETE_PACKET: _obsolete}


# ------------------------------------------------------------------------------------------------------------ writing


@final
class PcapngWriter:
    """Writes one section with one Ethernet interface, timestamps in nanoseconds, little-endian.

    Implements `pystack.link.records.RecordWriter`. Frames are of any length.

    Args:
        stream: binary, written from its present position on; closed by `close`.
        interface: its name in Wireshark's list.
        application: the program that writes.
    """

    def __init__(self, stream: BinaryIO, *, interface: str = "pystack", application: str = "pystack") -> None:
        self._stream = stream
        header = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1) + _option(_SHB_USERAPPL, application.encode()) + _END
        description = struct.pack("<HHI", LINKTYPE_ETHERNET, 0, 0)
        description += _option(_IF_NAME, interface.encode()) + _option(_IF_TSRESOL, b"\x09") + _END
        records.write(stream, _block(SECTION_HEADER, header) + _block(_INTERFACE, description))

    @classmethod
    def create(cls, path: str | Path, *, interface: str = "pystack") -> Self:
        """Create the file ``path``, or empty it.

        Raises:
            UsageError: it cannot be written.
        """
        return cls(records.create(path), interface=interface)

    def write(
        self, data: Buffer, at: int, *, direction: int = UNKNOWN, comments: Sequence[str] = (), length: int = 0
    ) -> None:
        """Add a frame; see `pystack.link.records.RecordWriter.write`."""
        captured = len(data)
        padding = -captured & 3
        options = b""
        if direction:
            options += struct.pack("<HHI", _EPB_FLAGS, 4, direction)
        for comment in comments:
            options += _option(_OPT_COMMENT, _fit(comment))
        if options:
            options += _END
        total = 32 + captured + padding + len(options)
        at = max(at, 0)
        head = struct.pack(
            "<IIIIIII",
            _ENHANCED_PACKET,
            total,
            0,
            at >> 32 & 0xFFFF_FFFF,
            at & 0xFFFF_FFFF,
            captured,
            length or captured,
        )
        records.write(self._stream, b"".join((head, data, bytes(padding), options, total.to_bytes(4, "little"))))

    def flush(self) -> None:
        """Hand what was written to the system, so that others can read it."""
        records.flush(self._stream)

    def close(self) -> None:
        """Flush and close the file."""
        with contextlib.suppress(OSError):
            self._stream.close()


_END: Final = bytes(4)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + length.to_bytes(4, "little")


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) & 3)


def _fit(comment: str) -> bytes:
    """The text in UTF-8, cut between two characters where an option is too short for it."""
    data = comment.encode(errors="replace")
    return data if len(data) <= _MAX_OPTION_BYTES else data[:_MAX_OPTION_BYTES].decode(errors="ignore").encode()
