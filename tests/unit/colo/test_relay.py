"""The relay in a migration stream: between two sockets, held at every boundary."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Self

import pytest

from colo.qemu.colo_stream import Event, Message
from colo.qemu.relay import Relay
from pystack import Counters, LinkError

BIG = 8 << 20


def word(message: Message) -> bytes:
    return message.to_bytes(4, "big")


class Rig:
    """A relay, with the test at both ends."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.events: list[Event] = []
        self.ends: list[bool] = []
        self.on_event: Callable[[Event], None] = lambda _: None

    async def __aenter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.directory / "state"))
        self._listener.listen(1)
        self.relay = Relay(self.directory / "in", self.directory / "state", self._happened, self._end, Counters())
        self.primary = socket.socket(socket.AF_UNIX)
        self.primary.connect(str(self.directory / "in"))
        self.primary.setblocking(False)
        await asyncio.sleep(0)
        self._listener.setblocking(False)
        self.secondary, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(self._listener), 5)
        self.secondary.setblocking(False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.relay.close()
        for sock in (self.primary, self.secondary, self._listener):
            sock.close()

    def _happened(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def _end(self) -> None:
        self.ends.append(self.relay.stream.undecided)

    async def says(self, sock: socket.socket, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(sock, data), 10)

    async def hears(self, sock: socket.socket, size: int) -> bytes:
        heard = b""
        while len(heard) < size:
            data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1 << 20), 10)
            if not data:
                break
            heard += data
        return heard


def run(tmp_path: Path, scene: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Rig(tmp_path) as rig:
            await scene(rig)

    asyncio.run(main())


def test_nothing_behind_a_boundary_is_handed_on_before_it_was_told(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        unread: list[bool] = []

        def look(_event: Event) -> None:
            rig.secondary.setblocking(False)
            with pytest.raises(BlockingIOError):
                rig.secondary.recv(1, socket.MSG_PEEK)
            unread.append(True)

        await rig.says(rig.secondary, word(Message.CHECKPOINT_READY))
        assert await rig.hears(rig.primary, 4) == word(Message.CHECKPOINT_READY)
        await rig.says(rig.primary, word(Message.CHECKPOINT_REQUEST))
        assert await rig.hears(rig.secondary, 4) == word(Message.CHECKPOINT_REQUEST)
        rig.on_event = look
        await rig.says(rig.primary, word(Message.VMSTATE_SEND) + b"memory")
        assert await rig.hears(rig.secondary, 10) == word(Message.VMSTATE_SEND) + b"memory"
        assert rig.events == [Event.ENTERED, Event.REQUESTED, Event.BOTH_STOPPED]
        assert unread == [True]

    run(tmp_path, scene)


def test_much_memory_goes_through_whole_and_is_not_heaped_up_for_a_slow_reader(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        data = bytes(range(256)) * (BIG // 256)
        saying = asyncio.create_task(rig.says(rig.primary, data))
        await asyncio.sleep(0.2)
        assert not saying.done()  # the relay has stopped reading
        assert rig.relay.passed < BIG
        assert await rig.hears(rig.secondary, BIG) == data
        await saying
        assert rig.relay.passed == BIG

    run(tmp_path, scene)


def test_a_secondary_may_say_its_last_word_after_the_primary_has_gone(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.says(rig.secondary, word(Message.CHECKPOINT_READY))
        await rig.hears(rig.primary, 4)
        await rig.says(rig.primary, word(Message.CHECKPOINT_REQUEST) + word(Message.VMSTATE_SEND) + b"all of it")
        await rig.says(rig.secondary, word(Message.CHECKPOINT_REPLY) + word(Message.VMSTATE_RECEIVED))
        assert len(await rig.hears(rig.secondary, 17)) == 17
        rig.primary.close()
        assert await rig.hears(rig.secondary, 1) == b""
        assert rig.relay.stream.undecided
        assert rig.ends == []
        await rig.says(rig.secondary, word(Message.VMSTATE_LOADED))
        rig.secondary.close()
        for _ in range(100):
            await asyncio.sleep(0.01)
            if rig.ends:
                break
        assert rig.events[-1] is Event.LOADED
        assert rig.ends == [False]

    run(tmp_path, scene)


def test_a_path_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"")

    async def scene() -> None:
        with pytest.raises(LinkError, match="in exists and is not a socket"):
            Relay(tmp_path / "in", tmp_path / "state", lambda _: None, lambda: None, Counters())

    asyncio.run(scene())
