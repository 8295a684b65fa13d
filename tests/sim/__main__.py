"""`python -m tests.sim --seeds N --first SEED`: many scenarios on all cores; each failure is printed with its seed.

`python -m tests.sim --replay SEED` runs one and prints what it was and what was counted.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.scenario import Scenario, run
from tests.sim.sweep import sweep


def replay(seed: int) -> int:
    """Run one scenario and tell about it."""
    scenario = Scenario.of(seed)
    print(scenario)
    world = run(scenario)
    for host in world.hosts:
        print(host.name, dict(sorted(host.stack.counters.snapshot().items())))
    return 0


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many scenarios")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--jobs", type=int, default=None, help="processes; as many as there are cores if not given")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one, and show its counters")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay)
    begun = time.monotonic()
    failures = sweep(options.first, options.seeds, jobs=options.jobs)
    for seed, failure in failures.items():
        print(f"seed {seed}: {failure}\n    replay with: python -m tests.sim --replay {seed}")
    print(f"{options.seeds} seeds, {len(failures)} failures, {time.monotonic() - begun:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
