"""`python -m tests.bench gateway|compare|startup|pair|failover`: see docs/howto/benchmark.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from colo.qemu.machine import NICS
from tests.bench import (
    compare,
    compare_report,
    compare_rig,
    load,
    pair,
    pair_failover,
    pair_report,
    pair_sides,
    report,
    startup,
)
from tests.bench import gateway as bench
from tests.bench.pair_load import PHASES
from tests.bench.peers import Subject, subjects
from tests.interop.lab import LabError

_WIDTH = 160  # columns of the table when the output is a file


def _console(*, stderr: bool = False) -> Console:
    terminal = Console(stderr=stderr)
    return terminal if terminal.is_terminal else Console(stderr=stderr, width=_WIDTH)


def _chosen(names: str | None, program: str | None) -> list[Subject]:
    everything = subjects(program)
    if names is None:
        wanted = everything
    else:
        by_name = {subject.name: subject for subject in everything}
        unknown = [name for name in names.split(",") if name not in by_name]
        if unknown:
            raise click.UsageError(f"No such peer as {unknown[0]!r}: choose from {', '.join(by_name)}.")
        wanted = [by_name[name] for name in names.split(",")]
    lacking = [subject.missing() for subject in wanted if subject.missing()] + load.missing_tools()
    if lacking:
        raise click.UsageError(f"Install first: {'; '.join(lacking)}.")
    return wanted


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure pystack and colo beside their peers."""


@main.command()
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure here.")
@click.option("--quick", is_flag=True, help="One round of 2 s each: a look, not a measurement.")
@click.option("--peers", metavar="A,B,...", help="Measure these only.")
@click.option("--mtu", "mtus", type=int, multiple=True, help="Measure this MTU only (repeatable).")
@click.option("--streams", type=int, multiple=True, help="Measure this number of streams only (repeatable).")
@click.option("--no-http", is_flag=True, help="Leave the HTTP requests out.")
@click.option("--rounds", type=click.IntRange(1, 100), help="Rounds over all subjects [default: 3].")
@click.option("--seconds", type=click.IntRange(1, 600), help="Seconds of each run [default: 5].")
@click.option("--pystack", "program", help="The pystack to measure [default: this Python's].")
def gateway(
    *,
    json_file: Path | None,
    quick: bool,
    peers: str | None,
    mtus: tuple[int, ...],
    streams: tuple[int, ...],
    no_http: bool,
    rounds: int | None,
    seconds: int | None,
    program: str | None,
) -> None:
    """Throughput both ways, CPU time and HTTP requests: pystack, slirp4netns, pasta, veth."""
    progress = _console(stderr=True)
    rows = bench.cases(mtus or bench.MTUS, streams or (1, 10), web=not no_http)
    results = bench.measure(
        _chosen(peers, program),
        rows,
        rounds=rounds or (1 if quick else 3),
        seconds=seconds or (2 if quick else 5),
        say=lambda text: progress.print(text, style="dim", highlight=False),
    )
    report.print_all(results, _console())
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(results), indent=1) + "\n", encoding="utf-8")


def _numbers(low: int, high: int) -> Callable[[click.Context, click.Parameter, str], list[int]]:
    def parse(_context: click.Context, _parameter: click.Parameter, text: str) -> list[int]:
        wanted = text.split(",")
        if not all(word.isascii() and word.isdigit() and low <= int(word) <= high for word in wanted):
            raise click.BadParameter(f"{text!r} is not a list of numbers from {low} to {high}, as in {low},{high}.")
        return sorted({int(word) for word in wanted})

    return parse


def _chosen_comparators(names: str, program: str | None) -> list[compare.Comparator]:
    by_name = {subject.name: subject for subject in compare.comparators(program)}
    wanted = names.split(",")
    if unknown := [name for name in wanted if name not in by_name]:
        raise click.UsageError(f"No such peer as {unknown[0]!r}: choose from {', '.join(by_name)}.")
    subjects = [subject for name, subject in by_name.items() if name in wanted]
    lacking = [subject.missing() for subject in subjects if subject.missing()] + compare.missing_tools()
    if lacking:
        raise click.UsageError(f"Install first: {'; '.join(lacking)}.")
    return subjects


