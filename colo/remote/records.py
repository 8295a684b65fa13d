"""The stream of records between `colo proxy` and `colo secondary`. Sans-I/O.

Read before editing: docs/reference/remote-protocol.md.

    0                   4      5
    +-------------------+------+---------------------+
    | length, 32 bit BE | kind | body, length bytes  |
    +-------------------+------+---------------------+

The first record of either side is a HELLO. A declared length is bounded by its kind before anything is kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, NamedTuple, final

from pystack import Counters, Micros
from pystack.link.qemu_framing import MAX_FRAME_BYTES

VERSION: Final = 2
TOKEN_BYTES: Final = 16

_HEADER: Final = struct.Struct("!IB")
_HELLO: Final = struct.Struct(f"!8sHBBB{TOKEN_BYTES}sII")
_EPOCH: Final = struct.Struct("!I")
_MAGIC: Final = b"COLOPAIR"
MAX_SAID: Final = 200
HELLO_BYTES: Final = _HEADER.size + _HELLO.size


class Kind(IntEnum):
    """What a record says."""

    HELLO = 1
    READY = 2
    """Agent: the machine waits for the primary's state."""
    CLIENT = 3
    """Proxy: a frame of the client's network, in the client's numbers."""
    PRIMARY = 4
    """Proxy: the epoch, and the headers of a segment of the primary."""
    SECONDARY = 5
    """Agent: a frame of the secondary, in the client's numbers."""
    COMPLETED = 6
    """Agent: the epoch that begins. The secondary is a copy; what it had said before it has been sent."""
    TAKE_OVER = 7
    """Proxy: the primary is gone, and this side serves no more."""
    HEARTBEAT = 8
    BYE = 9
    """The pair is over by intention, UTF-8 says why: nobody takes anything over."""
    STOP = 10
    """Proxy, stop-copy: the primary stands still and is to be copied; let the secondary stand still, too."""
    STOPPED = 11
    """Agent, stop-copy: it does, if there is one; what it had said before has been sent."""
    NOT_COPIED = 12
    """Agent, stop-copy: nothing came of the copy, UTF-8 says why; the secondary stands still as before."""
    GO_ON = 13
    """Proxy, stop-copy: nothing comes of the checkpoint; let the secondary go on."""


class Purpose(IntEnum):
    """Of a connection."""

    RECORDS = 1
    MIGRATION = 2


class State(IntEnum):
    """Of an agent; a proxy says FRESH."""

    FRESH = 0
    SERVING = 1
    """Its machine serves clients."""
    BUSY = 2
    """It has a primary."""
    STALE = 3
    """Its machine was a copy, and is none any more."""


class Engine(IntEnum):
    """How a side takes checkpoints."""

    X_COLO = 0
    STOP_COPY = 1


class Hello(NamedTuple):
    """The first record: ``token`` is the session's, chosen by the proxy; times in milliseconds."""

    purpose: int
    state: int
    engine: int
    token: bytes
    heartbeat_ms: int
    detect_ms: int


class Record(NamedTuple):
    """One record: ``body`` without what precedes it; ``epoch`` of PRIMARY and COMPLETED, otherwise 0."""

    kind: Kind
    body: bytes
    epoch: int = 0


class Side(Enum):
    """Who says something."""

    PROXY = "proxy"
    AGENT = "agent"


_MAY_SAY: Final = {
    Side.PROXY: {
        Kind.CLIENT: (1, MAX_FRAME_BYTES),
        Kind.PRIMARY: (_EPOCH.size + 1, _EPOCH.size + 512),
        Kind.TAKE_OVER: (0, 0),
        Kind.HEARTBEAT: (0, 0),
        Kind.BYE: (0, MAX_SAID),
        Kind.STOP: (0, 0),
        Kind.GO_ON: (0, 0),
    },
    Side.AGENT: {
        Kind.READY: (0, 0),
        Kind.SECONDARY: (1, MAX_FRAME_BYTES),
        Kind.COMPLETED: (_EPOCH.size, _EPOCH.size),
        Kind.HEARTBEAT: (0, 0),
        Kind.BYE: (0, MAX_SAID),
        Kind.STOPPED: (0, 0),
        Kind.NOT_COPIED: (0, MAX_SAID),
    },
}
"""The kinds that may come from a side, and the shortest and longest body of each."""


def encode(kind: Kind, body: bytes = b"", epoch: int | None = None) -> bytes:
    """A record; with ``epoch`` in front of its body."""
    if epoch is not None:
        body = _EPOCH.pack(epoch) + body
    return _HEADER.pack(len(body), kind) + body


def encode_hello(hello: Hello) -> bytes:
    """The first record, `HELLO_BYTES` long."""
    return encode(Kind.HELLO, _HELLO.pack(_MAGIC, VERSION, *hello))


