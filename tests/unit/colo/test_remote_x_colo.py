"""QEMU's own COLO over a link, as the proxy has it: a primary that does not do as it is asked."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from colo.address import Address
from colo.qemu.qmp import Monitor
from colo.remote import x_colo_partner
from colo.remote.partner import Hooks
from colo.remote.records import Engine, Hello, Purpose, State
from colo.remote.x_colo_partner import XColoPartner
from pystack import Counters

HELLO = Hello(Purpose.RECORDS, State.FRESH, Engine.X_COLO, bytes(16), 100, 10_000)


class Deaf:
    """A monitor of a machine that says yes to everything, and does nothing."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def execute(self, command: str, *_: Any, **__: Any) -> Any:
        self.asked.append(command)
        return {}


async def at_rest() -> None:
    """There are no clients."""


def test_a_checkpoint_that_does_not_begin_is_the_end_of_that_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU was seen to forget one, and clients wait for it."""
    monkeypatch.setattr(x_colo_partner, "_BEGIN_SECONDS", 0.05)

    async def play() -> None:
        ours, theirs = socket.socketpair()
        counters, monitor, lost = Counters(), Deaf(), list[str]()
        hooks = Hooks(lambda: None, lambda _: None, at_rest, lambda: None, lambda: None, lost.append)
        where = Address(str(tmp_path / "agent"), server=False)
        partner = XColoPartner(ours, HELLO, where, cast("Monitor", monitor), tmp_path / "through", hooks, counters)
        partner.joined = True
        partner.begin("test", 0)
        async with asyncio.timeout(10):
            while not lost:
                await asyncio.sleep(0.001)
        await partner.free_primary()
        assert lost == ["it does not take a checkpoint"]
        assert counters["engine.not_begun"] == 1
        assert monitor.asked == ["migrate-set-parameters", "x-colo-lost-heartbeat"]
        partner.link.close()
        theirs.close()

    asyncio.run(play())
