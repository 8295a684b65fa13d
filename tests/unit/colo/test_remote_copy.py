"""Stop-and-copy over a link, as the proxy has it: whatever the agent answers, the primary runs again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from colo.address import Address
from colo.checkpoint import Step
from colo.qemu.machine import Machine
from colo.qemu.qmp import Refused
from colo.remote import copy_partner
from colo.remote.copy_partner import CopyPartner
from colo.remote.partner import Hooks
from colo.remote.records import (
    HELLO_BYTES,
    Engine,
    Hello,
    Kind,
    Purpose,
    Record,
    RecordDecoder,
    Side,
    State,
    decode_hello_untrusted,
    encode,
)
from pystack import Counters

HELLO = Hello(Purpose.RECORDS, State.FRESH, Engine.STOP_COPY, bytes(16), 100, 10_000)


class Primary:
    """A machine that is none: it says what it is told to do, and its migration ends as it is told."""

    def __init__(self) -> None:
        self.monitor = self
        self.asked: list[str] = []
        self.refused = ""
        self.killed = False
        self.answers = asyncio.Event()  # to `migrate`; it does so at once
        self.answers.set()
        self.events: dict[str, asyncio.Future[Any]] = {}

    async def execute(self, command: str, *_: Any, **__: Any) -> Any:
        self.asked.append(command)
        if command == "migrate":
            await self.answers.wait()
        if command == self.refused:
            raise Refused("Migration is not finalized yet.")
        return {}

    async def kill(self) -> None:
        self.killed = True

    async def hand_over(self, name: str, sock: socket.socket) -> None:
        assert (name, sock.fileno() >= 0) == ("migration", True)
        self.asked.append("hand over")

    def next_event(self, key: str) -> asyncio.Future[Any]:
        self.events[key] = asyncio.get_running_loop().create_future()
        return self.events[key]

    def happens(self, key: str) -> None:
        self.events[key].set_result({})


class Scene:
    """A partner, and the agent's end of its session."""

    def __init__(self, directory: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(directory / "agent"))
        self.listener.listen(4)
        self.listener.setblocking(False)
        ours, self.sock = socket.socketpair()
        self.sock.setblocking(False)
        self.primary = Primary()
        self.counters = Counters()
        self.attached = self.ready = 0
        self.lost: list[str] = []
        self.steps: list[Step] = []
        hooks = Hooks(self._on_ready, self._on_attach, self._quiesce, lambda: None, lambda: None, self.lost.append)
        where = Address(str(directory / "agent"), server=False)
        self.partner = CopyPartner(ours, HELLO, where, cast("Machine", self.primary), hooks, self.counters)
        self._decoder = RecordDecoder(Side.PROXY)
        self._heard: list[Record] = []

    def _on_ready(self) -> None:
        self.ready += 1

    def _on_attach(self, _link: object) -> None:
        self.attached += 1

    async def _quiesce(self) -> None:
        """They have no clients."""

    def say(self, kind: Kind, body: bytes = b"", epoch: int | None = None) -> None:
        self.sock.sendall(encode(kind, body, epoch))

    async def hears(self, kind: Kind) -> Record:
        """The proxy's next record but its signs of life, which must be of this kind."""
        async with asyncio.timeout(10):
            while not self._heard:
                data = await asyncio.get_running_loop().sock_recv(self.sock, 65_536)
                assert data, "the proxy has closed the session"
                records = self._decoder.feed_untrusted(data)
                self._heard += [record for record in records if record.kind is not Kind.HEARTBEAT]
        record = self._heard.pop(0)
        assert record.kind is kind
        return record

    async def migrates(self) -> socket.socket:
        """The connection for the primary's state, which begins with a HELLO."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            sock, _ = await loop.sock_accept(self.listener)
            hello = decode_hello_untrusted(await loop.sock_recv(sock, HELLO_BYTES))
        assert hello == HELLO._replace(purpose=Purpose.MIGRATION)
        return sock

    async def until(self, *steps: Step) -> None:
        async with asyncio.timeout(10):
            while len(self.steps) < len(steps):
                await asyncio.sleep(0.001)
                self.steps += self.partner.poll(0)
        assert self.steps == list(steps)
        self.steps.clear()

    async def begun(self) -> None:
        """A checkpoint is asked for, and the agent is to stop its machine."""
        self.say(Kind.READY)
        self.partner.begin("test", 0)
        await self.hears(Kind.STOP)

    async def migrating(self) -> None:
        """And the primary has begun to migrate."""
        before = self.primary.asked.count("migrate")
        await self.begun()
        self.say(Kind.STOPPED)
        (await self.migrates()).close()
        while self.primary.asked.count("migrate") == before:
            await asyncio.sleep(0.001)

    async def copied(self, epoch: int) -> None:
        """A checkpoint that goes well."""
        await self.migrating()
        self.say(Kind.COMPLETED, b"", epoch)
        await asyncio.sleep(0.01)
        self.primary.happens("MIGRATION completed")
        await self.until(Step.PAUSED, Step.COMPLETED, Step.RESUMED)


@contextlib.asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    it = Scene(directory)
    try:
        yield it
    finally:
        it.partner.close()
        it.partner.link.close()
        it.sock.close()
        it.listener.close()


def test_the_first_copy_joins_and_the_next_ones_keep_in_step(tmp_path: Path) -> None:
    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.copied(0)
            assert (it.partner.joined, it.attached) == (True, 1)
            assert it.primary.asked == ["stop", "hand over", "migrate-set-parameters", "migrate", "cont"]
            await it.copied(1)
            assert (it.attached, it.lost) == (1, [])
            assert it.ready == 2
            assert (it.counters["engine.joined"], it.counters["engine.copied"]) == (1, 2)

    asyncio.run(play())


def test_frames_before_stopped_belong_before_the_boundary(tmp_path: Path) -> None:
    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.copied(0)
            await it.begun()
            it.say(Kind.SECONDARY, b"before")
            it.say(Kind.STOPPED)
            await it.until(Step.PAUSED)
            (await it.migrates()).close()
            it.say(Kind.COMPLETED, b"", 1)
            it.say(Kind.SECONDARY, b"behind")
            it.primary.happens("MIGRATION completed")
            await it.until(Step.COMPLETED, Step.RESUMED)
            assert it.partner.link.recv_to_mark(drop_cut=True) == [b"before"]
            assert it.partner.link.recv(0) == [b"behind"]

    asyncio.run(play())


@pytest.mark.parametrize("why", ["refused", "failed", "both"])
def test_a_copy_that_fails_lets_both_go_on(tmp_path: Path, why: str) -> None:
    """The agent says so, or the primary, or one after the other; and the next copy is made."""

    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.copied(0)
            it.primary.asked.clear()
            await it.migrating()
            if why != "failed":
                it.say(Kind.NOT_COPIED, b"The copy does not arrive whole.")
            if why != "refused":
                it.primary.happens("MIGRATION failed")
            await it.hears(Kind.GO_ON)
            await it.until(Step.PAUSED, Step.FAILED)
            assert it.primary.asked[-2:] == ["migrate_cancel", "cont"]
            assert it.lost == []
            await it.copied(1)

    asyncio.run(play())


@pytest.mark.parametrize("why", ["refused", "failed", "both"])
def test_a_copy_may_have_failed_before_the_primary_says_that_it_begins(tmp_path: Path, why: str) -> None:
    """Its answer to `migrate` comes late: what is known by then is not waited for."""

    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.copied(0)
            it.primary.answers.clear()
            await it.migrating()
            if why != "failed":
                it.say(Kind.NOT_COPIED, b"No machine waits for a copy.")
                await asyncio.sleep(0.05)
            if why != "refused":
                it.primary.happens("MIGRATION failed")
            it.primary.answers.set()
            await it.hears(Kind.GO_ON)
            await it.until(Step.PAUSED, Step.FAILED)
            await it.copied(1)

    asyncio.run(play())


def test_a_first_copy_that_fails_is_the_end_of_that_agent(tmp_path: Path) -> None:
    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.begun()
            it.say(Kind.NOT_COPIED, b"No machine waits for a copy.")
            await it.hears(Kind.BYE)
            assert it.lost == ["No machine waits for a copy."]
            await it.partner.free_primary()
            assert it.primary.asked == ["stop", "cont"]

    asyncio.run(play())


def test_a_copy_that_was_given_up_and_is_made_all_the_same_parts_the_two(tmp_path: Path) -> None:
    """The machine over there is of an epoch that nobody here has begun."""

    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.copied(0)
            await it.migrating()
            it.primary.happens("MIGRATION failed")
            await it.until(Step.PAUSED, Step.FAILED)
            await it.hears(Kind.GO_ON)
            it.say(Kind.COMPLETED, b"", 1)
            await it.hears(Kind.BYE)
            assert it.lost == ["it has made a copy that was given up"]

    asyncio.run(play())


def test_an_agent_whose_next_machine_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients wait for a checkpoint: it fails soon, without the primary's being stopped, and is tried again."""
    monkeypatch.setattr(copy_partner, "_SPARE_SECONDS", 0.05)

    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.copied(0)
            it.primary.asked.clear()
            it.partner.begin("test", 0)
            await it.until(Step.FAILED)
            assert (it.primary.asked, it.counters["engine.spare_failed"]) == ([], 1)
            await it.copied(1)

    asyncio.run(play())


def test_an_agent_that_does_not_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_partner, "_STOP_SECONDS", 0.05)

    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.copied(0)
            await it.begun()
            await it.hears(Kind.GO_ON)
            await it.until(Step.FAILED)
            assert it.primary.asked[-2:] == ["stop", "cont"]

    asyncio.run(play())


def test_a_primary_that_does_not_go_on_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stand still with nobody to notice: the agent carries on when it is lost."""
    monkeypatch.setattr(copy_partner, "_GO_ON_SECONDS", 0.02)

    async def play() -> None:
        async with scene(tmp_path) as it:
            it.primary.refused = "cont"
            await it.copied(0)
            assert (it.primary.killed, it.counters["engine.not_continued"]) == (True, 1)
            assert it.primary.asked.count("cont") > 1

    asyncio.run(play())


def test_the_primary_runs_again_when_the_agent_is_lost_half_way(tmp_path: Path) -> None:
    async def play() -> None:
        async with scene(tmp_path) as it:
            await it.copied(0)
            await it.begun()
            it.sock.close()
            while not it.lost:
                await asyncio.sleep(0.001)
            await it.partner.free_primary()
            assert it.primary.asked[-2:] == ["stop", "cont"]

    asyncio.run(play())
