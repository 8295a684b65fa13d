"""Real QEMU pairs under real traffic: every phase of `pair_load` through each of `pair_sides`.

All pairs stand beside each other, and only one has traffic at a time: they take turns in rounds, every other one
backwards, so that what the host does meanwhile meets all of them alike.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

from tests.bench.pair_load import PHASES
from tests.bench.pair_report import Measured, Results
from tests.bench.pair_sides import NIC, Say, Side, side
from tests.bench.report import machine
from tests.interop.lab import LabError

_GRACE_SECONDS = 60.0


def measure(
    names: Sequence[str],
    phases: Sequence[str],
    seconds: float,
    rounds: int,
    say: Say,
    *,
    nic: str = NIC,
    vnet: bool = False,
) -> Results:
    """All `phases` of all pairs: ``seconds`` in all of each, in ``rounds``. The rest is as for `side`.

    What goes wrong with a pair is a failure of the results, and it is not asked anything more.
    """
    results = Results(
        list(names), list(phases), about={**machine(), "card": nic + (" with a virtio_net_hdr" if vnet else "")}
    )
    pairs: dict[str, Side] = {}
    with ExitStack() as undo:
        for name in names:
            say(f"{name}: starting the pair")
            try:
                pairs[name] = undo.enter_context(side(name, nic, vnet=vnet))
            except LabError as error:
                results.failures.append(f"{name}: {error}")
        for phase in phases:
            for number in range(rounds):
                for name in list(pairs) if number % 2 == 0 else list(reversed(pairs)):
                    say(f"{phase}, round {number + 1} of {rounds}: {name}")
                    try:
                        run = _run(pairs[name], phase, seconds / rounds)
                        results.add(name, phase, number, run)
                        if run.failed and name not in results.stories:
                            results.stories[name] = pairs[name].story()
                        pairs[name].assert_sound()
                    except LabError as error:
                        results.failures.append(f"{name}: {error}")
                        del pairs[name]
        for name, pair in pairs.items():
            results.notes[name] = pair.notes()
    return results


def _run(pair: Side, phase: str, seconds: float) -> Measured:
    if phase not in PHASES:
        raise LabError(f"there is no phase {phase!r}")
    before = pair.checkpoints()
    command = [sys.executable, "-m", "tests.bench.pair_load", pair.address, phase, str(seconds)]
    done = pair.lab.run(command, timeout=seconds + _GRACE_SECONDS)
    if done.returncode:
        raise LabError(f"{phase}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    told = json.loads(done.stdout)
    taken: Counter[str] = pair.checkpoints() - before
    return Measured(told["latencies"], told["seconds"], told["failed"], tuple(told["failures"]), dict(taken))
