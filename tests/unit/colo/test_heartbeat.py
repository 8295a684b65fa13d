"""Who is ended by the one that watches, and who is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from colo.launch.heartbeat import watch_over
from colo.launch.plan import Plan
from colo.qemu.machine import Guest, Machine
from colo.qemu.qmp import MonitorError
from pystack import Counters

PLAN = Plan(guest=Guest(), heartbeat=0.01, patience=0.1)
RUNNING, STOPPED = {"running": True, "status": "running"}, {"running": False, "status": "internal-error"}


class Fake:
    """A machine whose monitor gives the answers of ``say``."""

    def __init__(self, say: Callable[[int], dict[str, Any] | None]) -> None:
        self.name, self.monitor, self.alive = "vm1", self, True
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.asked = 0
        self._say = say

    async def execute(self, command: str, seconds: float) -> dict[str, Any]:
        assert (command, seconds) == ("query-status", PLAN.patience)
        self.asked += 1
        answer = self._say(self.asked)
        if answer is None:
            raise MonitorError("It does not answer.")
        return answer

    async def kill(self) -> None:
        self.alive = False
        self.ended.set_result(-9)


def watched(
    say: Callable[[int], dict[str, Any] | None], *, should_run: bool = True, closing: bool = False, ends: bool = False
) -> tuple[bool, dict[str, int], list[str]]:
    """Whether a machine lives after a few times the patience with it, what was counted, and what was said."""
    counters, said = Counters(), list[str]()

    async def scene() -> bool:
        machine = Fake(say)
        asking = lambda: closing and machine.asked > 2  # noqa: E731
        work = watch_over(cast("Machine", machine), PLAN, counters, said.append, lambda: should_run, asking)
        await asyncio.wait({task := asyncio.create_task(work)}, timeout=10 if ends else 5 * PLAN.patience)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return machine.alive

    return asyncio.run(scene()), counters.snapshot(), said


def test_one_that_runs_lives() -> None:
    assert watched(lambda _: RUNNING) == (True, {}, [])


def test_one_that_does_not_answer_is_ended() -> None:
    assert watched(lambda number: RUNNING if number < 3 else None, ends=True) == (
        False,
        {"pair.heartbeats_lost": 1},
        [],
    )


def test_one_that_stands_still_is_ended() -> None:
    said = ["vm1 stands still (internal-error): it is ended"]
    assert watched(lambda _: STOPPED, ends=True) == (False, {"pair.stood_still": 1}, said)


@pytest.mark.parametrize(
    ("say", "should_run"),
    [(lambda number: RUNNING if number % 2 == 0 else STOPPED, True), (lambda _: STOPPED, False)],
    ids=["now and then", "as it should"],
)
def test_one_that_stands_still_for_a_while_or_for_a_reason_lives(
    say: Callable[[int], dict[str, Any]], should_run: bool
) -> None:
    assert watched(say, should_run=should_run) == (True, {}, [])


def test_nobody_is_ended_once_all_of_it_ends() -> None:
    assert watched(lambda number: RUNNING if number < 3 else None, closing=True) == (True, {}, [])
