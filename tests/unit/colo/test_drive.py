"""The driver around a proxy, and links that end at inconvenient moments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from colo.drive import ProxyDriver
from colo.kernel.pair import NoCheckpoints
from colo.proxy import Proxy, ProxyConfig, Role
from pystack import Counters, QemuLink
from pystack.drivers import hot
from pystack.drivers.aio import monotonic
from pystack.link.memory import ETHERNET
from pystack.testing.frames import Crafter
from pystack.wire.packet import SYN
from tests.colo_guests import CLIENT, GUEST, Guest

SECONDS = 10.0
OPENING = Crafter(CLIENT, GUEST).tcp(sport=5000, dport=80, seq=6999, flags=SYN)


class Rig:
    """A driver between three links, and the other end of each."""

    def __init__(self, directory: Path, undo: contextlib.ExitStack) -> None:
        self.undo = undo
        self.near, self.far = {}, {}
        for name in ("client", "primary", "secondary"):
            self.near[name] = QemuLink.listen(directory / name)
            self.far[name] = QemuLink.connect(directory / name)
            undo.callback(self.far[name].close)
            undo.callback(self.near[name].close)
        proxy = Proxy(ProxyConfig(), NoCheckpoints(), Counters())
        self.driver = ProxyDriver(proxy, self.near["client"], self.near["primary"], self.near["secondary"])
        self.driver.freeze()

    def send(self, name: str, frame: bytes) -> None:
        assert self.far[name].send([(frame,)], monotonic()) == 1

    async def until(self, happened: Callable[[], object]) -> None:
        async with asyncio.timeout(SECONDS):
            while not happened():
                await asyncio.sleep(0.001)

    def heard_by(self, name: str) -> Callable[[], object]:
        return lambda: self.far[name].recv(monotonic())


@contextlib.asynccontextmanager
async def driven(directory: Path) -> AsyncIterator[tuple[Rig, asyncio.Task[None]]]:
    """A rig, and its driver at work."""
    with contextlib.ExitStack() as undo:
        rig = Rig(directory, undo)
        driving = asyncio.create_task(rig.driver.run())
        try:
            yield rig, driving
        finally:
            driving.cancel()
            await asyncio.gather(driving, return_exceptions=True)


@pytest.mark.parametrize("run", [hot.run, asyncio.run])
def test_a_primary_whose_link_its_owner_closes_is_lost_and_nothing_else(
    tmp_path: Path, run: Callable[..., object]
) -> None:
    """As `Pair.failover` does: a frame may have to be sent to it before anybody says that it is gone."""

    async def scene() -> None:
        async with driven(tmp_path) as (rig, driving):
            rig.send("client", OPENING)
            await rig.until(rig.heard_by("primary"))
            await rig.until(rig.heard_by("secondary"))
            rig.near["primary"].close()
            rig.send("client", OPENING)
            await rig.until(lambda: rig.driver.proxy.role is Role.SECONDARY_ALONE or driving.done())
            assert not driving.done()
            rig.send("secondary", Guest().syn_ack())
            await rig.until(rig.heard_by("client"))

    run(scene())


async def _both_speak(rig: Rig) -> asyncio.Task[None]:
    """A connection is opened, both machines have heard of it and are held, and both have answered."""
    driving = asyncio.create_task(rig.driver.run())
    rig.send("client", OPENING)
    await rig.until(rig.heard_by("primary"))
    await rig.until(rig.heard_by("secondary"))
    rig.driver.hold()
    rig.send("primary", Guest().syn_ack())
    rig.send("secondary", Guest().syn_ack())
    await asyncio.sleep(0.05)
    assert rig.driver.heard == 0
    return driving


@pytest.mark.parametrize("run", [hot.run, asyncio.run])
def test_what_is_held_is_read_when_nothing_comes_of_it(tmp_path: Path, run: Callable[..., object]) -> None:
    async def scene() -> None:
        with contextlib.ExitStack() as undo:
            rig = Rig(tmp_path, undo)
            driving = await _both_speak(rig)
            await rig.until(rig.heard_by("client"))
            assert rig.driver.heard == 2
            driving.cancel()
            await asyncio.gather(driving, return_exceptions=True)

    run(scene())


def test_what_is_held_is_read_when_a_machine_is_lost(tmp_path: Path) -> None:
    async def scene() -> None:
        with contextlib.ExitStack() as undo:
            rig = Rig(tmp_path, undo)
            driving = await _both_speak(rig)
            rig.driver.lose_secondary()
            assert rig.driver.heard == 1
            await rig.until(rig.heard_by("client"))
            driving.cancel()
            await asyncio.gather(driving, return_exceptions=True)

    hot.run(scene())


@pytest.mark.parametrize("run", [hot.run, asyncio.run])
def test_a_secondary_with_the_number_of_a_primary_that_was_closed_is_heard(
    tmp_path: Path, run: Callable[..., object]
) -> None:
    """The primary's owner has closed its link and says so later; meanwhile its descriptor's number was given away."""

    async def scene() -> None:
        async with driven(tmp_path) as (rig, _):
            rig.send("client", OPENING)
            await rig.until(rig.heard_by("secondary"))
            number = rig.near["primary"].peer_fileno()
            rig.near["primary"].close()
            near, far = socket.socketpair()
            with near:
                peer = socket.socket(fileno=os.dup2(near.fileno(), number))
            link = QemuLink(ETHERNET, None, None, peer, tmp_path / "another")
            rig.far["secondary"] = QemuLink(ETHERNET, None, None, far, tmp_path / "another")
            rig.undo.callback(rig.far["secondary"].close)
            rig.undo.callback(link.close)
            rig.driver.attach_secondary(link)
            rig.driver.lose_primary()
            rig.send("secondary", Guest().syn_ack())
            await rig.until(rig.heard_by("client"))

    run(scene())
