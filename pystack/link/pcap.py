"""Capture files: the classic pcap format, and the front door to both formats.

Read before editing: draft-ietf-opsawg-pcap. Every number is in the byte order in which the magic number was written;
that number also says whether times are in microseconds (a1b2c3d4) or nanoseconds (a1b23c4d).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                         Magic Number                          |   file header: once
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |       Major Version (2)       |       Minor Version (4)       |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                      reserved (8 bytes)                       /
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                            SnapLen                            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    | FCS |f|   0                   |           LinkType            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                      Timestamp (seconds)                      |   record: for every frame
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |            Timestamp (microseconds or nanoseconds)            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                        Captured Length                        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                        Original Length                        |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Literal, Self, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.errors import LinkClosed, UsageError
from pystack.frame import Buffer, LinkInfo, TxFrame
from pystack.link import records
from pystack.link.memory import ETHERNET
from pystack.link.records import LINKTYPE_ETHERNET, MAX_RECORD_BYTES, UNKNOWN, Record, Source

_MICROSECONDS: Final = 0xA1B2C3D4
_NANOSECONDS: Final = 0xA1B23C4D
_PCAPNG: Final = b"\n\r\r\n"  # the type of its first block, the same in either byte order
_HEADER: Final = "HHIIII"  # version, version, reserved, reserved, snaplen, link type
_SECOND_NS: Final = 10**9
_LINKTYPE_MASK: Final = 0xFFFF


def read_file(path: str | Path) -> Iterator[Record]:
    """The frames of the pcap or pcapng file ``path``, in the file's order.

    Raises:
        UsageError: it cannot be read, is of another kind, or is damaged; the frames before the damage have been given.
    """
    with records.open_for_reading(path) as stream:
        yield from read(stream, str(path))


def read(stream: BinaryIO, name: str) -> Iterator[Record]:
    """The frames of a binary stream, which may be a pipe; ``name`` is for messages. See `read_file`."""
    source = Source(stream, name)
    magic = source.start(4)
    if magic is None:
        raise UsageError(f"{name} is empty: it is no pcap or pcapng file.")
    if magic == _PCAPNG:
        from pystack.link import pcapng  # noqa: PLC0415 - its library takes 15 ms, and most need it never

        source.unread(magic)
        return pcapng.read(source)
    for order in ("<", ">"):
        (number,) = struct.unpack(order + "I", magic)
        if number in {_MICROSECONDS, _NANOSECONDS}:
            return _read_pcap(source, order, 1000 if number == _MICROSECONDS else 1)
    raise UsageError(f"{name} is no pcap or pcapng file: it starts with {magic.hex(' ')}.")


def _read_pcap(source: Source, order: str, nanoseconds: int) -> Iterator[Record]:
    """The frames of a classic file whose magic number has been read; ``nanoseconds`` is the unit of its fractions."""
    major, _, _, _, _, link_type = struct.unpack(order + _HEADER, source.exactly(20))
    if major != 2:
        raise source.error(f"is of pcap version {major}, and only 2 is known")
    if link_type & _LINKTYPE_MASK != LINKTYPE_ETHERNET:
        raise source.error(f"has frames of link type {link_type & _LINKTYPE_MASK}, and only Ethernet (1) can be read")
    header = struct.Struct(order + "IIII")
    while (start := source.start(header.size)) is not None:
        seconds, fraction, captured, length = header.unpack(start)
        if captured > MAX_RECORD_BYTES:
            raise source.error(f"has a frame of {captured} bytes, which cannot be")
        data = source.exactly(captured)
        source.records += 1
        yield Record(data, seconds * _SECOND_NS + fraction * nanoseconds, max(length, captured))


@final
class PcapWriter:
    """Writes the classic format, for programs that know no pcapng. Directions and comments have no place in it.

    Implements `pystack.link.records.RecordWriter`.

    Args:
        stream: binary; closed by `close`.
        nanoseconds: the unit of times, microseconds without it.
        byteorder: of every number.
    """

    def __init__(
        self, stream: BinaryIO, *, nanoseconds: bool = True, byteorder: Literal["little", "big"] = "little"
    ) -> None:
        self._stream = stream
        self._unit = 1 if nanoseconds else 1000
        order = "<" if byteorder == "little" else ">"
        self._record = struct.Struct(order + "IIII")
        magic = _NANOSECONDS if nanoseconds else _MICROSECONDS
        header = struct.pack(order + "I" + _HEADER, magic, 2, 4, 0, 0, MAX_RECORD_BYTES, LINKTYPE_ETHERNET)
        records.write(stream, header)

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """Create the file ``path``, or empty it.

        Raises:
            UsageError: it cannot be written.
        """
        return cls(records.create(path))

    def write(
        self,
        data: Buffer,
        at: int,
        *,
        direction: int = UNKNOWN,  # noqa: ARG002  (the format has no place for it)
        comments: Sequence[str] = (),  # noqa: ARG002
        length: int = 0,
    ) -> None:
        """Add a frame; see `pystack.link.records.RecordWriter.write`. Seconds wrap in 2106."""
        seconds, rest = divmod(max(at, 0), _SECOND_NS)
        head = self._record.pack(seconds & 0xFFFF_FFFF, rest // self._unit, len(data), length or len(data))
        records.write(self._stream, head + data)

    def flush(self) -> None:
        """Hand what was written to the system, so that others can read it."""
        records.flush(self._stream)

    def close(self) -> None:
        """Flush and close the file."""
        with contextlib.suppress(OSError):
            self._stream.close()


@final
class PcapLink:
    """A capture as a link: its frames arrive at the intervals at which they were captured. What is sent is dropped.

    The first frame arrives when `recv` is first called. After the last one, the link is at its end. A frame that was
    not captured whole is left out.

    Args:
        frames: such as `read_file` gives; read as far as needed.
        paced: keep the intervals; otherwise every frame is there at once.
        info: what the link declares; captured frames have no virtio_net_hdr.
        counters: where to count ``pcap.cut`` and ``pcap.tx_dropped``; a set of its own by default.

    Raises:
        UsageError: (also `recv`) the file is damaged.
    """

    def __init__(
        self,
        frames: Iterator[Record],
        *,
        paced: bool = True,
        info: LinkInfo = ETHERNET,
        counters: Counters | None = None,
    ) -> None:
        self._info = info
        self.counters = Counters() if counters is None else counters
        self._paced = paced
        self._next: Record | None = next(frames, None)
        self._rest = frames
        self._origin = self._next.at if self._next is not None else 0
        self._start: Micros | None = None

    @property
    def info(self) -> LinkInfo:
        """What the link was made with."""
        return self._info

    def fileno(self) -> int:
        """None: time alone brings frames."""
        return -1

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        """The frames that are due; see `pystack.link.base.Link.recv`."""
        if self._start is None:
            self._start = now
        if self._next is None:
            raise LinkClosed("The capture is at its end.")
        frames: list[bytes] = []
        while self._next is not None and len(frames) < limit and self._due(self._next) <= now:
            if len(self._next.data) < self._next.length:
                self.counters.bump("pcap.cut")
            else:
                frames.append(self._next.data)
            self._next = next(self._rest, None)
        return frames

    def _due(self, record: Record) -> Micros:
        assert self._start is not None
        return self._start + max(record.at - self._origin, 0) // 1000 if self._paced else self._start

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:  # noqa: ARG002  (the protocol's)
        """Drop ``frames``, and count them."""
        if self._next is None:
            raise LinkClosed("The capture is at its end.")
        self.counters.bump("pcap.tx_dropped", len(frames))
        return len(frames)

    def wants_write(self) -> bool:
        """Never."""
        return False

    def next_timeout(self) -> Micros | None:
        """When the next frame arrives; at once before the first `recv`."""
        if self._next is None or self._start is None:
            return 0
        return self._due(self._next)

    def close(self) -> None:
        """Give up the rest of the capture, and with it the file."""
        self._next = None
        self._rest = iter(())
