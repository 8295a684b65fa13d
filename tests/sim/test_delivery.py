"""Any seed: two stacks joined by an impaired link deliver every byte in order, close, and leave nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.scenario import Scenario, run

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("PYSTACK_SIM_SEEDS", "1000"))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_byte_arrives_in_order_for_any_seed() -> None:
    # In a process of its own: it uses all cores, and a pool of processes leaves helpers behind.
    command = [sys.executable, "-m", "tests.sim", "--kind", "delivery", "--seeds", str(SEEDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS} seeds, 0 failures" in done.stdout


def test_the_same_seed_gives_the_same_run() -> None:
    worlds = [run(Scenario.of(4)) for _ in range(2)]
    first, second = ([host.stack.counters.snapshot() for host in world.hosts] for world in worlds)
    assert first == second
    assert worlds[0].now == worlds[1].now


def test_scenarios_reach_what_they_are_meant_to() -> None:
    """The sweep is worth its time only if faults, closed windows, offload and wrapping happen in it."""
    seen: dict[str, int] = {}
    for seed in range(150):
        for host in run(Scenario.of(seed)).hosts:
            for name, count in host.stack.counters.snapshot().items():
                seen[name] = seen.get(name, 0) + count
    for name in (
        "tcp.fast_recovery",
        "tcp.out_of_order",
        "tcp.retransmission_timeout",
        "tcp.syn_retransmitted",
        "tcp.window_probe",
        "tcp.bad_checksum",
        "tcp.duplicate_ack",
    ):
        assert seen.get(name), f"no scenario reaches {name}"
    scenarios = [Scenario.of(seed) for seed in range(150)]
    assert any(scenario.near_wrap and scenario.up > 1000 for scenario in scenarios)
    assert any(scenario.offload and scenario.up > 65_535 for scenario in scenarios)
