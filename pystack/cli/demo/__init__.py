"""`pystack demo`: a real client, a real server, and the stack between them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from pystack.cli.demo import namespace
from pystack.cli.demo.server import WebServer
from pystack.cli.options import Settings, check_writable
from pystack.errors import UsageError

_HEADING: Final = "A web server, a guest without a network, and between them a TCP/IP stack in Python"


@click.command(name="demo")
@click.option("--in-memory", is_flag=True, help="Use no namespace, but a second stack in this process as the guest.")
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Save a picture of the result.")
def command(*, in_memory: bool, svg: Path | None) -> int:
    """Download through the stack with a real client in a namespace, and check what arrived."""
    check_writable(svg)
    settings = Settings(allow_host_loopback=True, dns=False)
    with WebServer() as web:
        reason = "as you asked"
        if not in_memory:
            try:
                return namespace.run(settings, web.port, _HEADING, svg)
            except UsageError as error:
                reason = f"as there can be no namespace with a TAP here: {str(error).rstrip('.')}"
        from pystack.cli.demo import memory  # noqa: PLC0415 - not needed with a namespace

        return memory.run(settings, web.port, _HEADING, f"The guest: a second stack in this process, {reason}.", svg)
