"""A frame of the primary that is held, and where released ones go.

A record is a plain tuple and no object: one is made for every frame of the primary, on the hottest path there is (a
tuple of twelve costs 60 ns, a NamedTuple four times that). Its fields, by index:

    0  start     absolute sequence number of the first payload byte
    1  stop      of the byte after the last one; equal to ``start`` when there is no payload
    2  data      the bytes object that the payload is in
    3  payload   where in it the payload starts
    4  ack       absolute acknowledgement number
    5  right     absolute right edge of the window that it offers, 0 when it offers none
    6  flags     TCP's, and `UNCOVERED`
    7  low       where in ``data`` the frame starts, its prefix included
    8  high      and where it ends; nothing of ``data`` goes out when the two are equal
    9  since     when it arrived
    10 position  of the start of ``data`` in all that the primary sent; with ``low`` added, the frame's own
    11 more      further pieces that go out with it, (position, data, low, high) each: the fragments it came in

The first four fields of a *piece*, bytes of one stream that the other side has not sent yet, are the same, so that a
record serves as a piece.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, TypeAlias, final

from colo.difference import Difference
from colo.framing import Framing
from colo.recent import Recent
from pystack import Buffer, Counters, Micros
from pystack.wire.packet import Packet

Record: TypeAlias = tuple[
    int, int, bytes, int, int, int, int, int, int, Micros, int, "tuple[tuple[int, bytes, int, int], ...] | None"
]
Piece: TypeAlias = tuple[Any, ...]
"""(start, stop, data, payload, ...): a `Record` of the primary, or (..., low, high) of the secondary."""

Pieces: TypeAlias = tuple[tuple[int, bytes, int, int], ...]
"""A record's ``more``."""

START: Final = 0
STOP: Final = 1
DATA: Final = 2
PAYLOAD: Final = 3
ACKNOWLEDGES: Final = 4
RIGHT: Final = 5
FLAGS: Final = 6
LOW: Final = 7
HIGH: Final = 8
SINCE: Final = 9
POSITION: Final = 10
MORE: Final = 11

UNCOVERED: Final = 0x100
"""A flag beside TCP's: no byte of the secondary can cover this frame, only a checkpoint can."""

_MAX_DIFFERENCES: Final = 256  # that wait to be asked for; more say nothing new


