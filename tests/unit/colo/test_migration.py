"""How long a migration is waited for: as long as it gets on."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from colo.qemu import migration
from colo.qemu.migration import ended, go_on, nearly_done, settled
from colo.qemu.qmp import Monitor, MonitorError, Refused

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


class Told:
    """The monitor of a machine, and what it answers, one after the other."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)

    async def execute(self, command: str, _seconds: float) -> Any:
        assert command == "query-migrate"
        return self.answers.pop(0)


def memory(transferred: int, remaining: int, mbps: float, passes: int = 1) -> dict[str, Any]:
    ram = {"transferred": transferred, "remaining": remaining, "mbps": mbps, "dirty-sync-count": passes}
    return {"status": "active", "ram": ram}


@pytest.mark.parametrize(
    ("last", "before"),
    [
        (memory(9, 50_000_000, 800.0), [memory(1, 0, 0.0, passes=0), memory(5, 60_000_000, 800.0)]),
        (memory(5, 200 << 20, 0.0), [{"status": "setup"}, memory(1, 300 << 20, 0.0)]),
        ({"status": "colo"}, [memory(1, 300 << 20, 0.0)]),
        ({"status": "failed"}, []),
    ],
)
def test_it_is_nearly_done_when_half_a_second_is_left_or_nothing(
    last: dict[str, Any], before: list[dict[str, Any]]
) -> None:
    """800 Mbit are 100 MB a second."""
    source = Told(*before, last, {"status": "not asked any more"})
    asyncio.run(nearly_done(cast("Monitor", source)))
    assert len(source.answers) == 1


def test_one_that_hangs_is_not_nearly_done() -> None:
    source = Told(*[memory(5, 1 << 40, 800.0)] * 10)
    with pytest.raises(MonitorError, match=r"^The copy stands still after 5 bytes\.$"):
        asyncio.run(nearly_done(cast("Monitor", source)))


def test_a_guest_that_writes_faster_than_it_is_copied_is_not_kept_from_its_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(migration, "_CLOSE_LOOK_SECONDS", STEP)
    monkeypatch.setattr(migration, "_END_SECONDS", 5 * STEP)
    source = Told(*[memory(sent, 1 << 30, 800.0) for sent in range(10)])
    with pytest.raises(MonitorError, match="the guest writes faster"):
        asyncio.run(ended(cast("Monitor", source), lambda: False))
    assert len(source.answers) == 5
    asyncio.run(ended(cast("Monitor", source), lambda: len(source.answers) < 4))
    assert len(source.answers) == 3


class Stopped:
    """The monitor of a machine that goes on when it has been asked ``often`` enough."""

    def __init__(self, often: int, error: type[MonitorError] = Refused) -> None:
        self.often, self.error = often, error
        self.asked = 0

    async def execute(self, command: str, seconds: float) -> Any:
        assert (command, seconds > 0) == ("cont", True)
        self.asked += 1
        if self.asked < self.often:
            raise self.error("Migration is not finalized yet.")


def test_a_machine_goes_on_when_its_migration_is_finalized() -> None:
    machine = Stopped(5)
    asyncio.run(go_on(cast("Monitor", machine), 10))
    assert machine.asked == 5


@pytest.mark.parametrize(("error", "patience", "asked"), [(Refused, 3 * STEP, 2), (MonitorError, 10, 1)])
def test_a_machine_that_does_not_go_on(error: type[MonitorError], patience: float, asked: int) -> None:
    """It refuses for too long; it is gone."""
    machine = Stopped(10_000, error)
    with pytest.raises(error):
        asyncio.run(go_on(cast("Monitor", machine), patience))
    assert machine.asked >= asked
    assert (machine.asked == 1) == (error is MonitorError)
