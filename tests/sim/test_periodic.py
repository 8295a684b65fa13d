"""Periodic mode under simulation: by choice, by turns, and by itself; and what must fail were its output not held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from colo.compare import Comparator, Mode
from colo.policy import Choice, PolicyConfig
from colo.proxy import Proxy
from pystack.clock import MILLISECOND, SECOND
from tests.sim.pair import Pair, PairScenario
from tests.sim.scenario import Violation

PERIODIC = PolicyConfig(forced="periodic")
OFTEN = PolicyConfig(periodic_interval=20 * MILLISECOND)
TOUCHY = replace(OFTEN, max_rate=1, window=SECOND, hold=50 * MILLISECOND)
TURNS: tuple[Choice, ...] = ("periodic", "compare")


class PeriodicPair(Pair):
    """A pair whose proxy follows ``policy``; with ``turn``, told another mode after each such time."""

    def __init__(self, scenario: PairScenario, policy: PolicyConfig, turn: int = 0) -> None:
        self._policy = policy
        super().__init__(scenario)
        for number in range(40 if turn else 0):
            self.world.at((number + 1) * turn, lambda number=number: self._choose(number))  # type: ignore[misc]

    def _proxy(self) -> Proxy:
        made = super()._proxy()
        config = replace(made._config, policy=self._policy)
        framed = made.comparator if self.scenario.framed else None
        return Proxy(config, self.checkpoint_client, made.counters, comparator=framed)

    def _choose(self, number: int) -> None:
        self.proxy.policy.forced = TURNS[number % 2]


def run(seed: int, policy: PolicyConfig, turn: int = 0) -> Pair:
    """One scenario to its end, judged.

    Raises:
        Violation: a promise was broken.
    """
    pair = PeriodicPair(PairScenario.of(seed), policy, turn)
    pair.run()
    if not pair.scenario.broken:
        pair.judge()
    return pair


@pytest.mark.parametrize(
    ("policy", "turn", "seeds", "switch"),
    [
        (PERIODIC, 0, 16, "policy.to_periodic.choice"),
        (OFTEN, 15 * MILLISECOND, 25, "policy.to_compare"),
        (TOUCHY, 0, 50, "policy.to_periodic.differences"),
    ],
    ids=["by choice", "by turns", "by itself"],
)
def test_no_seed_breaks_output_commit_in_periodic_mode(
    policy: PolicyConfig, turn: int, seeds: int, switch: str
) -> None:
    checked = switched = 0
    for seed in range(seeds):
        pair = run(seed, policy, turn)
        checked += pair.auditor.checked
        switched += pair.proxy.counters[switch] > 0
    assert checked > 100
    assert switched > 1


def _let_out(original: Callable[..., None]) -> Callable[..., None]:
    """What periodic mode holds leaves at once."""

    def frame(comparator: Comparator, *arguments: Any) -> None:
        mode = comparator.mode
        if mode is Mode.PERIODIC:
            comparator.mode = Mode.PASS
        original(comparator, *arguments)
        comparator.mode = mode

    return frame


def test_the_simulation_notices_output_that_does_not_wait_for_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Comparator, "_primary_frame", _let_out(Comparator._primary_frame))
    with pytest.raises(Violation):
        for seed in range(20):
            run(seed, PERIODIC)