@final
class Outbox:
    """What the flows of one comparator hand over: released frames, and differences. Shared by all of them.

    A released range is a list [position, data, low, high]; ranges that touch become one, so that a run of frames that
    arrived in one read leaves in one piece.

    Attributes:
        ranges: what goes out. Differences are in ``differences``.
        recent: the last of what the primary has sent, released or not.
        partly: flows of whose first held frame the secondary has sent a part, and whether it waits for that part to be
            acknowledged; in the order in which that was seen.
        frames: frames that were released so far.
        bytes: bytes that went out so far, prefixes included; ``made`` of them are of frames, and of headers of
            parts, that no machine sent.
        heard: when a secondary's frame of a TCP connection was last dealt with the readable way.
        now: the time of what is being dealt with, for ``waited``, the sum of all times that released frames were held.
    """

    __slots__ = (
        "bytes",
        "counters",
        "debtors",
        "differences",
        "frames",
        "framing",
        "heard",
        "made",
        "now",
        "partly",
        "ranges",
        "recent",
        "waited",
    )

    def __init__(self, framing: Framing, counters: Counters) -> None:
        self.framing = framing
        self.counters = counters
        self.ranges: list[list[Any]] = []
        self.differences: list[Difference] = []
        self.recent = Recent(framing)
        self.debtors: list[Any] = []  # flows that owe their client a window update
        self.partly: dict[Any, bool] = {}
        self.frames = 0
        self.bytes = 0
        self.made = 0
        self.heard: Micros = 0
        self.now: Micros = 0
        self.waited: Micros = 0

    def differ(self, reason: str, key: bytes, offset: int, primary: bytes, secondary: bytes, before: int) -> None:
        """Ask for a checkpoint."""
        self.counters.bump("compare.difference." + reason)
        if len(self.differences) < _MAX_DIFFERENCES:
            self.differences.append(Difference(reason, key, offset, primary, secondary, before))

    def emit(self, record: Record) -> None:
        """Let ``record`` go."""
        self.frames += 1
        if self.now > record[SINCE]:
            self.waited += self.now - record[SINCE]
        more = record[MORE]
        if more is not None:
            for position, data, low, high in more:
                self._add(position + low, data, low, high)
        if record[HIGH] > record[LOW]:
            low = record[LOW]
            self._add(record[POSITION] + low, record[DATA], low, record[HIGH])

    def make(self, record: Record) -> None:
        """Let a frame go that the primary has not sent itself."""
        self.made += record[HIGH] - record[LOW]
        self.emit(record)

    def emit_all(self, records: Iterable[Record]) -> None:
        """Let ``records`` go, in the order in which the primary sent them."""
        for record in sorted(records, key=_position):
            self.emit(record)

    def _add(self, position: int, data: bytes, low: int, high: int) -> None:
        ranges = self.ranges
        if ranges:
            last = ranges[-1]
            if last[1] is data and last[3] == low:
                last[3] = high
                return
        ranges.append([position, data, low, high])

    def take(self) -> list[Buffer]:
        """Everything that was released since the last call, in the order in which the primary sent it.

        Of frames that have waited until now for a part of their bytes, the other part too: not earlier, as most often
        the rest has come by then.
        """
        if self.partly:
            partly, self.partly = self.partly, {}
            for flow, waits in partly.items():
                flow.release_part(anywhere=waits)
        ranges = self.ranges
        if not ranges:
            return []
        self.ranges = []
        if len(ranges) > 1:
            ranges.sort(key=_first)
        buffers: list[Buffer] = []
        total = 0
        index, count = 0, len(ranges)
        while index < count:
            _, data, low, high = ranges[index]
            index += 1
            while index < count and ranges[index][1] is data and ranges[index][2] == high:
                high = ranges[index][3]
                index += 1
            total += high - low
            buffers.append(data if high - low == len(data) else memoryview(data)[low:high])
        self.bytes += total
        return buffers

    def frame_of(self, record: Record) -> tuple[bytes, Packet | None]:
        """The prefix of a record's frame in the stream, and the frame parsed again."""
        return self.framing.parse_again(record[DATA], record[LOW], record[HIGH], self.counters)


def _position(record: Record) -> int:
    return record[POSITION] + record[LOW]


def _first(item: list[Any]) -> int:
    position: int = item[0]
    return position


def with_flag(record: Record, flag: int) -> Record:
    """``record`` marked with ``flag``."""
    start, stop, data, payload, ack, right, flags, *rest = record
    return (start, stop, data, payload, ack, right, flags | flag, *rest)  # type: ignore[return-value] # the same twelve


def own(piece: Piece, low_index: int, high_index: int) -> Piece:
    """``piece`` with a copy of its frame when the bytes that it is in are much larger; a `Record` stays one."""
    data, low, high = piece[DATA], piece[low_index], piece[high_index]
    if len(data) <= 4 * (high - low) + 4096:
        return piece
    fields = list(piece)
    fields[DATA], fields[PAYLOAD] = data[low:high], piece[PAYLOAD] - low
    fields[low_index], fields[high_index] = 0, high - low
    if len(piece) > POSITION:
        fields[POSITION] += low
    return tuple(fields)


def own_pieces(record: Record) -> Record:
    """``record`` with copies of the pieces that go out with it, where `own` would make one."""
    more = record[MORE]
    if more is None:
        return record
    copies = tuple(
        (position + low, data[low:high], 0, high - low)
        if len(data) > 4 * (high - low) + 4096
        else (position, data, low, high)
        for position, data, low, high in more
    )
    return (*record[:MORE], copies)
