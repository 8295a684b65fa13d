"""Real QEMU pairs under real traffic: every phase of `pair_load` through each of `pair_sides`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence

from tests.bench.pair_load import PHASES
from tests.bench.pair_report import Measured, Results
from tests.bench.pair_sides import ADDRESS, Say, Side, side
from tests.bench.report import machine
from tests.interop.lab import LabError

_GRACE_SECONDS = 60.0


def measure(names: Sequence[str], phases: Sequence[str], seconds: float, say: Say) -> Results:
    """One pair after the other, each with all `phases`. What goes wrong with a pair is a failure of the results."""
    results = Results(list(names), list(phases), about=machine())
    for name in names:
        say(f"{name}: starting the pair")
        try:
            with side(name) as pair:
                for phase in phases:
                    say(f"{name}: {phase}")
                    results.runs[name, phase] = _run(pair, phase, seconds)
                    pair.assert_sound()
                results.notes[name] = pair.notes()
        except LabError as error:
            results.failures.append(f"{name}: {error}")
    return results


def _run(pair: Side, phase: str, seconds: float) -> Measured:
    if phase not in PHASES:
        raise LabError(f"there is no phase {phase!r}")
    before = pair.checkpoints()
    command = [sys.executable, "-m", "tests.bench.pair_load", ADDRESS, phase, str(seconds)]
    done = pair.lab.run(command, timeout=seconds + _GRACE_SECONDS)
    if done.returncode:
        raise LabError(f"{phase}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    told = json.loads(done.stdout)
    taken: Counter[str] = pair.checkpoints() - before
    return Measured(told["latencies"], told["seconds"], told["failed"], tuple(told["failures"]), dict(taken))
