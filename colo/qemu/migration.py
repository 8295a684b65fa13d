"""A migration under way: waited for as long as it gets on, and no longer."""

from __future__ import annotations

import asyncio  # noqa: TID251
from collections.abc import Collection
from typing import Any, Final

from colo.qemu.qmp import Monitor, MonitorError

_LOOK_SECONDS: Final = 0.5
_SILENCE_SECONDS: Final = 3.0


async def settled(source: Monitor, outcomes: Collection[asyncio.Future[Any]]) -> None:
    """Return when one of ``outcomes`` is done. It may take hours, for much memory over a slow link.

    Args:
        source: of the machine that migrates.

    Raises:
        MonitorError: the machine has sent nothing for 3 seconds, or does not answer.
    """
    sent, silent = -1, 0.0
    while True:
        done, _ = await asyncio.wait(outcomes, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return
        # Whoever hangs over there may have it hang, too, before its answer.
        answer = await source.execute("query-migrate", _SILENCE_SECONDS - silent)
        told = int(answer.get("ram", {}).get("transferred", 0))
        silent = silent + _LOOK_SECONDS if told == sent else 0.0
        if silent >= _SILENCE_SECONDS:
            raise MonitorError(f"The copy stands still after {told} bytes.")
        sent = told
