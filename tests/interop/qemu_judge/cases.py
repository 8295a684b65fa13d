"""Seeded cases: what two machines send, frame by frame, and what a right comparator makes of it.

Each case is one flow of its own (its guest's address is the case's number), so that thousands can go through one
comparator. `Want` is known from how the case is made: it holds whatever QEMU says.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from pystack.testing.frames import Crafter
from tests.interop.qemu_judge import datagram_cases, tcp_cases
from tests.interop.qemu_judge.draft import CLIENT, Case, Draft

KINDS: Final[dict[str, Callable[[Draft], None]]] = {
    function.__name__: function for function in (*tcp_cases.KINDS, *datagram_cases.KINDS)
}


def case(number: int, seed: int) -> Case:
    """Case ``number`` of the sequence that ``seed`` begins; kinds take turns."""
    rng = random.Random(f"{seed}/{number}")
    names = list(KINDS)
    kind = names[number % len(names)]
    address = number + 1
    wire = Crafter(f"10.{address >> 16}.{address >> 8 & 255}.{address & 255}", CLIENT)
    draft = Draft(rng, wire)
    KINDS[kind](draft)
    vnet_hdr_len = rng.choice((None, None, None, 12, 12, 10, 20, 0))
    return draft.case(number, kind, vnet_hdr_len)


def cases(count: int, seed: int, first: int = 0) -> Sequence[Case]:
    """``count`` cases."""
    return [case(number, seed) for number in range(first, first + count)]
