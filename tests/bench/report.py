"""One table of everything, the thresholds, and the same as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench.load import Case, Measured

OURS, SLIRP, LIMIT = "pystack", "slirp4netns", "veth"


@dataclass(frozen=True)
class Threshold:
    """`ours` must be at least `ratio` times `other` in `case`."""

    case: Case
    other: str
    ratio: float


THRESHOLDS = (
    Threshold(Case("tcp", 1500, True, 1), SLIRP, 8.0),
    Threshold(Case("tcp", 1500, False, 1), SLIRP, 8.0),
    Threshold(Case("tcp", 1500, True, 1), LIMIT, 0.6),
    Threshold(Case("tcp", 1500, False, 1), LIMIT, 0.6),
    Threshold(Case("keep-alive", 1500), SLIRP, 0.8),
    Threshold(Case("new connection", 1500), SLIRP, 0.7),
)
GENERATOR_MARGIN = 2.0  # the veth pair must serve this many times slirp4netns' requests, or wrk is what is measured


@dataclass
class Results:
    """Every run of every case of every subject, and why runs failed."""

    subjects: list[str]
    cases: list[Case]
    about: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[str, Case], list[Measured]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, subject: str, case: Case, measured: Measured) -> None:
        self.runs.setdefault((subject, case), []).append(measured)

    def value(self, subject: str, case: Case) -> float | None:
        """The median over the rounds, None when nothing was measured."""
        runs = self.runs.get((subject, case))
        return median(run.value for run in runs) if runs else None

    def ratio(self, case: Case, other: str, ours: str = OURS) -> float | None:
        mine, theirs = self.value(ours, case), self.value(other, case)
        return mine / theirs if mine is not None and theirs else None

    def cpu(self, subject: str, case: Case) -> float | None:
        spent = [run.cpu for run in self.runs.get((subject, case), ()) if run.cpu is not None]
        return median(spent) if spent else None


def machine() -> dict[str, str]:
    """What the figures depend on."""
    model = next((line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")), "unknown")
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": f"{len(os.sched_getaffinity(0))} ({model})",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def _cpu_lines() -> list[str]:
    return Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()


def print_all(results: Results, console: Console) -> None:
    """The head, the table, the thresholds and the failures."""
    for name, text in results.about.items():
        console.print(f"[bold]{name}[/]: {text}", highlight=False, soft_wrap=True)
    console.print(_table(results))
    _print_thresholds(results, console)
    _print_generator(results, console)
    for failure in results.failures:
        console.print(f"[red]failed[/] {failure}", highlight=False, soft_wrap=True)


def _table(results: Results) -> Table:
    rounds = max((len(runs) for runs in results.runs.values()), default=0)
    table = Table(
        title=f"Gbit/s or 1000 requests/s: median (min–max) of {rounds}; gateway's CPU time per gigabyte or request"
    )
    table.add_column("MTU, direction, streams", no_wrap=True)
    for subject in results.subjects:
        table.add_column(subject, justify="right")
    for other in (SLIRP, LIMIT):
        if OURS in results.subjects and other in results.subjects:
            table.add_column(f"{OURS} / {other}", justify="right")
    for case in results.cases:
        cells = [_cell(results, subject, case) for subject in results.subjects]
        for other in (SLIRP, LIMIT):
            if OURS in results.subjects and other in results.subjects:
                ratio = results.ratio(case, other)
                cells.append("–" if ratio is None else f"{ratio:.2f}")
        table.add_row(case.label, *cells)
    return table


def _cell(results: Results, subject: str, case: Case) -> str:
    runs = results.runs.get((subject, case))
    if not runs:
        return "–"
    unit = 1e9 if case.kind == "tcp" else 1e3
    values = sorted(run.value / unit for run in runs)
    text = f"{median(values):.2f}"
    if len(values) > 1:
        text += f"\n({values[0]:.2f}–{values[-1]:.2f})"
    cpu = results.cpu(subject, case)
    if cpu is not None:
        text += f"\n{cpu:.2f} s/GB" if case.kind == "tcp" else f"\n{cpu * 1e6:.0f} µs/request"
    if errors := sum(run.errors for run in runs):
        text += f"\n{errors} errors"
    return text


def _print_thresholds(results: Results, console: Console) -> None:
    for threshold in THRESHOLDS:
        ratio = results.ratio(threshold.case, threshold.other)
        if ratio is None:
            verdict = "[yellow]not measured[/]"
        else:
            verdict = f"{ratio:.2f} {'[green]met[/]' if ratio >= threshold.ratio else '[red]MISSED[/]'}"
        console.print(
            f"{threshold.case.label}: at least {threshold.ratio:g} of {threshold.other}: {verdict}", highlight=False
        )


def _print_generator(results: Results, console: Console) -> None:
    for case in results.cases:
        margin = results.ratio(case, SLIRP, ours=LIMIT)
        if case.kind != "tcp" and margin is not None:
            verdict = (
                "[green]fine[/]" if margin >= GENERATOR_MARGIN else "[red]the generator may be what is measured[/]"
            )
            console.print(f"{case.label}: veth is {margin:.1f} times slirp4netns: {verdict}", highlight=False)


def as_json(results: Results) -> dict[str, object]:
    """Everything that was measured, without rounding."""
    return {
        "about": results.about,
        "results": [
            {
                "subject": subject,
                **_case_json(case),
                "unit": "bit/s" if case.kind == "tcp" else "requests/s",
                "median": results.value(subject, case),
                "runs": [run.value for run in runs],
                f"cpu_seconds_per_{'gigabyte' if case.kind == 'tcp' else 'request'}": results.cpu(subject, case),
                "errors": sum(run.errors for run in runs),
            }
            for (subject, case), runs in results.runs.items()
        ],
        "thresholds": [_threshold_json(results, threshold) for threshold in THRESHOLDS],
        "failures": results.failures,
    }


def _case_json(case: Case) -> Mapping[str, object]:
    direction = "guest to host" if case.outward else "host to guest"
    return {"kind": case.kind, "mtu": case.mtu, "direction": direction, "streams": case.streams}


def _threshold_json(results: Results, threshold: Threshold) -> dict[str, object]:
    ratio = results.ratio(threshold.case, threshold.other)
    met = None if ratio is None else ratio >= threshold.ratio
    wanted = {"other": threshold.other, "at_least": threshold.ratio, "ratio": ratio, "met": met}
    return {**_case_json(threshold.case), **wanted}
