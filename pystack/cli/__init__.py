"""The command `pystack`. Each subcommand lives in a module of its own name, which is loaded when it is called."""

from __future__ import annotations

from typing import Final

import click

from pystack import __version__
from pystack.cli.main_group import MainGroup

_COMMANDS: Final = ("run", "attach", "vm", "trace", "demo")


@click.group(
    cls=MainGroup,
    package="pystack.cli",
    program="pystack",
    modules=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="pystack")
def main() -> None:
    """A userspace TCP/IP stack: programs and virtual machines behind a gateway of plain host sockets."""
