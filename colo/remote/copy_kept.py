"""Machines that the agent runs itself: one that is a copy of the primary, and one that waits to be the next."""

from __future__ import annotations

import asyncio  # noqa: TID251
import contextlib
import itertools
import socket  # noqa: TID251
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, final

from colo.qemu.machine import Guest, Machine
from colo.qemu.migration import go_on
from colo.qemu.qmp import MonitorError
from colo.remote.common import gone
from colo.remote.kept import Hooks
from colo.remote.ports import Port
from colo.remote.records import Engine, Kind, Record
from pystack import Counters, PystackError

_FD: Final = "migration"
_AGAIN_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 1.0  # with a machine that is to stand still, or to go on


@final
class CopyKept:
    """Stops and copies; see `colo.remote.kept.Kept`, and `colo.remote.copy_partner` for the other side.

    Args:
        guest: every machine, with its files in ``directory``.
    """

    engine = Engine.STOP_COPY

    def __init__(self, guest: Guest, directory: Path, hooks: Hooks, counters: Counters) -> None:
        self._guest = guest
        self._directory = directory
        self._hooks = hooks
        self._counters = counters
        self._numbers = itertools.count(1)
        self._machine: Machine | None = None  # the copy
        self._spare: Machine | None = None
        self._machines: set[Machine] = set()  # these, and those that are about to be ended
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loading: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[None]] = set()
        self._begun = False
        self._decided = asyncio.Event()  # nothing is under way by which another machine may take the copy's place
        self._decided.set()
        self._alone = False
        self.port: Port | None = None

    @property
    def begun(self) -> bool:
        """Whether a copy has begun."""
        return self._begun

    async def watch(self) -> None:
        """Start the first machine, and see to whichever is the copy."""
        await self._prepare()
        await self._lost

    def _do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._hooks.failed(error)

    async def _prepare(self) -> None:
        """Start the machine that the next copy goes into."""
        machine = Machine(self._guest, f"vm{next(self._numbers)}", self._directory, self._counters)
        self._machines.add(machine)
        try:
            await machine.start(incoming=True, paused=True)
        except BaseException:
            await self._end(machine)
            raise
        self._spare = machine
        self._hooks.ready()

    async def _prepare_again(self) -> None:
        """As `_prepare`, as often as it takes: there is a copy that must not be lost for it."""
        while self._spare is None and not self._alone:
            try:
                await self._prepare()
            except PystackError:
                self._counters.bump("engine.spare_failed")
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _watch_over(self, machine: Machine) -> None:
        why = await gone(machine.monitor)
        await self._decided.wait()
        if machine is self._machine and not self._lost.done():
            self._lost.set_exception(PystackError(f"The secondary is lost: {why}."))

    # ------------------------------------------------------------------------------------------------ a checkpoint

    def take(self, record: Record) -> None:
        """STOP or GO_ON."""
        if record.kind is Kind.STOP:
            self._decided.clear()
            self._do(self._stop())
        elif record.kind is Kind.GO_ON:
            self._do(self._go_on())

    async def _stop(self) -> None:
        """Let the machine stand still, and take everything that it has said."""
        if self._machine is not None:
            with contextlib.suppress(MonitorError):  # its end is told elsewhere; if it hangs it is replaced
                await self._machine.monitor.execute("stop", _PATIENCE_SECONDS)
            self._freeze()
        self._hooks.stopped()

    def _freeze(self) -> None:
        """Take what the machine has sent by now, and what it sends from now on only when it runs again."""
        if self.port is not None:
            self.port.freeze()
            self.port.thaw(drop_cut=False)
            self.port.freeze()

    async def _go_on(self) -> None:
        """Nothing has come of it."""
        await self._give_up_loading()
        await self._run()
        self._thaw()
        self._decided.set()
        self._hooks.continued()

    def take_migration(self, sock: socket.socket) -> None:
        """Into the machine that waits."""
        if self._spare is None or self._loading is not None:
            raise PystackError("No machine waits for a copy.")
        self._begun = True
        spare, self._spare = self._spare, None
        self._loading = self._do(self._load(spare, sock))

    async def _load(self, spare: Machine, sock: socket.socket) -> None:
        copied = False
        try:
            with sock:
                await spare.monitor.hand_over(_FD, sock)
            await self._arrive(spare)
            copied = True
        except (MonitorError, TimeoutError) as error:
            self._counters.bump("engine.failed")
            self._hooks.not_copied(str(error) or "The copy does not arrive.")
        finally:
            self._loading = None
            if not copied:
                self._do(self._end(spare))
                self._do(self._prepare_again())
        if copied:
            await self._take_place(spare)

    async def _arrive(self, spare: Machine) -> None:
        arrived, failed = spare.next_event("MIGRATION completed"), spare.next_event("MIGRATION failed")
        try:
            await spare.monitor.execute("migrate-incoming", uri=f"fd:{_FD}")
            # For as long as it takes: the proxy says when it is given up, by GO_ON, or is lost.
            done, _ = await asyncio.wait({arrived, failed}, return_when=asyncio.FIRST_COMPLETED)
            if arrived not in done or arrived.exception() is not None:
                raise MonitorError("The copy does not arrive whole.")
        finally:
            for future in (arrived, failed):
                future.cancel()
                if future.done() and not future.cancelled():
                    future.exception()  # looked at

    async def _take_place(self, spare: Machine) -> None:
        """At one go: the fresh machine is the secondary, and what the old one would still say is of no interest."""
        old, self._machine = self._machine, spare
        if self.port is not None:
            self.port.close()
        self.port = Port(spare.link, self._hooks.received, self._hooks.failed, self._counters)
        self._do(self._watch_over(spare))
        self._decided.set()
        self._counters.bump("engine.copied")
        self._hooks.copied()
        await self._run()
        if old is not None:
            self._do(self._end(old))
        await self._prepare_again()

    def _thaw(self) -> None:
        if self.port is not None:
            self.port.thaw(drop_cut=False)

    async def _run(self) -> None:
        if self._machine is not None:
            try:
                await go_on(self._machine.monitor, _PATIENCE_SECONDS)
            except MonitorError:
                self._counters.bump("engine.not_continued")

    async def _give_up_loading(self) -> None:
        loading = self._loading
        if loading is not None:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)

    async def _end(self, machine: Machine) -> None:
        await machine.kill()
        self._machines.discard(machine)

    # ------------------------------------------------------------------------------------------------ the end

    async def take_over(self) -> None:
        """A copy that was on its way when the primary died need not be waited for: nobody has seen what it says.

        What the machine has to say is taken with the port's `thaw`.
        """
        self._alone = True
        await self._give_up_loading()
        self._decided.set()
        await self._run()
        if self._spare is not None:
            self._do(self._end(self._spare))
            self._spare = None

    async def close(self) -> None:
        """End every machine."""
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self.port is not None:
            self.port.close()
        for machine in list(self._machines):
            await self._end(machine)
        self._lost.cancel()
