"""The pairs' report: figures, bounds, and what counts as an outage."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from tests.bench.pair_outage import silence_after
from tests.bench.pair_report import QEMU, Measured, Results, as_json, bounds, missed, print_all


def results(ours: Measured, theirs: Measured, phase: str = "ping") -> Results:
    return Results([QEMU, "x-colo"], [phase], turns={(QEMU, phase): {0: theirs}, ("x-colo", phase): {0: ours}})


def test_the_figures_of_a_phase() -> None:
    run = Measured([seconds / 1000 for seconds in range(200, 0, -1)], 20.0, checkpoints={"periodic": 2, "payload": 3})
    assert run.rate == 10
    assert run.median == pytest.approx(0.1005)
    assert run.p99 == pytest.approx(0.199)
    assert run.worst == 0.2
    assert run.forced == 3


def test_rounds_add_up() -> None:
    one = Measured([0.1], 1.0, 1, ("late",), {"payload": 1})
    both = one.and_then(Measured([0.3], 2.0, 0, (), {"payload": 2, "join": 1}))
    assert both == Measured([0.1, 0.3], 3.0, 1, ("late",), {"payload": 3, "join": 1})


def test_nothing_measured_is_no_good_figure() -> None:
    run = Measured([], 1.0)
    assert (run.median, run.p99, run.worst, run.rate) == (math.inf, math.inf, math.inf, 0)
    assert "worst latency, ms" in {bound.what for bound in missed(results(run, Measured([0.1], 1.0)))}


@pytest.mark.parametrize(
    ("ours", "what"),
    [
        (Measured([0.116], 1.0), "median / QEMU's"),
        (Measured([0.1] * 98 + [0.2] * 2, 1.0), "p99 / QEMU's"),
        (Measured([0.1] * 999 + [0.501], 1.0), "worst latency, ms"),
        (Measured([0.1], 1.0, failed=1), "failures"),
        (Measured([0.1], 1.0, checkpoints={"payload": 2}), "checkpoints but periodic ones"),
    ],
)
def test_a_bound_that_is_missed(ours: Measured, what: str) -> None:
    theirs = Measured([0.1] * 100, 1.0, checkpoints={"any": 1})
    assert what in {bound.what for bound in missed(results(ours, theirs))}


def test_bounds_that_are_met() -> None:
    theirs = Measured([0.1] * 100, 1.0, checkpoints={"any": 1})
    ours = Measured([0.1] * 100, 1.0, checkpoints={"payload": 1, "periodic": 9})
    assert missed(results(ours, theirs)) == []
    assert len(list(bounds(results(ours, theirs)))) == 6


def test_a_service_that_differs_may_cost_checkpoints() -> None:
    ours = Measured([0.1], 1.0, checkpoints={"payload": 9})
    assert missed(results(ours, Measured([0.1], 1.0), "random")) == []


def turns(side: str, *times: list[float]) -> dict[tuple[str, str], dict[int, Measured]]:
    return {(side, "ping"): {number: Measured(each, 1.0) for number, each in enumerate(times)}}


def test_a_machine_that_gets_slower_is_slow_for_both() -> None:
    ours = [[0.1] * 3, [0.4], [0.4]]
    theirs = [[0.1], [0.4] * 3, [0.4] * 3]
    both = Results([QEMU, "x-colo"], ["ping"], turns=turns(QEMU, *theirs) | turns("x-colo", *ours))
    assert both.runs["x-colo", "ping"].median == pytest.approx(0.1)
    assert both.runs[QEMU, "ping"].median == pytest.approx(0.4)
    assert both.quotients("x-colo", "ping") == pytest.approx((1, 1))


def test_a_turn_with_few_requests_has_no_percentile_of_its_own() -> None:
    ours = [[0.1] * 99 + [0.3], [0.1] * 100, [0.1] * 100]
    few = Results([QEMU, "x-colo"], ["ping"], turns=turns(QEMU, *[[0.1] * 100] * 3) | turns("x-colo", *ours))
    assert few.quotients("x-colo", "ping") == pytest.approx((1, 1)), "one of three hundred is beyond it"
    many = [[0.1] * 490 + [0.3] * 10, [0.1] * 490 + [0.2] * 10, [0.1] * 500]
    each = Results([QEMU, "x-colo"], ["ping"], turns=turns(QEMU, *[[0.1] * 500] * 3) | turns("x-colo", *many))
    assert each.quotients("x-colo", "ping") == pytest.approx((1, 2)), "the turn in the middle"
    lost = Results(
        [QEMU, "x-colo"], ["ping"], turns=turns(QEMU, [0.1]) | {("x-colo", "ping"): {1: Measured([0.1], 1.0)}}
    )
    assert lost.quotients("x-colo", "ping") is None, "no turn of both"


def test_table_and_json() -> None:
    measured = results(Measured([0.2], 1.0, 1, ("after 0.20 s: a wrong answer",)), Measured([0.1], 1.0))
    measured.stories["x-colo"] = "protected: vm2 is in step with vm1 [not markup]"
    out = io.StringIO()
    print_all(measured, Console(file=out, width=200))
    assert "x-colo then:\nprotected: vm2 is in step with vm1 [not markup]\n" in out.getvalue()
    assert "2.00" in out.getvalue()
    assert "x-colo, ping: median / QEMU's 2.00, at most 1.15: MISSED" in out.getvalue()
    assert "failed x-colo, ping: after 0.20 s: a wrong answer" in out.getvalue()
    told = json.loads(json.dumps(as_json(measured)))
    assert [row["failed"] for row in told["results"]] == [0, 1]
    assert told["failures"] == ["x-colo, ping: after 0.20 s: a wrong answer"]


def test_an_outage_is_the_longest_silence_after_the_kill() -> None:
    silence, first = silence_after(10.0, [1.0, 9.9, 10.001, 10.002, 10.102, 10.103])
    assert silence == pytest.approx(0.1)
    assert first == pytest.approx(0.001)
    assert silence_after(10.0, [9.0]) == (0.0, 0.0)
