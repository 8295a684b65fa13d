"""How long a migration is waited for: as long as it gets on."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from colo.qemu import migration
from colo.qemu.migration import settled
from colo.qemu.qmp import Monitor, MonitorError

STEP = 0.01


class Source:
    """The monitor of a machine that has sent so much at each look; what it is asked for after the last one hangs."""

    def __init__(self, *sent: int) -> None:
        self.sent = list(sent)

    async def execute(self, command: str, seconds: float) -> Any:
        assert command == "query-migrate"
        if not self.sent:
            await asyncio.sleep(min(seconds, 10 * STEP))
            raise MonitorError("QEMU does not answer.")
        return {"status": "active", "ram": {"transferred": self.sent.pop(0)}}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "_LOOK_SECONDS", STEP)
    monkeypatch.setattr(migration, "_SILENCE_SECONDS", 3 * STEP)


async def over(source: Source, outcome: asyncio.Future[Any]) -> None:
    await settled(cast("Monitor", source), [outcome])


def test_one_that_gets_on_is_waited_for() -> None:
    async def play() -> None:
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        source = Source(*range(1000))
        waiting = asyncio.ensure_future(over(source, outcome))
        while len(source.sent) > 980:
            await asyncio.sleep(0.001)
        outcome.set_result(None)
        await waiting

    asyncio.run(play())


@pytest.mark.parametrize("sent", [(5, 5, 5, 5, 6), (1, 2, 2, 2, 2, 3), ()])
def test_one_that_stands_still_is_not(sent: tuple[int, ...]) -> None:
    async def play() -> None:
        source = Source(*sent)
        with pytest.raises(MonitorError):
            await over(source, asyncio.get_running_loop().create_future())
        assert len(source.sent) == (1 if sent else 0)

    asyncio.run(play())


def test_an_outcome_that_is_known_is_not_asked_for() -> None:
    async def play() -> None:
        outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        outcome.set_exception(MonitorError("It has failed."))
        await over(Source(), outcome)
        outcome.exception()

    asyncio.run(play())
