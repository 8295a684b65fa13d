"""An agent whose machine somebody else runs: it joins and is copied by QEMU's own COLO."""

from __future__ import annotations

import asyncio  # noqa: TID251
import socket  # noqa: TID251
from pathlib import Path
from typing import Final, final

from colo.address import Address
from colo.checkpoint import Step
from colo.qemu.colo_stream import ColoStream, Event
from colo.qemu.migration import ended, nearly_done
from colo.qemu.qmp import Monitor, MonitorError
from colo.qemu.relay import Relay
from colo.qemu.settings import ON_DEMAND, enable_colo
from colo.remote.partner import Hooks, Partner
from colo.remote.records import Hello, Kind, Record
from pystack import Counters, Micros

_ANSWER_SECONDS: Final = 3.0  # of a primary that may be gone
_BEGIN_SECONDS: Final = 3.0  # of a checkpoint that clients wait for
_SILENCE_SECONDS: Final = 5.0  # with nothing going by, of a secondary that is to load a copy


@final
class XColoPartner(Partner):
    """Stands in the migration stream.

    Args:
        path: of the socket that the primary migrates to. The others are those of `Partner`.
    """

    live = True

    def __init__(
        self,
        sock: socket.socket,
        hello: Hello,
        address: Address,
        monitor: Monitor,
        path: Path,
        hooks: Hooks,
        counters: Counters,
    ) -> None:
        self._path = path
        self._relay: Relay | None = None
        self._awaited: Event | None = None  # held in the migration stream until the agent has told its boundary
        self._told = False  # which it has
        self._stopped = asyncio.Event()  # both machines, since they were asked to
        super().__init__(sock, hello, address, monitor, hooks, counters)

    def _on_record(self, record: Record) -> None:
        if record.kind is Kind.COMPLETED:
            self.link.bound()
            self._told = True
            self._decide()

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Ask for one; the first one lets the machine join."""
        if self._closed:
            return
        if self.joined:
            self._do(self._ask())
        elif self._relay is None:
            self._do(self._migrate())

    async def _ask(self) -> None:
        await self._hooks.quiesce()
        self._stopped.clear()
        await self._monitor.execute("migrate-set-parameters", x_checkpoint_delay=ON_DEMAND)
        try:
            await asyncio.wait_for(self._stopped.wait(), _BEGIN_SECONDS)
        except TimeoutError:
            self.counters.bump("engine.not_begun")
            self.lose("it does not take a checkpoint")

    async def _migrate(self) -> None:
        stream = ColoStream(self.counters, stops=True)
        self._relay = Relay(self._path, self._connect, self._happened, self._ended, self.counters, stream=stream)
        await enable_colo(self._monitor)
        await self._monitor.execute("migrate", uri=f"unix:{self._path}")
        await nearly_done(self._monitor)
        if not self._over():
            await self._hooks.quiesce()
            await ended(self._monitor, self._over)

    def _over(self) -> bool:
        return self.joined or self._closed

    # ------------------------------------------------------------------------------------------------- the stream

    def _happened(self, event: Event) -> bool:
        """Both machines, or the one that matters, wait until this returns False, or until the relay is released."""
        if self._closed:
            return False
        if event is Event.SECONDARY_STOPPED:
            self._hooks.hold()
        elif event is Event.BOTH_STOPPED:
            self._stopped.set()
            self._tell(Step.PAUSED)
            self._do(self._await_decision())
        elif event is Event.BROKEN:
            self.lose("what goes by in the migration is not QEMU's COLO")
        elif event in (Event.ENTERED, Event.LOADED):
            self._awaited = event
            if not self._told:
                return True
            self._decide()
        return False

    def _decide(self) -> None:
        """Go on when the stream and the agent have said that the machine is a copy."""
        event = self._awaited
        if event is None or not self._told or self._relay is None:
            return
        self._awaited, self._told = None, False
        if event is Event.ENTERED:
            self._tell(Step.PAUSED)
            self.joined = True
            self._hooks.attach(self.link)
            self.counters.bump("engine.joined")
        else:
            self.counters.bump("engine.copied")
        self._tell(Step.COMPLETED, Step.RESUMED)
        self._relay.release()

    async def _await_decision(self) -> None:
        """A secondary that cannot load what it was given says nothing any more, and the primary waits: give it up."""
        relay, passed = self._relay, -1
        while relay is not None and relay.stream.undecided and not self._closed:
            if relay.passed == passed:
                self.counters.bump("engine.not_loaded")
                self.lose("its machine does not load a copy")
                return
            passed = relay.passed
            await asyncio.sleep(_SILENCE_SECONDS)

    def _ended(self) -> None:
        if not self._closed:
            self._do(self._ask_who_is_left())

    async def _ask_who_is_left(self) -> None:
        """The stream has ended: if the primary is there, the secondary is of no use any more."""
        try:
            await self._monitor.execute("query-status", _ANSWER_SECONDS)
        except MonitorError:
            return  # whoever watches over the primary notices
        why = self._relay.why_not if self._relay is not None else ""
        self.lose(why or "the migration has ended")

    def close(self, bye: str = "") -> None:
        """Part with it; nothing is told any more. May be repeated."""
        super().close(bye)
        if self._relay is not None:
            self._relay.close()

    async def free_primary(self) -> None:
        """Let the primary go on alone: it may be waiting for a word in the migration stream."""
        try:
            if self.joined:
                await self._monitor.execute("x-colo-lost-heartbeat")
            elif self._relay is not None:
                await self._monitor.execute("migrate_cancel")
        except MonitorError:
            self.counters.bump("engine.failed")
