"""The report says what was measured: medians, ratios, and whether what was promised is met."""

from __future__ import annotations

import io
import json
import os

import pytest
from rich.console import Console

from tests.bench.load import Case, Measured
from tests.bench.peers import cpu_seconds
from tests.bench.report import LIMIT, OURS, SLIRP, THRESHOLDS, Results, as_json, print_all

OUT = Case("tcp", 1500, outward=True, streams=1)
WEB = Case("keep-alive", 1500)


@pytest.fixture
def results() -> Results:
    made = Results([OURS, SLIRP, LIMIT], [OUT, WEB])
    for ours in (9e9, 12e9, 10e9):
        made.add(OURS, OUT, Measured(ours, 0.5))
    made.add(SLIRP, OUT, Measured(1e9, 8.0))
    made.add(LIMIT, OUT, Measured(20e9))
    made.add(OURS, WEB, Measured(7_000.0, errors=3))
    made.add(SLIRP, WEB, Measured(10_000.0))
    return made


def printed(results: Results) -> str:
    out = io.StringIO()
    print_all(results, Console(file=out, width=160))
    return out.getvalue()


def test_a_cell_is_the_median_with_its_range_and_its_cpu_time(results: Results) -> None:
    text = printed(results)
    assert "10.00" in text
    assert "(9.00–12.00)" in text
    assert "0.50 s/GB" in text
    assert "3 errors" in text


def test_ratios_are_those_of_medians(results: Results) -> None:
    assert results.ratio(OUT, SLIRP) == 10
    assert results.ratio(OUT, LIMIT) == 0.5
    assert results.ratio(WEB, LIMIT) is None


def test_thresholds_are_met_missed_or_not_measured(results: Results) -> None:
    verdicts = {
        (each["kind"], each["direction"], each["other"]): each["met"]
        for each in as_json(results)["thresholds"]  # type: ignore[attr-defined]
    }
    assert len(verdicts) == len(THRESHOLDS)
    assert verdicts["tcp", "guest to host", SLIRP] is True
    assert verdicts["tcp", "guest to host", LIMIT] is False
    assert verdicts["tcp", "host to guest", SLIRP] is None
    assert verdicts["keep-alive", "guest to host", SLIRP] is False
    assert "0.50 MISSED" in printed(results)


def test_the_json_is_json(results: Results) -> None:
    assert json.loads(json.dumps(as_json(results)))["results"][0]["runs"] == [9e9, 12e9, 10e9]


def test_cpu_seconds_of_a_process_grow_with_its_work() -> None:
    before = cpu_seconds(os.getpid())
    for _ in range(10_000):
        sum(range(100_000))
        if cpu_seconds(os.getpid()) > before:
            break
    assert cpu_seconds(os.getpid()) > before
