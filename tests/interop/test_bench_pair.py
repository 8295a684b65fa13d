"""Real pairs beside QEMU's own under every kind of traffic: every answer right, and figures to read in the log.

What the figures have to be is no test's business, as they are those of the machine of the day: `python -m tests.bench
pair`, for long enough, and docs/reference/benchmarks.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.pair_load import DETERMINISTIC, PHASES
from tests.bench.pair_sides import ENGINES, QEMU

pytestmark = [
    pytest.mark.requires("qemu", "busybox", "cc", "tap", "ip", "nsenter", "unshare", "setpriv"),
    pytest.mark.timeout(280),
    pytest.mark.alone,
]

ROOT = Path(__file__).resolve().parents[2]


def test_every_service_through_every_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "tests.bench", "pair", "--seconds", "2", "--rounds", "2", "--json", str(figures)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=270, check=False)
    with capsys.disabled():
        print(f"\n{done.stdout}")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    told = json.loads(figures.read_text(encoding="utf-8"))
    # What QEMU's own does is shown, and for it to answer for.
    assert [failure for failure in told["failures"] if not failure.startswith(QEMU)] == []
    ours = [one for one in told["results"] if one["side"] != QEMU]
    assert {(one["side"], one["phase"]) for one in ours} == {(side, phase) for side in ENGINES for phase in PHASES}
    for one in ours:
        assert one["failed"] == 0, one
        assert one["requests"] > 0, one
        assert one["phase"] not in DETERMINISTIC or one["checkpoints"] == {}, one
