"""From starting a command behind a gateway to its first byte at a server.

That is the guest's first packet and a TCP handshake on both sides of the gateway: an upper bound of what is promised.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.bench.peers import pystack_program
from tests.interop.lab import SERVER, Lab, LabError

LIMIT_SECONDS = 0.5
_PORT = 9
_PATIENCE = 10.0
_SEND = ("bash", "-c", f"echo first >/dev/tcp/{SERVER}/{_PORT}")
_LISTEN = ("nc", "-n", "-l", SERVER, str(_PORT))


def measure(times: int, program: str | None, console: Console) -> None:
    """Print the median and the range of `times` starts for this stack and, where installed, pasta."""
    commands: dict[str, tuple[list[str], bool]] = {"pystack run": ([program or pystack_program(), "run", "--"], False)}
    if shutil.which("pasta"):
        options = ["--quiet", "--config-net", "--ipv4-only", "--tcp-ports", "none", "--udp-ports", "none"]
        commands["pasta"] = (["pasta", *options, "--"], True)
    table = Table(
        "command", "median", "min", "max", f"within {LIMIT_SECONDS:g} s", title="Seconds from start to first byte"
    )
    with Lab() as lab:
        for name, (command, as_user) in commands.items():
            taken = [_once(lab, [*command, *_SEND], as_user=as_user) for _ in range(times)]
            verdict = "met" if median(taken) <= LIMIT_SECONDS else "MISSED"
            table.add_row(name, f"{median(taken):.3f}", f"{min(taken):.3f}", f"{max(taken):.3f}", verdict)
    console.print(table)


def _once(lab: Lab, command: Sequence[str], *, as_user: bool) -> float:
    server = lab.popen(_LISTEN)
    assert server.stdout is not None
    _wait_bound(lab)
    begin = time.monotonic()
    starter = lab.popen(command, as_user=as_user, stdout=subprocess.DEVNULL)
    try:
        if not _arrived(server):
            raise LabError(f"{command[0]}: nothing arrived within {_PATIENCE:g} s")
        return time.monotonic() - begin
    finally:
        lab.end(server)
        with contextlib.suppress(subprocess.TimeoutExpired):
            starter.wait(_PATIENCE)
        lab.end(starter)


def _wait_bound(lab: Lab) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not lab.run(["ss", "-Hltn", f"sport = :{_PORT}"]).stdout:
        if time.monotonic() > deadline:
            raise LabError("nc: not listening")


def _arrived(server: subprocess.Popen[bytes]) -> bool:
    assert server.stdout is not None
    readable, _, _ = select.select([server.stdout], [], [], _PATIENCE)
    return bool(readable)
