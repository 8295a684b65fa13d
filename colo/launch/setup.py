"""From a plan to a running pair, and back to nothing."""

from __future__ import annotations

import asyncio
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from colo.launch import control, janitor
from colo.launch.pair import Pair
from colo.launch.plan import GATEWAY, GUEST_ADDRESS, Plan, control_path, run_directory
from colo.launch.view import View
from colo.qemu.image import APPEND, CARDS, INITRD, READY, Kernel, default_guest
from colo.qemu.machine import Guest, find_qemu
from pystack import UsageError
from pystack.cli import signals
from pystack.cli.waiting import stopped

_REFRESH_SECONDS: Final = 0.2


def guest_of(
    *,
    kernel: Path | None,
    initrd: Path | None,
    append: str,
    disk: Path | None,
    memory: int,
    nic: str,
    mac: str,
    accel: str,
    qemu: str,
) -> Guest:
    """The machines that options describe; without kernel and disk the default guest, which is not built yet.

    Raises:
        UsageError: there is no such file or program.
    """
    for path in (kernel, initrd, disk):
        if path is not None and not os.access(path, os.R_OK):
            raise UsageError(f"{path} cannot be read: give a file that is there.")
    return Guest(
        kernel=kernel,
        initrd=initrd,
        append=append,
        disk=disk,
        memory_mib=memory,
        nic=nic,
        mac=mac,
        accel=accelerator() if accel == "auto" else accel,
        qemu=find_qemu(qemu),
    )


def accelerator() -> str:
    """``kvm`` where this user may use it and the processor has what it takes, and else ``tcg``."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        flags = []
    capable = "vmx" in flags or "svm" in flags
    return "kvm" if capable and os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


def print_plan(plan: Plan) -> str:
    """What would be run, as shell."""
    directory = run_directory() / f"{plan.name}.DIRECTORY"
    if plan.guest.kernel is None and plan.guest.disk is None:
        kernel = Kernel.find(needs=CARDS[plan.guest.nic])
        guest = replace(plan.guest, kernel=kernel.image, initrd=directory / INITRD, append=APPEND)
        plan = replace(plan, guest=guest)
    words = [
        plan.guest.argv("vm1", directory, incoming=False),
        plan.guest.argv("vm2", directory, incoming=True),
    ]
    return "\n\n".join(" \\\n    ".join(_grouped(argv)) for argv in words)


def _grouped(argv: list[str]) -> list[str]:
    """One option with its value on each line."""
    lines: list[str] = []
    for word in argv:
        if lines and not word.startswith("-") and len(lines) > 1:
            lines[-1] += " " + shlex.quote(word)
        else:
            lines.append(shlex.quote(word))
    return lines


def run(plan: Plan) -> int:
    """Run it until a signal, or until the service is lost; returns the exit status."""
    path = control_path(plan.name)
    with signals.held(), janitor.scratch(run_directory(), plan.name) as directory, View() as view:
        return asyncio.run(_run(plan, directory, path, view))


async def _run(plan: Plan, directory: Path, path: Path, view: View) -> int:
    plan = await asyncio.to_thread(with_default_guest, plan, directory)
    pair = Pair(plan, directory, view.tell)
    ended = asyncio.Event()
    waiting = asyncio.create_task(stopped())
    refreshing = asyncio.create_task(_refresh(pair, view))

    async def stop() -> None:
        ended.set()

    async def status() -> dict[str, Any]:
        return pair.status()

    try:
        actions: dict[str, control.Action] = {
            "status": status,
            "checkpoint": pair.checkpoint,
            "failover": pair.failover,
            "stop": stop,
        }
        async with control.served(path, actions):
            bringing_up = asyncio.create_task(_bring_up(pair))
            ending = asyncio.create_task(ended.wait())
            watched: set[asyncio.Future[Any]] = {waiting, ending, pair.failed, bringing_up}
            while True:
                done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                if bringing_up in done:
                    bringing_up.result()
                    watched.discard(bringing_up)
                if pair.failed in done:
                    pair.failed.result()
                if waiting in done or ending in done:
                    break
            bringing_up.cancel()
            ending.cancel()
        return 0
    finally:
        for task in (waiting, refreshing):
            task.cancel()
        await asyncio.gather(waiting, refreshing, return_exceptions=True)
        await pair.close()


async def _bring_up(pair: Pair) -> None:
    await pair.start()
    await pair.booted()
    await pair.protect()


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
    files = default_guest(directory, address=GUEST_ADDRESS, gateway=GATEWAY, kernel=kernel)
    guest = replace(plan.guest, kernel=files.kernel, initrd=files.initrd, append=files.append)
    return replace(plan, guest=guest, ready=READY)
