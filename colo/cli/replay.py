"""`colo replay`: two captures of the same service, compared offline."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import click

from pystack import LinkError, UsageError


@click.command(name="replay")
@click.argument("primary")
@click.argument("secondary")
@click.option(
    "--guest",
    "guests",
    metavar="ADDR",
    multiple=True,
    help="The guest's address, where it cannot be told from the captures; may be repeated.",
)
@click.option(
    "--aligned",
    is_flag=True,
    help="The secondary was captured behind a rewriter: its sequence numbers are the primary's already.",
)
@click.option(
    "--vnet-hdr-len",
    type=click.Choice(["0", "10", "12", "20"]),
    default="0",
    show_default=True,
    help="Bytes of virtio_net_hdr in front of every frame, as QEMU 7.2's filter-dump writes them.",
)
@click.option(
    "--pcapng",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write both captures to FILE, with comments on the frames concerned, for Wireshark.",
)
def command(
    *, primary: str, secondary: str, guests: tuple[str, ...], aligned: bool, vnet_hdr_len: str, pcapng: Path | None
) -> int:
    """Compare what a guest sent in the captures PRIMARY and SECONDARY (pcap or pcapng), and say where they differ.

    Each flow is compared up to its first difference. Initial sequence numbers, timestamps and segmentation are no
    differences.

    The exit status is 0 when both sent the same, 1 when not, and 2 when the captures cannot be read.
    """
    addresses = tuple(map(_address, guests))
    from colo.captures import compare, write_pcapng  # noqa: PLC0415 - for a command line that makes sense
    from colo.report import finding_lines  # noqa: PLC0415

    both = compare((primary, secondary), addresses, aligned=aligned, vnet_hdr_len=int(vnet_hdr_len))
    for finding in both.findings:
        click.echo("\n".join([*finding_lines(finding, both.where(finding)), ""]))
    click.echo(both.summary())
    if pcapng is not None:
        try:
            write_pcapng(both, pcapng)
        except LinkError as error:
            raise UsageError(str(error)) from None
    return 1 if both.findings else 0


def _address(text: str) -> bytes:
    try:
        return ip_address(text).packed
    except ValueError:
        raise UsageError(f"--guest {text!r} is not an IP address: write for example 192.0.2.1.") from None
