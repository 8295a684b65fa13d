"""`colo secondary`: one half of a pair on two hosts, beside the secondary."""

from __future__ import annotations

import click

from colo.address import parse_all
from pystack import Counters


@click.command(name="secondary")
@click.option("--listen", required=True, metavar="ADDR", help="Where to listen for colo proxy.")
@click.option("--machine", required=True, metavar="ADDR", help="Where the machine's -netdev stream connects to.")
@click.option("--qmp", required=True, metavar="ADDR", help="Its monitor, which must be free for this.")
@click.option("--incoming", required=True, metavar="ADDR", help="The address of its -incoming.")
@click.option(
    "--client", required=True, metavar="LINK", help="The clients' network, for later: tap:NAME, or unix:PATH[,server]."
)
@click.option("--witness", default="", metavar="COMMAND", help="Must exit 0 before the secondary goes on alone.")
@click.option("--stats", is_flag=True, help="Print at the end what was counted.")
def command(*, listen: str, machine: str, qmp: str, incoming: str, client: str, witness: str, stats: bool) -> int:
    """Keep a machine ready to carry on the connections of another one, where `colo proxy` runs.

    Start this before the machine: it listens at --machine for the machine's card. When the other host is lost, the
    machine carries on, its numbers translated as before, and its addresses are announced on --client.

    An address is unix:PATH or tcp:HOST:PORT. Whoever reaches --listen can be the primary: use a network of your own.

    Runs until SIGINT or SIGTERM, or until the machine is of no use any more: each serves for one pairing.
    """
    addresses = parse_all(listen=listen, machine=machine, qmp=qmp, incoming=incoming)
    from colo.cli.remote import check_connecting, run  # noqa: PLC0415 - asyncio is for a command line that makes sense
    from colo.cli.serving import say  # noqa: PLC0415
    from colo.remote.links import check_client  # noqa: PLC0415
    from colo.remote.secondary import AgentSide, SecondarySide  # noqa: PLC0415

    check_client(client)
    check_connecting(addresses, "qmp", "incoming")
    config = SecondarySide(client=client, witness=witness, **addresses)
    counters = Counters()
    return run(lambda: AgentSide(config, say, counters), counters if stats else None)
