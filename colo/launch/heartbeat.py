"""Machines that are asked, again and again, whether they live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from colo.launch.plan import Plan
from colo.qemu.machine import Machine
from colo.qemu.qmp import MonitorError
from pystack import Counters


async def watch_over(
    machine: Machine,
    plan: Plan,
    counters: Counters,
    tell: Callable[[str], None],
    should_run: Callable[[], bool],
    closing: Callable[[], bool],
) -> None:
    """End ``machine`` once it does not answer: then it is gone for everybody, and cannot come back to life.

    Or once it answers and does not run though it should. QEMU stops a machine by itself, after a fault of KVM for one;
    nobody would hear of it, and its clients would wait.

    Args:
        tell: called with what happens, for a person. should_run: whether there is no reason for it to stand still.
        closing: whether all of it is about to end.
    """
    stands_since = 0.0  # it runs
    while machine.alive and not closing():
        await asyncio.sleep(plan.heartbeat)
        try:
            status = await machine.monitor.execute("query-status", seconds=plan.patience)
        except MonitorError:
            if not machine.ended.done() and not closing():
                counters.bump("pair.heartbeats_lost")
                await machine.kill()
            return
        if status.get("running", True) or not should_run():
            stands_since = 0.0
        elif not stands_since:
            stands_since = time.monotonic()
        elif time.monotonic() - stands_since > plan.patience:
            counters.bump("pair.stood_still")
            tell(f"{machine.name} stands still ({status.get('status', 'it does not say why')}): it is ended")
            await machine.kill()
            return
