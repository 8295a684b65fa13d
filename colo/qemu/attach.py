"""Checkpoints of two machines that somebody else runs under QEMU's COLO: only `colo-compare` is replaced.

Read before editing: docs/COLO-FT.txt of QEMU, `colo.qemu.colo_stream` and `colo.qemu.x_colo`. The person starts both
machines with QEMU's own filters and has the primary migrate to ``--migration-in``. From there on a `Relay` stands in
the stream, which tells exactly where each checkpoint begins and ends, asked for by us or by QEMU's own timer:

    entered            PAUSED, COMPLETED, RESUMED: both are compared from here on
    both stopped       PAUSED
    loaded             COMPLETED, RESUMED

One is asked for by setting ``x-checkpoint-delay`` to what it is: the person's own period stays. When the stream ends,
the primary's monitor says who is gone: if it answers, the secondary is. The one that is left is told by
``x-colo-lost-heartbeat``, the secondary only where its monitor is known.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, final

from colo.address import Address
from colo.checkpoint import Step
from colo.qemu.client import Client
from colo.qemu.colo_stream import Event
from colo.qemu.qmp import Monitor, MonitorError
from colo.qemu.relay import Relay
from pystack import Counters, LinkError, Micros, UsageError

_X_COLO: Final = "x-colo"
_HEARTBEAT: Final = "x-colo-lost-heartbeat"
_LOOK_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 3.0  # of a monitor whose machine may be gone
_SILENCE_SECONDS: Final = 10.0  # with nothing going by, of a secondary that is to load a copy


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachConfig:
    """Where the machines are.

    Attributes:
        qmp, secondary_qmp: their monitors; the latter may be unknown.
        migration_in: where the primary migrates to. migration_out: where the secondary listens for that.

    Raises:
        UsageError: one of those that are connected to says that we listen.
    """

    qmp: Address
    migration_in: Address
    migration_out: Address
    secondary_qmp: Address | None = None

    def __post_init__(self) -> None:
        for option, address in (
            ("--qmp", self.qmp), ("--secondary-qmp", self.secondary_qmp), ("--migration-out", self.migration_out)
        ):  # fmt: skip
            if address is not None and address.server:
                raise UsageError(f"{option}: QEMU listens at {address}; leave ',server' out.")


@final
class Attached(Client):
    """A `colo.checkpoint.CheckpointClient`.

    Args:
        wake: has the owner poll, before it returns: what both machines have sent must be read while they stand still.
        say: tells a person. fail: ends the program.

    Attributes:
        joined: the pair is under COLO, and neither machine is lost.
        counters: ``engine.*``.

    Raises:
        UsageError: ``migration_in`` cannot be had.
    """

    def __init__(
        self,
        config: AttachConfig,
        wake: Callable[[], None],
        say: Callable[[str], None],
        fail: Callable[[Exception], None],
        counters: Counters,
    ) -> None:
        super().__init__(wake)
        self.config = config
        self.counters = counters
        self.joined = False
        self._say = say
        self._fail = fail
        self._primary = Monitor("the primary", _ignored)
        self._secondary = None if config.secondary_qmp is None else Monitor("the secondary", _ignored)
        self._lost = False
        self._said = ""
        self._reached = asyncio.Event()  # both monitors; a stream may be faster
        self._relay = self._listen()
        self._do(self._start())

    def _listen(self) -> Relay:
        through, at = self.config.migration_in.where, self.config.migration_out.where
        try:
            return Relay(through, at, self._happened, self._ended, self.counters, self._stream_closed)
        except LinkError as error:
            raise UsageError(str(error)) from None

    # ------------------------------------------------------------------------------------------------ as a client

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Ask for one."""
        if not self._lost and not self._closed:
            self._do(self._ask())

    def _on_failure(self, error: BaseException) -> None:
        if isinstance(error, MonitorError):
            self.counters.bump("engine.failed")
            self._once(str(error))
            self._tell(Step.FAILED)
        elif isinstance(error, Exception):
            self._fail(error)

    def _once(self, text: str) -> None:
        """Say it, unless it was the last thing said: checkpoints are retried."""
        if text != self._said:
            self._said = text
            self._say(text)

    # ----------------------------------------------------------------------------------------------- the machines

    async def _start(self) -> None:
        """Reach both monitors, and see that those machines can do it.

        Raises:
            UsageError: one of them cannot; what to do.
        """
        config = self.config
        await _reach(self._primary, config.qmp)
        self._do(self._watch_primary())
        if self._secondary is not None and config.secondary_qmp is not None:
            await _reach(self._secondary, config.secondary_qmp)
        self._reached.set()
        while not self.joined and not self._lost:
            migration: Any = await self._primary.execute("query-migrate")
            if migration.get("status") == "colo" and not self._relay.begun:
                raise UsageError(
                    "The pair is under COLO, but its migration goes past this program, which then knows of no"
                    f" checkpoint: have the primary migrate to {config.migration_in}."
                )
            await asyncio.sleep(_LOOK_SECONDS)

    async def _ask(self) -> None:
        if not self.joined:
            self._tell(Step.FAILED)
            return
        await self._reached.wait()
        # Setting it begins one, whatever its value is.
        said: Any = await self._primary.execute("query-migrate-parameters")
        period = said["x-checkpoint-delay"]
        await self._primary.execute("migrate-set-parameters", x_checkpoint_delay=period)

    async def _watch_primary(self) -> None:
        await self._primary.gone()
        if self._closed:
            return
        if not self.joined and not self._lost:
            self._fail(MonitorError("The primary's monitor is gone, and there is no secondary to carry on."))
        else:
            await self._lose_primary()

    # ------------------------------------------------------------------------------------------------- the stream

    def _happened(self, event: Event) -> None:
        """Both machines, or the one that matters, wait until this returns."""
        if self._lost:
            return
        if event is Event.ENTERED:
            self.joined = True
            self.counters.bump("engine.joined")
            self._say("the pair is under COLO; comparing.")
            self._tell(Step.PAUSED, Step.COMPLETED, Step.RESUMED)
        elif event is Event.BOTH_STOPPED:
            self._tell(Step.PAUSED)
            self._do(self._await_decision())
        elif event is Event.LOADED:
            self.counters.bump("engine.copied")
            self._tell(Step.COMPLETED, Step.RESUMED)
        elif event is Event.BROKEN:
            self._say("What goes by in the migration is not QEMU's COLO; this QEMU cannot be followed.")
            self._do(self._lose_one())

    async def _await_decision(self) -> None:
        """A secondary that cannot load what it was given says nothing any more, and the primary waits: give it up."""
        stream, passed = self._relay.stream, -1
        while stream.undecided and not self._lost:
            if self._relay.passed == passed:
                self.counters.bump("engine.not_loaded")
                await self._lose_one()
                return
            passed = self._relay.passed
            await asyncio.sleep(_SILENCE_SECONDS)

    def _stream_closed(self) -> None:
        """Either end has closed, or the secondary was never reached."""
        if self._closed:
            return
        if self.joined:
            self._do(self._lose_one())
        elif self._relay.why_not:
            self._say(f"The primary migrates, but the secondary is not there: {self._relay.why_not}")

    def _ended(self) -> None:
        """A migration that came to nothing may be tried again."""
        if self._closed or self.joined or self._lost:
            return
        reached = not self._relay.why_not
        self._relay.close()
        self._relay = self._listen()
        if reached:
            self._say(
                "The migration has ended without COLO: set the capability x-colo on both machines, and migrate again."
            )

    # ------------------------------------------------------------------------------------------------ either is lost

    async def _lose_one(self) -> None:
        """The stream is of no use any more: who answers is left, and the primary goes before the secondary."""
        await self._reached.wait()
        try:
            await self._primary.execute("query-status", _ANSWER_SECONDS)
        except MonitorError:
            await self._lose_primary()
            return
        if self._lost:
            return
        self._lost, self.joined = True, False
        self._relay.close()
        self.counters.bump("engine.stream_lost")
        with contextlib.suppress(MonitorError):  # it has noticed by itself, or was told by somebody else
            await self._primary.execute(_HEARTBEAT)
        self._say("The secondary is lost: the primary was told, and all that it sends leaves at once.")
        self._tell(Step.LOST_SECONDARY)

    async def _lose_primary(self) -> None:
        if self._lost:
            return
        self._lost, self.joined = True, False
        self._tell(Step.LOST_PRIMARY)
        # The stream stays until the secondary has read what it was sent: it may be loading its last copy.
        if self._secondary is None:
            self._say(f"The primary is lost: send {_HEARTBEAT} to the secondary, and let it take the network over.")
            return
        await self._reached.wait()
        try:
            await self._secondary.execute(_HEARTBEAT)
        except MonitorError as error:
            self._say(f"The primary is lost, and the secondary could not be told: {error}")
        else:
            self._say("The primary is lost: the secondary was told; let it take the network over.")

    def close(self) -> None:
        """Part with both machines, which go on as they are; may be repeated."""
        self._closed = True
        for task in list(self._work):
            task.cancel()
        self._relay.close()

    async def closed(self) -> None:
        """Wait until the monitors are free for somebody else, after `close`."""
        await asyncio.gather(*self._work, return_exceptions=True)
        for monitor in (self._primary, self._secondary):
            if monitor is not None:
                await monitor.close()


async def _reach(monitor: Monitor, address: Address) -> None:
    """Reach a monitor of a QEMU that was built with COLO.

    Raises:
        UsageError: there is none, or it was not.
    """
    await monitor.reach(address.where)
    capabilities: Any = await monitor.execute("query-migrate-capabilities")
    commands: Any = await monitor.execute("query-commands")
    known = {item.get("capability") for item in capabilities} | {item.get("name") for item in commands}
    if not {_X_COLO, _HEARTBEAT} <= known:  # since 8.1 a QEMU may have neither, or the capability alone
        raise UsageError(f"{monitor.name}: the QEMU at {address} was built without COLO; use one that has it.")


def _ignored(_name: str, _data: dict[str, Any]) -> None:
    """Events of QEMU: the stream says more, and earlier."""
