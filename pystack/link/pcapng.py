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

python-pcapng reads and writes the blocks (`pystack.link.pcapng_blocks`). What is here is what a library cannot know:
how much of a file to trust, what to tell a person about a damaged one, and times in whole nanoseconds. Importing this
module costs the library's 15 ms, so `pystack.link.pcap` does it when a file is of this format.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, final

from pcapng import FileWriter, blocks
from pcapng.exceptions import BadMagic, CorruptedFile, PcapngException
from pcapng.structs import SECTION_HEADER_MAGIC

from pystack.frame import Buffer
from pystack.link import records
from pystack.link.pcapng_blocks import BadBlockError, EnhancedPacket, ObsoletePacket, Scanner, Section, SimplePacket
from pystack.link.records import LINKTYPE_ETHERNET, MAX_RECORD_BYTES, UNKNOWN, Record, Source

_MAX_BLOCK_BYTES: Final = 16 << 20  # as libpcap
_MAX_DECODED_BYTES: Final = 2 * MAX_RECORD_BYTES  # the library takes 20 times as much memory for options
_NANO: Final = 10**9
_MAX_OPTION_BYTES: Final = 0xFFFF
_SECTION_HEADER: Final[bytes] = SECTION_HEADER_MAGIC.to_bytes(4, "big")  # the same in either byte order
_RESERVED: Final = bytes(4)
_DECODED: Final = {_SECTION_HEADER} | {
    block.magic_number.to_bytes(4, order)
    for block in (blocks.InterfaceDescription, EnhancedPacket, ObsoletePacket, SimplePacket)
    for order in ("little", "big")
}


# ------------------------------------------------------------------------------------------------------------ reading


def read(source: Source) -> Iterator[Record]:
    """The frames of a pcapng file that starts at its first section header.

    Blocks of other kinds are passed over.

    Raises:
        UsageError: the file is damaged, or a frame is not Ethernet; the frames before that have been given.
    """
    guarded = _Guarded(source)
    scanner = Scanner(guarded)
    found = iter(scanner)
    while True:
        guarded.start_block()
        try:
            block = next(found, None)
            record = _record(block)
        except BadBlockError as error:
            raise source.error(str(error)) from None
        except BadMagic:
            raise source.error("has a pcapng section without a byte order") from None
        except CorruptedFile:
            raise source.error("has a block whose two lengths differ") from None
        except (PcapngException, LookupError, ValueError, struct.error):
            raise source.error(guarded.damage(scanner.endianness)) from None
        if record is not None:
            source.records += 1
            yield record
        elif block is None:
            if guarded.at_end:
                return
            # The library takes the end of a block that is too short for the end of the file.
            raise source.error(guarded.damage(scanner.endianness))


