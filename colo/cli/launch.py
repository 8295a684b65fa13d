"""`colo launch`: a protected machine, set up by one command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from pystack import Publish, UsageError

ENGINES = ("auto", "x-colo", "stop-copy")
PRINTED = ("shell", "libvirt", "libvirt-primary", "libvirt-secondary")

_FILE = click.Path(dir_okay=False, path_type=Path)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _seconds(name: str, parameter: str, default: float, text: str) -> Callable[[FunctionT], FunctionT]:
    limits = click.FloatRange(0.01, 86_400)
    return click.option(name, parameter, type=limits, default=default, show_default=True, metavar="SECONDS", help=text)


@click.command(name="launch")
@click.option("--config", type=_FILE, help="What is to be run, in TOML; a flag wins over it.")
@click.option("--kernel", type=_FILE, help="A kernel to boot.")
@click.option("--initrd", type=_FILE, help="Its initramfs.")
@click.option("--append", default="", help="Its command line.")
@click.option("--disk", type=_FILE, help="A disk image, which stays as it is, to boot from unless there is a kernel.")
@click.option("--overlay", type=_FILE, help="What the machine writes to its disk: a qcow2 file, made if need be.")
@click.option("--memory", type=click.IntRange(16, 1 << 20), default=128, show_default=True, help="MiB of the guest.")
@click.option("--cpus", type=click.IntRange(1, 64), default=1, show_default=True, help="Its processors.")
@click.option("--nic", default="virtio-net-pci", show_default=True, help="Its card: virtio-net-pci, e1000, rtl8139.")
@click.option("--mac", default="52:54:00:12:34:56", show_default=True, help="Its card's address.")
@click.option("--publish", multiple=True, metavar="[ADDR:]HOST:GUEST[/udp]", help="A port that leads to the guest.")
@click.option("--tap", default="", metavar="NAME", help="Connect the guest to this TAP device instead.")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
@click.option("--qemu", default="qemu-system-x86_64", show_default=True, help="The program.")
@click.option("--qemu-arg", "extra", multiple=True, metavar="ARG", help="One more argument for it.")
@click.option("--qemu-env", "environment", multiple=True, metavar="NAME=VALUE", help="A variable of its environment.")
@click.option(
    "--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="How to take checkpoints."
)
@click.option(
    "--placing/--no-placing",
    default=True,
    show_default=True,
    help="Give each machine half of the processors, and let neither interrupt the proxy.",
)
@click.option("--name", default="pair", show_default=True, help="By which colo ctl finds it.")
@click.option("--ready", default="", metavar="TEXT", help="What your guest prints on its serial line once it serves.")
@_seconds("--boot-timeout", "boot", 60.0, "How long that may take.")
@_seconds("--heartbeat", "heartbeat", 0.25, "How often a machine is asked whether it lives.")
@_seconds("--patience", "patience", 5.0, "How long it may not answer before it is ended.")
@click.option(
    "--print",
    "printed",
    is_flag=False,
    flag_value="shell",
    type=click.Choice(PRINTED),
    help="Only print what would be run, as shell if it is not said how.",
)
@click.pass_context
def command(context: click.Context, /, *, config: Path | None, printed: str | None, **options: Any) -> int:
    """Run a machine twice, in lock-step, and let clients see one: it survives the loss of either.

    Without --kernel or --disk a small guest is built from what the system has: a web server on port 80 and an echo on
    port 7, at 10.0.2.15. Without --tap clients come through ports of this host (--publish), which needs no privileges.

    Runs until SIGINT or SIGTERM; colo ctl speaks to it meanwhile.
    """
    from colo.launch.setup import plan_of, run  # noqa: PLC0415 - for a command line that makes sense

    options["publish"] = tuple(Publish.parse(text) for text in options["publish"])
    options["environment"] = dict(_variable(text) for text in options["environment"])
    if config is not None:
        from colo.launch.config import load  # noqa: PLC0415 - as above

        flags = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        options |= load(config, flags).options
    plan = plan_of(options)
    if printed is None:
        return run(plan)
    if printed == "shell":
        from colo.launch.printing import print_plan  # noqa: PLC0415 - as above

        click.echo(print_plan(plan))
    else:
        from colo.launch.libvirt import print_domains  # noqa: PLC0415 - as above

        which = {"libvirt-primary": "vm1", "libvirt-secondary": "vm2"}.get(printed, "")
        click.echo(print_domains(plan, which=which))
    return 0


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--qemu-env {text!r} is not of the form NAME=VALUE: write for example G_SLICE=always-malloc.")
    return name, value
