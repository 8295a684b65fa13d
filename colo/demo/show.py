"""What `colo demo` shows: steps that were done, and a live table of what the proxy does."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final, Self, final

from rich.console import Console, Group
from rich.text import Text

from colo.board import Board, figures, table
from colo.proxy import Proxy
from pystack import LinkError

_SVG_WIDTH: Final = 104


@final
class Show:
    """Steps that were done, and the figures of now. A context manager."""

    def __init__(self, heading: str) -> None:
        self._heading = Text(heading, style="bold")
        self._board = Board()
        self.good = True

    def __enter__(self) -> Self:
        self._board.console.print(self._heading, soft_wrap=True)
        self._board.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._board.__exit__(*details)

    def step(self, text: str, *, good: bool = True) -> None:
        """One thing is done."""
        self.good = self.good and good
        line = Text("  ok  " if good else "  NO  ", style="green" if good else "bold red")
        line.append(f"{self._board.elapsed:5.1f} s  ", style="dim")
        line.append(text, style="default")
        self._board.add(line)

    def refresh(self, proxy: Proxy, note: str = "") -> None:
        """Draw the figures anew, if it is time."""
        drawn = table(figures(proxy))
        self._board.draw(Group(drawn, Text(note, style="dim")) if note else drawn)

    def finish(self, proxy: Proxy, svg: Path | None = None) -> None:
        """The last figures; with everything as a picture in the file ``svg``.

        Raises:
            LinkError: the picture cannot be written.
        """
        drawn = table(figures(proxy))
        if svg is not None:
            picture = Console(record=True, width=_SVG_WIDTH, file=io.StringIO(), highlight=False, force_terminal=True)
            picture.print(self._heading, "", self._board.drawn(drawn), sep="\n")
            try:
                picture.save_svg(str(svg), title="colo demo")
            except OSError as error:
                raise LinkError(f"{svg} cannot be written: {error.strerror}.") from None
        if self._board.is_live:
            self._board.draw(drawn, at_once=True)
        else:
            self._board.console.print(drawn)
