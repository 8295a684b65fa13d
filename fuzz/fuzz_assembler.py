"""The assembler and the scoreboard hold what naive maps of single bytes hold, after any operations, also at the wrap.

Input: a byte that chooses where the stream starts (before, across and after 2**32), then records of 4 bytes each:
operation, offset from RCV.NXT, length, and a byte to fill with. The first copy of a byte wins.
"""

from __future__ import annotations

from collections.abc import Iterator

from fuzz import harness
from pystack.tcp.assembler import Assembler
from pystack.tcp.sack import Scoreboard

MAX_LEN = 1 + 4 * 64

_BASES = (1, 0xFFFF_FF80, 0xFFFF_FFFF, 1 << 32, (7 << 32) + 5)
_LIMIT = 48
_INSERT, _TAKE, _TRUNCATE = range(3)

# Three segments of which the first comes last; overlaps and a fill; an end that is found late.
SEEDS = [
    bytes((0, _INSERT, 10, 10, 1, _INSERT, 20, 10, 2, _TAKE, 10, 0, 0)),
    bytes((1, _INSERT, 0x80, 40, 1, _INSERT, 0x70, 60, 2, _INSERT, 1, 200, 3, _TAKE, 1, 0, 0)),
    bytes(
        (2, _INSERT, 5, 1, 1, _INSERT, 7, 1, 2, _INSERT, 9, 1, 3, _INSERT, 5, 9, 4, _TRUNCATE, 8, 0, 0, _TAKE, 5, 0, 0)
    ),
]


def _records(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    for at in range(1, len(data) - 3, 4):
        yield data[at] % 3, data[at + 1], data[at + 2], data[at + 3]


class _Model:
    """The assembler's contents, one entry a byte."""

    def __init__(self, nxt: int) -> None:
        self.nxt = nxt
        self.held: dict[int, int] = {}

    def insert(self, start: int, fill: int, length: int) -> None:
        for at in range(start, start + length):
            self.held.setdefault(at, fill)

    def take(self) -> bytes:
        for at in [at for at in self.held if at < self.nxt]:
            del self.held[at]
        taken = bytearray()
        while self.nxt in self.held:
            taken.append(self.held.pop(self.nxt))
            self.nxt += 1
        return bytes(taken)

    def truncate(self, end: int) -> None:
        for at in [at for at in self.held if at >= end]:
            del self.held[at]


def _compare_blocks(assembler: Assembler, model: _Model) -> None:
    for left, right in assembler.blocks(4):
        assert left < right
        assert all(at in model.held for at in range(left, right))
        assert left - 1 not in model.held
        assert right not in model.held


def target(data: bytes) -> None:
    """Run the operations on both, and compare after each."""
    if not data:
        return
    base = _BASES[data[0] % len(_BASES)]
    assembler, model = Assembler(_LIMIT), _Model(base)
    board, noted = Scoreboard(), set[int]()
    for operation, offset, length, fill in _records(data):
        start = model.nxt + offset
        if operation == _INSERT and offset and length:
            if assembler.insert(start, bytes((fill,)) * length):
                model.insert(start, fill, length)
            else:
                assert assembler.pieces >= _LIMIT
            new = set(range(start, start + length)) - noted
            assert board.add(start, start + length) == len(new)
            noted |= new
        elif operation == _TAKE:
            model.nxt += offset
            assert b"".join(assembler.take(model.nxt)) == model.take()
            board.acknowledge(model.nxt)
            noted = {at for at in noted if at >= model.nxt}
        elif operation == _TRUNCATE and offset:
            assembler.truncate(start)
            model.truncate(start)
        assembler._check()
        assert bool(assembler) == bool(model.held)
        assert board.sacked == len(noted)
        _compare_blocks(assembler, model)


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
