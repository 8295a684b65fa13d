"""Every fuzz target holds its invariant over its seeds, corpus and regressions, whole and cut short."""

from __future__ import annotations

import pytest

from fuzz import campaign, harness


@pytest.mark.parametrize("name", harness.names())
def test_target_holds_over_every_known_input(name: str) -> None:
    target = harness.load(name)
    assert harness.replay(target) > len(target.seeds)


@pytest.mark.parametrize("name", harness.names())
def test_target_states_its_invariant_in_its_first_line(name: str) -> None:
    target = harness.load(name)
    assert target.invariant.endswith(".")
    assert target.seeds, "a target without a valid seed rarely gets past the first check"
    assert max(map(len, target.seeds)) <= target.max_len
    assert target.dictionary is None or target.dictionary.is_file()


def test_cuts_are_the_whole_input_and_then_prefixes_of_it() -> None:
    pieces = list(harness.cuts(b"abc"))
    assert pieces == [b"abc", b"", b"a", b"ab"]
    assert len(list(harness.cuts(bytes(10_000), limit=64))) <= 66


def test_campaign_reads_a_clean_run_from_the_log() -> None:
    log = "#2\tINITED cov: 2 ft: 2 corp: 1/11b\n#9\tNEW cov: 31 ft: 40 corp: 17/1kb\nDone 900 runs in 3 second(s)\n"
    log += "stat::number_of_executed_units: 900\nstat::average_exec_per_sec:     300\n"
    outcome = campaign.read_log("x", 0, log)
    assert outcome.clean
    assert (outcome.executions, outcome.per_second, outcome.corpus, outcome.coverage) == (900, 300, 17, 31)


def test_campaign_calls_a_run_that_executed_nothing_a_failure() -> None:
    assert not campaign.read_log("x", 0, "").clean


def test_campaign_names_the_input_that_failed() -> None:
    log = "artifact_prefix='fuzz/regress/x/'; Test unit written to fuzz/regress/x/crash-123\n"
    log += "stat::number_of_executed_units: 170\n"
    outcome = campaign.read_log("x", 77, log)
    assert not outcome.clean
    assert outcome.artifact == "fuzz/regress/x/crash-123"
