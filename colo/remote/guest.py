"""Machines that a side of a pair on two hosts runs itself, as the same file says on both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from colo.launch.config import load
from colo.launch.janitor import scratch
from colo.launch.plan import run_directory
from colo.launch.setup import plan_of, with_default_guest
from colo.qemu.machine import Guest
from pystack import UsageError

_TAP = "tap:"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnGuest:
    """What every machine is, and where its sockets and logs are."""

    guest: Guest
    directory: Path


@contextlib.contextmanager
def own_guest(file: Path, client: str, what: str) -> Iterator[OwnGuest]:
    """The guest that a file of `colo launch` describes, for as long as the block lasts.

    Args:
        client: the clients' network, ``tap:NAME`` or an address. what: whose it is, for the name of its directory.

    Raises:
        UsageError: there is something wrong with the file, or with what it names.
    """
    plan = plan_of({**load(file, {"publish", "tap"}).options, "tap": client.removeprefix(_TAP)})
    if plan.guest.overlay is not None:
        raise UsageError(f"{file}: what a machine writes to its disk is not sent to another host: leave overlay out.")
    with scratch(run_directory(), f"{what}-{os.getpid()}") as directory:
        plan = with_default_guest(replace(plan, name=what), directory)
        yield OwnGuest(guest=plan.guest, directory=directory)
