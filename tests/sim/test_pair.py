"""The property that everything serves, under simulation; and that the simulation would notice were it not kept."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, islice

import pytest

from colo.proxy import Role
from tests.sim.failed_seeds import FAILED
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


@pytest.mark.long
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
        "compare.cut",
    ):
        assert counters.get(name, 0) > 0, name


@pytest.mark.parametrize("seed", range(6))
def test_no_large_frame_waits_for_what_a_secondary_cannot_send(seed: int) -> None:
    """Its window is full of bytes that the client does not have, as they are in a frame with others."""
    quiet = PairScenario.of(seed).without_impairment(0).without_impairment(1).without_impairment(2)
    scenario = replace(
        quiet, offload=True, kinds=("same",), sizes=((60_000,),), opens=(0,), close=(True,), again=(False,), dies=2,
        flip=0, reset=0, secondary_mss=0, unasked=(), standstill=(0, 0, 0), send_buffer=(1 << 20, 4096),
        receive_buffer=(65_535, 65_535), datagrams=(), pings=0,
    )  # fmt: skip
    pair = run(scenario)
    assert pair.proxy.counters["compare.cut"] > 5
    assert pair.proxy.counters["checkpoint.begun"] == 0


def test_a_scenario_is_the_same_every_time() -> None:
    one, other = (run(PairScenario.of(11)).proxy.counters.snapshot() for _ in range(2))
    assert one == other


# ------------------------------------------------------------------------------------------------------------- mutants


def _first_violation(name: str) -> int:
    """A seed that fails, -1 if none does: the one that did when it was last looked for, or else the first."""
    seeds = chain(FAILED.get(name, ()), range(MUTANT_SEEDS))
    scenarios = (scenario for scenario in map(PairScenario.of, seeds) if can_show(name, scenario))
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