def decode_hello_untrusted(data: bytes) -> Hello | None:
    """What `encode_hello` made; None for anything else, and for another version."""
    if len(data) != HELLO_BYTES or data[: _HEADER.size] != _HEADER.pack(_HELLO.size, Kind.HELLO):
        return None
    magic, version, *rest = _HELLO.unpack_from(data, _HEADER.size)
    return Hello(*rest) if magic == _MAGIC and version == VERSION else None


@final
class RecordDecoder:
    """A stream of bytes in, cut anywhere, from behind the HELLO on; records out.

    Holds less than one record, whatever arrives. Never raises.

    Args:
        side: whose stream it is.

    Attributes:
        error: why the stream cannot be followed any more, "" while it can.
    """

    def __init__(self, side: Side) -> None:
        self._known: dict[int, tuple[int, int]] = {int(kind): limits for kind, limits in _MAY_SAY[side].items()}
        self._buffer = bytearray()
        self._epoch = -1  # of the last COMPLETED
        self.error = ""

    @property
    def buffered(self) -> int:
        """Bytes that are held until the rest of their record comes."""
        return len(self._buffer)

    def feed_untrusted(self, data: bytes) -> list[Record]:
        """The records that ``data`` completes."""
        records: list[Record] = []
        if self.error:
            return records
        self._buffer += data
        at, end = 0, len(self._buffer)
        while end - at >= _HEADER.size and not self.error:
            length, kind = _HEADER.unpack_from(self._buffer, at)
            low, high = self._known.get(kind, (1, 0))
            if not low <= length <= high:
                self.error = "remote.bad_kind" if low > high else "remote.bad_length"
            elif end - at < _HEADER.size + length:
                break
            else:
                at += _HEADER.size
                self._add(Kind(kind), bytes(self._buffer[at : at + length]), records)
                at += length
        if self.error:
            self._buffer.clear()
        else:
            del self._buffer[:at]
        return records

    def _add(self, kind: Kind, body: bytes, records: list[Record]) -> None:
        if kind is Kind.PRIMARY:
            records.append(Record(kind, body[_EPOCH.size :], _EPOCH.unpack_from(body)[0]))
            return
        if kind is not Kind.COMPLETED:
            records.append(Record(kind, body))
            return
        (epoch,) = _EPOCH.unpack(body)
        if epoch != self._epoch + 1:
            self.error = "remote.bad_epoch"
            return
        self._epoch = epoch
        records.append(Record(kind, b"", epoch))


@dataclass(frozen=True, slots=True)
class Beat:
    """How the loss of the other side is found out, in microseconds."""

    heartbeat: Micros = 250_000
    detect: Micros = 1_000_000


@final
class Peer:
    """One end of a session, behind the HELLOs: what to say, what was heard, and whether the other side is lost.

    Args:
        theirs: which side the other one is.

    Attributes:
        lost: why there is no other side any more; "" while there is one.
        counters: ``remote.*``.
    """

    def __init__(self, theirs: Side, beat: Beat, counters: Counters, now: Micros) -> None:
        self.counters = counters
        self.lost = ""
        self._decoder = RecordDecoder(theirs)
        self._beat = beat
        self._heard = now
        self._next_beat = now
        self._out = bytearray()

    def say(self, kind: Kind, body: bytes = b"", epoch: int | None = None) -> None:
        """Say it, when the bytes are next taken."""
        self._out += encode(kind, body, epoch)

    @property
    def out(self) -> bytearray:
        """Bytes for the other side; the caller deletes from the front what it has sent."""
        return self._out

    def feed_untrusted(self, data: bytes, now: Micros) -> list[Record]:
        """What the other side says. Nonsense is the loss of it."""
        records = self._decoder.feed_untrusted(data)
        self._heard = now
        if self._decoder.error and not self.lost:
            self.counters.bump(self._decoder.error)
            self.lost = "it talks nonsense"
        return [record for record in records if record.kind is not Kind.HEARTBEAT]

    def ended(self) -> None:
        """The connection is closed."""
        self.lost = self.lost or "the connection has ended"

    def tick(self, now: Micros) -> None:
        """Say that we are there, and see whether the other one is. To be called after all that has come was fed."""
        if now >= self._next_beat:
            self._next_beat = now + self._beat.heartbeat
            self.say(Kind.HEARTBEAT)
        if now - self._heard >= self._beat.detect and not self.lost:
            self.counters.bump("remote.silent")
            self.lost = f"nothing was heard for {self._beat.detect / 1e6:g} s"

    def next_timeout(self) -> Micros:
        """When `tick` has something to do."""
        return min(self._next_beat, self._heard + self._beat.detect)
