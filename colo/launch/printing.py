"""A plan as shell: the command lines of both machines."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from colo.launch.engines import STOP_COPY
from colo.launch.overlays import create_command, folder
from colo.launch.plan import Plan, run_directory
from colo.qemu.image import APPEND, CARDS, INITRD, Kernel
from colo.qemu.machine import Guest

PRIMARY = "vm1"
SECONDARY = "vm2"


def print_plan(plan: Plan) -> str:
    """What would be run, as shell; the directory is made when it is.

    Raises:
        UsageError: no kernel for the default guest is there.
    """
    plan, directory = with_guest_of(plan)
    guest = plan.guest
    paused = plan.engine == STOP_COPY or guest.overlay is not None
    made, other = _overlays(guest)
    words = [
        *made,
        guest.argv(PRIMARY, directory, incoming=False),
        other.argv(SECONDARY, directory, incoming=True, paused=paused),
    ]
    set_before = "".join(f"{name}={shlex.quote(value)} " for name, value in guest.environment.items())
    return "\n\n".join(set_before + " \\\n    ".join(_grouped(argv)) for argv in words)


def _overlays(guest: Guest) -> tuple[list[list[str]], Guest]:
    """What makes the overlays of both machines if they have any, and the secondary with its own."""
    if guest.disk is None or guest.overlay is None:
        return [], guest
    theirs = folder(guest.overlay) / f"{SECONDARY}.qcow2"
    paths = [theirs] if guest.overlay.exists() else [guest.overlay, theirs]
    return [create_command(path, guest.disk) for path in paths], replace(guest, overlay=theirs)


def with_guest_of(plan: Plan) -> tuple[Plan, Path]:
    """``plan`` with what the default guest would boot if it says of none, and the directory of its sockets."""
    directory = run_directory() / f"{plan.name}.d"
    if plan.guest.kernel is None and plan.guest.disk is None:
        kernel = Kernel.find(needs=CARDS[plan.guest.nic])
        guest = replace(plan.guest, kernel=kernel.image, initrd=directory / INITRD, append=APPEND)
        plan = replace(plan, guest=guest)
    return plan, directory


def _grouped(argv: list[str]) -> list[str]:
    """One option with its value on each line."""
    lines: list[str] = []
    for word in argv:
        if lines and not word.startswith("-") and len(lines) > 1:
            lines[-1] += " " + shlex.quote(word)
        else:
            lines.append(shlex.quote(word))
    return lines
