"""The engine that stops and copies: whatever is given up half way, no machine is left."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import pytest

from colo.checkpoint import Step
from colo.qemu.machine import Guest, Machine
from colo.qemu.owner import Owner
from colo.qemu.qmp import MonitorError
from colo.qemu.stop_copy import StopCopy
from pystack import Counters

_MEMORY = 1 << 20


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

    def __init__(self, name: str, monitor: Monitor, overlay: Path | None = None, memory: int = -1) -> None:
        self.name, self.monitor, self.directory = name, monitor, Path("/nowhere")
        self.guest = Guest(disk=overlay, overlay=overlay)
        self.alive, self.link, self.memory = True, None, memory

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


def test_a_memory_in_a_file_is_that_of_the_primary_before_its_devices_are_sent() -> None:
    """Whatever the fresh machine has put there, and wherever the primary's has a hole."""
    files = os.memfd_create("primary"), os.memfd_create("spare")
    for file in files:
        os.ftruncate(file, _MEMORY)
    os.pwrite(files[0], b"said" * 5000, 3 << 16)
    os.pwrite(files[1], b"rubbish" * 5000, 7 << 16)
    at_once: list[bool] = []

    class Sending(Monitor):
        """The primary's."""

        async def execute(self, command: str, **_: Any) -> Any:
            if command == "migrate":
                at_once.append(os.pread(files[0], _MEMORY, 0) == os.pread(files[1], _MEMORY, 0))
            return await super().execute(command)

    async def scene() -> None:
        primary = Fake("vm1", Sending(refused="migrate"), memory=files[0])
        spare = Fake("vm2", Monitor(), memory=files[1])

        async def spawn() -> Machine:
            return cast("Machine", spare)

        async def quiesce() -> None:
            """They have no clients."""

        owner = Owner(spawn, lambda _: None, quiesce, lambda: None, lambda: None)
        engine = StopCopy(cast("Machine", primary), owner, Counters())
        engine.begin("test", 0)
        async with asyncio.timeout(10):
            while Step.FAILED not in engine.poll(0):
                await asyncio.sleep(0)
            await engine.close()
        assert at_once == [True]
        assert "migrate-set-capabilities" in primary.monitor.asked
        assert spare.monitor.asked.index("migrate-set-capabilities") < spare.monitor.asked.index("migrate-incoming")

    asyncio.run(scene())
    for file in files:
        os.close(file)


def test_a_disk_that_cannot_be_copied_fails_the_checkpoint_and_stops_nobody(tmp_path: Path) -> None:
    """The primary goes on, and what it was to be copied into is ended."""

    async def scene() -> None:
        written = tmp_path / "written"
        written.write_bytes(b"x")
        primary = Fake("vm1", Monitor(), written)
        spares: list[Fake] = []

        async def spawn() -> Machine:
            spares.append(Fake("spare", Monitor(), tmp_path / "none"))
            return cast("Machine", spares[-1])

        async def quiesce() -> None:
            """They have no clients."""

        owner = Owner(spawn, lambda _: None, quiesce, lambda: None, lambda: None)
        counters = Counters()
        engine = StopCopy(cast("Machine", primary), owner, counters)
        engine.begin("test", 0)
        steps: list[Step] = []
        async with asyncio.timeout(10):
            while Step.FAILED not in steps or spares[0].alive:
                await asyncio.sleep(0)
                steps += engine.poll(0)
        assert steps == [Step.PAUSED, Step.FAILED]
        assert counters["engine.failed"] == 1
        assert primary.monitor.asked == ["stop", "cont"]
        assert engine.secondary is None
        await engine.close()

    asyncio.run(scene())
