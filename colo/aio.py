"""What drives a comparator on real sockets: `colo compare`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final, final

from colo.channel import Address, Channel, Hub
from colo.checkpoint import CheckpointConfig, Checkpoints, Step
from colo.clients import Command, CommandClient
from colo.compare import Comparator, CompareConfig, Difference
from colo.qemu.notify import NotifyClient
from pystack import Counters, Micros
from pystack.drivers.aio import monotonic

_TIMER_GRAIN: Final[Micros] = 1_000


@final
class CompareServer:
    """A comparator between sockets: the primary's and the secondary's frames come in, what both agree on goes out.

    Args:
        notify: where QEMU's checkpointer is, None without one. command: run for a checkpoint in place of it.
        tell: called with every difference.
    """

    def __init__(
        self,
        config: CompareConfig,
        primary: Address,
        secondary: Address,
        out: Address,
        notify: Address | None,
        command: str | None,
        counters: Counters,
        tell: Callable[[Difference], None],
    ) -> None:
        self.counters = counters
        self.comparator = Comparator(config, counters)
        self._tell = tell
        self._tasks: set[asyncio.Task[None]] = set()
        self._notify_client = NotifyClient(vnet=config.vnet_framing, counters=counters)
        self._command = None if command is None else CommandClient(("/bin/sh", "-c", command), counters=counters)
        client = self._notify_client if self._command is None else self._command
        self.checkpoints = Checkpoints(client, CheckpointConfig(), counters)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Micros | None = None
        self._loop = asyncio.get_running_loop()
        self.hub = Hub(self._after)
        self._channels: list[Channel] = []
        try:
            self._primary = self._open(primary, "primary", self._from_primary, self._primary_changed)
            self._secondary = self._open(secondary, "secondary", self._from_secondary, self._secondary_changed)
            self._out = self._open(out, "out", None, None)
            self._notify = (
                None if notify is None else self._open(notify, "notify", self._from_notify, self._notify_changed)
            )
        except BaseException:
            self.close()
            raise

    def _open(
        self,
        address: Address,
        name: str,
        received: Callable[[bytes], None] | None,
        changed: Callable[[bool], None] | None,
    ) -> Channel:
        channel = Channel(self.hub, address, name, self.counters, received=received, changed=changed)
        self._channels.append(channel)
        return channel

    # ------------------------------------------------------------------------------------------------------- input

    def _from_primary(self, data: bytes) -> None:
        self.comparator.primary_bytes(data, monotonic())
        if self.comparator.primary_error:
            self._primary.disconnect()

    def _from_secondary(self, data: bytes) -> None:
        self.comparator.secondary_bytes(data, monotonic())
        if self.comparator.secondary_error:
            self._secondary.disconnect()

    def _from_notify(self, data: bytes) -> None:
        self._notify_client.feed(data)
        if self._notify_client.error and self._notify is not None:
            self._notify.disconnect()

    def _primary_changed(self, _connected: bool) -> None:
        self.comparator.reset_primary()

    def _secondary_changed(self, _connected: bool) -> None:
        self.comparator.reset_secondary()

    def _notify_changed(self, connected: bool) -> None:
        if connected:
            self._notify_client.connect()
        else:
            self._notify_client.disconnect()

    # ------------------------------------------------------------------------------------------------------- turns

    def _after(self) -> None:
        """After everything that was there was read: send what may leave, and see to the checkpoints."""
        comparator = self.comparator
        released = comparator.take_released()
        if released:
            self._out.send(released)
        now = monotonic()
        for difference in comparator.take_requests():
            self._tell(difference)
            self.checkpoints.request(difference.reason, now)
        steps = self.checkpoints.advance(now)
        for step in steps:
            self._step(step, now)
        if steps:
            self._out.send(comparator.take_released())
        if self._command is not None and (wanted := self._command.take_command()) is not None:
            task = self._loop.create_task(self._run(self._command, wanted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._notify is not None:
            output = self._notify_client.take_output()
            if output:
                self._notify.send([output])
        self._arm(now)

    def _step(self, step: Step, now: Micros) -> None:
        comparator = self.comparator
        if step is Step.PAUSED:
            # Both stand still: what they sent before is in the sockets, all of it.
            self._primary.drain()
            self._secondary.drain()
            comparator.primary_boundary()
            comparator.secondary_boundary()
        elif step is Step.COMPLETED:
            comparator.commit(now)
        elif step is Step.FAILED:
            comparator.abort(now)

    async def _run(self, client: CommandClient, command: Command) -> None:
        """Run a checkpoint command: what it prints are its steps."""
        environment = {**os.environ, "COLO_REASON": command.reason}
        process = await asyncio.create_subprocess_exec(
            *command.argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert process.stdout is not None
        try:
            while data := await process.stdout.read(4096):
                client.feed(command.serial, data)
                self._after()
                if client.take_kill() == command.serial:
                    process.kill()
        finally:
            if process.returncode is None and not process.stdout.at_eof():
                process.kill()
            client.ended(command.serial, await process.wait())
        self._after()

    def _arm(self, now: Micros) -> None:
        """Have a turn when the comparator's or the checkpoints' next deadline comes."""
        instants = (self.comparator.next_timeout(), self.checkpoints.next_timeout())
        at = min((instant for instant in instants if instant is not None), default=None)
        if at is None or (self._timer_at is not None and at >= self._timer_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at = max(at, now + _TIMER_GRAIN)
        self._timer = self._loop.call_at(at / 1e6, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = self._timer_at = None
        self.comparator.tick(monotonic())
        self._after()

    def close(self) -> None:
        """Release every socket."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for channel in self._channels:
            channel.close()
        self.hub.close()


async def serve(server: CompareServer, stopped: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run until ``stopped()`` is done or something fails; returns the exit status.

    Raises:
        LinkError: a peer that was connected to has gone.
    """
    end: asyncio.Future[int] = asyncio.ensure_future(stopped())
    waited: set[asyncio.Future[Any]] = {end, server.hub.failed}
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if server.hub.failed.done():
            server.hub.failed.result()
        return end.result()
    finally:
        if not end.done():
            end.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await end
        server.close()
