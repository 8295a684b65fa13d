"""What drives a comparator on real sockets: `colo compare`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, Protocol, final

from colo.address import Address
from colo.channel import Channel, Hub
from colo.checkpoint import CheckpointConfig, Checkpoints, Step
from colo.clients import CommandClient
from colo.compare import Comparator, CompareConfig, Difference, Mode
from colo.places import Places
from colo.policy import PERIODIC, Policy, PolicyConfig
from colo.qemu.attach import AttachConfig, Attached
from colo.qemu.notify import NotifyClient
from colo.runner import CommandRunner
from pystack import Counters, Micros
from pystack.drivers.aio import monotonic
from pystack.timers import NEVER

_TIMER_GRAIN: Final[Micros] = 1_000


class Server(Protocol):
    """What `serve` runs: channels behind one hub, each by its name."""

    hub: Hub
    channels: dict[str, Channel]

    def close(self) -> None:
        """Release every socket."""


@final
class CompareServer:
    """A comparator between sockets: the primary's and the secondary's frames come in, what both agree on goes out.

    Args:
        addresses: where ``primary_in``, ``secondary_in`` and ``out`` are, and ``notify``, if there is one: who makes
            checkpoints, in QEMU's notify_dev protocol.
        command: run by the shell for a checkpoint in place of it.
        tell: called with every difference when nobody is notified.
        policy: when to do without comparing and take periodic checkpoints instead, for which there must be somebody who
            takes them; None for never.
        attach: the machines, when QEMU's own COLO makes the checkpoints. Until they are under COLO all frames pass.
        say: tells a person what became of them.
        places: of the machines, for as long as both are processes of this host.

    Attributes:
        channels: by the names of ``addresses``. policy: what came of ``policy``; None also once a machine is lost.

    Raises:
        UsageError: an address cannot be had.
    """

    def __init__(
        self,
        config: CompareConfig,
        addresses: Mapping[str, Address],
        command: str | None,
        counters: Counters,
        tell: Callable[[Difference], None],
        policy: PolicyConfig | None = None,
        attach: AttachConfig | None = None,
        say: Callable[[str], None] = lambda _: None,
        places: Places | None = None,
    ) -> None:
        self.counters = counters
        self._places = places or Places(wanted=False)
        self.comparator = Comparator(config, counters)
        self.policy = None if policy is None else Policy(policy, counters)
        self._tell = None if "notify" in addresses else tell
        self._checkpoints_can_be = "notify" in addresses or command is not None or attach is not None
        self._notify_client = NotifyClient(vnet=config.vnet_framing, counters=counters)
        self._told = False  # the client has been told something that it may answer by a step
        self._look_at: Micros = 0  # when to look after the checkpoints
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Micros = NEVER
        self.hub = Hub(self._after)
        client = None if command is None else CommandClient(("/bin/sh", "-c", command), counters=counters)
        self._runner = None if client is None else CommandRunner(self.hub, client)
        self.channels: dict[str, Channel] = {}
        self._attached: Attached | None = None
        self._muted = False  # the primary is lost: whatever comes of it yet is nobody's
        try:
            if attach is not None:
                self._attached = Attached(attach, self._wake, say, self.hub.fail, counters)
                self.comparator.pass_through(monotonic())
            self.checkpoints = Checkpoints(
                client or self._attached or self._notify_client, CheckpointConfig(), counters
            )
            self._open(addresses, prefix=8 if config.vnet_framing else 4)
        except BaseException:
            self.close()
            raise
        self._primary, self._secondary = self.channels["primary_in"], self.channels["secondary_in"]
        self._out = self.channels["out"]
        self._notify = self.channels.get("notify")
        if self.policy is not None and self._attached is None:
            now = monotonic()
            self.comparator.set_mode(self.policy.choose(now))  # before the first frame
            self._arm(now, now)

    def _open(self, addresses: Mapping[str, Address], prefix: int) -> None:
        uses: dict[str, tuple[Callable[[bytes], None] | None, Callable[[bool], None] | None]] = {
            "primary_in": (self._from_primary, self._primary_changed),
            "secondary_in": (self._from_secondary, self._secondary_changed),
            "out": (None, None),
            "notify": (self._from_notify, self._notify_changed),
        }
        for name, address in addresses.items():
            received, changed = uses[name]
            own = 4 if name == "notify" else prefix
            self.channels[name] = Channel(
                self.hub, address, name, self.counters, received=received, changed=changed, prefix=own
            )
        for channel in self.channels.values():
            channel.connect()

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
        self._told = True
        self._notify_client.feed(data)
        if self._notify_client.error and self._notify is not None:
            self._notify.disconnect()

    def _primary_changed(self, _connected: bool) -> None:
        self.comparator.reset_primary()
        self._place()

    def _secondary_changed(self, _connected: bool) -> None:
        self.comparator.reset_secondary()
        self._place()

    def _place(self) -> None:
        """Give each machine its processors, or the one that is left all of them."""
        ends = [self.channels[name].peer_pid for name in ("primary_in", "secondary_in") if name in self.channels]
        there = [pid for pid in ends if pid]
        if len(set(there)) == 2:
            self._places.settle(*there)
        elif len(there) == 1:
            self._places.settle(there[0], None)

    def _notify_changed(self, connected: bool) -> None:
        self._told = True
        if connected:
            self._notify_client.connect()
        else:
            self._notify_client.disconnect()

    # ------------------------------------------------------------------------------------------------------- turns

    def _wake(self) -> None:
        """The machines under COLO have something to tell, and may wait until it is seen to."""
        self._told = True
        self.hub.guarded(lambda: self._after(monotonic()))

    def _after(self, now: Micros) -> None:
        """After everything that was there was read: see to the checkpoints, and send what may leave with one call."""
        comparator = self.comparator
        differences = comparator.take_requests()
        if differences or self._told or self._runner is not None or now >= self._look_at:
            self._see_to_checkpoints(differences, now)
        released = comparator.take_released()
        if released and not self._muted:
            self._out.send(released)
        at = comparator.next_timeout()
        if at is not None and at < self._timer_at:
            self._arm(at, now)

    def _see_to_checkpoints(self, differences: list[Difference], now: Micros) -> None:
        for difference in differences:
            if self._tell is not None:
                self._tell(difference)
            if self._checkpoints_can_be:
                self.checkpoints.request(difference.reason, now)
                if self.policy is not None:
                    self.policy.on_request(difference.reason, now)
        self._told = False
        for step in self.checkpoints.advance(now):
            self._step(step, now)
        due = NEVER if self.policy is None or self._alone else self._follow(self.policy, now)
        if self._runner is not None:
            self._runner.serve()
        if self._notify is not None:
            output = self._notify_client.take_output()
            if output:
                self._notify.send([output])
        at = self.checkpoints.next_timeout()
        self._look_at = due if at is None else min(at, due)
        if self._look_at < self._timer_at:
            self._arm(self._look_at, now)

    @property
    def _alone(self) -> bool:
        """Whether there is no secondary to compare with yet."""
        return self._attached is not None and not self._attached.joined

    def _follow(self, policy: Policy, now: Micros) -> Micros:
        """Compare or not, and ask for the periodic checkpoint that is due; returns when the next one is."""
        self.comparator.set_mode(policy.choose(now))
        due = policy.next_checkpoint(now)
        if due is None or (self._runner is None and self._attached is None and not self._notify_client.connected):
            return NEVER  # whoever connects has a turn at once
        if due > now:
            return due
        self.checkpoints.request(PERIODIC, now)
        policy.on_request(PERIODIC, now)
        return NEVER

    def _step(self, step: Step, now: Micros) -> None:
        comparator = self.comparator
        if step is Step.PAUSED:
            if self._attached is not None and comparator.mode is Mode.PASS:
                comparator.set_mode(Mode.COMPARE)  # from this checkpoint on, by which the secondary joins
            # Both stand still: what they sent before is in the sockets, all of it.
            self._primary.drain()
            self._secondary.drain()
            comparator.primary_boundary()
            comparator.secondary_boundary()
            if self._runner is not None:
                self._runner.drained()
        elif step is Step.COMPLETED:
            comparator.commit(now)
            if self.policy is not None:
                self.policy.on_completed(self.checkpoints.last_duration, now)
                # A flow that finds no room is told of as a difference is; after a commit those in step give way to it.
                self.policy.on_table(0, comparator.config.max_flows, now)
        elif step is Step.FAILED:
            comparator.abort(now)
        elif step is Step.LOST_SECONDARY:
            self.policy = None
            comparator.pass_through(now)
        elif step is Step.LOST_PRIMARY:
            self.policy = None
            comparator.drop_held()
            self._muted = self._attached is not None

    def _arm(self, at: Micros, now: Micros) -> None:
        """Have a turn at ``at``. A timer that is too early stays: moving one costs more than a vain turn."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at = max(at, now + _TIMER_GRAIN)
        self._timer = self.hub.loop.call_at(at / 1e6, self.hub.guarded, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, NEVER
        now = monotonic()
        self.comparator.tick(now)
        self._after(now)
        if self._look_at < self._timer_at:
            self._arm(self._look_at, now)

    async def closed(self) -> None:
        """Wait until the machines' monitors are free again, after `close`."""
        if self._attached is not None:
            await self._attached.closed()

    def close(self) -> None:
        """Release every socket, and end a command that runs."""
        if self._timer is not None:
            self._timer.cancel()
        if self._runner is not None:
            self._runner.close()
        if self._attached is not None:
            self._attached.close()
        for channel in self.channels.values():
            channel.close()
        self.hub.close()


async def serve(server: Server, stopped: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run until ``stopped()`` is done or something fails; returns the exit status.

    Raises:
        LinkError: the system refused.
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
        if isinstance(server, CompareServer):
            await server.closed()
