"""Out-of-order data (RFC 9293 SHLD-31): disjoint ranges of received bytes beyond RCV.NXT.

The first copy of a byte wins: a retransmission that disagrees with what was kept changes nothing. Data in order never
comes here.
"""

from __future__ import annotations

from typing import final

from sortedcontainers import SortedDict

from pystack.frame import Buffer


@final
class Range:
    """Contiguous bytes ``[start, end)``, in pieces."""

    __slots__ = ("chunks", "end", "start")

    def __init__(self, start: int, end: int, chunks: list[Buffer]) -> None:
        self.start = start
        self.end = end
        self.chunks = chunks


@final
class Assembler:
    """Ranges keyed by their absolute start; at most ``limit`` pieces. O(log n) an insert, apart from what it merges.

    Invariants: ranges are neither empty, overlapping nor adjacent; ``pieces`` is the number of all their chunks.
    """

    __slots__ = ("_limit", "_ranges", "_recent", "pieces")

    def __init__(self, limit: int) -> None:
        self._ranges: SortedDict[int, Range] = SortedDict()
        self._recent: list[Range] = []
        self._limit = limit
        self.pieces = 0

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def insert(self, start: int, data: Buffer) -> bool:
        """Keep ``data`` (not empty) at ``start``; False when the bound on pieces refuses it."""
        if self.pieces >= self._limit:
            return False
        end = start + len(data)
        ranges = self._ranges
        index = ranges.bisect_right(start)
        target: Range | None = None
        if index:
            before: Range = ranges.peekitem(index - 1)[1]
            if before.end >= start:
                target = before
        if target is None:
            target = Range(start, start, [])
            ranges[start] = target
        else:
            index -= 1
        if target.end < end:
            self._extend(target, index, start, end, data)
        recent = self._recent
        if recent and recent[0] is target:
            return True
        if target in recent:
            recent.remove(target)
        recent.insert(0, target)
        del recent[8:]
        return True

    def _extend(self, target: Range, index: int, start: int, end: int, data: Buffer) -> None:
        """Append to ``target`` (the range at ``index``) what ``data`` adds, absorbing the ranges it reaches."""
        ranges = self._ranges
        while target.end < end or index + 1 < len(ranges):
            following: Range | None = ranges.peekitem(index + 1)[1] if index + 1 < len(ranges) else None
            stop = end if following is None else min(end, following.start)
            if stop > target.end:
                target.chunks.append(data[target.end - start : stop - start])
                self.pieces += 1
                target.end = stop
            if following is None or following.start > target.end:
                break
            del ranges[following.start]
            target.chunks.extend(following.chunks)
            target.end = following.end
            if following in self._recent:
                self._recent.remove(following)

    def take(self, nxt: int) -> list[Buffer]:
        """Remove and return what continues at ``nxt``, without what lies before it; drop what is all before."""
        result: list[Buffer] = []
        ranges = self._ranges
        while ranges:
            first: Range = ranges.peekitem(0)[1]
            if first.start > nxt:
                break
            ranges.popitem(0)
            self.pieces -= len(first.chunks)
            if first in self._recent:
                self._recent.remove(first)
            at = first.start
            for chunk in first.chunks:
                chunk_end = at + len(chunk)
                if chunk_end > nxt:
                    result.append(chunk[nxt - at :] if at < nxt else chunk)
                    nxt = chunk_end
                at = chunk_end
        return result

    def blocks(self, limit: int) -> list[tuple[int, int]]:
        """Up to ``limit`` ranges for a SACK option, the most recently changed first (RFC 2018 section 4)."""
        return [(r.start, r.end) for r in self._recent[:limit]]

    def truncate(self, end: int) -> None:
        """Forget what lies at or beyond ``end``: the stream is known to stop there."""
        ranges = self._ranges
        while ranges:
            last: Range = ranges.peekitem(-1)[1]
            if last.end <= end:
                return
            ranges.popitem(-1)
            self.pieces -= len(last.chunks)
            if last in self._recent:
                self._recent.remove(last)
            if last.start < end:
                kept = b"".join(last.chunks)[: end - last.start]
                ranges[last.start] = Range(last.start, end, [kept])
                self.pieces += 1

    def _check(self) -> None:
        """Verify every invariant; for tests."""
        last = -1
        pieces = 0
        for start, item in self._ranges.items():
            assert start == item.start > last
            assert sum(len(chunk) for chunk in item.chunks) == item.end - item.start > 0
            assert all(len(chunk) for chunk in item.chunks)
            last = item.end
            pieces += len(item.chunks)
        assert pieces == self.pieces
        assert all(self._ranges.get(item.start) is item for item in self._recent)
