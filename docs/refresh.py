"""Write what the documentation takes from the program itself: `python docs/refresh.py [commands|picture]`.

reference/command-line.md comes from the commands' own help, images/demo.svg from a run of the demo. The page is checked
by tests/docs like any other: when a command's help changes, that test fails until this was run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
PAGE = DOCS / "reference" / "command-line.md"
PICTURE = DOCS / "images" / "demo.svg"

INTRODUCTION = """\
# Command line

What each command says of itself. [Run a program](../howto/run-a-program.md) and its neighbours show them at work.

Exit codes: of `run`, the command's own (127 when it was not found, 126 when it could not be run, 128 + n when signal n
ended it); otherwise 0, or 2 for what a person can put right, with one sentence that says how.
"""

COMMANDS = ("", "run", "attach", "vm", "trace", "demo")


def write_commands() -> None:
    """The page of the commands' help."""
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


def write_picture() -> None:
    """The picture of a real run, without the fonts that rich would have a reader's browser fetch from elsewhere."""
    subprocess.run([sys.executable, "-m", "pystack.cli", "demo", "--svg", str(PICTURE)], check=True)
    picture = PICTURE.read_text(encoding="utf-8")
    picture = re.sub(r"\s*@font-face \{[^}]*\}", "", picture).replace("Fira Code", "ui-monospace")
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["commands", "picture"]
    if "commands" in chosen:
        write_commands()
    if "picture" in chosen:
        write_picture()
