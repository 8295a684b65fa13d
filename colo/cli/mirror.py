"""`colo mirror`: what QEMU's filter-mirror and filter-redirector do, between sockets."""

from __future__ import annotations

import click

from colo.address import parse_all
from pystack import Counters


@click.command(name="mirror")
@click.option("--in", "source", required=True, metavar="ADDR", help="Where frames come from.")
@click.option("--out", required=True, metavar="ADDR", help="Where they go.")
@click.option("--copy", "copies", multiple=True, metavar="ADDR", help="Where a copy of each goes; may be repeated.")
@click.option("--vnet-hdr", is_flag=True, help="Frames have a virtio_net_hdr (QEMU's vnet_hdr_support=on).")
@click.option("--stats", is_flag=True, help="Print at the end what was counted.")
def command(*, source: str, out: str, copies: tuple[str, ...], vnet_hdr: bool, stats: bool) -> int:
    """Pass frames on as they are, and a copy of each to everybody who wants one.

    An address is unix:PATH or tcp:HOST:PORT, with ",server" behind it to listen and wait for the other side.

    Who is not there, or does not read, misses frames, which are counted: that never keeps the others waiting.

    Runs until SIGINT or SIGTERM.
    """
    named = {f"copy{number}": text for number, text in enumerate(copies, 1)}
    addresses = parse_all(**{"in": source}, out=out, **named)
    from colo.cli.serving import run  # noqa: PLC0415 - asyncio is for a command line that makes sense
    from colo.filters import MirrorServer  # noqa: PLC0415

    counters = Counters()
    return run(lambda: MirrorServer(addresses, counters, vnet=vnet_hdr), "mirroring", counters if stats else None)
