"""`colo demo` as a person runs it: in one process, and between kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def demo(
    tmp_path: Path, *arguments: str, timeout: float = 250
) -> tuple[subprocess.CompletedProcess[str], dict[str, object]]:
    outcome = tmp_path / "outcome.json"
    command = [sys.executable, "-m", "colo", "demo", "--json", str(outcome), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert outcome.exists(), process.stderr
    return process, json.loads(outcome.read_text())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_demo_shows_equal_different_and_failover(tmp_path: Path, seed: int) -> None:
    process, outcome = demo(tmp_path, "--seed", str(seed))
    assert process.returncode == 0, process.stdout + process.stderr
    assert outcome["equal"] is True
    assert outcome["different"] is True
    assert outcome["failover"] is True
    assert process.stdout.count("  ok  ") == 3
    assert "the secondary carries on" in process.stdout
    assert process.stderr == ""


@pytest.mark.alone
@pytest.mark.requires("netns", "tap")
def test_a_hundred_connections_between_kernels_survive_the_primary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 connections, 1 GB in all, the primary killed at a random moment: every checksum right, none reset."""
    process, outcome = demo(tmp_path, "--kernel")
    assert process.returncode == 0, process.stdout + process.stderr
    assert (outcome["connections"], outcome["bytes"]) == (100, 1_000_000_000)
    assert outcome["failures"] == []
    assert 0 < int(str(outcome["killed_at"])) < 1_000_000_000
    with capsys.disabled():
        print(f"\n  longest silence of a client: {outcome['longest_silence_s']} s, {outcome['seconds']} s in all")


def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "colo", "demo", "--json", str(tmp_path / "none" / "outcome.json")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "cannot be written" in process.stderr
