"""What a case is, and how one is drafted: the frames of two machines, their order, and what must be held."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pystack.testing.frames import Crafter

CLIENT: Final = "192.0.2.1"
_MIN_FRAME: Final = 60


@dataclass(frozen=True, slots=True)
class Step:
    """One frame of one of the machines, ``vnet_hdr_len`` bytes of it being a virtio_net_hdr."""

    primary: bool
    frame: bytes
    vnet_hdr_len: int = 0


@dataclass(frozen=True, slots=True)
class Want:
    """What a right comparator does, before any checkpoint.

    Attributes:
        asked: whether it asks for a checkpoint. held: steps that must not leave; all others must, unless it asks.
    """

    asked: bool = False
    held: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Case:
    """See the module's text."""

    number: int
    kind: str
    steps: tuple[Step, ...]
    want: Want
    vnet: bool

    def describe(self) -> str:
        """The case as text that it can be made from again."""
        lines = [f"case {self.number} ({self.kind}), {self.want}"]
        lines += [
            f"  {index}: {'P' if step.primary else 'S'} {step.vnet_hdr_len} {step.frame.hex()}"
            for index, step in enumerate(self.steps)
        ]
        return "\n".join(lines)


@dataclass(slots=True)
class Draft:
    """A case in the making: frames of both machines, each in its order, some of which must be held."""

    rng: random.Random
    wire: Crafter
    mine: list[bytes] = field(default_factory=list)
    its: list[bytes] = field(default_factory=list)
    order: str = "any"
    asked: bool = False
    held: set[int] = field(default_factory=set)  # indexes in `mine`

    def both(self, *frames: bytes) -> None:
        """Both send the same."""
        self.mine += frames
        self.its += frames

    def hold(self, *frames: bytes) -> None:
        """The primary sends what must not leave."""
        for frame in frames:
            self.held.add(len(self.mine))
            self.mine.append(frame)

    def case(self, number: int, kind: str, vnet_hdr_len: int | None) -> Case:
        """The case, its frames in an order of their own."""
        steps: list[Step] = []
        held = set()
        for primary, index in self._interleaved():
            frame = (self.mine if primary else self.its)[index]
            if primary and index in self.held:
                held.add(len(steps))
            steps.append(Step(primary, bytes(vnet_hdr_len or 0) + frame, vnet_hdr_len or 0))
        return Case(number, kind, tuple(steps), Want(self.asked, frozenset(held)), vnet_hdr_len is not None)

    def _interleaved(self) -> Iterable[tuple[bool, int]]:
        mine = [(True, index) for index in range(len(self.mine))]
        its = [(False, index) for index in range(len(self.its))]
        order = self.order
        if order == "any":
            order = self.rng.choice(("steps", "steps", "random", "random", "primary first", "secondary first"))
        if order == "primary first":
            return mine + its
        if order == "secondary first":
            return its + mine
        merged = []
        turn = self.rng.random() < 0.5
        while mine or its:
            merged.append((mine if (turn and mine) or not its else its).pop(0))
            turn = not turn if order == "steps" else self.rng.random() < 0.5
        return merged


def cut(rng: random.Random, length: int, pieces: int) -> list[tuple[int, int]]:
    """``length`` bytes in up to ``pieces`` pieces."""
    marks = sorted({rng.randrange(1, length) for _ in range(rng.randrange(pieces))}) if length > 1 else []
    return list(zip([0, *marks], [*marks, length], strict=True))


def pad(rng: random.Random, frame: bytes) -> bytes:
    """Padding is zeros, or what was in the buffer before."""
    missing = max(_MIN_FRAME - len(frame), 0)
    return frame + (bytes(missing) if rng.random() < 0.7 else rng.randbytes(missing))


def changed(rng: random.Random, data: bytes) -> bytes:
    """One bit is another."""
    at = rng.randrange(len(data))
    return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
