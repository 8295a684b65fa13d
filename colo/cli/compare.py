"""`colo compare`: what QEMU's colo-compare object does, on the same sockets and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Literal, TypeVar

import click

from colo.address import option_text, parse_all
from pystack import Counters, UsageError

_U32: Final = (1 << 32) - 1

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _milliseconds(name: str, default: int, text: str) -> Callable[[FunctionT], FunctionT]:
    return click.option(name, type=click.IntRange(1, _U32), default=default, show_default=True, metavar="MS", help=text)


def _check(mode: str, notify: str | None, checkpoint_command: str | None, attach: dict[str, str | None]) -> None:
    """See that there is one who makes checkpoints where there must be, and never two.

    Raises:
        UsageError: otherwise.
    """
    if notify is not None and checkpoint_command is not None:
        raise UsageError("--notify and --checkpoint-command both make checkpoints: give one of them.")
    given = [option_text(name) for name, address in attach.items() if address is not None]
    missing = [option_text(name) for name in ("qmp", "migration_in", "migration_out") if attach[name] is None]
    if given and (notify is not None or checkpoint_command is not None):
        other = "--notify" if notify is not None else "--checkpoint-command"
        raise UsageError(f"{other} and {given[0]} both make checkpoints: give one of them.")
    if given and missing:
        raise UsageError(f"{given[0]} needs {' and '.join(missing)} as well.")
    if mode != "compare" and notify is None and checkpoint_command is None and not given:
        raise UsageError(
            f"--mode {mode} needs somebody who makes checkpoints: give --notify, --checkpoint-command or --qmp."
        )


@click.command(name="compare")
@click.option("--primary-in", required=True, metavar="ADDR", help="Where the primary's frames come from.")
@click.option("--secondary-in", required=True, metavar="ADDR", help="Where the secondary's frames come from.")
@click.option("--out", required=True, metavar="ADDR", help="Where released frames go.")
@click.option("--notify", metavar="ADDR", help="Who makes checkpoints, in QEMU's notify_dev protocol.")
@click.option("--checkpoint-command", metavar="COMMAND", help="Run COMMAND for a checkpoint: see below.")
@click.option("--qmp", metavar="ADDR", help="A QMP monitor of the primary under QEMU's COLO: see below.")
@click.option("--secondary-qmp", metavar="ADDR", help="One of the secondary, to be told when the primary is lost.")
@click.option("--migration-in", metavar="ADDR", help="Where the primary migrates to; with --qmp.")
@click.option("--migration-out", metavar="ADDR", help="Where the secondary waits for that; with --qmp.")
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
@click.option(
    "--mode",
    type=click.Choice(["compare", "auto", "periodic"]),
    default="compare",
    show_default=True,
    help="What lets frames out: see below.",
)
@_milliseconds("--period", 100, "From the end of a periodic checkpoint to the beginning of the next.")
@click.option(
    "--placing",
    is_flag=True,
    help="Give each machine half of the processors, and let neither interrupt this command.",
)
@click.option("--stats", is_flag=True, help="Print at the end what was counted.")
def command(
    *,
    primary_in: str,
    secondary_in: str,
    out: str,
    notify: str | None,
    checkpoint_command: str | None,
    qmp: str | None,
    secondary_qmp: str | None,
    migration_in: str | None,
    migration_out: str | None,
    vnet_hdr: bool,
    compare_timeout: int,
    expired_scan_cycle: int,
    max_queue_size: int,
    mode: str,
    period: int,
    placing: bool,
    stats: bool,
) -> int:
    """Let the primary's frames out once the secondary has sent the same, or a checkpoint was made.

    An address is unix:PATH or tcp:HOST:PORT, with ",server" behind it to listen and wait for the other side.

    COMMAND, a line of shell, prints "paused" once both machines stand still, waits for "drained" on its standard
    input, makes the secondary a copy of the primary, prints "completed", and lets both run. Its end means that they
    do; without both words, the checkpoint has failed. COLO_REASON says why it was wanted.

    With --qmp QEMU's own COLO makes them: its migration stream goes from --migration-in, where this listens, to
    --migration-out. Until the pair is under COLO all of the primary's frames pass, and again once the secondary is
    lost.

    Differences are printed unless --notify tells somebody. Without anybody who makes checkpoints, what differs stays
    held.

    With --mode periodic nothing is compared: a checkpoint is made every --period, and all that is held leaves with it.
    --mode auto does that for as long as comparing does not pay, since differences come too often or connections are
    too many. Both need somebody who makes checkpoints.

    --placing is for machines that are processes of this host, behind UNIX sockets, and answer requests rather than
    compute.

    Runs until SIGINT or SIGTERM.
    """
    machines = {
        "qmp": qmp, "secondary_qmp": secondary_qmp, "migration_in": migration_in, "migration_out": migration_out
    }  # fmt: skip
    _check(mode, notify, checkpoint_command, machines)
    from colo.aio import CompareServer  # noqa: PLC0415 - asyncio is for a command line that makes sense
    from colo.cli.serving import run, say  # noqa: PLC0415
    from colo.compare import CompareConfig  # noqa: PLC0415
    from colo.places import Places  # noqa: PLC0415
    from colo.policy import PolicyConfig  # noqa: PLC0415
    from colo.qemu.attach import AttachConfig  # noqa: PLC0415
    from colo.report import Teller  # noqa: PLC0415

    addresses = parse_all(primary_in=primary_in, secondary_in=secondary_in, out=out, notify=notify, **machines)
    theirs = {name: addresses.pop(name) for name in machines if name in addresses}
    attach = AttachConfig(**theirs) if theirs else None
    config = CompareConfig(
        framed=True,
        vnet_framing=vnet_hdr,
        vnet_hdr_len=12 if vnet_hdr else 0,
        compare_timeout=compare_timeout * 1000,
        scan_cycle=expired_scan_cycle * 1000,
        max_queue_size=max_queue_size,
    )
    forced: Literal["periodic"] | None = "periodic" if mode == "periodic" else None
    policy = None if mode == "compare" else PolicyConfig(forced=forced, periodic_interval=period * 1000)
    counters = Counters()
    teller = Teller(say, time.monotonic)
    places = Places(wanted=placing)
    return run(
        lambda: CompareServer(
            config, addresses, checkpoint_command, counters, teller.tell, policy, attach, say, places
        ),
        "comparing",
        counters if stats else None,
    )
