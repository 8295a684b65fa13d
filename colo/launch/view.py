"""What a person sees of a running pair: what has happened, and a table of now."""

from __future__ import annotations

from typing import Final, Self, final

from rich.text import Text

from colo.board import Board, figures, table
from colo.launch.pair import Pair

_LINES: Final = 12


def rows(pair: Pair) -> dict[str, str]:
    """The table, name by name."""
    status = pair.status()
    follower = f", {status['secondary']} follows" if status["secondary"] else ""
    pause = f"{status['pause_median_us'] / 1000:,.1f} ms, worst {status['pause_worst_us'] / 1000:,.1f} ms"
    return {
        **figures(pair.proxy),
        "state": status["state"],
        "machines": f"{status['primary']} serves{follower} ({status['accelerator']})",
        "pause": pause if status["checkpoints"] else "none yet",
        **({"panicked": ", ".join(status["panicked"])} if status["panicked"] else {}),
    }


@final
class View:
    """Lines of what happened, and the table where there is a terminal. A context manager."""

    def __init__(self) -> None:
        self._board = Board(stderr=True, most_lines=_LINES)

    def __enter__(self) -> Self:
        self._board.__enter__()
        return self

    def __exit__(self, *details: object) -> None:
        self._board.__exit__(*details)

    def tell(self, text: str) -> None:
        """Something happened."""
        line = Text(f"{self._board.elapsed:6.1f} s  ", style="dim")
        line.append(text, style="default")
        self._board.add(line)

    def mention(self, text: str) -> None:
        """Something that need not stay in sight."""
        self._board.mention(Text(text, style="dim"))

    def refresh(self, pair: Pair) -> None:
        """Draw the table anew."""
        self._board.draw(table(rows(pair)))
