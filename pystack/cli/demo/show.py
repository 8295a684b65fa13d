"""What a person sees of the demonstration: a list of steps that fills up, or plain lines where there is no terminal."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pystack.cli.demo.steps import Begin, End
from pystack.cli.stats import amount, table
from pystack.errors import LinkError
from pystack.slirp.stats import GatewayStats

_BAR_WIDTH: Final = 24
_SVG_WIDTH: Final = 96


@final
@dataclass(slots=True)
class _Row:
    step: Begin
    begun: float
    carried: int = 0
    end: End | None = None
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="cyan"))


@final
class Show:
    """The steps so far. A context manager, within which a terminal is kept up to date by `refresh`."""

    def __init__(self, heading: str) -> None:
        self._heading = heading
        self._lines: list[str] = []
        self._rows: list[_Row] = []
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    @property
    def good(self) -> bool:
        """Whether every step so far was."""
        return all(row.end is not None and row.end.good for row in self._rows)

    def __enter__(self) -> Self:
        self._console.print(Text(self._heading, style="bold"), soft_wrap=True)
        self._console.print()
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self.refresh()
            self._live.stop()

    def say(self, line: str) -> None:
        """A line above the steps."""
        self._lines.append(line)
        if self._live is None:
            self._console.print(line, soft_wrap=True, markup=False)
        else:
            self.refresh()

    def begin(self, step: Begin) -> None:
        """A step begins."""
        self._rows.append(_Row(step, time.monotonic()))
        self.refresh()

    def carried(self, count: int) -> None:
        """The step under way has carried ``count`` bytes so far."""
        if self._rows and self._rows[-1].end is None:
            self._rows[-1].carried = min(count, self._rows[-1].step.total)
            self.refresh()

    def end(self, end: End) -> None:
        """The step under way has ended."""
        row = self._rows[-1]
        row.end = end
        if end.good:
            row.carried = row.step.total
        if self._live is None:
            verdict = "ok" if end.good else "FAILED"
            self._console.print(f"{verdict:6} {row.step.label:36} {end.note}", markup=False, soft_wrap=True)
        self.refresh()

    def refresh(self) -> None:
        """Draw the terminal again."""
        if self._live is not None:
            self._live.update(self._steps(), refresh=True)

    def finish(self, stats: GatewayStats, svg: Path | None) -> None:
        """What flowed, at the end; with the whole as a picture in the file ``svg``.

        Raises:
            LinkError: the picture cannot be written.
        """
        self._console.print()
        self._console.print(self._verdict(stats))
        if svg is not None:
            picture = Console(record=True, width=_SVG_WIDTH, file=io.StringIO(), highlight=False, force_terminal=True)
            heading = Text(self._heading, style="bold")
            picture.print(heading, "", self._steps(), "", self._verdict(stats), sep="\n")
            try:
                picture.save_svg(str(svg), title="pystack demo")
            except OSError as error:
                raise LinkError(f"{svg} cannot be written: {error.strerror}.") from None

    def _verdict(self, stats: GatewayStats) -> RenderableType:
        word = Text("All of it arrived as it was sent.", style="green")
        if not self.good:
            word = Text("Something went wrong: see above.", style="bold red")
        rates = [
            (f"Throughput to the {'guest' if row.step.to_guest else 'host'}", f"{row.end.rate / 1e9:.2f} Gbit/s")
            for row in self._rows
            if row.end is not None and row.end.rate
        ]
        return Group(table(stats, title="What flowed through the stack", more=rates), word)

    def _steps(self) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        for row in self._rows:
            grid.add_row(_mark(row), Text(row.step.label, no_wrap=True), _bar(row), _note(row))
        return Group(*(Text(line, style="dim") for line in self._lines), *([Text()] if self._lines else []), grid)


def _mark(row: _Row) -> RenderableType:
    if row.end is None:
        return row.spinner
    return Text("✔", style="green") if row.end.good else Text("✘", style="bold red")


def _bar(row: _Row) -> RenderableType:
    if not row.step.total:
        return Text()
    return ProgressBar(row.step.total, row.carried, width=_BAR_WIDTH, finished_style="green")


def _note(row: _Row) -> RenderableType:
    if row.end is not None:
        return Text(row.end.note, style="cyan" if row.end.good else "red")
    if not row.carried:
        return Text()
    speed = row.carried * 8 / max(time.monotonic() - row.begun, 1e-3) / 1e9
    return Text(f"{amount(row.carried)}, {speed:.1f} Gbit/s", style="cyan")
