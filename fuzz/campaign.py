"""Run many targets, each in a process of its own and a few at a time, and say in one table how it went."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from fuzz import harness

# Beyond the time asked for: imports, instrumentation, reading the corpus, and one input that runs into the hang limit.
GRACE_SECONDS = 60

_EXECS = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)
_RATE = re.compile(r"^stat::average_exec_per_sec:\s+(\d+)", re.MULTILINE)
_CORPUS = re.compile(r"\bcorp: (\d+)/")
_COVERAGE = re.compile(r"\bcov: (\d+)")
_ARTIFACT = re.compile(r"Test unit written to (\S+)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one target's run ended; counts are zero where libFuzzer did not get as far as printing them."""

    name: str
    executions: int
    per_second: int
    corpus: int
    coverage: int
    artifact: str
    exit_code: int
    log: str

    @property
    def clean(self) -> bool:
        """True when the time ran out without a finding and at least one input was executed."""
        return self.exit_code == 0 and self.executions > 0


def _last(pattern: re.Pattern[str], log: str) -> int:
    found = pattern.findall(log)
    return int(found[-1]) if found else 0


def read_log(name: str, exit_code: int, log: str) -> Outcome:
    """The outcome that a libFuzzer log tells."""
    artifact = _ARTIFACT.search(log)
    return Outcome(
        name=name,
        executions=_last(_EXECS, log),
        per_second=_last(_RATE, log),
        corpus=_last(_CORPUS, log),
        coverage=_last(_COVERAGE, log),
        artifact=artifact.group(1) if artifact else "",
        exit_code=exit_code,
        log=log,
    )


def run_one(name: str, seconds: int) -> Outcome:
    """Fuzz `name` for `seconds` in a child process, and read its outcome."""
    command = [sys.executable, "-m", "fuzz", "run", name, "--time", str(seconds)]
    try:
        done = subprocess.run(
            command,
            cwd=harness.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds + GRACE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return read_log(name, -1, (late.output or b"").decode(errors="replace"))
    return read_log(name, done.returncode, done.stdout.decode(errors="replace"))


def _table(outcomes: Sequence[Outcome], seconds: int) -> Table:
    table = Table(title=f"{len(outcomes)} fuzz targets, {seconds} s each")
    table.add_column("target")
    for heading in ("executions", "per second", "corpus", "coverage"):
        table.add_column(heading, justify="right")
    table.add_column("result")
    for outcome in outcomes:
        result = "clean" if outcome.clean else outcome.artifact or f"failed (exit code {outcome.exit_code})"
        counts = (outcome.executions, outcome.per_second, outcome.corpus, outcome.coverage)
        table.add_row(outcome.name, *(f"{count:,}" for count in counts), result)
    return table


def run_all(names: Sequence[str], seconds: int, jobs: int) -> int:
    """Fuzz every target for `seconds`, `jobs` at a time; returns 0, or 1 when any has a finding or did not run.

    A crashing input stays under fuzz/regress/<target>/, where pytest runs it from then on.
    """
    if not names:
        print("no fuzz targets found under fuzz/", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        outcomes = list(pool.map(lambda name: run_one(name, seconds), names))
    for outcome in outcomes:
        if not outcome.clean:
            print(f"--- {outcome.name}: last lines of its log\n" + "\n".join(outcome.log.splitlines()[-60:]))
    Console(width=120).print(_table(outcomes, seconds))
    return 0 if all(outcome.clean for outcome in outcomes) else 1
