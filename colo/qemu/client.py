"""What all checkpoint clients of machines have in common: steps to tell, and work beside the proxy."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from colo.checkpoint import Step
from pystack import Micros


class Client(ABC):
    """The half of a `colo.checkpoint.CheckpointClient` that does not depend on how a checkpoint is taken.

    Args:
        wake: has the owner poll, before it returns: what both machines have sent must be read while they stand still.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._steps: list[Step] = []
        self._work: set[asyncio.Task[None]] = set()
        self._closed = False

    def poll(self, now: Micros) -> list[Step]:  # noqa: ARG002 - the protocol's form
        """What happened."""
        steps, self._steps = self._steps, []
        return steps

    def next_timeout(self) -> Micros | None:
        """At once while there is something to tell; otherwise ``wake`` is called."""
        return 0 if self._steps else None

    def _tell(self, *steps: Step) -> None:
        self._steps += steps
        self._wake()

    def _do(self, work: Awaitable[None]) -> None:
        """Do it beside all else."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._on_failure(error)

    @abstractmethod
    def _on_failure(self, error: BaseException) -> None:
        """Work that was to be done has failed with ``error``."""
