"""What holds a boundary between two hosts: the secondary's link in the proxy, and the relay that waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.qemu.colo_stream import ColoStream, Event, Message
from colo.qemu.relay import Relay
from colo.remote.links import RemoteLink, check_client
from pystack import Counters, UsageError


def word(message: Message) -> bytes:
    return message.to_bytes(4, "big")


def test_a_boundary_in_the_frames_of_the_secondary() -> None:
    said: list[bytes] = []
    link = RemoteLink(said.append, Counters())
    try:
        for frame in (b"1", b"2"):
            link.feed(frame)
        link.mark()
        link.feed(b"3")
        link.bound()
        link.feed(b"4")
        assert link.next_timeout() == 0
        assert link.recv_to_mark(drop_cut=True) == [b"1", b"2", b"3"]
        assert link.recv(0, 64) == [b"4"]
        assert link.next_timeout() is None
        link.feed(b"5")  # a checkpoint that fails has no boundary
        link.mark()
        link.feed(b"6")
        assert link.recv_to_mark(drop_cut=True) == [b"5", b"6"]
        assert link.send([(b"a", b"b"), (b"c",)], 0) == 2
        assert said == [b"ab", b"c"]
    finally:
        link.close()


@pytest.mark.parametrize("text", ["eth0", "tap:", "tcp:nowhere", "unix:"])
def test_a_network_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"--client: .* is no network: write tap:NAME"):
        check_client(text)


def relayed(
    directory: Path, happened: Callable[[Event], bool | None]
) -> tuple[Relay, socket.socket, Callable[[], socket.socket], socket.socket]:
    """A relay whose primary has connected already, as an agent has it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "state"))
    listener.listen(1)
    ours, primary = socket.socketpair()
    counters = Counters()
    stream = ColoStream(counters, stops=True)
    relay = Relay(ours, directory / "state", happened, lambda: None, counters, stream=stream)
    return relay, primary, lambda: listener.accept()[0], listener


async def read(sock: socket.socket, count: int) -> bytes:
    sock.setblocking(False)
    loop, data = asyncio.get_running_loop(), b""
    async with asyncio.timeout(10):
        while len(data) < count:
            more = await loop.sock_recv(sock, count - len(data))
            if not more:
                break
            data += more
    return data


async def run_held(directory: Path) -> None:
    events: list[Event] = []

    def happened(event: Event) -> bool:
        events.append(event)
        return event is Event.LOADED

    relay, primary, accept, listener = relayed(directory, happened)
    secondary = await asyncio.to_thread(accept)
    try:
        secondary.sendall(word(Message.CHECKPOINT_READY))
        assert await read(primary, 4) == word(Message.CHECKPOINT_READY)
        primary.sendall(word(Message.CHECKPOINT_REQUEST))
        await read(secondary, 4)
        secondary.setblocking(True)
        secondary.sendall(word(Message.CHECKPOINT_REPLY))
        assert await read(primary, 4) == word(Message.CHECKPOINT_REPLY)
        assert events[-1:] == [Event.SECONDARY_STOPPED]
        secondary.sendall(word(Message.VMSTATE_RECEIVED) + word(Message.VMSTATE_LOADED))
        assert await read(primary, 4) == word(Message.VMSTATE_RECEIVED)
        for _ in range(20):
            await asyncio.sleep(0.005)
        with pytest.raises(BlockingIOError):
            primary.recv(4)
        assert events[-1:] == [Event.LOADED]
        relay.release()
        relay.release()
        assert await read(primary, 4) == word(Message.VMSTATE_LOADED)
        relay.drop_primary()
        assert await read(secondary, 4) == b""
    finally:
        relay.close()
        for sock in (primary, secondary, listener):
            sock.close()


def test_a_relay_holds_until_it_is_released_and_lets_the_secondary_meet_the_end(tmp_path: Path) -> None:
    asyncio.run(run_held(tmp_path))
