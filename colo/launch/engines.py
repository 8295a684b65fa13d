"""Which engine takes the checkpoints: chosen by trying, and told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from colo.checkpoint import CheckpointClient
from colo.launch.plan import Plan
from colo.qemu.machine import Machine
from colo.qemu.stop_copy import StopCopy
from pystack import Counters


class Engine(CheckpointClient, Protocol):
    """Something that takes checkpoints of two machines, and knows what to do when one of them dies.

    Attributes:
        name: as in ``--engine``. secondary: the machine that is a copy of the primary, if there is one.
    """

    name: str
    secondary: Machine | None

    def prepare(self) -> None:
        """Start what the next checkpoint needs."""

    async def fail_over(self) -> None:
        """The primary is gone: let the secondary go on."""

    async def lose_secondary(self) -> None:
        """The secondary is gone: let the primary go on."""

    async def close(self) -> None:
        """End every machine but the primary."""


Make = Callable[
    [Machine, Callable[[], Awaitable[Machine]], Callable[[Machine], None], Callable[[], None], Counters], Engine
]


@dataclass(frozen=True, slots=True)
class Chosen:
    """An engine.

    Attributes:
        make: makes it. why: for a person.
    """

    make: Make
    why: str


async def choose(plan: Plan, directory: Path) -> Chosen:  # noqa: ARG001 - where the trial machines of x-colo are
    """The engine for ``plan``.

    Raises:
        UsageError: the one that is asked for does not work here.
    """
    return Chosen(StopCopy, "asked for" if plan.engine == "stop-copy" else "works with every QEMU")
