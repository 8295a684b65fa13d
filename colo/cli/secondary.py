"""`colo secondary`: one half of a pair on two hosts, beside the secondary."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from pystack import Counters

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(name="secondary")
@click.option("--listen", required=True, metavar="ADDR", help="Where to listen for colo proxy.")
@click.option("--guest", type=_FILE, help="Run machines of our own, as this file of colo launch says.")
@click.option("--machine", metavar="ADDR", help="Of yours: where its -netdev stream connects to.")
@click.option("--qmp", metavar="ADDR", help="Of yours: its monitor, which must be free for this.")
@click.option("--incoming", metavar="ADDR", help="Of yours: the address of its -incoming.")
@click.option(
    "--client", required=True, metavar="LINK", help="The clients' network, for later: tap:NAME, or unix:PATH[,server]."
)
@click.option("--witness", default="", metavar="COMMAND", help="Must exit 0 before the secondary goes on alone.")
@click.option("--stats", is_flag=True, help="Print at the end what was counted.")
def command(
    *,
    listen: str,
    guest: Path | None,
    machine: str | None,
    qmp: str | None,
    incoming: str | None,
    client: str,
    witness: str,
    stats: bool,
) -> int:
    """Keep a machine ready to carry on the connections of another one, where `colo proxy` runs.

    With --guest it starts machines itself, and checkpoints are taken by stop-copy; colo proxy gets the same file.
    Otherwise the machine is yours, and they are taken by QEMU's own COLO: start this before the machine, as it listens
    at --machine for the machine's card.

    When the other host is lost, the machine carries on, its numbers translated as before, and its addresses are
    announced on --client.

    An address is unix:PATH or tcp:HOST:PORT. Whoever reaches --listen can be the primary: use a network of your own.

    Runs until SIGINT or SIGTERM, or until the machine is of no use any more: each serves for one pairing.
    """
    from colo.cli.remote import addresses_of, run  # noqa: PLC0415 - asyncio is for a command line that makes sense
    from colo.cli.serving import say  # noqa: PLC0415
    from colo.remote.guest import own_guest  # noqa: PLC0415
    from colo.remote.links import check_client  # noqa: PLC0415
    from colo.remote.secondary import AgentSide, SecondarySide, YourMachine  # noqa: PLC0415

    names = ("machine", "qmp", "incoming")
    where = addresses_of(guest, names, machine=machine, qmp=qmp, incoming=incoming, listen=listen)
    listening = where.pop("listen")
    check_client(client)
    counters = Counters()
    with contextlib.ExitStack() as stack:
        machines = YourMachine(**where) if guest is None else stack.enter_context(own_guest(guest, client, "secondary"))
        config = SecondarySide(client=client, witness=witness, machine=machines, listen=listening)
        return run(lambda: AgentSide(config, say, counters), counters if stats else None)
