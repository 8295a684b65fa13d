"""An agent that runs its machines itself: the primary is stopped and copied into a fresh one, over the agent's address.

    proxy                                     agent
    the primary stops
    STOP                                -->   the secondary stops, all that it has said is sent
    PAUSED: the boundary                <--   STOPPED
    the primary migrates                -->   into the fresh machine, which takes the secondary's place and runs
    COMPLETED, the primary runs: RESUMED <--  COMPLETED, and READY once the next one waits

QEMU is given the connection itself, so that the guest's memory goes by us.
"""

from __future__ import annotations

import asyncio  # noqa: TID251
import contextlib
import socket  # noqa: TID251
from typing import Any, Final, final

from colo.address import Address
from colo.checkpoint import Step
from colo.qemu.machine import Machine
from colo.qemu.migration import go_on, settled
from colo.qemu.qmp import MonitorError
from colo.qemu.settings import UNLIMITED
from colo.remote.partner import Hooks, Partner
from colo.remote.records import Hello, Kind, Record
from pystack import Counters, LinkError, Micros

_FD: Final = "migration"
_STOP_SECONDS: Final = 10.0
_GO_ON_SECONDS: Final = 10.0
_SPARE_SECONDS: Final = 3.0  # until a fresh machine waits; clients may wait for it


@final
class CopyPartner(Partner):
    """Stops and copies. The arguments are those of `Partner`, with the ``primary`` itself."""

    def __init__(
        self, sock: socket.socket, hello: Hello, address: Address, primary: Machine, hooks: Hooks, counters: Counters
    ) -> None:
        self._primary = primary
        self._ready = asyncio.Event()  # a fresh machine waits over there
        self._answer: asyncio.Future[Record] | None = None
        self._stopped = False  # the primary, by us
        self._migrating = False  # into a machine of which nothing is known yet
        self._copied = False  # the agent says so of the checkpoint under way
        self._taking = False
        self._told = False  # what came of the checkpoint under way
        self._again = False
        super().__init__(sock, hello, address, primary.monitor, hooks, counters)

    def _on_ready(self) -> None:
        self._ready.set()
        self._hooks.ready()

    def _on_record(self, record: Record) -> None:
        if record.kind is Kind.STOPPED:
            self.link.bound()
        elif record.kind is Kind.COMPLETED:
            self._copied = True
            if self._told or not self._taking:
                self.lose("it has made a copy that was given up")
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(record)

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Take one; while one is being taken whose outcome was not told yet, that is the one that is asked for."""
        if self._closed:
            return
        if not self._taking:
            self._taking, self._told, self._copied, self._again = True, False, False, False
            self._do(self._checkpoint())
        elif self._told:
            self._again = True

    async def _checkpoint(self) -> None:
        try:
            if await self._awaited_spare():
                await self._hooks.quiesce()
                await self._copy()
        finally:
            self._taking = False
        if self._again:
            self._again = False
            self.begin("", 0)

    async def _awaited_spare(self) -> bool:
        """Whether a fresh machine waits over there, now or soon; it is to be used at once."""
        try:
            await asyncio.wait_for(self._ready.wait(), _SPARE_SECONDS)
        except TimeoutError:
            self.counters.bump("engine.spare_failed")
            self._told = True
            self._tell(Step.FAILED)
            return False
        self._ready.clear()
        return True

    async def _copy(self) -> None:
        try:
            self._stopped = True
            await self._monitor.execute("stop")
            await self._ask(Kind.STOP, Kind.STOPPED, _STOP_SECONDS)
            self._tell(Step.PAUSED)
            await self._migrate()
        except (MonitorError, LinkError, OSError, TimeoutError) as error:
            self.counters.bump("engine.failed")
            if not self.joined or self._copied:  # the machine over there is of no use, or of another epoch
                self.lose(str(error) or "it does not answer")
                return
            self.session.say(Kind.GO_ON)  # first: the primary may hang until the machine over there is ended
            await self._continue()
            self._told = True
            self._tell(Step.FAILED)
            return
        if not self.joined:
            self.joined = True
            self._hooks.attach(self.link)
            self.counters.bump("engine.joined")
        self.counters.bump("engine.copied")
        self._told = True
        self._tell(Step.COMPLETED)
        await self._continue()
        self._tell(Step.RESUMED)

    async def _ask(self, kind: Kind | None, wanted: Kind, seconds: float | None) -> None:
        """Say ``kind``, and wait until the agent says ``wanted``.

        Raises:
            LinkError: it says something else.
            TimeoutError: it does not within ``seconds``.
        """
        self._answer = asyncio.get_running_loop().create_future()
        if kind is not None:
            self.session.say(kind)
        record = await asyncio.wait_for(self._answer, seconds)
        if record.kind is not wanted:
            raise LinkError(record.body.decode(errors="replace") or "The agent says something else.")

    async def _migrate(self) -> None:
        left, failed = self._primary.next_event("MIGRATION completed"), self._primary.next_event("MIGRATION failed")
        arriving = asyncio.ensure_future(self._ask(None, Kind.COMPLETED, None))
        copied = asyncio.gather(left, arriving)
        try:
            with await asyncio.to_thread(self._connect) as sock:
                await self._monitor.hand_over(_FD, sock)
            await self._monitor.execute("migrate-set-parameters", max_bandwidth=UNLIMITED)
            self._migrating = True
            await self._monitor.execute("migrate", uri=f"fd:{_FD}")
            await settled(self._monitor, (copied, failed))
            if not copied.done():
                raise MonitorError("The copy did not arrive.")
            copied.result()  # or why there is none, which the agent may have said before the primary began
            self._migrating = False
        finally:
            futures: tuple[asyncio.Future[Any], ...] = (left, failed, arriving, copied)
            for future in futures:
                future.cancel()
            await asyncio.gather(*futures, return_exceptions=True)

    async def _continue(self) -> None:
        """Let the primary run, whatever has come of its migration."""
        if self._migrating:
            self._migrating = False
            with contextlib.suppress(MonitorError):
                await self._monitor.execute("migrate_cancel")
        try:
            await go_on(self._monitor, _GO_ON_SECONDS)
            self._stopped = False
        except MonitorError:  # it would stand still, unnoticed, and its clients wait
            self.counters.bump("engine.not_continued")
            await self._primary.kill()

    async def free_primary(self) -> None:
        """Let the primary go on alone: it may stand still for a checkpoint."""
        for task in list(self._work):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._stopped:
            await self._continue()
