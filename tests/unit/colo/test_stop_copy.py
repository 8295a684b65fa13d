"""The engine that stops and copies: whatever is given up half way, no machine is left."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from colo.qemu.machine import Machine
from colo.qemu.owner import Owner
from colo.qemu.qmp import MonitorError
from colo.qemu.stop_copy import StopCopy
from pystack import Counters


class Monitor:
    """Answers everything but ``stuck``, which it never does, and ``refused``."""

    def __init__(self, stuck: str = "", refused: str = "") -> None:
        self.stuck, self.refused = stuck, refused
        self.asked: list[str] = []

    async def execute(self, command: str, **_: Any) -> Any:
        self.asked.append(command)
        if command == self.stuck:
            await asyncio.Event().wait()
        if command == self.refused:
            raise MonitorError(f"QEMU refuses {command}.")
        return {}


class Fake:
    """A machine that is none."""

    def __init__(self, name: str, monitor: Monitor) -> None:
        self.name, self.monitor, self.directory = name, monitor, Path("/nowhere")
        self.alive, self.link = True, None

    def next_event(self, _: str) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    async def kill(self) -> None:
        self.alive = False


@pytest.mark.parametrize("stuck", ["migrate-incoming", "migrate"])
def test_closed_at_any_step_no_spare_is_left(stuck: str) -> None:
    async def scene() -> None:
        primary, spare = Fake("vm1", Monitor(stuck)), Fake("vm2", Monitor(stuck))

        async def spawn() -> Machine:
            return cast("Machine", spare)

        async def quiesce() -> None:
            """They have no clients."""

        owner = Owner(spawn, lambda _: None, quiesce, lambda: None, lambda: None)
        engine = StopCopy(cast("Machine", primary), owner, Counters())
        engine.begin("test", 0)
        async with asyncio.timeout(10):
            while stuck not in primary.monitor.asked + spare.monitor.asked:
                await asyncio.sleep(0)
            assert spare.alive
            await engine.close()
        assert (primary.alive, spare.alive) == (True, False)

    asyncio.run(scene())


def test_a_spare_that_does_not_listen_is_ended() -> None:
    async def scene() -> None:
        spares: list[Fake] = []

        async def spawn() -> Machine:
            spares.append(Fake("spare", Monitor(refused="migrate-incoming")))
            return cast("Machine", spares[-1])

        async def quiesce() -> None:
            """They have no clients."""

        owner = Owner(spawn, lambda _: None, quiesce, lambda: None, lambda: None)
        engine = StopCopy(cast("Machine", Fake("vm1", Monitor())), owner, Counters())
        engine.begin("test", 0)
        async with asyncio.timeout(10):
            while not spares or spares[0].alive:
                await asyncio.sleep(0)
            await engine.close()
        assert not any(spare.alive for spare in spares)

    asyncio.run(scene())
