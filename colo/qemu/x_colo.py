"""Checkpoints by QEMU's own COLO: only what has changed is sent, and both machines stay the same processes.

Read before editing: docs/COLO-FT.txt of QEMU, and `colo.qemu.colo_stream`. The first migration, with the capability
x-colo, does not end; from then on setting ``x-checkpoint-delay`` asks for a checkpoint at once. What comes of it is
read in the migration stream, which goes through a `Relay`: each boundary is drawn while both machines wait for what it
holds back. ``stop`` and ``cont`` are never sent to a machine in this state. QEMU notices the loss of the other side
only when it has something to send; ``x-colo-lost-heartbeat`` tells it.

    entered            PAUSED, the secondary's link takes its place, COMPLETED, RESUMED
    secondary stopped  the links are not read any more: see `colo.drive.ProxyDriver.hold`
    both stopped       PAUSED
    loaded             COMPLETED, RESUMED
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Final, final

from colo.checkpoint import Step
from colo.qemu.client import Client
from colo.qemu.colo_stream import ColoStream, Event
from colo.qemu.machine import Machine
from colo.qemu.migration import ended, nearly_done
from colo.qemu.owner import Owner
from colo.qemu.qmp import MonitorError
from colo.qemu.relay import Relay
from colo.qemu.settings import ON_DEMAND, enable_colo
from pystack import Counters, Micros, PystackError

_DECIDED_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.002
_STEP_SECONDS: Final = 0.25
_SILENCE_SECONDS: Final = 3.0  # with nothing going by, of a secondary that is to load a copy


@final
class XColo(Client):
    """A `colo.checkpoint.CheckpointClient`; arguments and attributes are those of `colo.qemu.stop_copy.StopCopy`.

    Attributes:
        why_failed: what QEMU said last when it refused, for a person.
    """

    def __init__(
        self,
        primary: Machine,
        owner: Owner,
        counters: Counters,
    ) -> None:
        super().__init__(owner.wake)
        self.live = True
        self.primary = primary
        self.secondary: Machine | None = None
        self.counters = counters
        self.why_failed = ""
        self._owner = owner
        self._joining: Machine | None = None
        self._relay: Relay | None = None
        self._spare: asyncio.Task[Machine] | None = None
        self._stops = 0  # how often both machines have stopped
        self._joins = False  # one is being let join
        self._attempts = 0  # to join, since the last one that did

    # ------------------------------------------------------------------------------------------------ as a client

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Ask for one; the first one lets a secondary join."""
        if self._closed:
            return
        if self.secondary is not None:
            self._do(self._ask())
        elif self._joining is None and not self._joins:
            self._joins = True
            self._do(self._join())

    @property
    def undecided(self) -> bool:
        """Whether nobody knows yet what a checkpoint has made of the secondary."""
        return self._relay is not None and self._relay.stream.undecided

    def _on_failure(self, error: BaseException) -> None:
        self.why_failed = str(error)
        self.counters.bump("engine.failed")
        self._tell(Step.FAILED)

    # ------------------------------------------------------------------------------------------------ the checkpoint

    def prepare(self) -> None:
        """Start the machine that is to join."""
        if self._spare is None and self.secondary is None and not self._closed:
            self._spare = asyncio.ensure_future(self._owner.spawn())

    async def _join(self) -> None:
        self.prepare()
        assert self._spare is not None
        try:
            spare = await self._spare
        finally:
            self._spare = None
            self._joins = False
        self._joining = spare
        self._attempts += 1
        try:
            await self._migrate_to(spare)
            await nearly_done(self.primary.monitor)
            if self._attempts > 1 and self._joining is spare:
                # The first attempt may have failed for a link that was full: see Proxy.quiesce.
                await self._owner.quiesce()
                await ended(self.primary.monitor, lambda: self._joining is not spare)
        except PystackError:
            await self._part()
            raise

    async def _migrate_to(self, spare: Machine) -> None:
        for machine in (spare, self.primary):
            await enable_colo(machine.monitor)
        at, through = (spare.directory / f"{spare.name}.{suffix}" for suffix in ("state", "colo"))
        stream = ColoStream(self.counters, stops=True, prompt=True)
        self._relay = Relay(through, at, self._happened, self._stream_ended, self.counters, stream=stream)
        await spare.monitor.execute("migrate-incoming", uri=f"unix:{at}")
        await self.primary.monitor.execute("migrate", uri=f"unix:{through}")

    async def _ask(self) -> None:
        await self._owner.quiesce()
        stops = self._stops
        await self.primary.monitor.execute("migrate-set-parameters", x_checkpoint_delay=ON_DEMAND)
        for _ in range(round(_SILENCE_SECONDS / _LOOK_SECONDS)):
            if self._stops != stops or self._closed or self.secondary is None:
                return
            await asyncio.sleep(_LOOK_SECONDS)
        self.counters.bump("engine.not_begun")  # the clients are waiting
        self._give_up_secondary()

    def _happened(self, event: Event) -> None:
        """Both machines, or the one that matters, wait until this returns."""
        joining = self._joining
        if event is Event.ENTERED and joining is not None:
            self._tell(Step.PAUSED)
            self._joining, self.secondary = None, joining
            self._owner.attach(joining)
            self.counters.bump("engine.joined")
            self._attempts = 0
            self._tell(Step.COMPLETED, Step.RESUMED)
        elif event is Event.SECONDARY_STOPPED:
            self._owner.hold()
        elif event is Event.BOTH_STOPPED:
            self._stops += 1
            self._tell(Step.PAUSED)
            self._do(self._await_decision())
        elif event is Event.LOADED:
            # The primary may run again and has no processor yet, as it does not take ours: its clock would be behind.
            os.sched_yield()
            self.counters.bump("engine.copied")
            self._tell(Step.COMPLETED, Step.RESUMED)
        elif event is Event.BROKEN:
            self._give_up_secondary()

    async def _await_decision(self) -> None:
        """A secondary that cannot load what it was given says nothing any more, and the primary waits: end it."""
        relay, passed, silent = self._relay, -1, 0.0
        while relay is not None and relay.stream.undecided and relay is self._relay:
            silent = silent + _STEP_SECONDS if relay.passed == passed else 0.0
            if silent > _SILENCE_SECONDS:
                self.counters.bump("engine.not_loaded")
                self._give_up_secondary()
                return
            passed = relay.passed
            await asyncio.sleep(_STEP_SECONDS)

    def _stream_ended(self) -> None:
        """QEMU has left COLO, or one of them is gone: a secondary that gets no more copies is none."""
        if not self._closed and self.primary.alive:
            self._give_up_secondary()
        self._tell(Step.FAILED)

    def _give_up_secondary(self) -> None:
        """End it, so that its owner hears of its end and lets another one join."""
        if self._closed:
            return
        if self.secondary is not None:
            self.counters.bump("engine.stream_lost")
            self._do(self.secondary.kill())
        elif self._joining is not None:
            self._do(self._part())

    async def _part(self) -> None:
        """Let go of a machine that did not get to join."""
        machine, self._joining = self._joining, None
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        with contextlib.suppress(MonitorError):
            await self.primary.monitor.execute("migrate_cancel")
        if machine is not None:
            await machine.kill()

    # --------------------------------------------------------------------------------------------------- either dies

    async def fail_over(self) -> None:
        """The primary is gone: the secondary goes on, once it has made up its mind about a copy that it was given."""
        self._closed = True
        if self.secondary is None:
            return
        with contextlib.suppress(MonitorError):
            await self.secondary.monitor.execute("x-colo-lost-heartbeat")
        for _ in range(round(_DECIDED_SECONDS / _LOOK_SECONDS)):
            if not self.undecided:
                break
            await asyncio.sleep(_LOOK_SECONDS)
        if self._relay is not None:
            self._relay.close()

    async def lose_secondary(self) -> None:
        """The secondary is gone: the primary goes on. The next checkpoint lets another one join."""
        old, self.secondary = self.secondary, None
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        with contextlib.suppress(MonitorError):
            await self.primary.monitor.execute("x-colo-lost-heartbeat")
        if old is not None:
            await old.kill()
        self._steps.clear()

    async def close(self) -> None:
        """End every machine but the primary."""
        self._closed = True
        for task in list(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)
        if self._relay is not None:
            self._relay.close()
        if self._spare is not None:
            with contextlib.suppress(PystackError):
                await (await self._spare).kill()
        for machine in (self._joining, self.secondary):
            if machine is not None:
                await machine.kill()