class _Guarded:
    """``source`` as the file that the library reads, which believes any length that a block declares.

    Attributes:
        at_end: the file ended where a block could have started.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._kind: bytes | None = None
        self.at_end = False

    def start_block(self) -> None:
        """What is read next is the type of a block."""
        self._kind = None

    def read(self, count: int) -> bytes:
        """``count`` bytes; none at the end of the file."""
        if self._kind is None:
            self._kind = self._source.start(count) or b""
            self.at_end = not self._kind
            if self._kind == _RESERVED:
                raise self._source.error("has a block of type 0, which cannot be")
            return self._kind
        most = _MAX_DECODED_BYTES if self._kind in _DECODED else _MAX_BLOCK_BYTES
        if count % 4 or not 0 < count <= most:
            around = 16 if self._is_section() else 12  # what the library has taken off
            raise self._source.error(f"has a block of {count + around} bytes, which cannot be")
        return self._source.exactly(count)

    def tell(self) -> int:
        """The library asks whether reads are aligned, and `read` sees to that."""
        return 0

    def damage(self, order: str) -> str:
        """What to say of the block that is being read, when no more is known."""
        if self._is_section():
            return "has a pcapng section header that is too short"
        return f"has a damaged block of type {struct.unpack(order + 'I', self._kind or bytes(4))[0]}"

    def _is_section(self) -> bool:
        return self._kind == _SECTION_HEADER


def _record(block: Any) -> Record | None:
    """The frame that is in ``block``; None when it is of another kind."""
    if isinstance(block, Section) and block.version_major != 1:
        raise BadBlockError(f"is of pcapng version {block.version_major}, and only 1 is known")
    if not isinstance(block, (EnhancedPacket, ObsoletePacket, SimplePacket)):
        return None
    interface, data = block.interface, block.packet_data
    if interface.link_type != LINKTYPE_ETHERNET:
        raise BadBlockError(f"has frames of link type {interface.link_type}, and only Ethernet (1) can be read")
    if len(data) > MAX_RECORD_BYTES:
        raise BadBlockError(f"has a frame of {len(data)} bytes, which cannot be")
    length = max(block.packet_len, len(data))
    if isinstance(block, SimplePacket):
        return Record(data, 0, length)
    ticks = block.timestamp_high << 32 | block.timestamp_low
    comments = tuple(comment.decode(errors="replace") for comment in block.options.get_all("opt_comment"))
    direction = (block.options.get("epb_flags", UNKNOWN) & 3) % 3
    return Record(data, _nanoseconds(ticks, interface.options), length, direction, comments, block.interface_id)


def _nanoseconds(ticks: int, options: Any) -> int:
    """An interface's time. The library has it as a float, into which the nanoseconds of today do not fit."""
    resolution = options.get("if_tsresol", b"\x06")[0]
    ticks_per_second = (2 if resolution & 0x80 else 10) ** (resolution & 0x7F)
    return int(ticks * _NANO // ticks_per_second + options.get("if_tsoffset", 0) * _NANO)


# ------------------------------------------------------------------------------------------------------------ writing


@final
class PcapngWriter:
    """Writes one section with Ethernet interfaces, timestamps in nanoseconds, little-endian.

    Implements `pystack.link.records.RecordWriter`. Frames are of any length.

    Args:
        stream: binary, written from its present position on; closed by `close`.
        interface: its name in Wireshark's list. more: the names of further ones, which `write` counts from 1.
        application: the program that writes.
    """

    def __init__(
        self,
        stream: BinaryIO,
        *,
        interface: str = "pystack",
        more: Sequence[str] = (),
        application: str = "pystack",
    ) -> None:
        self._stream = stream
        self._block = io.BytesIO()  # a block reaches the file in one piece
        self._section = Section(endianness="<", options={"shb_userappl": application.encode()})
        for name in (interface, *more):
            options = {"if_name": name.encode(), "if_tsresol": b"\x09"}
            self._section.new_member(blocks.InterfaceDescription, link_type=LINKTYPE_ETHERNET, options=options)
        self._writer = FileWriter(self._block, self._section)
        self._put()

    @classmethod
    def create(cls, path: str | Path, *, interface: str = "pystack", more: Sequence[str] = ()) -> Self:
        """Create the file ``path``, or empty it.

        Raises:
            UsageError: it cannot be written.
        """
        return cls(records.create(path), interface=interface, more=more)

    def write(
        self,
        data: Buffer,
        at: int,
        *,
        direction: int = UNKNOWN,
        comments: Sequence[str] = (),
        length: int = 0,
        interface: int = 0,
    ) -> None:
        """Add a frame; see `pystack.link.records.RecordWriter.write`."""
        options: dict[str, object] = {}
        if direction:
            options["epb_flags"] = direction
        if comments:
            options["opt_comment"] = [_fit(comment) for comment in comments]
        at = max(at, 0)
        block = self._section.new_member(
            blocks.EnhancedPacket,
            interface_id=interface,
            timestamp_high=at >> 32 & 0xFFFF_FFFF,
            timestamp_low=at & 0xFFFF_FFFF,
            packet_len=length or len(data),
            packet_data=data,
            options=options,
        )
        self._writer.write_block(block)
        self._put()

    def flush(self) -> None:
        """Hand what was written to the system, so that others can read it."""
        records.flush(self._stream)

    def close(self) -> None:
        """Flush and close the file."""
        with contextlib.suppress(OSError):
            self._stream.close()

    def _put(self) -> None:
        records.write(self._stream, self._block.getvalue())
        self._block.seek(0)
        self._block.truncate()


def _fit(comment: str) -> bytes:
    """The text in UTF-8, cut between two characters where an option is too short for it."""
    data = comment.encode(errors="replace")
    return data if len(data) <= _MAX_OPTION_BYTES else data[:_MAX_OPTION_BYTES].decode(errors="ignore").encode()
