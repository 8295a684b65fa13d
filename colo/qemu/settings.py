"""What a machine's migration is set to before COLO, and what QEMU's versions call for."""

from __future__ import annotations

from typing import Final

from colo.qemu.qmp import Monitor, MonitorError

ON_DEMAND: Final = (1 << 32) - 1
"""For ``x-checkpoint-delay``: milliseconds between two checkpoints that nobody asks for, 49 days."""

UNLIMITED: Final = 1 << 40
"""For ``max-bandwidth``: bytes a second."""

_IGNORE_SHARED: Final = "x-ignore-shared"
_X_COLO: Final = "x-colo"
_RETURN_PATH: Final = "return-path"


async def enable_colo(monitor: Monitor) -> None:
    """Let this machine's next migration be COLO's, with checkpoints on demand and without a limit to its speed.

    Older versions of QEMU keep the way back from the secondary for COLO alone, and would have somebody else read it if
    they had the capability return-path; newer ones refuse COLO without (seen: 11.1.3; not yet: 10.0.13).

    Raises:
        MonitorError: QEMU refuses.
    """
    try:
        await _capabilities(monitor, _X_COLO)
    except MonitorError as error:
        if _RETURN_PATH not in str(error):
            raise
        await _capabilities(monitor, _RETURN_PATH, _X_COLO)
    await monitor.execute("migrate-set-parameters", x_checkpoint_delay=ON_DEMAND, max_bandwidth=UNLIMITED)


async def leave_memory_out(monitor: Monitor) -> None:
    """Let this machine's next migration be without memory that is a file's: somebody else copies that.

    Raises:
        MonitorError: QEMU refuses.
    """
    await _capabilities(monitor, _IGNORE_SHARED)


async def _capabilities(monitor: Monitor, *names: str) -> None:
    wanted = [{"capability": name, "state": True} for name in names]
    await monitor.execute("migrate-set-capabilities", capabilities=wanted)
