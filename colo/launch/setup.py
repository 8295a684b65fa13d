"""From a plan to a running pair, and back to nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from colo.launch import control, janitor, manager
from colo.launch.checks import check_kernel, check_mac, check_program, check_readable, check_version
from colo.launch.overlays import Overlays
from colo.launch.pair import Pair
from colo.launch.plan import GATEWAY, GUEST_ADDRESS, GUEST_ADDRESS6, Plan, control_path, run_directory
from colo.launch.view import View
from colo.qemu.image import CARDS, READY, Kernel, default_guest
from colo.qemu.machine import Guest, find_qemu, qemu_version
from pystack import UsageError
from pystack.cli import signals
from pystack.cli.waiting import stopped
from pystack.drivers import hot

_REFRESH_SECONDS: Final = 0.2
_OF_PLAN: Final = ("name", "engine", "placing", "ready", "boot", "heartbeat", "patience", "publish", "tap")


def plan_of(options: Mapping[str, Any]) -> Plan:
    """The plan that ``options`` make, named as `colo.launch.keys.Key.option` is; what is not said is as usual.

    Raises:
        UsageError: they do not go together, or what they name is not there.
    """
    said = dict(options)
    ours = {name: said.pop(name) for name in _OF_PLAN if name in said}
    if said.get("overlay") is not None and said.get("disk") is None:
        raise UsageError("--overlay is nothing without a disk: give --disk too.")
    if said.get("kernel") is None and (said.get("initrd") is not None or said.get("append")):
        raise UsageError("--initrd and --append are nothing without a kernel: give --kernel too.")
    return Plan(guest=guest_of(**said), **ours)


def guest_of(
    *,
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
    disk: Path | None = None,
    overlay: Path | None = None,
    memory: int = 128,
    nic: str = "virtio-net-pci",
    mac: str = "52:54:00:12:34:56",
    accel: str = "auto",
    qemu: str = "qemu-system-x86_64",
    cpus: int = 1,
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Guest:
    """The machines that options describe; without kernel and disk the default guest, which is not built yet.

    Raises:
        UsageError: there is no such file or program, or it is of no use here.
    """
    for path in (initrd, disk):
        if path is not None:
            check_readable(path)
    if kernel is not None:
        check_kernel(kernel)
    check_mac(mac)
    check_program(qemu)
    return Guest(
        kernel=kernel,
        initrd=initrd,
        append=append,
        disk=disk,
        overlay=overlay,
        memory_mib=memory,
        cpus=cpus,
        nic=nic,
        mac=mac,
        accel=accelerator() if accel == "auto" else accel,
        qemu=find_qemu(qemu),
        extra=tuple(extra),
        environment=dict(environment or {}),
    )


def accelerator() -> str:
    """``kvm`` where this user may use it and the processor has what it takes, and else ``tcg``."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        flags = []
    capable = "vmx" in flags or "svm" in flags
    return "kvm" if capable and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def run(plan: Plan) -> int:
    """Run it until a signal, or until the service is lost; returns the exit status."""
    path = control_path(plan.name)
    overlay = plan.guest.overlay
    with signals.held(), janitor.scratch(run_directory(), plan.name, overlay) as directory, View() as view:
        return hot.run(_run(plan, directory, path, view))


async def _run(plan: Plan, directory: Path, path: Path, view: View) -> int:
    await _check_qemu(plan.guest.qemu)
    plan = await asyncio.to_thread(with_default_guest, plan, directory)

    def tell(text: str) -> None:
        view.tell(text)
        manager.tell(STATUS=text)

    overlays = await asyncio.to_thread(_overlays, plan.guest)
    pair = Pair(plan, directory, tell, view.mention, overlays)
    ended = asyncio.Event()
    waiting = asyncio.create_task(stopped())
    refreshing = asyncio.create_task(_refresh(pair, view))
    try:
        async with control.served(path, _actions(pair, ended)):
            await _until_the_end(pair, waiting, ended)
        return 0
    except UsageError:
        if overlays is not None and not pair.formed:
            overlays.undo()
        raise
    finally:
        manager.tell(STOPPING="1")
        for task in (waiting, refreshing):
            task.cancel()
        await asyncio.gather(waiting, refreshing, return_exceptions=True)
        await pair.close()


def _overlays(guest: Guest) -> Overlays | None:
    if guest.overlay is None or guest.disk is None:
        return None
    overlays = Overlays(guest.overlay, guest.disk)
    overlays.prepare()
    return overlays


async def _check_qemu(program: str) -> None:
    """See that it is new enough. What does not tell its version is left to say when it is started what is wrong."""
    try:
        version = await qemu_version(program)
    except UsageError:
        return
    check_version(version)


def _actions(pair: Pair, ended: asyncio.Event) -> dict[str, control.Action]:
    async def stop() -> None:
        ended.set()

    async def status() -> dict[str, Any]:
        return pair.status()

    async def counters() -> dict[str, int]:
        return dict(sorted(pair.counters.snapshot().items()))

    return {
        "status": status,
        "counters": counters,
        "checkpoint": pair.checkpoint,
        "failover": pair.failover,
        "stop": stop,
    }


async def _until_the_end(pair: Pair, waiting: asyncio.Task[int], ended: asyncio.Event) -> None:
    """Bring the pair up, and return when ``waiting`` is done or ``ended`` set; raises what goes wrong."""
    bringing_up = asyncio.create_task(_bring_up(pair))
    ending = asyncio.create_task(ended.wait())
    watched: set[asyncio.Future[Any]] = {waiting, ending, pair.failed, bringing_up}
    try:
        while True:
            done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if bringing_up in done:
                bringing_up.result()
                watched.discard(bringing_up)
            if pair.failed in done:
                pair.failed.result()
            if waiting in done or ending in done:
                return
    finally:
        bringing_up.cancel()
        ending.cancel()


async def _bring_up(pair: Pair) -> None:
    try:
        await pair.start()
    except OSError as error:  # of a program that is none, above all
        what, why = error.filename or pair.plan.guest.qemu, error.strerror or str(error)
        raise UsageError(f"QEMU does not start: {what}: {why.lower()}.") from None
    await pair.booted()
    await pair.protect()
    manager.tell(READY="1")


async def _refresh(pair: Pair, view: View) -> None:
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        if pair.started:
            view.refresh(pair)


def with_default_guest(plan: Plan, directory: Path) -> Plan:
    """``plan``, with the default guest built in ``directory`` if it says of none what to boot.

    Raises:
        UsageError: the system has not what it takes.
    """
    if plan.guest.kernel is not None or plan.guest.disk is not None:
        return plan
    kernel = Kernel.find(needs=CARDS[plan.guest.nic])
    address6 = GUEST_ADDRESS6 if plan.tap else None
    files = default_guest(directory, address=GUEST_ADDRESS, gateway=GATEWAY, address6=address6, kernel=kernel)
    guest = replace(plan.guest, kernel=files.kernel, initrd=files.initrd, append=files.append)
    return replace(plan, guest=guest, ready=READY)
