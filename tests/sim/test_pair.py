"""The property that everything serves, under simulation; and that the simulation would notice were it not kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from colo import tcp_flow
from colo.checkpoint import Step
from colo.compare import Comparator
from colo.held import START, STOP, Record
from colo.proxy import Proxy, Role
from colo.tcp_flow import TcpFlow
from pystack.clock import Micros
from tests.sim.pair import PairScenario, run
from tests.sim.scenario import Violation
from tests.sim.sweep import sweep

SEEDS = 3000
MUTANT_SEEDS = 1200


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
    for seed in range(300):
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


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


def _nothing_conflicts(_flow: TcpFlow) -> str:
    return ""


def _piece_across_the_gap(original: Callable[..., None]) -> Callable[..., None]:
    """What lies beyond a gap is taken for what comes next."""

    def taken(flow: TcpFlow, piece: Any) -> None:
        shift = piece[START] - flow.s_nxt
        if flow.s_nxt != tcp_flow.UNSET and shift > 0:
            piece = (piece[START] - shift, piece[STOP] - shift, *piece[2:])
        original(flow, piece)

    return taken


def _release_before_it_is_made(original: Callable[..., None]) -> Callable[..., None]:
    """What is held leaves when the checkpoint begins."""

    def step(proxy: Proxy, which: Step, now: Micros) -> None:
        original(proxy, which, now)
        if which is Step.PAUSED:
            proxy.comparator.commit(now)

    return step


def _let_the_held_go(original: Callable[..., list[bytes]]) -> Callable[..., list[bytes]]:
    """What only a dead primary had said leaves all the same."""

    def drop(comparator: Comparator) -> list[bytes]:
        held: list[Record] = comparator._flows.held()
        frames = [bytes(record[2][record[7] : record[8]]) for record in held]
        return frames + original(comparator)

    return drop


MUTANTS: dict[str, tuple[type, str, Callable[[Any], Any]]] = {
    "payload need not be covered": (TcpFlow, "_payload_covered", lambda _: _always),
    "an acknowledgement need not be the secondary's": (TcpFlow, "_ack_covered", lambda _: _always),
    "a SYN need not be the secondary's": (TcpFlow, "_syn_covered", lambda _: _always),
    "a FIN need not be the secondary's": (TcpFlow, "_fin_covered", lambda _: _always),
    "a RST need not be the secondary's": (TcpFlow, "_rst_covered", lambda _: _always),
    "a retransmission need not be the same": (TcpFlow, "_contradicts", lambda _: _never),
    "what is beyond a gap is compared": (TcpFlow, "_secondary_piece", _piece_across_the_gap),
    "held frames leave before the copy is made": (Proxy, "_step", _release_before_it_is_made),
    "held frames outlive the primary": (Comparator, "drop_held", _let_the_held_go),
}


def _first_violation() -> int:
    """The first seed that fails, -1 if none does."""
    for seed in range(MUTANT_SEEDS):
        try:
            run(PairScenario.of(seed))
        except Violation:
            return seed
    return -1


@pytest.mark.parametrize("name", MUTANTS)
def test_without_any_one_condition_the_simulation_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, mutate = MUTANTS[name]
    monkeypatch.setattr(owner, method, mutate(getattr(owner, method)))
    if "SYN" in name:
        # The options are looked at in two places: where a difference is found, and where a frame is released.
        monkeypatch.setattr(TcpFlow, "_conflict", _nothing_conflicts)
    assert _first_violation() >= 0


def test_without_comparing_bytes_the_simulation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_flow, "_equal", _always)
    assert _first_violation() >= 0
