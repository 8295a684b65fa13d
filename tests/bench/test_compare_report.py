"""The comparators' report says what was measured: CPU time per packet, ratios, promises met or not, what went wrong."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from tests.bench.compare_report import OURS, QEMU, Results, Row, Run, as_json, print_all, verdicts, wrongs

ONE, MANY = Row(False, 64, 1), Row(False, 64, 5000)
LARGE = Row(False, 60_000, 1)
PING = Row(True, 64, 1)


def run(cpu_us: float, **others: object) -> Run:
    """A faultless run of 2 s that released 1,000 packets and used `cpu_us` for each."""
    fields: dict[str, object] = {"sent": 1000, "released": 1000, "seconds": 2.0, "frame_bytes": 118}
    return Run(**{**fields, "cpu_seconds": cpu_us / 1e3, **others})  # type: ignore[arg-type]


@pytest.fixture
def results() -> Results:
    made = Results([QEMU, OURS], [ONE, MANY, LARGE, PING], about={"qemu": "/bin/qemu: 7.2"})
    for turn, (theirs, ours) in enumerate([(3.0, 3.0), (8.0, 8.8), (4.0, 4.8)]):  # the machine was slow for a while
        made.add(QEMU, ONE, run(theirs), turn=turn)
        made.add(OURS, ONE, run(ours), turn=turn)
    made.add(QEMU, MANY, run(4.0, disorder=250), turn=0)
    made.add(OURS, MANY, run(6.0), turn=0)
    made.add(OURS, LARGE, run(80.0), turn=0)
    made.add(QEMU, PING, run(18.0, median_ns=40_000, p99_ns=90_000), turn=0)
    made.add(OURS, PING, run(27.0, median_ns=60_000, p99_ns=95_000), turn=0)
    return made


def printed(results: Results) -> str:
    out = io.StringIO()
    print_all(results, Console(file=out, width=200))
    return out.getvalue()


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_a_run_is_counted_by_released_packets_and_ethernet_bytes() -> None:
    measured = run(3.5, released=500)
    assert measured.cpu_us == pytest.approx(7.0)
    assert measured.rate == 250
    assert measured.gigabits == pytest.approx(250 * 118 * 8 / 1e9)


def test_ratios_are_those_of_runs_beside_each_other(results: Results) -> None:
    assert results.ratio(ONE) == pytest.approx(1.1)
    del results.runs[QEMU, ONE][1]
    assert results.ratio(ONE) == pytest.approx(1.1), "of 1.0 and 1.2: ours alone counts in no ratio"
    assert results.ratio(MANY) == pytest.approx(1.5)
    assert results.ratio(LARGE) is None
    assert results.ratio(PING, lambda run: run.median_ns) == pytest.approx(1.5)


def test_each_row_is_held_against_the_bound_of_its_payload(results: Results) -> None:
    by_text = {verdict.text: verdict for verdict in verdicts(results)}
    assert by_text["64 bytes, 1 connection: colo / qemu"].met is True
    assert by_text["64 bytes, 5,000 connections: colo / qemu"].met is False
    large = by_text["60,000 bytes, 1 connection: colo / qemu"]
    assert (large.at_most, large.ratio, large.met) == (0.6, None, None)
    assert not any("one packet at a time" in text for text in by_text)


def test_the_bound_itself_is_met(results: Results) -> None:
    results.runs[OURS, ONE] = {0: run(4.8)}
    results.runs[QEMU, ONE] = {0: run(4.0)}
    verdict = next(each for each in verdicts(results) if each.text.startswith("64 bytes, 1 "))
    assert verdict.ratio == pytest.approx(1.2)
    assert replace(verdict, ratio=1.2).met is True
    assert replace(verdict, ratio=1.201).met is False


def test_many_connections_are_held_against_one(results: Results) -> None:
    flat = next(verdict for verdict in verdicts(results) if verdict.text == "colo, 64 bytes: 5,000 connections / 1")
    assert flat.ratio == pytest.approx(6.0 / 3.0)
    assert flat.met is False
    results.runs[OURS, MANY] = {1: run(9.9)}
    assert next(verdict for verdict in verdicts(results) if verdict.text == flat.text).met is True
    assert not any(verdict.text.startswith("colo, 60,000") for verdict in verdicts(results))


def test_one_comparator_alone_is_held_against_nothing_but_itself() -> None:
    alone = Results([QEMU], [ONE, MANY])
    alone.add(QEMU, ONE, run(3.0), turn=0)
    assert verdicts(alone) == []
    assert "3.00" in printed(alone)


def test_a_printed_row_has_its_range_its_disorder_and_its_verdict(results: Results) -> None:
    text = printed(results)
    assert line_of(text, "qemu: /bin/qemu")
    assert "4.80 (3.90–6.80)" in text
    assert "25.0%" in text
    assert line_of(text, "64 bytes, 1 connection").endswith("at most 1.2: 1.10 met")
    assert line_of(text, "64 bytes, 5,000 connections").endswith("at most 1.2: 1.50 MISSED")
    assert line_of(text, "60,000 bytes").endswith("at most 0.6: – not measured")
    assert line_of(text, "colo, 64 bytes").endswith("at most 1.25: 2.00 MISSED")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"released": 999}, "999 of 1,000 packets were released"),
        ({"released": 1001}, "1,001 of 1,000 packets were released"),
        ({"uneven": 2}, "2 connections had packets released twice, and others not at all"),
        ({"altered": 3}, "3 packets came out that are not the primary's"),
        ({"disorder": 4}, "4 packets were released out of order"),
        ({"requests": 1}, "1 checkpoints were asked for, and the streams are equal"),
        ({"stalled": True}, "it came to a halt"),
    ],
)
def test_what_a_run_must_not_show_is_a_failure(results: Results, fault: dict[str, object], told: str) -> None:
    assert list(wrongs(OURS, run(1.0))) == []
    results.add(OURS, ONE, run(1.0, **fault), turn=3)
    assert results.failures == [f"colo, 64 bytes, 1 connection: {told}"]
    assert f"failed colo, 64 bytes, 1 connection: {told}" in printed(results)


def test_qemu_may_release_out_of_order(results: Results) -> None:
    assert results.failures == []
    assert results.disorder(QEMU, MANY) == 0.25


def test_a_run_that_came_to_a_halt_is_no_measurement(results: Results) -> None:
    results.add(OURS, LARGE, run(1.0, released=0, stalled=True), turn=1)
    assert results.cpu(OURS, LARGE) == pytest.approx(80.0)


def test_the_json_is_json_with_every_run(results: Results) -> None:
    told = json.loads(json.dumps(as_json(results)))
    first = told["results"][0]
    assert (first["subject"], first["payload"], first["connections"], first["latency"]) == (QEMU, 64, 1, False)
    assert first["cpu_us_per_packet"] == pytest.approx(4.0)
    assert [each["cpu_seconds"] for each in first["runs"]] == [0.003, 0.008, 0.004]
    assert [each["turn"] for each in first["runs"]] == [0, 1, 2]
    assert {verdict["met"] for verdict in told["verdicts"]} == {True, False, None}
