"""What both the demonstration and a running pair show: lines of what has happened, and below them a table of now."""

from __future__ import annotations

import time
from collections import deque
from typing import Final, Self, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from colo.proxy import Proxy, Role

_REFRESH_SECONDS: Final = 0.1
_ROLES: Final = {
    Role.PAIR: "both machines answer",
    Role.SECONDARY_ALONE: "the secondary carries on",
    Role.PRIMARY_ALONE: "the primary carries on",
}


def figures(proxy: Proxy) -> dict[str, str]:
    """What a table shows of a proxy, name by name."""
    comparator, checkpoints = proxy.comparator, proxy.checkpoints
    released = comparator.released_frames
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(checkpoints.by_reason.items()))
    latency = comparator.waited / released if released else 0.0
    return {
        "state": _ROLES[proxy.role],
        "mode": comparator.mode.value,
        "released": f"{released:,} frames",
        "held": f"{comparator.held_frames:,} frames, {comparator.held_bytes:,} bytes",
        "connections": f"{proxy.tracker.live:,} alive",
        "checkpoints": f"{proxy.counters['checkpoint.completed']}{f' ({reasons})' if reasons else ''}",
        # A frame that is released in the turn of the loop in which it came counts as not having waited.
        "added latency": f"{latency:,.0f} us a frame, mean" if latency >= 1 else "within a turn of the loop, mean",
    }


def table(rows: dict[str, str]) -> Table:
    """``rows`` as a table."""
    drawn = Table(box=None, show_header=False, padding=(0, 2))
    drawn.add_column(style="cyan")
    drawn.add_column()
    for name, value in rows.items():
        drawn.add_row(name, value)
    return drawn


@final
class Board:
    """A context manager; draws in place where there is a terminal, and prints each line once where there is none.

    Attributes:
        is_live: whether there is a terminal. elapsed: seconds since it was made.
    """

    def __init__(self, *, stderr: bool = False, most_lines: int | None = None) -> None:
        self.console = Console(highlight=False, stderr=stderr)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._lines: deque[Text] = deque(maxlen=most_lines)
        self._begun = time.monotonic()
        self._next = 0.0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def is_live(self) -> bool:
        """See the class."""
        return self._live is not None

    @property
    def elapsed(self) -> float:
        """See the class."""
        return time.monotonic() - self._begun

    def add(self, line: Text) -> None:
        """Something has happened."""
        self._lines.append(line)
        if self._live is None:
            self.console.print(line, soft_wrap=True)

    def mention(self, line: Text) -> None:
        """Print it once, above what is drawn, where it stays."""
        self.console.print(line, soft_wrap=True)

    def draw(self, below: RenderableType, *, at_once: bool = False) -> None:
        """Draw the lines and ``below`` them the rest, if it is time."""
        now = time.monotonic()
        if self._live is not None and (at_once or now >= self._next):
            self._next = now + _REFRESH_SECONDS
            self._live.update(self.drawn(below), refresh=True)

    def drawn(self, below: RenderableType) -> RenderableType:
        """All of it."""
        return Group(*self._lines, Text(), below)
