"""The sender's scoreboard: which bytes beyond SND.UNA the peer has reported (RFC 2018, RFC 6675)."""

from __future__ import annotations

from typing import Final, final

from sortedcontainers import SortedDict

_MAX_RANGES: Final = 512
DUP_THRESH: Final = 3
_NONE: Final[SortedDict[int, int]] = SortedDict()  # never changed: most connections lose nothing, and one costs 4 us


@final
class Scoreboard:
    """Disjoint, non-adjacent ranges of selectively acknowledged bytes; at most 512 of them.

    Invariant: ``sacked`` is the sum of the ranges' lengths. Ranges are a promise that may be broken (RFC 2018 section
    8): the send buffer keeps the bytes until they are acknowledged.
    """

    __slots__ = ("_ranges", "sacked")

    def __init__(self) -> None:
        self._ranges = _NONE
        self.sacked = 0

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def add(self, start: int, end: int) -> int:
        """Note ``[start, end)``; returns how many bytes of it are news."""
        if self._ranges is _NONE:
            self._ranges = SortedDict()
        ranges = self._ranges
        before = self.sacked
        index = ranges.bisect_right(start)
        if index:
            left, left_end = ranges.peekitem(index - 1)
            if left_end >= start:
                if left_end >= end:
                    return 0
                start = left
                index -= 1
        while index < len(ranges):
            left, left_end = ranges.peekitem(index)
            if left > end:
                break
            ranges.popitem(index)
            self.sacked -= left_end - left
            end = max(end, left_end)
        if len(ranges) < _MAX_RANGES:
            ranges[start] = end
            self.sacked += end - start
        return max(self.sacked - before, 0)

    def acknowledge(self, upto: int) -> None:
        """Forget what lies before ``upto``."""
        ranges = self._ranges
        while ranges:
            start, end = ranges.peekitem(0)
            if start >= upto:
                return
            ranges.popitem(0)
            self.sacked -= end - start
            if end > upto:
                ranges[upto] = end
                self.sacked += end - upto

    def clear(self) -> None:
        """Forget everything: the peer may have reneged."""
        self._ranges = _NONE
        self.sacked = 0

    def sacked_between(self, start: int, end: int) -> int:
        """How many bytes of ``[start, end)`` are noted."""
        return sum(
            min(right, end) - max(left, start) for left, right in self._ranges.items() if left < end and right > start
        )

    def hole(self, start: int, limit: int) -> tuple[int, int] | None:
        """The first range of bytes in ``[start, limit)`` that is not noted."""
        ranges = self._ranges
        index = ranges.bisect_right(start)
        if index:
            start = max(start, ranges.peekitem(index - 1)[1])
        if start >= limit:
            return None
        if index < len(ranges):
            return start, min(limit, ranges.peekitem(index)[0])
        return start, limit

    def lost_below(self, smss: int) -> int:
        """The number below which every byte that is not noted counts as lost (RFC 6675 section 4, IsLost).

        At least DupThresh ranges, or more than (DupThresh - 1) * SMSS bytes, are noted above it.
        """
        ranges = self._ranges
        amount = 0
        for count, start in enumerate(reversed(ranges), 1):
            amount += ranges[start] - start
            if count >= DUP_THRESH or amount > (DUP_THRESH - 1) * smss:
                return int(start)
        return 0
