"""`colo proxy`: one half of a pair on two hosts, beside the primary."""

from __future__ import annotations

import click

from colo.address import parse_all
from pystack import Counters, UsageError


@click.command(name="proxy")
@click.option("--client", required=True, metavar="LINK", help="The clients' network: tap:NAME, or unix:PATH[,server].")
@click.option("--primary", required=True, metavar="ADDR", help="Where the machine's -netdev stream connects to.")
@click.option("--qmp", required=True, metavar="ADDR", help="Its monitor, which must be free for this.")
@click.option("--secondary", required=True, metavar="ADDR", help="Where colo secondary listens.")
@click.option(
    "--heartbeat", type=click.IntRange(1, 59_999), default=250, show_default=True, metavar="MS",
    help="How often each side says that it is there.",
)  # fmt: skip
@click.option(
    "--detect", type=click.IntRange(2, 599_999), default=1000, show_default=True, metavar="MS",
    help="How long the other side may be silent before it is lost.",
)  # fmt: skip
@click.option("--witness", default="", metavar="COMMAND", help="Must exit 0 before the primary goes on alone.")
@click.option("--stats", is_flag=True, help="Print at the end what was counted.")
def command(
    *,
    client: str,
    primary: str,
    qmp: str,
    secondary: str,
    heartbeat: int,
    detect: int,
    witness: str,
    stats: bool,
) -> int:
    """Protect a machine by another one on another host, where `colo secondary` runs.

    Start this before the machine: it listens at --primary for the machine's card. Clients are served at once, by the
    primary alone; when the agent at --secondary has a machine that waits, that becomes a copy and is kept one. When it
    is lost, the primary goes on alone, and the next one may join.

    When only the link between the hosts is lost, both sides go on alone, unless --witness says which one may: a command
    for the shell, with "primary" or "secondary" as $1, that succeeds on one of the two.

    An address is unix:PATH or tcp:HOST:PORT. Runs until SIGINT or SIGTERM.
    """
    addresses = parse_all(primary=primary, qmp=qmp, secondary=secondary)
    if detect < 2 * heartbeat:
        raise UsageError(f"--detect is {detect} ms: it must be at least twice --heartbeat, which is {heartbeat} ms.")
    from colo.cli.remote import check_connecting, run  # noqa: PLC0415 - asyncio is for a command line that makes sense
    from colo.cli.serving import say  # noqa: PLC0415
    from colo.remote.links import check_client  # noqa: PLC0415
    from colo.remote.primary import PrimarySide, ProxySide  # noqa: PLC0415

    check_client(client)
    check_connecting(addresses, "qmp", "secondary")
    config = PrimarySide(client=client, heartbeat_ms=heartbeat, detect_ms=detect, witness=witness, **addresses)
    counters = Counters()
    return run(lambda: ProxySide(config, say, counters), counters if stats else None)
