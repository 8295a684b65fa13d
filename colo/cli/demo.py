"""`colo demo`: two replicas, one client, and the loss of either."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

_MEGABYTE: Final = 1_000_000


@click.command(name="demo")
@click.option(
    "--kernel", is_flag=True, help="Run the replicas as namespaces with the kernel's TCP and a web server (aiohttp)."
)
@click.option(
    "--connections",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    help="With --kernel: connections, all at once.",
)
@click.option(
    "--megabytes",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="With --kernel: megabytes over all of them.",
)
@click.option("--seed", type=int, help="Make it repeatable: initial numbers, and the moment of the failure.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the outcome to a file."
)
@click.option("--svg", type=click.Path(dir_okay=False, path_type=Path), help="Save a picture of the result.")
def command(
    *, kernel: bool, connections: int, megabytes: int, seed: int | None, json_file: Path | None, svg: Path | None
) -> int:
    """Let a client download from two replicas through the proxy, and kill one in the middle.

    Without --kernel everything happens in this process: equal output is released, an injected difference leads to a
    checkpoint, and the primary dies in the middle of a download that the secondary finishes, on the same connection.

    The exit code says whether every checksum was right.
    """
    from pystack.cli.options import check_writable  # noqa: PLC0415 - for a command line that makes sense

    check_writable(json_file)
    check_writable(svg)
    if kernel:
        from colo.demo.kernel import run_kernel  # noqa: PLC0415

        return run_kernel(connections, megabytes * _MEGABYTE // connections, seed, json_file, svg)
    from colo.demo.memory import run_memory  # noqa: PLC0415

    return run_memory(seed, json_file, svg)
