"""Where the machines of a pair run, as far as any user may say.

Read before editing: sched(7), sched_setaffinity(2).

Two machines in lock-step are as fast as the slower one, and the scheduler does not know that they belong together: with
few processors it was seen to run both on the same one, one after the other, while another was idle. So each has half of
them while they are a pair, and the one that is left has them all. And both are SCHED_BATCH: a machine that is woken up
by a frame does not take the processor from the proxy that is about to wake the other machine too. What was measured is
in docs/reference/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, final

_TASKS: Final = "/proc/{}/task"


@final
class Places:
    """Half of the processors for each machine.

    Args:
        wanted: False leaves everything to the system. processors: those that there are; by default, what this process
            may use.

    Attributes:
        halves: of the primary and of the secondary; the same, if there is one processor only. everything: both.
    """

    def __init__(self, *, wanted: bool = True, processors: frozenset[int] | None = None) -> None:
        self.everything = frozenset(os.sched_getaffinity(0)) if processors is None else processors
        self._wanted = wanted
        self._settled: dict[int, frozenset[int]] = {}
        ordered = sorted(self.everything)
        middle = len(ordered) // 2
        self.halves = (
            (frozenset(ordered[:middle]), frozenset(ordered[middle:])) if middle else (self.everything, self.everything)
        )

    def settle(self, primary: int, secondary: int | None) -> None:
        """Have the processes of both machines, by their ids, run where they should; one that is alone, everywhere.

        A process that has gone meanwhile is none of our worries, and a system that refuses leaves it where it is.
        """
        if not self._wanted:
            return
        places = {primary: self.everything if secondary is None else self.halves[0]}
        if secondary is not None:
            places[secondary] = self.halves[1]
        for pid, processors in places.items():
            if self._settled.get(pid) != processors:
                _confine(pid, processors)
        self._settled = places


def _confine(pid: int, processors: frozenset[int]) -> None:
    """All threads, twice: one that was made meanwhile by one that was not confined yet is met the second time."""
    for _ in range(2):
        with contextlib.suppress(OSError):
            for task in Path(_TASKS.format(pid)).iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(task.name), processors)
                    os.sched_setscheduler(int(task.name), os.SCHED_BATCH, os.sched_param(0))
