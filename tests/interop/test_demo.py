"""`pystack demo`, in a namespace and in memory: it ends well, says which of the two it was, and checks what arrived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def _demo(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pystack.cli", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _check(said: str) -> None:
    lines = said.splitlines()
    assert sum(line.startswith("ok ") for line in lines) == 5
    assert not any(line.startswith("FAILED") for line in lines)
    assert said.count("SHA-256 equal") == 3
    assert lines[-1] == "All of it arrived as it was sent."
    for figure in ("TCP connections", "Bytes to the guest", "Throughput to the guest", "Retransmissions"):
        assert figure in said


@pytest.mark.requires("netns", "userns", "tap")
def test_a_real_client_in_a_namespace() -> None:
    said = _demo()
    _check(said)
    assert "in a network namespace" in said


def test_a_second_stack_in_memory(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    said = _demo("--in-memory", "--svg", str(picture))
    _check(said)
    assert "a second stack in this process, as you asked" in said
    drawn = picture.read_text(encoding="utf-8")
    assert drawn.startswith("<svg")
    assert "Gbit/s" in drawn


@pytest.mark.requires("root", "unshare")
def test_without_a_tap_it_says_why_and_does_the_same_in_memory() -> None:
    script = 'mount -t tmpfs none /dev/net && exec "$0" "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, "-m", "pystack.cli", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    _check(done.stdout)
    assert "there can be no namespace with a TAP here: There is no /dev/net/tun" in done.stdout
