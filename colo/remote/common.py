"""What both sides have in common: the monitor of somebody else's machine, and the witness."""

from __future__ import annotations

import asyncio  # noqa: TID251
import contextlib
from collections.abc import Callable
from typing import Any, Final

from colo.address import Address
from colo.qemu.machine import never_enters_colo
from colo.qemu.qmp import Monitor, MonitorError
from pystack import UsageError

HEARTBEAT: Final = "x-colo-lost-heartbeat"

_REACH_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.1
_ALIVE_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 5.0
_WITNESS_SECONDS: Final = 10.0
_ASK_AGAIN_SECONDS: Final = 1.0


async def reach(monitor: Monitor, address: Address, say: Callable[[str], None]) -> None:
    """Reach the monitor of a machine that is started about now, and see that it can be one of a pair.

    Raises:
        UsageError: it is not there within two minutes, or its QEMU is of no use.
    """
    deadline = asyncio.get_running_loop().time() + _REACH_SECONDS
    while True:
        try:
            await monitor.reach(address.where)
            break
        except UsageError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_LOOK_SECONDS)
    said: Any = await monitor.execute("query-version")
    version = tuple(said["qemu"][part] for part in ("major", "minor", "micro"))
    text = ".".join(map(str, version))
    if never_enters_colo(version):
        raise UsageError(f"{monitor.name}: QEMU {text} never enters COLO; 9.2, 10.0.7 and 10.1.3 do.")
    capabilities: Any = await monitor.execute("query-migrate-capabilities")
    commands: Any = await monitor.execute("query-commands")
    known = {item.get("capability") for item in capabilities} | {item.get("name") for item in commands}
    if not {"x-colo", HEARTBEAT} <= known:
        raise UsageError(f"{monitor.name}: the QEMU at {address} was built without COLO; use one that has it.")
    kvm: Any = await monitor.execute("query-kvm")
    if not kvm.get("enabled"):
        say(f"{monitor.name} runs without KVM, where COLO loses memory unless this QEMU was repaired: see adr 0013.")


async def gone(monitor: Monitor) -> str:
    """Return when the machine has ended, or answers no more; which of the two it was."""
    ending = asyncio.ensure_future(monitor.gone())
    try:
        while not ending.done():
            await asyncio.wait({ending}, timeout=_ALIVE_SECONDS)
            if not ending.done():
                try:
                    await monitor.execute("query-status", seconds=_PATIENCE_SECONDS)
                except MonitorError as error:
                    if not ending.done():
                        return str(error).rstrip(".")  # for the middle of a sentence
        return f"{monitor.name} has ended"
    finally:
        ending.cancel()


async def allowed(witness: str, side: str, say: Callable[[str], None]) -> None:
    """Return when the witness, a command for the shell, lets ``side`` go on alone; at once when there is none."""
    refused = False
    while witness:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", witness, "witness", side, stdin=asyncio.subprocess.DEVNULL
        )
        try:
            status = await asyncio.wait_for(process.wait(), _WITNESS_SECONDS)
        except TimeoutError:
            status = -1
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if status == 0:
            return
        if not refused:
            refused = True
            say(f"the witness does not let the {side} go on alone; asking it again every second.")
        await asyncio.sleep(_ASK_AGAIN_SECONDS)
