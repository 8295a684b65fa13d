"""What `colo proxy` and `colo secondary` have in common."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import click

from colo.address import Address, option_text, parse_all
from pystack import Counters, UsageError
from pystack.cli import signals
from pystack.cli.waiting import stopped
from pystack.drivers import hot


class _Side(Protocol):
    async def run(self, stopped: Callable[[], Coroutine[Any, Any, int]]) -> int: ...


def check_connecting(addresses: Mapping[str, Address], *names: str) -> None:
    """See that nobody is asked to listen where another program does.

    Raises:
        UsageError: somebody is.
    """
    for name in names:
        if addresses[name].server:
            raise UsageError(f"{option_text(name)}: another program listens at {addresses[name]}; leave ',server' out.")


def addresses_of(guest: Path | None, yours: Sequence[str], **texts: str | None) -> dict[str, Address]:
    """All addresses, with those of a person's machine, named by ``yours``, unless there is a ``guest`` of our own.

    Raises:
        UsageError: it is neither the one nor the other, or one of them is none.
    """
    for name in yours:
        if guest is not None and texts[name] is not None:
            raise UsageError(f"{option_text(name)} is of a machine of yours: leave it out with --guest.")
        if guest is None and texts[name] is None:
            raise UsageError(f"{option_text(name)} is missing: say where your machine is, or give --guest.")
    addresses = parse_all(**texts)
    check_connecting(addresses, *({"qmp", "incoming", "secondary"} & addresses.keys()))
    return addresses


def run(make: Callable[[], _Side], counters: Counters | None) -> int:
    """Make a side and run it until SIGINT or SIGTERM; then print ``counters``, if there are any.

    Raises:
        PystackError: what `make` or the side raises.
    """

    async def main() -> int:
        return await make().run(stopped)

    with signals.held():
        try:
            return hot.run(main())
        finally:
            for name, value in sorted(counters.snapshot().items()) if counters is not None else ():
                click.echo(f"{value:12,d}  {name}", err=True)
