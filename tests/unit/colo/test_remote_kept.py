"""The machines that an agent runs itself: one that hangs is replaced if a copy is on its way, and lost if not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from colo.qemu.machine import Guest
from colo.qemu.qmp import MonitorError
from colo.remote import common, copy_kept
from colo.remote.copy_kept import CopyKept
from colo.remote.kept import Hooks
from colo.remote.records import Kind, Record
from pystack import Counters, PystackError, memory_pair

PATIENCE = 10.0


class Fake:
    """A machine that is none, with the monitor that it has."""

    def __init__(self, name: str) -> None:
        self.name, self.monitor, self.alive, self.hangs = name, self, True, False
        self.link, self._far = memory_pair(wakeup=True)
        self._events: dict[str, asyncio.Future[Any]] = {}

    async def start(self, *, incoming: bool, paused: bool) -> None:
        assert incoming and paused

    async def execute(self, command: str, *_: Any, **__: Any) -> Any:
        if self.hangs:
            raise MonitorError(f"{self.name}: QEMU does not answer {command}.")
        return {}

    async def hand_over(self, _name: str, sock: socket.socket) -> None:
        assert sock.fileno() >= 0

    async def gone(self) -> None:
        while self.alive:
            await asyncio.sleep(0.01)

    def next_event(self, key: str) -> asyncio.Future[Any]:
        return self._events.setdefault(key, asyncio.get_running_loop().create_future())

    def arrives(self) -> None:
        self.next_event("MIGRATION completed").set_result({})

    async def kill(self) -> None:
        self.alive = False
        for end in (self.link, self._far):
            end.close()


class Scene:
    """The agent's side, whose machine is a copy, and the next one waits."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machines: list[Fake] = []
        self.happened: list[str] = []
        monkeypatch.setattr(copy_kept, "Machine", self._machine)
        note: Callable[[str], Callable[..., None]] = lambda what: lambda *_: self.happened.append(what)  # noqa: E731
        hooks = Hooks(*map(note, ("ready", "received", "stopped", "copied", "not copied", "continued", "failed")))
        self.kept = CopyKept(Guest(), directory, hooks, Counters())
        self.watching = asyncio.create_task(self.kept.watch())

    def _machine(self, _guest: Guest, name: str, *_: Any) -> Fake:
        self.machines.append(Fake(name))
        return self.machines[-1]

    async def until(self, *happened: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while self.happened != list(happened):
                await asyncio.sleep(0.001)
        self.happened.clear()

    def migration(self) -> None:
        near, far = socket.socketpair()
        far.close()
        self.kept.take_migration(near)

    def say(self, kind: Kind) -> None:
        self.kept.take(Record(kind, b"", 0))


@contextlib.asynccontextmanager
async def scene(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    it = Scene(directory, monkeypatch)
    try:
        await it.until("ready")
        it.migration()
        it.machines[0].arrives()
        await it.until("copied", "ready")
        yield it
    finally:
        await it.kept.close()
        it.watching.cancel()
        await asyncio.gather(it.watching, return_exceptions=True)
    assert not any(machine.alive for machine in it.machines)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "_ALIVE_SECONDS", 0.01)


async def noticed() -> None:
    """Time enough to be missed."""
    await asyncio.sleep(0.1)


def test_a_machine_that_hangs_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with scene(tmp_path, monkeypatch) as it:
            await noticed()
            assert not it.watching.done()
            it.machines[0].hangs = True
            with pytest.raises(PystackError, match="The secondary is lost: vm1: QEMU does not answer query-status"):
                await asyncio.wait_for(it.watching, PATIENCE)

    asyncio.run(play())


def test_a_machine_that_hangs_when_a_copy_is_on_its_way_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint may be taken because nothing comes from it, and last until it is missed."""

    async def play() -> None:
        async with scene(tmp_path, monkeypatch) as it:
            it.machines[0].hangs = True
            it.say(Kind.STOP)
            await it.until("stopped")
            it.migration()
            await noticed()
            it.machines[1].arrives()
            await it.until("copied", "ready")
            await noticed()
            assert not it.watching.done()
            assert [machine.alive for machine in it.machines] == [False, True, True]
            it.machines[1].hangs = True
            with pytest.raises(PystackError, match="The secondary is lost: vm2"):
                await asyncio.wait_for(it.watching, PATIENCE)

    asyncio.run(play())


@pytest.mark.parametrize("end", ["go on", "take over"])
def test_a_machine_that_hangs_is_lost_when_nothing_comes_of_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    async def play() -> None:
        async with scene(tmp_path, monkeypatch) as it:
            it.say(Kind.STOP)
            await it.until("stopped")
            it.machines[0].hangs = True
            await noticed()
            assert not it.watching.done()
            if end == "go on":
                it.say(Kind.GO_ON)
            else:
                await it.kept.take_over()
            with pytest.raises(PystackError, match="The secondary is lost: vm1"):
                await asyncio.wait_for(it.watching, PATIENCE)

    asyncio.run(play())
