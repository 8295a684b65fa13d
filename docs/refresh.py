"""Write what the documentation takes from the program itself: `python docs/refresh.py [commands|pictures]`.

reference/command-line.md and reference/colo-command-line.md come from the commands' own help, the pictures of the
demos in images/ from a run of each. The pages are checked by tests/docs like any other: when a command's help changes,
that test fails until this was run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
REFERENCE = DOCS / "reference"
IMAGES = DOCS / "images"

PYSTACK = """\
# Command line

What each command says of itself. [Run a program](../howto/run-a-program.md) and its neighbours show them at work.

Exit codes: of `run`, the command's own (127 when it was not found, 126 when it could not be run, 128 + n when signal n
ended it); otherwise 0, or 2 for what a person can put right, with one sentence that says how.
"""

COLO = """\
# Command line of colo

What each command says of itself. [Replace QEMU's colo-compare](../howto/replace-colo-compare.md) and [Compare two
captures](../howto/replay.md) show them at work.

Exit codes: 0, or 2 for what a person can put right, with one sentence that says how; 1 when the system refuses later,
and of `replay` when the captures differ.

## Addresses

`unix:PATH` or `tcp:HOST:PORT`, an IPv6 address in brackets. With `,server` behind it the command listens there and
serves one peer at a time; when that goes it waits for the next. Without, it connects once at the start, which must
succeed, and tries again every second after the other side has gone. All that listen do so before any connects. A UNIX
socket is made for this user alone and removed at the end. Port 0 lets the system choose, and the command says what it
chose.

Every stream is QEMU's: a length of 32 bits, then the frame, with `--vnet-hdr` the length of its virtio_net_hdr in
between. A peer that announces more than 69,632 bytes is parted with. A peer that goes in the middle of a frame leaves
nothing behind: the next one starts at the beginning of a frame.

## What is counted

`--stats` prints every counter at the end. Each socket, by its option's name with underscores (`primary_in`, `copy1`),
has these:

| Counter | What it counts |
|---|---|
| `channel.NAME.connected` | Peers that came |
| `channel.NAME.gone` | Peers that went, or were parted with |
| `channel.NAME.stalled` | How often the peer did not read as fast as there was something for it |
| `channel.NAME.dropped` | Frames that it was not sent: it was not there, or 64 MiB waited for it already |
| `channel.NAME.dropped_bytes` | The same in bytes, their framing included |

A socket that does not read keeps nobody waiting and costs 64 MiB of memory, and what one checkpoint releases at once.
What is dropped for it had been released: whoever sent it sends it again, as after any loss in a network.
"""

PAGES = {
    "command-line.md": ("pystack", PYSTACK, ("", "run", "attach", "vm", "trace", "demo")),
    "colo-command-line.md": (
        "colo",
        COLO,
        (
            "",
            "demo",
            "launch",
            "ctl",
            "units",
            "selftest",
            "proxy",
            "secondary",
            "compare",
            "rewrite",
            "mirror",
            "replay",
        ),
    ),
}


def write_commands() -> None:
    """The pages of the commands' help."""
    for page, (program, introduction, commands) in PAGES.items():
        parts = [introduction]
        for command in commands:
            words = [program, *command.split(), "--help"]
            help_text = subprocess.run(
                [sys.executable, "-m", program, *words[1:]],
                env={**os.environ, "COLUMNS": "100"},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            title = f"{program} {command}".strip()
            parts.append(f"## {title}\n\n<!-- execute -->\n```console\n$ {' '.join(words)}\n{help_text}```\n")
        (REFERENCE / page).write_text("\n".join(parts), encoding="utf-8")


def write_pictures() -> None:
    """The pictures of real runs, without the fonts that rich would have a reader's browser fetch from elsewhere."""
    for name, program in (("demo.svg", "pystack.cli"), ("colo-demo.svg", "colo")):
        path = IMAGES / name
        subprocess.run([sys.executable, "-m", program, "demo", "--svg", str(path)], check=True)
        picture = path.read_text(encoding="utf-8")
        picture = re.sub(r"\s*@font-face \{[^}]*\}", "", picture).replace("Fira Code", "ui-monospace")
        path.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["commands", "pictures"]
    if "commands" in chosen:
        write_commands()
    if "pictures" in chosen:
        write_pictures()
