"""How checkpoints are taken: by QEMU's own COLO where it is seen to work, and else by stopping and copying."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from colo.checkpoint import CheckpointClient, Step
from colo.launch.plan import Plan
from colo.qemu.machine import Guest, Machine, never_enters_colo, qemu_version
from colo.qemu.owner import Owner
from colo.qemu.stop_copy import StopCopy
from colo.qemu.x_colo import XColo
from pystack import Counters, PystackError, UsageError

X_COLO: Final = "x-colo"
STOP_COPY: Final = "stop-copy"

_TRIAL_SECONDS: Final = 10.0
_TRIALS: Final = 2
_TRIAL_CHECKPOINTS: Final = 3
_TRIAL_MEMORY_MIB: Final = 32
_LOOK_SECONDS: Final = 0.005


class Engine(CheckpointClient, Protocol):
    """Takes the checkpoints of a pair, and knows its machines.

    Attributes:
        live: the primary runs while it is copied for a secondary that joins.
    """

    live: bool
    primary: Machine
    secondary: Machine | None

    @property
    def undecided(self) -> bool:
        """Whether nobody knows yet what a checkpoint has made of the secondary."""

    def prepare(self) -> None:
        """Start the machine that will be needed next."""

    async def fail_over(self) -> None:
        """The primary is gone: let the secondary run."""

    async def lose_secondary(self) -> None:
        """The secondary is gone: let the primary run. The next checkpoint makes another one."""

    async def close(self) -> None:
        """End every machine but the primary."""


Make = Callable[[Machine, Owner, Counters], Engine]


@dataclass(frozen=True, slots=True)
class Chosen:
    """An engine.

    Attributes:
        name: `X_COLO` or `STOP_COPY`. why: for a person. make: makes it.
        paused_spares: whether its machines wait for ``cont`` once their state is there.
    """

    name: str
    why: str
    make: Make
    paused_spares: bool


async def foreseen(plan: Plan) -> Chosen | None:
    """The engine for ``plan`` where that is known before anything is tried: only stop-copy ever is.

    Raises:
        UsageError: the one that is asked for does not work here.
    """
    if plan.engine == STOP_COPY:
        return Chosen(STOP_COPY, "as asked for", StopCopy, paused_spares=True)
    why_not = _known_trouble(plan, await qemu_version(plan.guest.qemu))
    return _without_x_colo(plan, why_not) if why_not else None


async def tried(plan: Plan, directory: Path) -> Chosen:
    """The engine for ``plan``: x-colo if two small machines in ``directory`` are seen to go by it.

    Raises:
        UsageError: the one that is asked for does not work here.
    """
    why_not = ""
    for _ in range(_TRIALS):  # a busy machine deserves a second one
        why_not = await _trial(plan, directory)
        if not why_not:
            return Chosen(X_COLO, "only what has changed is sent", XColo, paused_spares=False)
    return _without_x_colo(plan, why_not)


def _without_x_colo(plan: Plan, why_not: str) -> Chosen:
    if plan.engine == X_COLO:
        raise UsageError(f"The engine x-colo does not work here: {why_not}; use --engine stop-copy, or auto.")
    return Chosen(STOP_COPY, f"x-colo is of no use: {why_not}", StopCopy, paused_spares=True)


def _known_trouble(plan: Plan, version: tuple[int, ...]) -> str:
    """A reason why QEMU's own COLO cannot be relied on that a short trial may not show; "" if there is none."""
    if plan.guest.overlay is not None:
        return "it does not copy what the machine writes to its disk"
    if never_enters_colo(version):
        return f"QEMU {'.'.join(map(str, version))} never enters COLO"
    # The first checkpoint deadlocks, and pages get lost: docs/adr/0013 tells of the repair.
    repaired = "colo" in plan.guest.environment.get("LD_PRELOAD", os.environ.get("LD_PRELOAD", ""))
    if plan.guest.accel == "tcg" and not repaired:
        return "QEMU's COLO loses memory without KVM"
    return ""


async def _trial(plan: Plan, directory: Path) -> str:
    """Take a few checkpoints of two machines with nothing to boot; returns why they cannot be taken, "" if they can."""
    small = Guest(
        qemu=plan.guest.qemu,
        accel=plan.guest.accel,
        nic=plan.guest.nic,
        memory_mib=_TRIAL_MEMORY_MIB,
        environment=plan.guest.environment,
    )
    counters = Counters()
    primary = Machine(small, "trial1", directory, counters)

    async def spawn() -> Machine:
        machine = Machine(replace(small), "trial2", directory, counters)
        await machine.start(incoming=True)
        return machine

    async def quiesce() -> None:
        """They have no clients."""

    engine = XColo(primary, Owner(spawn, lambda _: None, quiesce, lambda: None, lambda: None), counters)
    try:
        await primary.start()
        for number in range(_TRIAL_CHECKPOINTS):
            engine.begin("trial", 0)
            await asyncio.wait_for(_completed(engine), _TRIAL_SECONDS)
            if number == 0 and engine.secondary is None:
                return "the secondary does not join"
    except TimeoutError:
        return "a checkpoint of two small machines hangs"
    except PystackError as error:
        return str(error).rstrip(".")
    finally:
        await engine.close()
        await primary.kill()
        _clear(directory)
    return ""


def _clear(directory: Path) -> None:
    for path in directory.glob("trial*"):
        path.unlink(missing_ok=True)


async def _completed(engine: XColo) -> None:
    while True:
        for step in engine.poll(0):
            if step is Step.FAILED:
                raise PystackError(engine.why_failed or "a checkpoint of two small machines fails")
            if step is Step.RESUMED:
                return
        await asyncio.sleep(_LOOK_SECONDS)
