"""`python -m tests.bench gateway|startup`: see docs/howto/benchmark.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console

from tests.bench import gateway as bench
from tests.bench import load, report, startup
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
    """Measure pystack beside its peers, in network namespaces made for the run."""


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


@main.command(name="startup")
@click.option("--times", type=click.IntRange(1, 100), default=10, show_default=True, help="How often.")
@click.option("--pystack", "program", help="The pystack to measure [default: this Python's].")
def startup_command(times: int, program: str | None) -> None:
    """Time from starting a command behind the gateway until its first packet reaches a server."""
    startup.measure(times, program, _console())


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"tests.bench: {error}")
