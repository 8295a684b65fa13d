"""The property that everything serves, under simulation; and that the simulation would notice were it not kept."""

from __future__ import annotations

from itertools import islice

import pytest

from colo.proxy import Role
from tests.sim.mutants import MUTANTS, can_show
from tests.sim.pair import PairScenario, run
from tests.sim.scenario import Violation
from tests.sim.sweep import sweep

SEEDS = 3000
MUTANT_SEEDS = 40_000
MUTANT_RUNS = 3000  # at most, of scenarios that can show it


@pytest.fixture(scope="module")
def failures() -> dict[int, str]:
    """Of a module, so that what multiprocessing leaves running until the end is not the test's."""
    return sweep(0, SEEDS, kind="pair")


def test_no_seed_breaks_output_commit_or_the_service_that_a_client_sees(failures: dict[int, str]) -> None:
    assert failures == {}


def test_the_scenarios_reach_what_they_are_for() -> None:
    """Failovers of both kinds, checkpoints that complete and that fail, differences of every kind, and many frames."""
    roles = set()
    counters: dict[str, int] = {}
    checked = 0
    for seed in range(200):
        pair = run(PairScenario.of(seed))
        roles.add(pair.proxy.role)
        checked += pair.auditor.checked
        for name, value in pair.proxy.counters.snapshot().items():
            counters[name] = counters.get(name, 0) + value
    assert roles == set(Role)
    assert checked > 5000
    for name in (
        "checkpoint.completed",
        "checkpoint.failed",
        "checkpoint.timed_out",
        "compare.difference.payload",
        "compare.difference.options",
        "compare.difference.timeout",
        "compare.difference.flags",
        "rewriter.learnt",
        "mirror.ack_repeated",
    ):
        assert counters.get(name, 0) > 0, name


def test_a_scenario_is_the_same_every_time() -> None:
    one, other = (run(PairScenario.of(11)).proxy.counters.snapshot() for _ in range(2))
    assert one == other


# ------------------------------------------------------------------------------------------------------------- mutants


def _first_violation(name: str) -> int:
    """The first seed that fails, -1 if none does."""
    scenarios = (scenario for scenario in map(PairScenario.of, range(MUTANT_SEEDS)) if can_show(name, scenario))
    for scenario in islice(scenarios, MUTANT_RUNS):
        try:
            run(scenario)
        except Violation:
            return scenario.seed
    return -1


@pytest.mark.parametrize("name", MUTANTS)
def test_without_any_one_condition_the_simulation_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    assert _first_violation(name) >= 0
