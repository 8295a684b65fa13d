"""`colo compare`: what QEMU's colo-compare object does, on the same sockets and bytes."""

from __future__ import annotations

from typing import Any, Final

import click

from pystack.cli import signals

_U32: Final = (1 << 32) - 1


def _milliseconds(name: str, default: int, text: str) -> Any:
    return click.option(name, type=click.IntRange(1, _U32), default=default, show_default=True, metavar="MS", help=text)


@click.command(name="compare")
@click.option("--primary-in", required=True, metavar="ADDR", help="Where the primary's frames come from.")
@click.option("--secondary-in", required=True, metavar="ADDR", help="Where the secondary's frames come from.")
@click.option("--out", required=True, metavar="ADDR", help="Where released frames go.")
@click.option("--notify", metavar="ADDR", help="Who makes checkpoints, in QEMU's notify_dev protocol.")
@click.option("--checkpoint-command", metavar="COMMAND", help="Run COMMAND for a checkpoint; exit code 0: it is made.")
@click.option("--vnet-hdr", is_flag=True, help="Frames have a virtio_net_hdr (QEMU's vnet_hdr_support=on).")
@_milliseconds("--compare-timeout", 3000, "How long a frame of the primary may wait before a checkpoint is asked for.")
@_milliseconds("--expired-scan-cycle", 1000, "How often that is looked after.")
@click.option(
    "--max-queue-size",
    type=click.IntRange(1, _U32),
    default=1024,
    show_default=True,
    metavar="N",
    help="Frames of one connection that may wait.",
)
@click.option("--stats", is_flag=True, help="Print at the end what was counted.")
def command(
    *,
    primary_in: str,
    secondary_in: str,
    out: str,
    notify: str | None,
    checkpoint_command: str | None,
    vnet_hdr: bool,
    compare_timeout: int,
    expired_scan_cycle: int,
    max_queue_size: int,
    stats: bool,
) -> int:
    """Let the primary's frames out once the secondary has sent the same, or a checkpoint was made.

    An address is unix:PATH or tcp:HOST:PORT, with ",server" behind it to listen and wait for the other side.

    Without --notify and --checkpoint-command differences are only printed, and what differs stays held.

    Runs until SIGINT or SIGTERM.
    """
    import asyncio  # noqa: PLC0415 - for a command line that makes sense

    from colo.aio import CompareServer, serve  # noqa: PLC0415
    from colo.channel import Address  # noqa: PLC0415
    from colo.compare import CompareConfig  # noqa: PLC0415
    from colo.report import Teller  # noqa: PLC0415
    from pystack import Counters, UsageError  # noqa: PLC0415
    from pystack.cli.waiting import stopped  # noqa: PLC0415

    if notify is not None and checkpoint_command is not None:
        raise UsageError("--notify and --checkpoint-command both make checkpoints: give one of them.")
    addresses = (Address.parse(primary_in), Address.parse(secondary_in), Address.parse(out))
    notify_address = None if notify is None else Address.parse(notify)
    config = CompareConfig(
        framed=True,
        vnet_framing=vnet_hdr,
        vnet_hdr_len=12 if vnet_hdr else 0,
        compare_timeout=compare_timeout * 1000,
        scan_cycle=expired_scan_cycle * 1000,
        max_queue_size=max_queue_size,
    )
    counters = Counters()

    async def run() -> int:
        teller = Teller(lambda line: click.echo(f"colo: {line}", err=True), asyncio.get_running_loop().time)
        server = CompareServer(config, *addresses, notify_address, checkpoint_command, counters, teller.tell)
        where = ", ".join(str(address) for address in addresses if address.server)
        click.echo(f"colo: comparing{f', listening at {where}' if where else ''}; Ctrl-C ends it.", err=True)
        return await serve(server, stopped)

    with signals.held():
        try:
            return asyncio.run(run())
        finally:
            if stats:
                for name, value in sorted(counters.snapshot().items()):
                    click.echo(f"{value:12,d}  {name}", err=True)
