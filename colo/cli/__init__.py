"""The command `colo`. Each subcommand lives in a module of its own name, which is loaded when it is called."""

from __future__ import annotations

from typing import Final

import click

from pystack import __version__
from pystack.cli.main_group import MainGroup

_COMMANDS: Final = (
    "demo",
    "launch",
    "ctl",
    "units",
    "proxy",
    "secondary",
    "selftest",
    "compare",
    "rewrite",
    "mirror",
    "replay",
)


@click.group(
    cls=MainGroup,
    package="colo.cli",
    program="colo",
    modules=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="colo")
def main() -> None:
    """Two replicas, one service: compare what they send, and let out only what both agree on."""
