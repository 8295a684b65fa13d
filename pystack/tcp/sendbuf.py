"""What was written and is not acknowledged yet: chunks by reference, found by absolute sequence number.

Nothing is copied: a segment's payload is a view of the very object that the writer handed over. Only small writes are
merged, so that a writer of single bytes does not cost an object for each.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final, final

from pystack.frame import Buffer

_MERGE: Final = 2048
_COMPACT: Final = 256


@final
class SendBuffer:
    """Bytes ``[base, end)`` in absolute sequence numbers.

    Invariants: ``_ends[i]`` is the number after the last byte of ``_chunks[i]``; entries before ``_head`` are
    acknowledged and dropped; ``end == _ends[-1]`` whenever there is a chunk.
    """

    __slots__ = ("_chunks", "_ends", "_head", "base", "end")

    def __init__(self, base: int) -> None:
        self._chunks: list[Buffer] = []
        self._ends: list[int] = []
        self._head = 0
        self.base = base
        self.end = base

    def append(self, data: Buffer) -> None:
        """Queue ``data`` (immutable, not empty) at the end. O(1)."""
        n = len(data)
        if n < _MERGE and self._head < len(self._chunks):
            last = self._chunks[-1]
            if len(last) + n <= _MERGE:
                self._chunks[-1] = bytes(last) + data
                self.end += n
                self._ends[-1] = self.end
                return
        self.end += n
        self._chunks.append(data)
        self._ends.append(self.end)

    def acknowledge(self, upto: int) -> None:
        """Drop what lies before ``upto``. Amortised O(1) per chunk."""
        self.base = upto
        ends = self._ends
        head = self._head
        while head < len(ends) and ends[head] <= upto:
            self._chunks[head] = b""
            head += 1
        if head == len(ends):
            ends.clear()
            self._chunks.clear()
            head = 0
        elif head >= _COMPACT and 2 * head >= len(ends):
            del ends[:head]
            del self._chunks[:head]
            head = 0
        self._head = head

    def slices(self, start: int, length: int) -> list[Buffer]:
        """The bytes ``[start, start + length)`` as views to gather. Needs base <= start and start + length <= end.

        At most ``length // 1024 + 3`` of them, far from what the system gathers at once: neighbours that are smaller
        than `_MERGE` together have been merged.
        """
        index = bisect_right(self._ends, start, self._head)
        chunk = self._chunks[index]
        offset = start - (self._ends[index] - len(chunk))
        if offset == 0 and len(chunk) == length:
            return [chunk]
        if offset + length <= len(chunk):
            return [memoryview(chunk)[offset : offset + length]]
        pieces: list[Buffer] = []
        while length:
            chunk = self._chunks[index]
            piece = memoryview(chunk)[offset : offset + length]
            pieces.append(piece)
            length -= len(piece)
            index += 1
            offset = 0
        return pieces

    def __len__(self) -> int:
        return self.end - self.base
