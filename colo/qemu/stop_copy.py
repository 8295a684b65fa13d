"""Checkpoints by stopping, copying and continuing: works with every QEMU and every accelerator.

The primary is stopped, its state migrated into a fresh machine that was started ahead of time, and both go on; the old
secondary is ended. What it costs is a copy of the guest's memory and of what it has written to its disk. Where the
memories are files, they are copied as such, but for what was never touched, several times as fast as QEMU sends pages,
and the migration is of the devices alone.

    running   -> stop both                                   PAUSED     the owner drains both links: the boundary
              -> copy the primary's memory and overlay onto the fresh machine's
              -> migrate the primary into the fresh machine
              -> its link takes the place of the old one's   COMPLETED
    running   -> both continue                               RESUMED

Whatever fails, the primary and the old secondary continue: FAILED.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from typing import Final, final

from colo.checkpoint import Step
from colo.qemu.client import Client
from colo.qemu.copying import blank, copy_data
from colo.qemu.machine import Machine
from colo.qemu.migration import go_on, settled
from colo.qemu.overlay import copy_onto
from colo.qemu.owner import Owner
from colo.qemu.qmp import MonitorError
from colo.qemu.settings import UNLIMITED, leave_memory_out
from pystack import Counters, Micros, PystackError

_RETRY_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 1.0  # with a secondary that is to stand still, or to go on
_PRIMARY_SECONDS: Final = 10.0


@final
class StopCopy(Client):
    """A `colo.checkpoint.CheckpointClient` for two machines on this host.

    Args:
        primary: runs.
        owner: who runs the proxy.

    Attributes:
        primary, secondary: the machines of now; None when there is none.
        counters: ``engine.*``.
        last_copied_bytes: what the last checkpoint sent.
    """

    def __init__(
        self,
        primary: Machine,
        owner: Owner,
        counters: Counters,
    ) -> None:
        super().__init__(owner.wake)
        self.primary: Machine = primary
        self.live = False
        self.secondary: Machine | None = None
        self.counters = counters
        self.last_copied_bytes = 0
        self._owner = owner
        self._spare: asyncio.Task[Machine] | None = None
        self._checkpointing: asyncio.Task[None] | None = None
        self._told = False  # what came of the checkpoint under way
        self._again = False  # another one is wanted after it

    # ------------------------------------------------------------------------------------------------ as a client

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Take one; while one is being taken whose outcome was not told yet, that is the one that is asked for."""
        if self._closed:
            return
        if self._checkpointing is None:
            self._told = False
            self._checkpointing = asyncio.create_task(self._checkpoint(), name="checkpoint")
            self._checkpointing.add_done_callback(self._over)
        elif self._told:
            self._again = True

    @property
    def undecided(self) -> bool:
        """Never: a machine takes the secondary's place in the same instant in which its copy is known to be whole."""
        return False

    def _tell(self, *steps: Step) -> None:
        self._told = self._told or Step.COMPLETED in steps or Step.FAILED in steps
        super()._tell(*steps)

    def _over(self, work: asyncio.Task[None]) -> None:
        self._checkpointing = None
        if not work.cancelled() and (error := work.exception()) is not None:
            self._on_failure(error)
        if self._again:
            self._again = False
            self.begin("", 0)

    def _on_failure(self, error: BaseException) -> None:  # noqa: ARG002 - a fault of ours: not to be hidden, nor to stop
        self.counters.bump("engine.faults")
        self._tell(Step.FAILED)

    # ------------------------------------------------------------------------------------------------ the checkpoint

    def prepare(self) -> None:
        """Start the machine that the next checkpoint will need."""
        if self._spare is None and not self._closed:
            self._spare = asyncio.create_task(self._started(), name="spare")

    async def _started(self) -> Machine:
        """A fresh machine that listens for a migration."""
        machine = await self._owner.spawn()
        try:
            if _both_in_files(self.primary, machine):
                for one in (self.primary, machine):
                    await leave_memory_out(one.monitor)
            await machine.monitor.execute("migrate-incoming", uri=_uri(machine))
        except BaseException:  # that nobody wants it any more, too
            await machine.kill()
            raise
        return machine

    async def _checkpoint(self) -> None:
        self.prepare()
        assert self._spare is not None
        spare: Machine | None = None
        try:
            spare = await self._spare
        except PystackError:
            self.counters.bump("engine.spare_failed")
            self._spare = None
            await asyncio.sleep(_RETRY_SECONDS)
            self._tell(Step.FAILED)
            return
        self._spare = None
        old = self.secondary
        try:
            copied = await self._copy_into(spare)
        except BaseException:
            self._end(spare if self.secondary is not spare else old)
            raise
        self._end(old if copied else spare)
        self.prepare()

    async def _copy_into(self, spare: Machine) -> bool:
        """Stop, copy and continue; whether it succeeded."""
        running = [machine for machine in (self.primary, self.secondary) if machine is not None and machine.alive]
        await self._owner.quiesce()
        try:
            await asyncio.gather(self.primary.monitor.execute("stop"), self._stop_secondary())
            self._tell(Step.PAUSED)
            copied = await self._copy_files(spare)
            self.last_copied_bytes = copied + await self._migrate(spare)
        except (MonitorError, TimeoutError, OSError):
            self.counters.bump("engine.failed")
            await self._continue(running)
            self._tell(Step.FAILED)
            return False
        # At one go, so that nobody ever sees a secondary that is neither the old one nor the new one.
        self.secondary = spare
        self._owner.attach(spare)
        self.counters.bump("engine.copied")
        self._tell(Step.COMPLETED)
        await self._continue([spare, self.primary])
        self._tell(Step.RESUMED)
        return True

    async def _stop_secondary(self) -> None:
        """One that hangs, or has just ended, is about to be replaced: it is not waited for."""
        if self.secondary is not None and self.secondary.alive:
            with contextlib.suppress(MonitorError):
                await self.secondary.monitor.execute("stop", _PATIENCE_SECONDS)

    async def _copy_files(self, spare: Machine) -> int:
        """What of the primary is in files, onto those of ``spare``; returns how many bytes were copied."""
        copied = 0
        if _both_in_files(self.primary, spare):
            # Of their own: the copy may go on in its thread when either machine is given up and its file closed.
            files = (_opened_again(self.primary.memory), _opened_again(spare.memory))
            copied = await asyncio.to_thread(_copy_memory, *files)
            self.counters.bump("engine.memory_bytes", copied)
        ours, theirs = self.primary.guest.overlay, spare.guest.overlay
        if ours is not None and theirs is not None:
            written = await asyncio.to_thread(copy_onto, ours, theirs)
            self.counters.bump("engine.disk_bytes", written)
            copied += written
        return copied

    async def _migrate(self, spare: Machine) -> int:
        """Returns how many bytes QEMU has sent."""
        primary = self.primary
        arrived = spare.next_event("MIGRATION completed")
        refused = spare.next_event("MIGRATION failed")
        failed = primary.next_event("MIGRATION failed")
        waiting = {arrived, refused, failed}
        try:
            await primary.monitor.execute("migrate-set-parameters", max_bandwidth=UNLIMITED)
            await primary.monitor.execute("migrate", uri=_uri(spare))
            await settled(primary.monitor, waiting)
            if not arrived.done() or arrived.exception() is not None:
                raise MonitorError(f"{spare.name}: the copy did not arrive.")
        except BaseException:
            await spare.kill()  # first: the primary may not answer before
            with contextlib.suppress(MonitorError):
                await primary.monitor.execute("migrate_cancel")
            raise
        finally:
            for future in waiting:
                future.cancel()
                if future.done() and not future.cancelled():
                    future.exception()  # looked at
        told = await primary.monitor.execute("query-migrate")
        return int(told.get("ram", {}).get("transferred", 0))

    async def _continue(self, machines: list[Machine]) -> None:
        """Let ``machines`` run. One that has ended does not; its owner hears of that as of any other end.

        A secondary that stands still is replaced by the next checkpoint. A primary that does is ended: nobody would
        hear of it, and its clients wait.
        """
        going = [
            go_on(machine.monitor, _PRIMARY_SECONDS if machine is self.primary else _PATIENCE_SECONDS)
            for machine in machines
        ]
        for machine, outcome in zip(machines, await asyncio.gather(*going, return_exceptions=True), strict=True):
            if isinstance(outcome, MonitorError):
                self.counters.bump("engine.not_continued")
                if machine is self.primary:
                    self._end(machine)

    # --------------------------------------------------------------------------------------------------- either dies

    async def fail_over(self) -> None:
        """The primary is gone: the secondary goes on, also when it stood still for a checkpoint."""
        self._closed = True
        await self._stop_working()
        if self.secondary is not None:
            with contextlib.suppress(MonitorError):
                await go_on(self.secondary.monitor, _PRIMARY_SECONDS)

    async def lose_secondary(self) -> None:
        """The secondary is gone: the primary goes on. The next checkpoint makes another one."""
        if self._checkpointing is not None:  # which lets the primary continue, whatever comes of it
            await asyncio.wait({self._checkpointing})
        self._steps.clear()
        old, self.secondary = self.secondary, None
        if old is not None:
            await old.kill()

    async def _stop_working(self) -> None:
        for task in (self._checkpointing, self._spare):
            if task is not None and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, PystackError):
                    await task
        if self._spare is not None and not self._spare.cancelled() and self._spare.exception() is None:
            await self._spare.result().kill()
        self._spare = None

    def _end(self, machine: Machine | None) -> None:
        if machine is not None:
            self._do(machine.kill())

    async def close(self) -> None:
        """End every machine but the primary."""
        self._closed = True
        await self._stop_working()
        if self.secondary is not None:
            await self.secondary.kill()
        await asyncio.gather(*self._work)


def _both_in_files(one: Machine, other: Machine) -> bool:
    return one.memory >= 0 and other.memory >= 0


def _opened_again(file: int) -> io.FileIO:
    return io.FileIO(os.dup(file), "r+b")


def _copy_memory(source: io.FileIO, target: io.FileIO) -> int:
    """All of it: what the fresh machine has put there when it was started counts for nothing. Closes both."""
    with source, target:
        blank(target.fileno())
        return copy_data(source.fileno(), target.fileno())


def _uri(machine: Machine) -> str:
    return f"unix:{machine.directory / machine.name}.state"
