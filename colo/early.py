"""Pieces of a stream that lie beyond a gap, or before the start of a comparison: few, bounded, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

from sortedcontainers import SortedDict

from colo.held import DATA, PAYLOAD, START, STOP, Piece, Record


@final
class Early:
    """Pieces by where they start. Of two that start at the same byte the longer one stays.

    Attributes:
        end: the highest ``stop`` of all that were ever added.
    """

    __slots__ = ("_limit", "_pieces", "end")

    def __init__(self, limit: int) -> None:
        self._pieces: SortedDict = SortedDict()
        self._limit = limit
        self.end = 0

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, piece: Piece) -> bool:
        """Keep ``piece``; False when there is no room. O(log n)."""
        held = self._pieces.get(piece[START])
        if held is not None:
            if held[STOP] >= piece[STOP]:
                return True
        elif len(self._pieces) >= self._limit:
            return False
        self._pieces[piece[START]] = piece
        self.end = max(self.end, piece[STOP])
        return True

    def pop(self, reached: int) -> Piece | None:
        """The first piece that continues a stream known up to ``reached``; what lies before that is dropped."""
        while self._pieces:
            start, piece = self._pieces.peekitem(0)
            if start > reached:
                return None
            del self._pieces[start]
            if piece[STOP] > reached:
                return tuple(piece)
        return None

    def all(self) -> Iterator[Piece]:
        """Every piece, in order."""
        yield from self._pieces.values()

    def renew(self, change: Callable[[Piece], Piece]) -> None:
        """Replace every piece by what ``change`` makes of it, at the same place."""
        for start, piece in self._pieces.items():
            self._pieces[start] = change(piece)

    def covers(self, record: Record) -> bool:
        """Whether every payload byte of ``record`` is here, and the same."""
        at, stop = record[START], record[STOP]
        index = max(self._pieces.bisect_right(at) - 1, 0)
        for piece in self._pieces.values()[index:]:
            if piece[START] > at:
                break
            length = min(stop, piece[STOP]) - at
            if length <= 0:
                continue
            mine, its = record[PAYLOAD] + at - record[START], piece[PAYLOAD] + at - piece[START]
            if record[DATA][mine : mine + length] != piece[DATA][its : its + length]:
                return False
            at += length
            if at == stop:
                return True
        return False
