"""What `colo launch` is to set up, and what comes out of it as command lines."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Final

from colo.qemu.machine import NICS, Guest
from pystack import Publish, UsageError

ENGINES: Final = ("auto", "x-colo", "stop-copy")
"""How checkpoints are taken; see `colo.launch.engines`."""

GUEST_ADDRESS: Final = IPv4Interface("10.0.2.15/24")
GUEST_ADDRESS6: Final = IPv6Interface("fd00:c010::15/64")
"""Of the default guest behind a TAP device, too. Of nobody's network (RFC 4193); the gateway of our own has no IPv6."""

GATEWAY: Final = IPv4Address("10.0.2.2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A pair.

    Attributes:
        guest: both machines.
        tap: the TAP device that is the clients' network; "" for a gateway of our own, which needs no privileges.
        publish: with the gateway: ports of the host that lead to the guest.
        name: of the pair, by which `colo ctl` finds it.
        ready: what the guest prints on its serial line once it serves, "" if it says nothing; boot: within how many
            seconds.
        engine: one of `ENGINES`; ``auto`` leaves it to what works here.
        placing: whether the machines are given their processors; see `colo.places`.
        heartbeat: seconds between two; patience: how many seconds a machine may not answer before it is ended.
    """

    guest: Guest = field(default_factory=Guest)
    tap: str = ""
    publish: tuple[Publish, ...] = ()
    name: str = "pair"
    ready: str = ""
    boot: float = 60.0
    engine: str = "auto"
    placing: bool = True
    heartbeat: float = 0.25
    patience: float = 5.0

    def __post_init__(self) -> None:
        if self.guest.nic not in NICS:
            raise UsageError(f"The card is {self.guest.nic!r}: it must be one of {', '.join(NICS)}.")
        if self.engine not in ENGINES:
            raise UsageError(f"The engine is {self.engine!r}: it must be one of {', '.join(ENGINES)}.")
        if not self.name.replace("-", "").isalnum():
            raise UsageError(f"The name {self.name!r} is no good: use letters, digits and hyphens.")
        if self.tap and self.publish:
            raise UsageError("--publish is for the gateway of our own: with --tap, clients reach the guest directly.")


def run_directory() -> Path:
    """Where the sockets of pairs are, for this user alone; made if need be.

    Raises:
        UsageError: it cannot be made, or belongs to somebody else.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base, "colo") if base else Path(tempfile.gettempdir(), f"colo-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.stat(follow_symlinks=False)
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {(error.strerror or str(error)).lower()}.") from None
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UsageError(f"{path} is open to others or not ours: remove it, or set XDG_RUNTIME_DIR.")
    return path


def control_path(name: str) -> Path:
    """The socket by which the pair ``name`` is spoken to."""
    return run_directory() / f"{name}.ctl"
