"""What the pairs did beside each other: a table, whether each bound is met, and the same as JSON.

A ratio is the median of what turns that followed each other are to one another: they shared what the machine was like
then. The 99th percentile of a turn says something only where it has requests enough; otherwise all turns are one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.pair_load import DETERMINISTIC

QEMU = "qemu"
MEDIAN_RATIO = 1.15
WORST_SECONDS = 0.5
PERIODIC = "periodic"
_TOLD = 20
_ENOUGH = 500  # requests of a turn, for its 99th percentile to be a figure


@dataclass(frozen=True)
class Measured:
    """One phase through one pair, a turn or all of them: latencies in seconds, in the order of the requests."""

    latencies: list[float]
    seconds: float
    failed: int = 0
    failures: tuple[str, ...] = ()
    checkpoints: dict[str, int] = field(default_factory=dict)

    def and_then(self, other: Measured) -> Measured:
        """Both turns as one."""
        return Measured(
            self.latencies + other.latencies,
            self.seconds + other.seconds,
            self.failed + other.failed,
            (self.failures + other.failures)[:_TOLD],
            dict(Counter(self.checkpoints) + Counter(other.checkpoints)),
        )

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @property
    def median(self) -> float:
        return median(self.latencies) if self.latencies else math.inf

    @property
    def p99(self) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] if ordered else math.inf

    @property
    def worst(self) -> float:
        return max(self.latencies, default=math.inf)

    @property
    def forced(self) -> int:
        """Checkpoints but the periodic ones."""
        return sum(number for reason, number in self.checkpoints.items() if reason != PERIODIC)


@dataclass
class Results:
    """Every turn of every phase of every side by its number, what the pairs said of themselves, and what failed.

    Attributes:
        stories: of the pairs a request to which failed, what there is to find out why.
    """

    sides: list[str]
    phases: list[str]
    about: dict[str, str] = field(default_factory=dict)
    turns: dict[tuple[str, str], dict[int, Measured]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    stories: dict[str, str] = field(default_factory=dict)

    def add(self, side: str, phase: str, turn: int, run: Measured) -> None:
        """Note what came of a turn."""
        self.turns.setdefault((side, phase), {})[turn] = run

    @property
    def runs(self) -> dict[tuple[str, str], Measured]:
        """All turns of each phase of each side as one."""
        return {which: reduce(Measured.and_then, turns.values()) for which, turns in self.turns.items()}

    def quotients(self, side: str, phase: str) -> tuple[float, float] | None:
        """The median and the 99th percentile of a request to ``side``, each by QEMU's; None without QEMU's."""
        ours, theirs = self.turns.get((side, phase), {}), self.turns.get((QEMU, phase), {})
        pairs = [(ours[turn], theirs[turn]) for turn in sorted(ours.keys() & theirs.keys())]
        if not pairs:
            return None
        whole = [reduce(lambda one, other: (one[0].and_then(other[0]), one[1].and_then(other[1])), pairs)]
        enough = all(len(run.latencies) >= _ENOUGH for pair in pairs for run in pair)
        return _quotient(pairs, lambda run: run.median), _quotient(pairs if enough else whole, lambda run: run.p99)


def _quotient(pairs: list[tuple[Measured, Measured]], value: Callable[[Measured], float]) -> float:
    return median(value(ours) / value(theirs) for ours, theirs in pairs)


@dataclass(frozen=True)
class Bound:
    """Something that was promised of `side` in `phase`."""

    side: str
    phase: str
    what: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit


def bounds(results: Results) -> Iterator[Bound]:
    """All that can be told from what was measured; those against QEMU only where QEMU was measured too."""
    for (side, phase), run in results.runs.items():
        yield Bound(side, phase, "failures", run.failed, 0)
        if side == QEMU:
            continue
        yield Bound(side, phase, "worst latency, ms", run.worst * 1e3, WORST_SECONDS * 1e3)
        quotients = results.quotients(side, phase)
        if quotients is None:
            continue
        yield Bound(side, phase, "median / QEMU's", quotients[0], MEDIAN_RATIO)
        yield Bound(side, phase, "p99 / QEMU's", quotients[1], 1.0)
        if phase in DETERMINISTIC:
            yield Bound(side, phase, "checkpoints but periodic ones", run.forced, results.runs[QEMU, phase].forced)


def missed(results: Results) -> list[Bound]:
    """The bounds that are not met."""
    return [bound for bound in bounds(results) if not bound.met]


def print_all(results: Results, console: Console) -> None:
    """The head, the table, the bounds and the failures."""
    for name, text in results.about.items():
        console.print(f"[bold]{name}[/]: {text}", highlight=False, soft_wrap=True)
    console.print(_table(results))
    for bound in bounds(results):
        verdict = "[green]met[/]" if bound.met else "[red]MISSED[/]"
        text = f"{bound.side}, {bound.phase}: {bound.what} {bound.value:.2f}, at most {bound.limit:.2f}: {verdict}"
        console.print(text, highlight=False, soft_wrap=True)
    for failure in _failures(results):
        console.print(f"[red]failed[/] {failure}", highlight=False, soft_wrap=True)
    for side, story in results.stories.items():
        console.print(f"\n{side} then:\n{story}", highlight=False, soft_wrap=True, markup=False)


def _failures(results: Results) -> list[str]:
    told = [f"{side}, {phase}: {why}" for (side, phase), run in results.runs.items() for why in run.failures]
    return results.failures + told


def _table(results: Results) -> Table:
    table = Table(
        title="Milliseconds of each request: median, 99th percentile, worst; checkpoints per second by reason"
    )
    for name in ("phase", "pair"):
        table.add_column(name, no_wrap=True)
    for name in ("requests", "per second", "median", "p99", "worst", "failed", "median / QEMU's", "p99 / QEMU's"):
        table.add_column(name, justify="right")
    table.add_column("checkpoints/s (of 1,000 requests)")
    for phase in results.phases:
        for side in results.sides:
            run = results.runs.get((side, phase))
            table.add_row(phase, side, *(_cells(run, results.quotients(side, phase)) if run else ["–"] * 9))
        table.add_section()
    return table


def _cells(run: Measured, quotients: tuple[float, float] | None) -> list[str]:
    times = [f"{seconds * 1e3:.2f}" for seconds in (run.median, run.p99, run.worst)]
    ratios = [f"{each:.2f}" for each in quotients] if quotients else ["–", "–"]
    requests = max(len(run.latencies), 1)
    reasons = [
        f"{reason} {number / run.seconds:.2f} ({1000 * number / requests:.1f})"
        for reason, number in sorted(run.checkpoints.items())
    ]
    head = [str(len(run.latencies)), f"{run.rate:.1f}", *times, str(run.failed)]
    return [*head, *ratios, "\n".join(reasons) or "none"]


def as_json(results: Results) -> dict[str, object]:
    """Everything that was measured, in seconds."""
    return {
        "about": results.about,
        "results": [
            {
                "side": side,
                "phase": phase,
                "requests": len(run.latencies),
                "requests_per_second": run.rate,
                "seconds": run.seconds,
                "median": run.median,
                "p99": run.p99,
                "worst": run.worst,
                "failed": run.failed,
                "checkpoints": run.checkpoints,
                "turns": [
                    {"median": turn.median, "p99": turn.p99, "requests": len(turn.latencies)}
                    for turn in results.turns[side, phase].values()
                ],
            }
            for (side, phase), run in results.runs.items()
        ],
        "bounds": [{**vars(bound), "met": bound.met} for bound in bounds(results)],
        "notes": results.notes,
        "failures": _failures(results),
        "stories": results.stories,
    }
