"""What the commands that serve sockets have in common."""

from __future__ import annotations

from collections.abc import Callable

import click

from colo.aio import Server, serve
from pystack import Counters
from pystack.cli import signals
from pystack.cli.waiting import stopped
from pystack.drivers import hot


def say(line: str) -> None:
    """Tell the person at the terminal."""
    click.echo(f"colo: {line}", err=True)


def run(make: Callable[[], Server], doing: str, counters: Counters | None) -> int:
    """Make a server and run it until SIGINT or SIGTERM; then print ``counters``, if there are any.

    Args:
        doing: one word that says what it does.

    Raises:
        UsageError: an address cannot be had.
        LinkError: the system refused.
    """

    async def main() -> int:
        server = make()
        where = ", ".join(str(channel.where) for channel in server.channels.values() if channel.address.server)
        say(f"{doing}{f', listening at {where}' if where else ''}; Ctrl-C ends it.")
        return await serve(server, stopped)

    with signals.held():
        try:
            return hot.run(main())
        finally:
            for name, value in sorted(counters.snapshot().items()) if counters is not None else ():
                click.echo(f"{value:12,d}  {name}", err=True)