@main.command(name="compare")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure here.")
@click.option("--quick", is_flag=True, help="One round of 2 s each: a look, not a measurement.")
@click.option("--peers", metavar="A,B", default="qemu,colo", show_default=True, help="Measure these only.")
@click.option(
    "--connections",
    callback=_numbers(1, compare.MOST_CONNECTIONS),
    metavar="N,...",
    show_default=True,
    default=",".join(map(str, compare.CONNECTIONS)),
    help="Numbers of connections.",
)
@click.option(
    "--payload",
    "payloads",
    callback=_numbers(1, 65_000),
    metavar="N,...",
    show_default=True,
    default=",".join(map(str, compare.PAYLOADS)),
    help="Bytes of TCP payload in each packet.",
)
@click.option("--latency/--no-latency", default=None, help="Measure only the latency of one packet, or leave it out.")
@click.option("--timestamps", is_flag=True, help="Segments have TCP timestamps, each machine's from its own clock.")
@click.option(
    "--request-every",
    type=click.IntRange(0, 1_000_000),
    default=0,
    metavar="N",
    help="The acknowledgement number grows at every Nth packet of a connection [default: never].",
)
@click.option("--rounds", type=click.IntRange(1, 100), help="Rounds over all rows [default: 3].")
@click.option("--seconds", type=click.FloatRange(0.1, 600), help="Seconds of each run [default: 5].")
@click.option("--colo", "program", metavar="PROGRAM", help="The colo to measure [default: this Python's].")
def compare_command(
    *,
    json_file: Path | None,
    quick: bool,
    peers: str,
    connections: list[int],
    payloads: list[int],
    latency: bool | None,
    timestamps: bool,
    request_every: int,
    rounds: int | None,
    seconds: float | None,
    program: str | None,
) -> None:
    """CPU time per packet and latency: QEMU's colo-compare and colo compare, fed the same streams."""
    progress = _console(stderr=True)
    results = compare.measure(
        _chosen_comparators(peers, program),
        compare.rows(payloads, connections, load=latency is not True, latency=latency is not False),
        compare_rig.Load(seconds or (2 if quick else 5), timestamps, request_every),
        rounds=rounds or (1 if quick else 3),
        say=lambda text: progress.print(text, style="dim", highlight=False),
    )
    compare_report.print_all(results, _console())
    if json_file is not None:
        json_file.write_text(json.dumps(compare_report.as_json(results), indent=1) + "\n", encoding="utf-8")
    if results.failures:
        sys.exit(1)


@main.command(name="startup")
@click.option("--times", type=click.IntRange(1, 100), default=10, show_default=True, help="How often.")
@click.option("--pystack", "program", help="The pystack to measure [default: this Python's].")
def startup_command(times: int, program: str | None) -> None:
    """Time from starting a command behind the gateway until its first packet reaches a server."""
    startup.measure(times, program, _console())


_LARGE_NIC = "virtio-net-pci"


def _need_machines() -> None:
    if lacking := pair_sides.missing():
        raise click.UsageError(f"Install first: {'; '.join(lacking)}.")


@main.command(name="pair")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure here.")
@click.option("--side", "sides", type=click.Choice(pair_sides.SIDES), multiple=True, help="Measure this only.")
@click.option("--phase", "phases", type=click.Choice(list(PHASES)), multiple=True, help="Measure this only.")
@click.option("--seconds", type=click.FloatRange(0.5, 600), default=8, show_default=True, help="Seconds of each phase.")
@click.option("--rounds", type=click.IntRange(1, 100), default=8, show_default=True, help="In how many rounds.")
@click.option("--nic", type=click.Choice(NICS), help=f"The machines' card [default: {pair_sides.NIC}].")
@click.option("--vnet", is_flag=True, help="Large segments: virtio-net, qemu and attached.")
def pair_command(
    *,
    json_file: Path | None,
    sides: tuple[str, ...],
    phases: tuple[str, ...],
    seconds: float,
    rounds: int,
    nic: str | None,
    vnet: bool,
) -> None:
    r"""Real machines under real traffic: QEMU's own COLO, and ours: colo launch by each of its engines.

    \b
    qemu      colo-compare and its filters
    attached  the same with colo compare in colo-compare's place
    """
    _need_machines()
    if vnet and nic not in (None, _LARGE_NIC):
        raise click.UsageError(f"{nic} sends no large segments: leave --nic out, or --vnet.")
    large = (pair_sides.QEMU, pair_sides.ATTACHED)
    if vnet and not set(sides) <= set(large):
        raise click.UsageError("colo launch's machines send no large segments: leave their sides out, or --vnet.")
    progress = _console(stderr=True)
    results = pair.measure(
        sides or (large if vnet else (pair_sides.QEMU, *pair_sides.ENGINES)),
        phases or list(PHASES),
        seconds,
        rounds,
        say=lambda text: progress.print(text, style="dim", highlight=False),
        nic=nic or (_LARGE_NIC if vnet else pair_sides.NIC),
        vnet=vnet,
    )
    pair_report.print_all(results, _console())
    if json_file is not None:
        json_file.write_text(json.dumps(pair_report.as_json(results), indent=1) + "\n", encoding="utf-8")
    if results.failures or any(run.failed for run in results.runs.values()):
        sys.exit(1)


@main.command(name="failover")
@click.option("--times", type=click.IntRange(1, 1000), default=20, show_default=True, help="How often.")
@click.option("--victim", type=click.Choice(pair_failover.VICTIMS), default="primary", show_default=True)
@click.option("--engine", type=click.Choice(pair_sides.ENGINES), default="x-colo", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every figure here.")
def failover_command(*, times: int, victim: str, engine: str, json_file: Path | None) -> None:
    """Kill a machine of a fresh pair under traffic: how long clients wait, and whether they lose anything."""
    _need_machines()
    progress = _console(stderr=True)
    outages = pair_failover.measure(engine, victim, times, lambda text: progress.print(text, style="dim"))
    pair_failover.print_all(outages, _console())
    if json_file is not None:
        json_file.write_text(json.dumps(vars(outages), indent=1) + "\n", encoding="utf-8")
    if outages.failures:
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"tests.bench: {error}")
