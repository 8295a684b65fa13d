"""Stop-and-copy with two real machines that boot nothing: what is copied is what was there."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colo.checkpoint import Step
from colo.qemu.machine import Guest, Machine
from colo.qemu.owner import Owner
from colo.qemu.qmp import Monitor, Refused
from colo.qemu.stop_copy import StopCopy
from pystack import Counters
from tests.interop import preload

pytestmark = pytest.mark.requires("qemu")

_SMALL = Guest(memory_mib=32)
_BIOS = b"SeaBIOS"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a UNIX socket's has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="colo-") as path:
        yield Path(path)


class Rig:
    """A primary, and the engine under test.

    Attributes:
        compared: for each copy, whether the memories of both machines are the same, before either goes on.
    """

    def __init__(self, directory: Path, guest: Guest, *, files: bool) -> None:
        self.counters = Counters()
        self.compared: list[bool] = []
        self._guest, self._directory, self._files = guest, directory, files
        self._number = 0
        self.primary = self._machine()
        owner = Owner(self._spawn, self._attach, self._quiesce, lambda: None, lambda: None)
        self.engine = StopCopy(self.primary, owner, self.counters)

    def _machine(self) -> Machine:
        self._number += 1
        return Machine(
            replace(self._guest), f"vm{self._number}", self._directory, self.counters, memory_file=self._files
        )

    async def _spawn(self) -> Machine:
        machine = self._machine()
        try:
            await machine.start(incoming=True, paused=True)
        except BaseException:  # that nobody wants it any more, too
            await machine.kill()
            raise
        return machine

    def _attach(self, machine: Machine) -> None:
        if machine.memory >= 0:
            self.compared.append(whole(machine.memory) == whole(self.primary.memory))

    async def _quiesce(self) -> None:
        """They have no clients."""

    async def checkpoint(self) -> list[Step]:
        """Take one."""
        self.engine.begin("test", 0)
        steps: list[Step] = []
        async with asyncio.timeout(30):
            while not steps or steps[-1] not in (Step.RESUMED, Step.FAILED):
                await asyncio.sleep(0.001)
                steps += self.engine.poll(0)
        return steps

    async def close(self) -> None:
        await self.engine.close()
        await self.primary.kill()


def whole(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


TAKEN = [Step.PAUSED, Step.COMPLETED, Step.RESUMED]


def test_memory_in_a_file_is_copied_whole_and_qemu_sends_none_of_it(directory: Path) -> None:
    async def scene() -> None:
        rig = Rig(directory, _SMALL, files=True)
        try:
            await rig.primary.start()
            for number in range(1, 4):
                assert await rig.checkpoint() == TAKEN
                assert rig.compared == [True] * number
            assert _BIOS in whole(rig.primary.memory), "they have something to compare"
            sent = rig.engine.last_copied_bytes * 3 - rig.counters["engine.memory_bytes"]
            assert 0 < sent < 8 << 20, "QEMU has sent its own memories, and not the guest's"
            secondary = rig.engine.secondary
            assert secondary is not None
            assert (await secondary.monitor.execute("query-status"))["status"] == "running"
            await rig.engine.lose_secondary()
            assert await rig.checkpoint() == TAKEN, "another one after a loss"
        finally:
            await rig.close()

    asyncio.run(scene())
    assert not [link for link in open_files() if "colo-vm" in link], "no memory stays open"


def open_files() -> list[str]:
    links = []
    for file in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(file.readlink()))
        except OSError:
            continue  # it was of the listing itself
    return links


def test_memory_that_is_no_file_is_sent_by_qemu(directory: Path) -> None:
    async def scene() -> None:
        rig = Rig(directory, _SMALL, files=False)
        try:
            await rig.primary.start()
            for _ in range(2):
                assert await rig.checkpoint() == TAKEN
            assert rig.counters["engine.memory_bytes"] == 0
            assert rig.engine.last_copied_bytes > 100_000
        finally:
            await rig.close()

    asyncio.run(scene())


@pytest.mark.requires("cc")
@pytest.mark.parametrize("files", [True, False])
def test_a_primary_whose_migration_ends_late_goes_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    """QEMU tells of the end, and refuses to go on until its thread is done with it. It would stand still for good."""
    refused: list[str] = []
    execute = Monitor.execute

    async def noted(monitor: Monitor, command: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await execute(monitor, command, *args, **kwargs)
        except Refused:
            refused.append(command)
            raise

    async def scene() -> None:
        environment = {"LD_PRELOAD": str(preload.library(preload.LATE_END))}
        rig = Rig(directory, replace(_SMALL, environment=environment), files=files)
        try:
            await rig.primary.start()
            for _ in range(10):
                assert await rig.checkpoint() == TAKEN
                assert (await rig.primary.monitor.execute("query-status"))["status"] == "running"
                assert rig.counters["engine.not_continued"] == 0
                if refused:
                    break
        finally:
            await rig.close()

    monkeypatch.setattr(Monitor, "execute", noted)
    asyncio.run(scene())
    assert set(refused) == {"cont"}, "the race was never lost, so that this shows nothing"
