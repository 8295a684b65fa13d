"""`colo launch`: a protected machine, set up by one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pystack import Publish, UsageError


@click.command(name="launch")
@click.option("--kernel", type=click.Path(dir_okay=False, path_type=Path), help="A kernel to boot.")
@click.option("--initrd", type=click.Path(dir_okay=False, path_type=Path), help="Its initramfs.")
@click.option("--append", default="", help="Its command line.")
@click.option("--disk", type=click.Path(dir_okay=False, path_type=Path), help="A disk image, which stays as it is.")
@click.option("--memory", type=click.IntRange(16, 1 << 20), default=128, show_default=True, help="MiB of the guest.")
@click.option("--nic", default="virtio-net-pci", show_default=True, help="Its card: virtio-net-pci, e1000, rtl8139.")
@click.option("--mac", default="52:54:00:12:34:56", show_default=True, help="Its card's address.")
@click.option("--publish", multiple=True, metavar="[ADDR:]HOST:GUEST[/udp]", help="A port that leads to the guest.")
@click.option("--tap", default="", metavar="NAME", help="Connect the guest to this TAP device instead.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
@click.option("--qemu", default="qemu-system-x86_64", show_default=True, help="The program.")
@click.option("--name", default="pair", show_default=True, help="By which colo ctl finds it.")
@click.option("--ready", default="", metavar="TEXT", help="What your guest prints on its serial line once it serves.")
@click.option("--boot-timeout", "boot", type=float, default=60.0, show_default=True, help="Seconds it may take to.")
@click.option("--print", "only_print", is_flag=True, help="Only print what would be run.")
def command(*, only_print: bool, **options: Any) -> int:
    """Run a machine twice, in lock-step, and let clients see one: it survives the loss of either.

    Without --kernel or --disk a small guest is built from what the system has: a web server on port 80 and an echo on
    port 7, at 10.0.2.15. Without --tap clients come through ports of this host (--publish), which needs no privileges.

    Runs until SIGINT or SIGTERM; colo ctl speaks to it meanwhile.
    """
    from colo.launch.plan import Plan  # noqa: PLC0415 - for a command line that makes sense
    from colo.launch.setup import guest_of, print_plan, run  # noqa: PLC0415

    publish = tuple(Publish.parse(text) for text in options.pop("publish"))
    chosen = {name: options.pop(name) for name in ("tap", "name", "ready", "boot")}
    if options["disk"] is not None and options["kernel"] is not None:
        raise UsageError("--disk and --kernel both say what to boot: give one of them.")
    plan = Plan(guest=guest_of(**options), publish=publish, **chosen)
    if only_print:
        click.echo(print_plan(plan))
        return 0
    return run(plan)
