"""`colo proxy`: one half of a pair on two hosts, beside the primary."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pystack import Counters, UsageError

if TYPE_CHECKING:
    from colo.remote.guest import OwnGuest

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(name="proxy")
@click.option("--client", required=True, metavar="LINK", help="The clients' network: tap:NAME, or unix:PATH[,server].")
@click.option("--guest", type=_FILE, help="Run a machine of our own, as this file of colo launch says.")
@click.option("--primary", metavar="ADDR", help="Of yours: where its -netdev stream connects to.")
@click.option("--qmp", metavar="ADDR", help="Of yours: its monitor, which must be free for this.")
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
    guest: Path | None,
    primary: str | None,
    qmp: str | None,
    secondary: str,
    heartbeat: int,
    detect: int,
    witness: str,
    stats: bool,
) -> int:
    """Protect a machine by another one on another host, where `colo secondary` runs.

    With --guest it starts the machine itself, and checkpoints are taken by stop-copy; colo secondary gets the same
    file. Otherwise the machine is yours, and they are taken by QEMU's own COLO: start this before the machine, as it
    listens at --primary for the machine's card.

    Clients are served at once, by the primary alone; when the agent at --secondary has a machine that waits, that
    becomes a copy and is kept one. When it is lost, the primary goes on alone, and the next one may join.

    When only the link between the hosts is lost, both sides go on alone, unless --witness says which one may: a command
    for the shell, with "primary" or "secondary" as $1, that succeeds on one of the two.

    An address is unix:PATH or tcp:HOST:PORT. Runs until SIGINT or SIGTERM.
    """
    if detect < 2 * heartbeat:
        raise UsageError(f"--detect is {detect} ms: it must be at least twice --heartbeat, which is {heartbeat} ms.")
    from colo.cli.remote import addresses_of, run  # noqa: PLC0415 - asyncio, for what makes sense
    from colo.cli.serving import say  # noqa: PLC0415
    from colo.remote.guest import own_guest  # noqa: PLC0415
    from colo.remote.links import check_client  # noqa: PLC0415
    from colo.remote.primary import PrimarySide, ProxySide, YourPrimary  # noqa: PLC0415

    where = addresses_of(guest, ("primary", "qmp"), primary=primary, qmp=qmp, secondary=secondary)
    check_client(client)
    counters = Counters()
    with contextlib.ExitStack() as stack:
        if guest is None:
            machine: YourPrimary | OwnGuest = YourPrimary(machine=where["primary"], qmp=where["qmp"])
        else:
            machine = stack.enter_context(own_guest(guest, client, "primary"))
        config = PrimarySide(
            client=client, primary=machine, heartbeat_ms=heartbeat, detect_ms=detect, witness=witness,
            secondary=where["secondary"],
        )  # fmt: skip
        return run(lambda: ProxySide(config, say, counters), counters if stats else None)
