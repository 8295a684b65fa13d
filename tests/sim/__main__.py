"""`python -m tests.sim --seeds N --first SEED`: many scenarios on all cores; each failure is printed with its seed.

Two kinds: a transfer between two stacks (delivery), and a client with two replicas behind the proxy (pair); both by
default. `python -m tests.sim --kind KIND --replay SEED` runs one and prints what it was and what was counted.
"""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

from tests.sim import pair
from tests.sim.scenario import Scenario, run
from tests.sim.sweep import KINDS, sweep


def replay(kind: str, seed: int) -> int:
    """Run one scenario and tell about it."""
    if kind == "pair":
        scenario = pair.PairScenario.of(seed)
        print(scenario)
        proxy = pair.run(scenario).proxy
        print("proxy", proxy.role.value, dict(sorted(proxy.counters.snapshot().items())))
        return 0
    print(Scenario.of(seed))
    world = run(Scenario.of(seed))
    for host in world.hosts:
        print(host.name, dict(sorted(host.stack.counters.snapshot().items())))
    return 0


def _progress() -> Progress:
    """On the terminal, if there is one: what is printed is the result alone."""
    console = Console(stderr=True)
    columns = (
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        "{task.fields[failed]} failed",
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many scenarios of each kind")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--kind", choices=(*KINDS, "all"), default="all", help="which kind")
    parser.add_argument("--jobs", type=int, default=None, help="processes; as many as there are cores if not given")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one, and show its counters")
    options = parser.parse_args()
    kinds = KINDS if options.kind == "all" else (options.kind,)
    if options.replay is not None:
        return max(replay(kind, options.replay) for kind in kinds)
    failed = False
    for kind in kinds:
        begun = time.monotonic()
        with _progress() as progress:
            task = progress.add_task(kind, total=options.seeds, failed=0)

            def show(done: int, bad: int, progress: Progress = progress, task: TaskID = task) -> None:
                progress.update(task, completed=done, failed=bad)

            failures = sweep(options.first, options.seeds, kind=kind, jobs=options.jobs, done=show)
        for seed, failure in failures.items():
            print(f"{kind} seed {seed}: {failure}\n    replay with: python -m tests.sim --kind {kind} --replay {seed}")
        print(f"{kind}: {options.seeds} seeds, {len(failures)} failures, {time.monotonic() - begun:.0f} s")
        failed |= bool(failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
