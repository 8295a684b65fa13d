"""The engine that stops and copies: whatever is given up half way, no machine is left."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from colo.checkpoint import Step
from colo.qemu import stop_copy
from colo.qemu.machine import Guest, Machine
from colo.qemu.owner import Owner
from colo.qemu.qmp import Refused
from colo.qemu.stop_copy import StopCopy
from pystack import Counters

_MEMORY = 1 << 20


class Monitor:
    """Answers everything but ``stuck``, which it never does, and ``refused``."""

    def __init__(self, stuck: str = "", refused: str = "") -> None:
        self.stuck, self.refused = stuck, refused
        self.asked: list[str] = []

    async def execute(self, command: str, *_: Any, **__: Any) -> Any:
        self.asked.append(command)
        if command == self.stuck:
            await asyncio.Event().wait()
        if command == self.refused:
            raise Refused(f"QEMU refuses {command}.")
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


async def _quiesce() -> None:
    """They have no clients."""


def owner_of(spawn: Callable[[], Awaitable[Machine]]) -> Owner:
    """One without a proxy."""
    return Owner(spawn, lambda _: None, _quiesce, lambda: None, lambda: None)


@pytest.mark.parametrize("stuck", ["migrate-incoming", "migrate"])
def test_closed_at_any_step_no_spare_is_left(stuck: str) -> None:
    async def scene() -> None:
        primary, spare = Fake("vm1", Monitor(stuck)), Fake("vm2", Monitor(stuck))

        async def spawn() -> Machine:
            return cast("Machine", spare)

        engine = StopCopy(cast("Machine", primary), owner_of(spawn), Counters())
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

        engine = StopCopy(cast("Machine", Fake("vm1", Monitor())), owner_of(spawn), Counters())
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

        async def execute(self, command: str, *_: Any, **__: Any) -> Any:
            if command == "migrate":
                at_once.append(os.pread(files[0], _MEMORY, 0) == os.pread(files[1], _MEMORY, 0))
            return await super().execute(command)

    async def scene() -> None:
        primary = Fake("vm1", Sending(refused="migrate"), memory=files[0])
        spare = Fake("vm2", Monitor(), memory=files[1])

        async def spawn() -> Machine:
            return cast("Machine", spare)

        engine = StopCopy(cast("Machine", primary), owner_of(spawn), Counters())
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


def test_a_copy_that_is_given_up_half_way_writes_to_no_other_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its thread goes on for a moment, when the machines' files are closed and others have their numbers."""
    began, go_on = threading.Event(), threading.Event()

    def slowly(target: int) -> None:
        began.set()
        assert go_on.wait(20)
        os.pwrite(target, b"rubbish", 0)

    monkeypatch.setattr(stop_copy, "blank", slowly)
    files = os.memfd_create("primary"), os.memfd_create("spare")
    others: list[int] = []

    async def scene() -> None:
        async def spawn() -> Machine:
            return cast("Machine", Fake("vm2", Monitor(), memory=files[1]))

        primary = cast("Machine", Fake("vm1", Monitor(), memory=files[0]))
        engine = StopCopy(primary, owner_of(spawn), Counters())
        engine.begin("test", 0)
        await asyncio.to_thread(began.wait, 20)
        await engine.close()
        for file in files:
            os.close(file)
        while not set(files) <= set(others):
            others.append(os.open(tmp_path / str(len(others)), os.O_RDWR | os.O_CREAT))
        go_on.set()

    asyncio.run(scene())  # which waits for its threads
    for other in others:
        os.close(other)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b""}


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

        counters = Counters()
        engine = StopCopy(cast("Machine", primary), owner_of(spawn), counters)
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


@pytest.mark.parametrize("copied", [True, False])
def test_a_primary_that_does_not_go_on_is_ended(monkeypatch: pytest.MonkeyPatch, copied: bool) -> None:
    """It would stand still with nobody to notice, and its clients wait: let the secondary carry on."""
    monkeypatch.setattr(stop_copy, "_PRIMARY_SECONDS", 0.02)

    class Listening(Fake):
        """A fresh machine whose state arrives, or does not."""

        def next_event(self, key: str) -> asyncio.Future[Any]:
            event = super().next_event(key)
            if key == ("MIGRATION completed" if copied else "MIGRATION failed"):
                event.set_result({})
            return event

    async def scene() -> None:
        primary, spare = Fake("vm1", Monitor(refused="cont")), Listening("vm2", Monitor())

        async def spawn() -> Machine:
            return cast("Machine", spare if spare.alive else Fake("vm3", Monitor()))

        counters = Counters()
        engine = StopCopy(cast("Machine", primary), owner_of(spawn), counters)
        engine.begin("test", 0)
        async with asyncio.timeout(10):
            while primary.alive:
                await asyncio.sleep(0)
        assert (counters["engine.not_continued"], engine.secondary is not None, spare.alive) == (1, copied, copied)
        await engine.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ((), False),
        (("-usb", "-device", "virtio-rng-pci", "-name", "m"), True),  # better once too often
        (("-usb", "-rtc", "base=utc"), False),
        (("-m", "512"), True),
        (("--mem-path", "/dev/hugepages"), True),
        (("-machine", "q35,memory-backend=mine"), True),
        (("-numa", "node,memdev=mine"), True),
    ],
)
def test_a_person_who_says_of_memory_has_it_so(extra: tuple[str, ...], says: bool) -> None:
    assert Guest(extra=extra).says_of_memory is says
