"""`colo units`: what systemd takes to run pairs as services."""

from __future__ import annotations

import shutil
import sys
from importlib.resources import files
from pathlib import Path

import click

from pystack import UsageError

_PROGRAM = "@COLO@"


@click.command(name="units")
@click.option(
    "--into",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIRECTORY",
    help="Write them there, such as to /etc/systemd/system, and do not print them.",
)
def command(*, into: Path | None) -> int:
    """Print systemd's units for pairs as services, with the path of this program.

    colo-pair@NAME runs what /etc/colo/NAME.toml says, as the user colo.
    """
    units = _units(_this_program())
    if into is None:
        click.echo("\n\n".join(f"# {name}\n{text.rstrip()}" for name, text in units.items()))
        return 0
    for name, text in units.items():
        path = into / name
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}.") from None
        click.echo(f"{path} was written: systemctl daemon-reload makes it known.")
    return 0


def _units(program: str) -> dict[str, str]:
    found = (entry for entry in files("colo.launch").joinpath("units").iterdir() if entry.name.endswith(".service"))
    return {
        entry.name: entry.read_text(encoding="utf-8").replace(_PROGRAM, program)
        for entry in sorted(found, key=lambda entry: entry.name)
    }


def _this_program() -> str:
    """How this program is started, as ExecStart= takes it (systemd.service(5), systemd.unit(5))."""
    called = Path(sys.argv[0])
    path = str(called.absolute()) if called.name == "colo" and called.is_file() else shutil.which("colo")
    words = [path] if path is not None else [sys.executable, "-m", "colo"]
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    return '"' + word.replace('"', '\\"') + '"' if set(word) & set(" '\"\\") else word
