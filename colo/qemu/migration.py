"""A migration under way: waited for as long as it gets on, and no longer."""

from __future__ import annotations

import asyncio  # noqa: TID251
from collections.abc import Callable, Collection
from typing import Any, Final

from colo.qemu.qmp import Monitor, MonitorError, Refused

_LOOK_SECONDS: Final = 0.5
_SILENCE_SECONDS: Final = 3.0
_CLOSE_LOOK_SECONDS: Final = 0.02
_NEAR_SECONDS: Final = 0.5
_NEAR_BYTES: Final = 256 << 20  # before QEMU knows how fast it is
_END_SECONDS: Final = 60.0
_REFUSED_SECONDS: Final = 0.002
_UNDER_WAY: Final = ("none", "setup", "active", "device")


async def settled(source: Monitor, outcomes: Collection[asyncio.Future[Any]]) -> None:
    """Return when one of ``outcomes`` is done. It may take hours, for much memory over a slow link.

    Args:
        source: of the machine that migrates.

    Raises:
        MonitorError: the machine has sent nothing for 3 seconds, or does not answer.
    """
    progress = _Progress(source)
    while True:
        done, _ = await asyncio.wait(outcomes, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if done:
            return
        await progress.look(_LOOK_SECONDS)


async def nearly_done(source: Monitor) -> None:
    """Return when what is left to send takes half a second, or little more, or when there is no migration any more.

    Args:
        source: of the machine that migrates, and runs.

    Raises:
        MonitorError: as `settled`.
    """
    progress = _Progress(source)
    while True:
        answer = await progress.look(_CLOSE_LOOK_SECONDS)
        if answer.get("status", "none") not in _UNDER_WAY:
            return
        memory = answer.get("ram", {})
        if memory.get("dirty-sync-count", 0) > 0:  # before, nothing seems to remain
            near = memory["mbps"] * 1e6 / 8 * _NEAR_SECONDS if memory["mbps"] else _NEAR_BYTES
            if memory["remaining"] <= near:
                return
        await asyncio.sleep(_CLOSE_LOOK_SECONDS)


async def ended(source: Monitor, is_over: Callable[[], bool]) -> None:
    """Return when ``is_over()``. Nobody hears the clients meanwhile, so that the guest has little to write.

    Raises:
        MonitorError: as `settled`; or it takes more than a minute.
    """
    progress = _Progress(source)
    for _ in range(round(_END_SECONDS / _CLOSE_LOOK_SECONDS)):
        if is_over():
            return
        await asyncio.sleep(_CLOSE_LOOK_SECONDS)
        await progress.look(_CLOSE_LOOK_SECONDS)
    raise MonitorError("The copy does not come to its end: the guest writes faster than it is copied.")


async def go_on(machine: Monitor, seconds: float) -> None:
    """Let a machine run that was stopped, whatever has come of its migration since.

    QEMU tells of a migration's end, its own and the other side's, before its thread is done with it, and until then
    refuses: "Migration is not finalized yet". That is a moment, and longer where the processors are busy.

    Raises:
        MonitorError: it does not run ``seconds`` later.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        try:
            await machine.execute("cont", max(deadline - loop.time(), _CLOSE_LOOK_SECONDS))
            return
        except Refused:
            if loop.time() >= deadline:
                raise
        await asyncio.sleep(_REFUSED_SECONDS)


class _Progress:
    """Whether it gets on."""

    def __init__(self, source: Monitor) -> None:
        self._source = source
        self._sent = -1
        self._silent = 0.0

    async def look(self, passed: float) -> dict[str, Any]:
        """See how far it has got in the ``passed`` seconds since the last look; returns what QEMU says of it.

        Raises:
            MonitorError: it has sent nothing for too long.
        """
        # Whoever hangs over there may have it hang, too, before its answer.
        answer: dict[str, Any] = await self._source.execute("query-migrate", _SILENCE_SECONDS - self._silent)
        sent = int(answer.get("ram", {}).get("transferred", 0))
        self._silent = self._silent + passed if sent == self._sent else 0.0
        self._sent = sent
        if self._silent >= _SILENCE_SECONDS:
            raise MonitorError(f"The copy stands still after {sent} bytes.")
        return answer
