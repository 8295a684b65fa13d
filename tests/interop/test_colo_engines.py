"""Pairs of real machines under both engines: a thousand checkpoints, and the death of either under load."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.launch.engines import STOP_COPY, X_COLO
from colo.qemu.colo_stream import Event
from colo.qemu.image import CARDS, Kernel, fetch_kernel
from colo.qemu.x_colo import XColo
from pystack import UsageError
from tests.interop.live_pair import PATIENCE, RANDOM, Echo, Live, download, live, lose

pytestmark = [pytest.mark.requires("qemu", "busybox", "cc"), pytest.mark.timeout(240), pytest.mark.alone]

CHECKPOINTS = 1000
GROWTH = 24 << 20
"""Bytes that this process may be larger after a thousand checkpoints than after a hundred."""


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    for needs in CARDS.values():
        try:
            Kernel.find(needs=needs)
        except UsageError:
            fetch_kernel(needs=needs)


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: a UNIX socket's has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="colo-") as path:
        yield Path(path)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_checkpoints_under_traffic_lose_nothing(directory: Path) -> None:
    async def scene() -> None:
        async with live(directory) as pair:
            stop = asyncio.Event()
            echoes = [Echo(pair, f"echo {number}") for number in range(5)]
            for echo in echoes:
                await echo.open()
            clients = [asyncio.create_task(echo.talk(stop)) for echo in echoes]
            clients.append(asyncio.create_task(_downloads(pair, stop)))
            before = 0
            for number in range(CHECKPOINTS):
                await pair.pair.checkpoint(f"forced {number % 3}")
                for client in clients:
                    if client.done():
                        client.result()
                if number == CHECKPOINTS // 10:
                    before = resident()
            assert resident() - before < GROWTH
            pair.assert_sound()
            await pair.kill(pair.pair.primary)
            await asyncio.sleep(1)
            stop.set()
            await asyncio.wait_for(asyncio.gather(*clients), PATIENCE)
            for echo in echoes:
                await echo.turn()
                echo.close()
            by_reason = pair.pair.status()["checkpoints_by_reason"]
            assert sum(by_reason[f"forced {number}"] for number in range(3)) >= CHECKPOINTS * 0.9  # some serve two
            pair.assert_sound()

    asyncio.run(scene())


async def _downloads(pair: Live, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await download(pair, "1m")


def test_sixty_connections_and_a_download_survive_the_primary(directory: Path) -> None:
    async def scene() -> None:
        async with live(directory) as pair:
            loss = await lose(pair, "primary")
            seen = f"next byte after {loss.next_byte * 1e3:.0f} ms, longest silence {loss.longest_silence:.2f} s"
            print(f"\n  {seen}")
            assert pair.pair.primary.name == "vm2"
            await protected_without(pair, "vm2")
            await lose(pair, "primary", idle=10)  # connections that were opened since, through the proxy of then

    asyncio.run(scene())


async def protected_without(pair: Live, before: str) -> None:
    """Wait until the pair is protected by another secondary than ``before``."""
    for _ in range(round(PATIENCE / 0.1)):
        if pair.pair.proxy.protected and pair.pair.engine_secondary != before:
            break
        await asyncio.sleep(0.1)
    assert pair.pair.status()["state"] == "protected"


@pytest.mark.parametrize("engine", [X_COLO, STOP_COPY])
def test_sixty_connections_and_a_download_survive_the_secondary_and_another_one_joins(
    directory: Path, engine: str
) -> None:
    async def scene() -> None:
        async with live(directory, engine=engine) as pair:
            first = pair.pair.engine_secondary
            loss = await lose(pair, "secondary", idle=10)
            print(f"\n  {engine}: longest silence {loss.longest_silence:.2f} s")
            await protected_without(pair, first)
            loss = await lose(pair, "primary", idle=10)  # and what has joined is worth as much as the first one

    asyncio.run(scene())


def test_a_primary_that_answers_and_stands_still_is_ended(directory: Path) -> None:
    """As QEMU stops a machine by itself. Nobody would hear of it, and its clients wait."""

    async def scene() -> None:
        async with live(directory, engine=STOP_COPY, patience=1.0) as pair:
            echo = Echo(pair, "echo")
            await echo.open()
            await pair.pair.primary.monitor.execute("stop")
            await echo.turn()
            assert 1.0 < echo.latencies[-1] < PATIENCE
            assert (pair.pair.primary.name, pair.pair.counters["pair.stood_still"]) == ("vm2", 1)
            await protected_without(pair, "vm2")
            await pair.pair.checkpoint()
            await asyncio.sleep(1.5)
            await echo.turn()
            assert pair.pair.counters["pair.stood_still"] == 1, "nor is one that stood still for a checkpoint"
            echo.close()
            pair.assert_sound()

    asyncio.run(scene())


def test_answers_that_never_agree_are_right_all_the_same(directory: Path) -> None:
    """A service of random bytes: each answer costs a checkpoint or waits for a periodic one, and none is torn."""

    async def scene() -> None:
        async with live(directory) as pair:
            seen = set()
            for _ in range(100):
                reader, writer = await pair.connect(RANDOM)
                answer = await asyncio.wait_for(reader.read(), PATIENCE)
                writer.close()
                assert len(bytes.fromhex(answer.decode().strip())) == 16
                seen.add(answer)
            assert len(seen) == 100
            assert pair.pair.status()["checkpoints"] > 1
            pair.assert_sound()

    asyncio.run(scene())


@pytest.mark.parametrize("at", [Event.REQUESTED, Event.BOTH_STOPPED])
def test_a_secondary_that_falls_silent_in_a_checkpoint_is_replaced(directory: Path, at: Event) -> None:
    """As one does that cannot load its copy: QEMU tells nobody. Clients wait for some seconds, and lose nothing."""

    async def scene() -> None:
        async with live(directory) as pair:
            echo = Echo(pair, "echo")
            await echo.open()
            engine = pair.pair.engine
            assert isinstance(engine, XColo) and engine.secondary is not None and engine._relay is not None
            victim, happened = engine.secondary, engine._relay._happened

            def stop_then(event: Event) -> None:
                if event is at and victim.process is not None:
                    os.kill(victim.process.pid, signal.SIGSTOP)
                happened(event)

            engine._relay._happened = stop_then
            pair.pair.proxy.checkpoints.request("test", 0)
            pair.pair.driver.wake()
            await echo.turn()
            for _ in range(round(PATIENCE / 0.1)):
                if pair.pair.proxy.protected and pair.pair.engine_secondary != victim.name:
                    break
                await asyncio.sleep(0.1)
            assert pair.pair.status()["state"] == "protected"
            # Whoever notices first; on a busy host the heartbeat may. A signal takes its time, so that the secondary
            # may have got further than it should.
            noticed = ("engine.not_begun", "engine.not_loaded", "pair.heartbeats_lost")
            assert sum(pair.pair.counters[name] for name in noticed) >= 1
            await echo.turn()
            echo.close()

    asyncio.run(scene())
