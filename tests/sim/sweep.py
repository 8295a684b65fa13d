"""Many scenarios on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final

from tests.sim import pair
from tests.sim.scenario import Scenario, run

KINDS: Final = ("delivery", "pair")
"""One transfer between two stacks; a client and two replicas behind the proxy."""


def attempt(kind: str, seed: int) -> str:
    """Run the scenario of ``seed``; returns what went wrong, "" if nothing did."""
    try:
        if kind == "pair":
            pair.run(pair.PairScenario.of(seed))
        else:
            run(Scenario.of(seed))
    except Exception as error:  # noqa: BLE001  (whatever leaves the core is the finding)
        return f"{type(error).__name__}: {error}"
    return ""


def sweep(
    first: int,
    count: int,
    *,
    kind: str = "delivery",
    jobs: int | None = None,
    done: Callable[[int, int], None] = lambda _done, _failed: None,
) -> dict[int, str]:
    """Run ``count`` scenarios from seed ``first`` on; returns the failures: seed -> what went wrong.

    Args:
        done: told, after each one, how many are done and how many of them have failed.
    """
    failures: dict[int, str] = {}
    seeds = range(first, first + count)
    with ProcessPoolExecutor(jobs or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        outcomes = pool.map(attempt, [kind] * count, seeds, chunksize=16)
        for seed, failure in zip(seeds, outcomes, strict=True):
            if failure:
                failures[seed] = failure
            done(seed - first + 1, len(failures))
    return failures
