"""A live table of what the proxy does; plain lines where there is no terminal."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Final, Self, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from colo.proxy import Proxy, Role
from pystack import LinkError

_SVG_WIDTH: Final = 104
_REFRESH_SECONDS: Final = 0.1
_ROLES: Final = {
    Role.PAIR: "both machines answer",
    Role.SECONDARY_ALONE: "the secondary carries on",
    Role.PRIMARY_ALONE: "the primary carries on",
}


def figures(proxy: Proxy) -> dict[str, str]:
    """What the table shows, name by name."""
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
        "added latency": f"{latency:,.0f} us a frame, mean",
    }


@final
class Show:
    """Steps that were done, and the figures of now. A context manager."""

    def __init__(self, heading: str) -> None:
        self._heading = heading
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._steps: list[Text] = []
        self._begun = time.monotonic()
        self._next = 0.0
        self.good = True

    def __enter__(self) -> Self:
        self._console.print(Text(self._heading, style="bold"), soft_wrap=True)
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, text: str, *, good: bool = True) -> None:
        """One thing is done."""
        self.good = self.good and good
        line = Text("  ok  " if good else "  NO  ", style="green" if good else "bold red")
        line.append(f"{time.monotonic() - self._begun:5.1f} s  ", style="dim")
        line.append(text, style="default")
        self._steps.append(line)
        if self._live is None:
            self._console.print(line, soft_wrap=True)

    def refresh(self, proxy: Proxy, note: str = "") -> None:
        """Draw the figures anew, if it is time."""
        now = time.monotonic()
        if self._live is None or now < self._next:
            return
        self._next = now + _REFRESH_SECONDS
        self._live.update(self._drawn(proxy, note), refresh=True)

    def finish(self, proxy: Proxy, svg: Path | None = None) -> None:
        """The last figures; with everything as a picture in the file ``svg``.

        Raises:
            LinkError: the picture cannot be written.
        """
        if svg is not None:
            picture = Console(record=True, width=_SVG_WIDTH, file=io.StringIO(), highlight=False, force_terminal=True)
            picture.print(Text(self._heading, style="bold"), "", self._drawn(proxy, ""), sep="\n")
            try:
                picture.save_svg(str(svg), title="colo demo")
            except OSError as error:
                raise LinkError(f"{svg} cannot be written: {error.strerror}.") from None
        if self._live is not None:
            self._live.update(self._drawn(proxy, ""), refresh=True)
        else:
            self._console.print(self._table(proxy))

    def _drawn(self, proxy: Proxy, note: str) -> RenderableType:
        parts: list[RenderableType] = [*self._steps, Text(), self._table(proxy)]
        if note:
            parts.append(Text(note, style="dim"))
        return Group(*parts)

    @staticmethod
    def _table(proxy: Proxy) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column(style="cyan")
        table.add_column()
        for name, value in figures(proxy).items():
            table.add_row(name, value)
        return table
