"""Kill one machine of a pair of ours under traffic, again and again, a fresh pair each time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from rich.console import Console

from tests.bench.pair_outage import BUSY, IDLE
from tests.bench.pair_sides import ADDRESS, Say, launched
from tests.interop.lab import LabError, wait_for

VICTIMS = ("primary", "secondary")
_RUN_SECONDS = 150.0
_REJOIN_SECONDS = 60.0


@dataclass
class Outages:
    """Of every repetition: seconds without a byte for anybody, and seconds from the kill to a byte."""

    engine: str
    victim: str
    silence: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def measure(engine: str, victim: str, times: int, say: Say) -> Outages:
    """Repeat it; what goes wrong is in the failures, and the next repetition is done all the same."""
    outages = Outages(engine, victim)
    for number in range(1, times + 1):
        try:
            told = _once(engine, victim)
        except (LabError, subprocess.TimeoutExpired) as error:
            outages.failures.append(f"{number}: {error}")
            continue
        outages.silence.append(told["silence"])
        outages.first.append(told["first"])
        outages.failures += [f"{number}: {why}" for why in told["broken"]]
        say(f"{number}: {told['silence'] * 1e3:.0f} ms of silence, {len(told['broken'])} failures")
    return outages


def _once(engine: str, victim: str) -> dict[str, Any]:
    with launched(engine) as pair:
        pair.assert_sound()
        killed = pair.primary if victim == "primary" else pair.secondary
        command = [sys.executable, "-m", "tests.bench.pair_outage", ADDRESS, str(killed)]
        done = pair.lab.run(command, timeout=_RUN_SECONDS)
        pair.assert_no_panic()
        if done.returncode:
            raise LabError(f"the clients: {done.stderr.decode(errors='replace').strip()[-300:]}")
        wait_for(lambda: pair.status()["state"] == "protected", "another secondary", _REJOIN_SECONDS)
        told: dict[str, Any] = json.loads(done.stdout)
        return told


def print_all(outages: Outages, console: Console) -> None:
    """The median, the worst, and what failed."""
    console.print(
        f"{outages.engine}, death of the {outages.victim}: {IDLE} idle and {BUSY} busy connections, a download"
    )
    for name, seconds in (("from the kill to the next byte", outages.first), ("longest silence", outages.silence)):
        if seconds:
            text = f"{name}: median {median(seconds) * 1e3:.0f} ms, worst {max(seconds) * 1e3:.0f} ms of {len(seconds)}"
            console.print(text, highlight=False)
    for failure in outages.failures:
        console.print(f"[red]failed[/] {failure}", highlight=False, soft_wrap=True)
