"""What a person sees of a running pair: what has happened, and a table of now."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Self, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from colo.launch.pair import Pair

_LINES: Final = 12


def rows(status: dict[str, Any], latency_us: float) -> dict[str, str]:
    """The table, name by name."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(status["checkpoints_by_reason"].items()))
    pause = f"{status['pause_median_us'] / 1000:,.1f} ms, worst {status['pause_worst_us'] / 1000:,.1f} ms"
    return {
        "state": status["state"],
        "machines": f"{status['primary']} serves" + (f", {status['secondary']} follows" if status["secondary"] else ""),
        "engine": f"{status['engine']} ({status['engine_why']}), {status['accelerator']}",
        "mode": status["mode"],
        "checkpoints": f"{status['checkpoints']}{f' ({reasons})' if reasons else ''}",
        "pause": pause if status["checkpoints"] else "none yet",
        "released": f"{status['released_frames']:,} frames",
        "held": f"{status['held_frames']:,} frames, {status['held_bytes']:,} bytes",
        "connections": f"{status['connections']:,} alive",
        "added latency": f"{latency_us:,.0f} us a frame, mean",
    }


@final
class View:
    """Lines of what happened, and the table where there is a terminal. A context manager."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._lines: deque[Text] = deque(maxlen=_LINES)
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, text: str) -> None:
        """Something happened."""
        line = Text(f"{time.monotonic() - self._begun:6.1f} s  ", style="dim")
        line.append(text, style="default")
        self._lines.append(line)
        if self._live is None:
            self._console.print(line, soft_wrap=True)

    def refresh(self, pair: Pair) -> None:
        """Draw the table anew."""
        if self._live is not None:
            self._live.update(self._drawn(pair), refresh=True)

    def _drawn(self, pair: Pair) -> RenderableType:
        comparator = pair.proxy.comparator
        released = comparator.released_frames
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column(style="cyan")
        table.add_column()
        for name, value in rows(pair.status(), comparator.waited / released if released else 0.0).items():
            table.add_row(name, value)
        return Group(*self._lines, Text(), table)


Tell = Callable[[str], None]
