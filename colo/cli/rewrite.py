"""`colo rewrite`: what QEMU's filter-rewriter does, between sockets."""

from __future__ import annotations

import click

from colo.address import parse_all
from pystack import Counters


@click.command(name="rewrite")
@click.option("--in-client", required=True, metavar="ADDR", help="Where the client's frames come from.")
@click.option("--out-guest", required=True, metavar="ADDR", help="Where they go, in the secondary's own numbers.")
@click.option("--in-guest", required=True, metavar="ADDR", help="Where the secondary's frames come from.")
@click.option(
    "--out-client", required=True, metavar="ADDR", help="Where they go, in the numbers that the client knows."
)
@click.option("--in-primary", metavar="ADDR", help="Where a copy of the primary's frames comes from: to learn from.")
@click.option("--control", metavar="ADDR", help="Who says when there was a checkpoint or a failover: see below.")
@click.option("--vnet-hdr", is_flag=True, help="Frames have a virtio_net_hdr (QEMU's vnet_hdr_support=on).")
@click.option("--stats", is_flag=True, help="Print at the end what was counted.")
def command(
    *,
    in_client: str,
    out_guest: str,
    in_guest: str,
    out_client: str,
    in_primary: str | None,
    control: str | None,
    vnet_hdr: bool,
    stats: bool,
) -> int:
    """Translate between a secondary, which chose its own sequence numbers, and clients that know the primary's.

    An address is unix:PATH or tcp:HOST:PORT, with ",server" behind it to listen and wait for the other side.

    Without --in-primary the primary's numbers are learnt from what clients acknowledge, as QEMU does it; with it, from
    the primary's own SYNs and SYN-ACKs, so that connections need not be opened in any particular order.

    --control takes lines: "checkpoint" when the secondary has become a copy of the primary, "failover" when it carries
    on alone. Each is answered by "ok" once it is done.

    Runs until SIGINT or SIGTERM.
    """
    addresses = parse_all(
        in_client=in_client,
        out_guest=out_guest,
        in_guest=in_guest,
        out_client=out_client,
        in_primary=in_primary,
        control=control,
    )
    from colo.cli.serving import run  # noqa: PLC0415 - asyncio is for a command line that makes sense
    from colo.filters import RewriteServer  # noqa: PLC0415

    counters = Counters()
    return run(lambda: RewriteServer(addresses, counters, vnet=vnet_hdr), "rewriting", counters if stats else None)
