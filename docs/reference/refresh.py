"""Write docs/reference/command-line.md from the commands' own help: `python docs/reference/refresh.py`.

The page is checked by tests/docs like any other: when a command's help changes, the test fails until this was run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("command-line.md")

INTRODUCTION = """\
# Command line

What each command says of itself. [Run a program](../howto/run-a-program.md) and its neighbours show them at work.

Exit codes: of `run`, the command's own (127 when it was not found, 126 when it could not be run, 128 + n when signal n
ended it); otherwise 0, or 2 for what a person can put right, with one sentence that says how.
"""

COMMANDS = ("", "run", "attach", "vm", "trace", "demo")


def main() -> None:
    """Write the page."""
    parts = [INTRODUCTION]
    for command in COMMANDS:
        words = ["pystack", *command.split(), "--help"]
        help_text = subprocess.run(
            [sys.executable, "-m", "pystack.cli", *words[1:]],
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        title = f"pystack {command}".strip()
        parts.append(f"## {title}\n\n<!-- execute -->\n```console\n$ {' '.join(words)}\n{help_text}```\n")
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
