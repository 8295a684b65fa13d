"""A pair at work: two machines, the proxy, an engine, the clients' network, and what watches over all of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import shlex
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, final

from colo.checkpoint import CheckpointConfig, State
from colo.clients import Nobody
from colo.drive import ProxyDriver
from colo.launch.engines import Chosen, Engine, foreseen, tried
from colo.launch.heartbeat import watch_over
from colo.launch.overlays import Overlays
from colo.launch.plan import GUEST_ADDRESS, Plan
from colo.places import Places
from colo.proxy import Proxy, ProxyConfig, Role
from colo.qemu.machine import Machine
from colo.qemu.owner import Owner
from colo.report import line
from colo.translated import TranslatedLink
from pystack import (
    Counters,
    Driver,
    Gateway,
    GatewayConfig,
    HostIO,
    Link,
    PystackError,
    TapLink,
    UsageError,
    memory_pair,
)
from pystack.drivers.aio import monotonic

_PAUSES: Final = 4096  # of the last checkpoints, to tell their median
_QUEUE_FRAMES: Final = 4096
_JOIN_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.02
_BREATH_SECONDS: Final = 1.0  # after a failover, before another secondary is started
_SHOWN: Final = 2  # machines whose command lines are told
_TOLD: Final = 5  # of the last differences, in the status


@final
class Pair:
    """Runs the machines of ``plan`` with their files in ``directory``.

    Args:
        tell: called with what happens, for a person. runs: with the command lines of the first two machines, once both
            work; those of later ones differ in their names. overlays: of the machines, if they have any.

    Attributes:
        proxy, driver: at work once `start` has returned. engine: takes the checkpoints.
        started: whether they are there. formed: whether a secondary has ever been in step.
        primary: the machine that clients are served by; after a failover, the one that was the secondary.
        failover_at: when the primary was lost, 0.0 before. counters: of everything.
        pauses: how long both machines stood still in the last checkpoints, microseconds.
    """

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        tell: Callable[[str], None],
        runs: Callable[[str], None] = lambda _: None,
        overlays: Overlays | None = None,
    ) -> None:
        self.plan = plan
        self._overlays = overlays
        self._runs = runs
        self._commands: list[str] = []  # that are to be told once they are seen to work
        self._retired: list[Engine] = []
        self.directory = directory
        self.counters = Counters()
        self._tell = tell
        self._numbers = itertools.count(1)
        self._places = Places(wanted=plan.placing)
        self._tasks: set[asyncio.Task[None]] = set()
        self._undo = contextlib.ExitStack()
        self._settled = asyncio.Event()  # after a failover
        self._begun = time.monotonic()
        self._memory_files = False  # which QEMU's own COLO has no use for
        self._closing = False
        self.pauses: deque[int] = deque(maxlen=_PAUSES)
        self.failover_at = 0.0
        self.started = False
        self.formed = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.primary: Machine
        self.proxy: Proxy
        self.driver: ProxyDriver
        self.chosen: Chosen
        self.engine: Engine
        self._joining: asyncio.Task[None] | None = None  # after a failover
        self._clients: Link
        self._driving: asyncio.Task[None]

    # ------------------------------------------------------------------------------------------------------- the start

    async def start(self) -> None:
        """Start the primary and the proxy in front of it. It serves from here on, and nothing protects it yet.

        Raises:
            UsageError: the machine, the device or a published port is not to be had.
        """
        self._clients = self._client_link()
        chosen = await foreseen(self.plan)
        self._memory_files = chosen is not None and not self.plan.guest.says_of_memory
        self.primary = await self._machine()
        self._drive()
        self._watch_over(self.primary)
        self.chosen = chosen or await tried(self.plan, self.directory)  # the guest boots meanwhile
        self._tell(f"checkpoints by {self.chosen.name}: {self.chosen.why}")
        self._employ_engine()
        self.started = True

    def _drive(self) -> None:
        """A proxy between the clients and the primary, which is alone."""
        config = ProxyConfig(checkpoint=CheckpointConfig(completion_timeout=60_000_000))
        self.proxy = Proxy(config, Nobody(), self.counters, alone=True)
        self.proxy.hopeless = self._give_up_secondary
        self.driver = ProxyDriver(self.proxy, self._clients, self.primary.link)
        self.driver.freeze()
        self._driving = self._run(self.driver.run(), "proxy")

    def _employ_engine(self) -> None:
        owner = Owner(self._spare, self._attach, self.driver.quiesce, self.driver.hold, self._wake)
        engine = self.engine = self.chosen.make(self.primary, owner, self.counters)
        self.driver.undecided = lambda: engine.undecided
        engine.prepare()

    def _client_link(self) -> Link:
        if self.plan.tap:
            link = TapLink.open(self.plan.tap, offload=False, counters=self.counters)
            self._undo.callback(link.close)
            return link
        near, far = memory_pair(queue_frames=_QUEUE_FRAMES, wakeup=True)
        for end in (near, far):
            self._undo.callback(end.close)
        config = GatewayConfig(guest=GUEST_ADDRESS.ip.packed)
        gateway = Gateway(config, far.info, seed=secrets.randbits(128))
        hostio = HostIO(gateway, publish=self.plan.publish)
        self._undo.callback(hostio.close)
        self._run(Driver(gateway, far, hostio).run(), "gateway")
        return near

    async def _machine(self, *, incoming: bool = False, paused: bool = False) -> Machine:
        number = next(self._numbers)
        name, guest = f"vm{number}", self.plan.guest
        if self._overlays is not None and incoming:
            guest = replace(guest, overlay=self._overlays.of(name))
        machine = Machine(guest, name, self.directory, self.counters, memory_file=self._memory_files)
        if number <= _SHOWN:
            self._commands.append(shlex.join(machine.argv(incoming=incoming, paused=paused)))
        try:
            await machine.start(incoming=incoming, paused=paused)
        except BaseException:
            await machine.kill()
            raise
        self._run(self._on_end_of(machine), f"the end of {name}")
        return machine

    async def _spare(self) -> Machine:
        return await self._machine(incoming=True, paused=self.chosen.paused_spares)

    def _attach(self, machine: Machine) -> None:
        self.driver.attach_secondary(machine.link)
        self._places.settle(self.primary.pid, machine.pid)
        self._watch_over(machine)

    def _wake(self) -> None:
        completed = self.proxy.counters["checkpoint.completed"]
        self.driver.wake()
        if self.proxy.counters["checkpoint.completed"] > completed:
            self.pauses.append(self.proxy.checkpoints.last_pause)

    async def booted(self) -> None:
        """Wait until the guest says that it serves.

        Raises:
            UsageError: it does not in time, or QEMU has ended.
        """
        machine, deadline = self.primary, time.monotonic() + self.plan.boot
        while self.plan.ready.encode() not in machine.console():
            if machine.ended.done() or time.monotonic() > deadline:
                lines = machine.console().decode(errors="replace").strip().splitlines()
                last = f"its last words: {lines[-1][:100]!r}" if lines else "it has printed nothing"
                raise UsageError(f"The guest does not boot within {self.plan.boot:g} s; {last}.")
            await asyncio.sleep(_LOOK_SECONDS)
        if self.plan.ready:
            self._tell(f"the guest in {machine.name} serves")

    async def _protect_anew(self) -> None:
        """After a failover: a proxy, an engine and a secondary for what was the secondary."""
        await asyncio.sleep(_BREATH_SECONDS)  # its clients come first
        if not self.primary.alive or self._closing:
            return  # of which is told elsewhere
        self._driving.cancel()
        await asyncio.gather(self._driving, return_exceptions=True)
        self.engine.secondary = None  # the survivor, which is to stay
        self._retired = [self.engine]
        await self.engine.close()
        old = self.proxy
        self._clients = TranslatedLink(self._clients, old)
        self._drive()
        self.proxy.differences.extend(old.differences)
        self.proxy.checkpoints.by_reason.update(old.checkpoints.by_reason)
        self._employ_engine()
        await self._protect_in_time()

    async def _protect_in_time(self) -> None:
        """`protect`, for as long as it takes: a machine that is alone serves on meanwhile."""
        while not self.proxy.protected:
            try:
                await self.protect()
            except UsageError as error:
                self._tell(f"{error} {self.primary.name} goes on alone; another try follows.")
                await asyncio.sleep(_BREATH_SECONDS)

    async def protect(self) -> None:
        """Let a secondary join, and wait until both are in step.

        Raises:
            UsageError: that does not come to pass within a minute.
        """
        self.proxy.join(self.engine, monotonic(), live=self.engine.live)
        self.driver.wake()
        began = time.monotonic()
        while not self.proxy.protected:
            passed = time.monotonic() - began
            if self.proxy.role is not Role.PAIR or passed > _JOIN_SECONDS:
                raise UsageError(f"The secondary does not join: {self._why_not(passed)}")
            await asyncio.sleep(0.01)
        self.formed = True
        commands, self._commands = self._commands, []
        for command in commands:
            self._runs(command)
        self._tell(f"protected: {self.engine_secondary} is in step with {self.primary.name}")

    def _why_not(self, seconds: float) -> str:
        """The last words of any machine in the last so many seconds."""
        logs = sorted((path.stat().st_mtime, path) for path in self.directory.glob("*.log"))
        recent = [path for written, path in logs if written >= time.time() - seconds - _LOOK_SECONDS]
        said = [line for path in recent for line in path.read_text(errors="replace").strip().splitlines()[-1:]]
        return said[-1] if said else "QEMU does not say why."

    @property
    def engine_secondary(self) -> str:
        """The secondary's name; "" when there is none."""
        return self.engine.secondary.name if self.engine.secondary is not None else ""

    # ---------------------------------------------------------------------------------------------------- watching over

    def _run(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or self._closing:
            return
        error = task.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)

    async def _on_end_of(self, machine: Machine) -> None:
        await asyncio.shield(machine.ended)
        if self._closing:
            return
        if self._overlays is not None and machine.guest.overlay is not None:
            self._overlays.drop(machine.guest.overlay)
        if machine is self.primary:
            await self._lose_primary()
        elif machine is self.engine.secondary:
            await self._lose_secondary()

    async def _lose_primary(self) -> None:
        survivor = self.engine.secondary
        lost = PystackError(f"{self.primary.name} has ended, and nobody can carry on: the service is lost.")
        if survivor is None or not self.proxy.protected or not survivor.alive:
            raise lost
        self.failover_at = time.monotonic()
        await self.engine.fail_over()
        if not survivor.alive:
            raise lost
        self.driver.lose_primary()
        gone, self.primary = self.primary, survivor
        if self._overlays is not None and survivor.guest.overlay is not None:
            self._keep(survivor.guest.overlay, self._overlays)
        self._places.settle(survivor.pid, None)
        self._tell(f"{gone.name} is gone: {survivor.name} carries its connections on")
        self._settled.set()
        await gone.kill()  # its monitor and its link
        self._joining = self._run(self._protect_anew(), "another secondary")

    def _keep(self, overlay: Path, overlays: Overlays) -> None:
        try:
            overlays.serve(overlay)
        except OSError as error:  # its clients come first
            self.counters.bump("pair.overlays_not_kept")
            self._tell(f"copy {overlay} before the end, or what is written will be lost: {error.strerror or error}")

    async def _lose_secondary(self) -> None:
        name = self.engine_secondary
        self.driver.lose_secondary()
        await self.engine.lose_secondary()
        self.driver.lose_secondary()  # one that was made in the meantime
        self._places.settle(self.primary.pid, None)
        self._tell(f"{name} is gone: {self.primary.name} goes on alone, and another one is to join")
        await self._protect_in_time()

    def _give_up_secondary(self) -> None:
        """Checkpoints fail, and clients wait for them: they need not when there is no secondary."""
        secondary = self.engine.secondary
        if secondary is not None and secondary.alive and not self._closing:
            failing = (monotonic() - self.proxy.checkpoints.failing_since) / 1e6
            self._tell(f"checkpoints fail ({self._why_not(failing).rstrip('.')}): {secondary.name} is given up")
            self._run(secondary.kill(), "the end of a secondary")

    def _watch_over(self, machine: Machine) -> None:
        watching = watch_over(
            machine, self.plan, self.counters, self._tell, lambda: self._should_run(machine), self._is_closing
        )
        self._run(watching, f"{machine.name}'s heartbeat")

    def _should_run(self, machine: Machine) -> bool:
        """Whether it is a primary that stands still for no checkpoint, and that a secondary could carry on for."""
        checkpoints = self.proxy.checkpoints
        rests = checkpoints.under_way or checkpoints.state is State.PAUSED
        return machine is self.primary and self.proxy.protected and not rests

    def _is_closing(self) -> bool:
        return self._closing

    # ---------------------------------------------------------------------------------------------- what people ask for

    async def checkpoint(self, reason: str = "asked for") -> None:
        """Take a checkpoint, and wait for it.

        Raises:
            UsageError: there is no pair, or it does not come to pass within a minute.
        """
        if not self.started or not self.proxy.protected:
            raise UsageError("There is no secondary that a checkpoint could be taken of.")
        before = self.proxy.checkpoints.served
        self.proxy.checkpoints.request(reason, monotonic())
        self.driver.wake()
        deadline = time.monotonic() + _JOIN_SECONDS
        while self.proxy.checkpoints.served <= before:
            if self.proxy.role is not Role.PAIR or time.monotonic() > deadline:
                raise UsageError("The checkpoint was not taken.")
            await asyncio.sleep(0.001)

    async def failover(self) -> None:
        """End the primary, and let the secondary carry on.

        Raises:
            UsageError: there is no secondary that could.
        """
        if not self.started or not self.proxy.protected:
            raise UsageError("There is no secondary that could carry on.")
        self._settled.clear()
        await self.primary.kill()
        await self._settled.wait()

    def status(self) -> dict[str, Any]:
        """Where everything stands, for a person or a program."""
        if not self.started:
            return {"name": self.plan.name, "state": "starting"}
        proxy, checkpoints = self.proxy, self.proxy.checkpoints
        pauses = sorted(self.pauses)
        return {
            "name": self.plan.name,
            "uptime_s": round(time.monotonic() - self._begun, 1),
            "state": _state(proxy),
            "primary": self.primary.name,
            "secondary": self.engine_secondary,
            "panicked": self.panicked,
            "accelerator": self.plan.guest.accel,
            "engine": self.chosen.name,
            "mode": proxy.comparator.mode.value,
            "checkpoints": proxy.counters["checkpoint.completed"],
            "checkpoints_by_reason": dict(checkpoints.by_reason),
            "pause_median_us": pauses[len(pauses) // 2] if pauses else 0,
            "pause_worst_us": pauses[-1] if pauses else 0,
            "released_frames": proxy.comparator.released_frames,
            "held_frames": proxy.comparator.held_frames,
            "held_bytes": proxy.comparator.held_bytes,
            "connections": proxy.tracker.live,
            "waiting_frames": len(proxy.mirror.waiting),
            "differences": [line(difference) for difference in list(proxy.differences)[-_TOLD:]],
        }

    @property
    def panicked(self) -> list[str]:
        """Names of the machines whose guest was reset or has panicked: see `colo.qemu.machine.Machine.panicked`."""
        machines = (self.primary, self.engine.secondary)
        return [machine.name for machine in machines if machine is not None and machine.panicked]

    async def close(self) -> None:
        """End everything."""
        self._closing = True
        if self._joining is not None:
            self._joining.cancel()
            await asyncio.gather(self._joining, return_exceptions=True)
        if self.started:
            for engine in (*self._retired, self.engine):
                await engine.close()
        if hasattr(self, "primary"):
            await self.primary.kill()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._undo.close()
        if self.failed.done() and not self.failed.cancelled():
            self.failed.exception()
        self.failed.cancel()


def _state(proxy: Proxy) -> str:
    if proxy.role is Role.PAIR:
        return "protected" if proxy.protected else "joining"
    return str(proxy.role.value)
