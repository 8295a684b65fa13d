"""What a capture file holds, whatever its format: frames with the instant at which they passed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from pystack.errors import LinkError, UsageError
from pystack.frame import Buffer

UNKNOWN: Final = 0
INBOUND: Final = 1
OUTBOUND: Final = 2
"""The direction of a frame, as pcapng's epb_flags number it: seen from where it was captured."""

LINKTYPE_ETHERNET: Final = 1

MAX_RECORD_BYTES: Final = 1 << 20
"""The longest frame that is read: four times what tcpdump and Wireshark capture."""


class Record(NamedTuple):
    """One captured frame.

    Attributes:
        data: from the Ethernet header on, as much as was captured.
        at: nanoseconds since 1970-01-01 UTC; 0 when the file does not say.
        length: bytes of the whole frame; more than ``data`` has when that was cut.
        direction: `UNKNOWN`, `INBOUND` or `OUTBOUND`.
        comments: of people or programs (pcapng).
        interface: which of the file's interfaces, counted from 0.
    """

    data: bytes
    at: int
    length: int
    direction: int = UNKNOWN
    comments: tuple[str, ...] = ()
    interface: int = 0


class RecordWriter(Protocol):
    """A capture file that is being written."""

    def write(
        self, data: Buffer, at: int, *, direction: int = UNKNOWN, comments: Sequence[str] = (), length: int = 0
    ) -> None:
        """Add a frame. The arguments are those of `Record`; ``length`` 0 means all of ``data``.

        Raises:
            LinkError: the system cannot write it.
        """

    def flush(self) -> None:
        """Hand what was written to the system, so that others can read it."""

    def close(self) -> None:
        """Flush and close the file. Idempotent."""


class Source:
    """A stream of bytes that is read in exact pieces, with an error that says where it went wrong.

    Attributes:
        name: of the file, for messages. records: how many frames were read so far.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._unread = b""
        self.name = name
        self.records = 0

    def exactly(self, count: int) -> bytes:
        """``count`` bytes.

        Raises:
            UsageError: the file is shorter, or cannot be read.
        """
        data = self.start(count)
        if data is None:
            raise self.error("ends in the middle of a record")
        return data

    def start(self, count: int) -> bytes | None:
        """``count`` bytes that start a record; None at the end of the file.

        Raises:
            UsageError: the file ends within them, or cannot be read.
        """
        try:
            data = self._unread + self._stream.read(count - len(self._unread))
        except OSError as error:
            raise UsageError(f"{self.name} cannot be read: {why(error)}.") from None
        self._unread = b""
        if not data and count:
            return None
        if len(data) < count:
            raise self.error("ends in the middle of a record")
        return data

    def unread(self, data: bytes) -> None:
        """Put back what a format was recognised by; the next read takes at least as much."""
        self._unread = data

    def error(self, what: str) -> UsageError:
        """The sentence that says ``what`` is wrong, and how far the file is good."""
        return UsageError(f"{self.name} {what} (after {self.records} frames): capture it again, or repair it.")


def open_for_reading(path: str | Path) -> BinaryIO:
    """The file ``path``.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {why(error)}.") from None


def create(path: str | Path) -> BinaryIO:
    """The file ``path``, created or emptied.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        return Path(path).open("wb")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {why(error)}.") from None


def write(stream: BinaryIO, data: bytes) -> None:
    """Write all of ``data``.

    Raises:
        LinkError: the system cannot.
    """
    try:
        stream.write(data)
    except (OSError, ValueError) as error:
        raise LinkError(f"{name_of(stream)} cannot be written: {why(error)}.") from None


def flush(stream: BinaryIO) -> None:
    """Flush ``stream``.

    Raises:
        LinkError: the system cannot.
    """
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        raise LinkError(f"{name_of(stream)} cannot be written: {why(error)}.") from None


def name_of(stream: BinaryIO) -> str:
    """The file name of ``stream`` for a message."""
    return str(getattr(stream, "name", "the capture"))


def why(error: Exception) -> str:
    """The reason as part of a sentence."""
    return (getattr(error, "strerror", None) or str(error)).lower()
