"""What an engine needs of whoever runs the pair."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from colo.qemu.machine import Machine


@dataclass(frozen=True, slots=True)
class Owner:
    """Runs the proxy between the machines.

    Attributes:
        spawn: starts a machine that waits for the state of another one.
        attach: lets the link of a machine take the place of the old secondary's.
        quiesce: lets both machines come to rest; they hear nothing until the checkpoint has come to an end.
        hold: stops reading from both, which are about to stand still, until it has.
        wake: has the proxy poll the engine, at once.
    """

    spawn: Callable[[], Awaitable[Machine]]
    attach: Callable[[Machine], None]
    quiesce: Callable[[], Awaitable[None]]
    hold: Callable[[], None]
    wake: Callable[[], None]
