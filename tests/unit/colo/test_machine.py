"""What a machine's owner waits for, without a machine."""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path

from colo.qemu.machine import Guest, Machine
from pystack import Counters


def test_events_that_nobody_waits_for_any_more_are_not_kept(tmp_path: Path) -> None:
    """Every checkpoint waits for one that says that it has failed, and most do not."""

    async def play() -> None:
        machine = Machine(Guest(), "vm1", tmp_path, Counters())
        waiting = machine.next_event("MIGRATION failed")
        kept = []
        for _ in range(100):
            future = machine.next_event("MIGRATION failed")
            kept.append(weakref.ref(future))
            future.cancel()
            del future
        assert sum(reference() is not None for reference in kept) <= 1
        assert not waiting.done()
        await machine.kill()

    asyncio.run(play())
