"""The connection to a monitor."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from colo.qemu.qmp import Monitor
from tests.interop import attach_fakes


@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize("turns", range(8))
def test_nothing_is_complained_of_when_nobody_waits_for_the_end_any_more(
    tmp_path: Path, turns: int, killed: bool
) -> None:
    """As when all ends while a machine is being ended: asyncio would print what nobody has asked for."""
    complaints: list[dict[str, Any]] = []

    async def scene() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
        monitor = Monitor("machine", lambda *_: None)
        await monitor.connect(tmp_path / "qmp", lambda: True)
        if killed:
            fake.end()
        closing = asyncio.create_task(monitor.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        await monitor.close()

    with attach_fakes.Monitor(tmp_path / "qmp") as fake:
        asyncio.run(scene())
    gc.collect()
    assert complaints == []


@pytest.mark.parametrize("turns", range(12))
def test_nothing_is_complained_of_when_the_monitor_is_not_wanted_any_more(
    tmp_path: Path, turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As when all ends while a machine is being started, whose monitor is not there yet."""

    async def scene() -> None:
        monitor = Monitor("machine", lambda *_: None)
        connecting = asyncio.create_task(monitor.connect(tmp_path / "none", lambda: True))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        (outcome,) = await asyncio.gather(connecting, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError)
        await monitor.close()

    asyncio.run(scene())
    assert caplog.records == []
