"""What an agent keeps ready: a machine that is, or will be, a copy of the primary, by whichever engine."""

from __future__ import annotations

import socket  # noqa: TID251
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from colo.remote.ports import Port
from colo.remote.records import Engine, Record


@dataclass(frozen=True, slots=True)
class Hooks:
    """What it needs of the agent around it.

    Attributes:
        ready: a machine waits for the primary's state. received: takes what the machine has sent.
        stopped: the machine stands still, and all that it has said was received. copied: it is a copy, and runs or is
            about to. not_copied: it is none, and why. continued: nothing has come of a checkpoint, and the machine runs
            again. failed: nothing more will come of it.
    """

    ready: Callable[[], None]
    received: Callable[[list[bytes]], None]
    stopped: Callable[[], None]
    copied: Callable[[], None]
    not_copied: Callable[[str], None]
    continued: Callable[[], None]
    failed: Callable[[Exception], None]


class Kept(Protocol):
    """A machine in an agent's care.

    Attributes:
        engine: how the primary is copied into it. port: its card, None while there is none.
    """

    engine: Engine
    port: Port | None

    @property
    def begun(self) -> bool:
        """Whether the primary has begun to be copied."""

    async def watch(self) -> None:
        """Get it ready, and see to it until its end.

        Raises:
            UsageError: it is of no use.
            PystackError: it has ended.
        """

    def take_migration(self, sock: socket.socket) -> None:
        """The primary's state comes here.

        Raises:
            PystackError: it is not awaited.
        """

    def take(self, record: Record) -> None:
        """One of the proxy's that has to do with checkpoints."""

    async def take_over(self) -> None:
        """The primary is gone: let the machine run, as soon as it is known what it is."""

    async def close(self) -> None:
        """Part with it."""
