"""A machine that somebody else runs: QEMU's own COLO copies the primary into it."""

from __future__ import annotations

import asyncio  # noqa: TID251
import contextlib
import socket  # noqa: TID251
from collections.abc import Callable
from typing import Final, final

from colo.address import Address
from colo.qemu.colo_stream import ColoStream, Event
from colo.qemu.qmp import Monitor, MonitorError
from colo.qemu.relay import Relay
from colo.qemu.settings import enable_colo
from colo.remote.common import HEARTBEAT, gone, reach
from colo.remote.kept import Hooks
from colo.remote.links import open_machine
from colo.remote.ports import Port
from colo.remote.records import Engine, Record
from pystack import Counters, PystackError

_DECIDED_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.002


@final
class XColoKept:
    """Stands in the migration stream; see `colo.remote.kept.Kept`.

    Args:
        machine: where its card connects to. qmp: its monitor. incoming: where it waits for the primary's state.
    """

    engine = Engine.X_COLO

    def __init__(
        self,
        machine: Address,
        qmp: Address,
        incoming: Address,
        hooks: Hooks,
        say: Callable[[str], None],
        counters: Counters,
    ) -> None:
        self._qmp, self._incoming = qmp, incoming
        self._hooks = hooks
        self._say = say
        self._counters = counters
        self._monitor = Monitor("the secondary", lambda _name, _data: None)
        self._relay: Relay | None = None
        self._link = open_machine(machine, counters)
        self.port: Port | None = Port(self._link, hooks.received, hooks.failed, counters)

    @property
    def begun(self) -> bool:
        """Whether there has been a migration."""
        return self._relay is not None

    async def watch(self) -> None:
        """Get it ready, and see to it until its end."""
        await reach(self._monitor, self._qmp, self._say)
        await enable_colo(self._monitor)
        with contextlib.suppress(MonitorError):  # it was started with the address, and not with "defer"
            await self._monitor.execute("migrate-incoming", uri=str(self._incoming))
        self._hooks.ready()
        raise PystackError(f"The secondary is lost: {await gone(self._monitor)}.")

    def take_migration(self, sock: socket.socket) -> None:
        """The one that there is."""
        if self._relay is not None:
            raise PystackError("There is a migration already.")
        stream = ColoStream(self._counters, stops=True)
        self._relay = Relay(sock, self._incoming.where, self._happened, self._ended, self._counters, stream=stream)

    def take(self, record: Record) -> None:
        """The proxy has nothing to say here."""

    def _happened(self, event: Event) -> None:
        """The machine stands still until this returns, except where it only begins to."""
        assert self.port is not None
        if event is Event.SECONDARY_STOPPED:
            self.port.freeze()
            self._hooks.stopped()
        elif event in (Event.ENTERED, Event.LOADED):
            self.port.thaw(drop_cut=True)  # what it had sent before is said in the old numbers
            self._hooks.copied()

    def _ended(self) -> None:
        """The machine has closed the stream, or both have: whoever is left is told by the record stream."""

    async def take_over(self) -> None:
        """Let QEMU know, and wait until it has made up its mind about a copy that was on its way."""
        relay = self._relay
        if relay is not None:
            relay.drop_primary()
        with contextlib.suppress(MonitorError):  # it may have noticed by itself
            await self._monitor.execute(HEARTBEAT)
        for _ in range(round(_DECIDED_SECONDS / _LOOK_SECONDS)):
            if relay is None or not relay.stream.undecided:
                break
            await asyncio.sleep(_LOOK_SECONDS)

    async def close(self) -> None:
        """Part with it; it is not ours to end."""
        if self._relay is not None:
            self._relay.close()
        await self._monitor.close()
        if self.port is not None:
            self.port.close()
        self._link.close()
