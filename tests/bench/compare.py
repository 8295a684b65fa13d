"""Comparators under load: QEMU's colo-compare and `colo compare` get the same two streams over UNIX sockets, in turn.

What is held against each other, all rows of one payload, is there at the same time and takes turns of a quarter of a
second: what slows the machine for a while slows all of them, and a ratio is one of two turns beside each other.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.bench.compare_report import OURS, QEMU, Results, Row
from tests.bench.compare_rig import LARGE, SOCKETS, TURN, Load, Rig, compile_feeder
from tests.bench.report import machine
from tests.interop.lab import LabError
from tests.interop.qemu_judge.oracle import ROOT

CONNECTIONS = (1, 100, 1000, 5000)
PAYLOADS = (64, 512, 1448, 60_000)
MOST_CONNECTIONS = 16_384  # QEMU's table holds no more: one more clears it

_QUIET_MACHINE = ("-M", "none", "-nodefaults", "-display", "none", "-serial", "none", "-monitor", "none")
_TIMEOUT_MS, _SCAN_MS = 3000, 1000  # QEMU's defaults


class Comparator(ABC):
    """A program that compares, behind four UNIX sockets `pri`, `sec`, `out` and `notify` in a directory."""

    name: str

    @abstractmethod
    def missing(self) -> str:
        """What must be installed first; "" when nothing is missing."""

    @abstractmethod
    def version(self) -> str:
        """Which binary is under test, and what it says of itself."""

    @abstractmethod
    def command(self, directory: Path, *, vnet: bool) -> list[str]:
        """The command line."""


class QemuCompare(Comparator):
    """QEMU's colo-compare object, in a QEMU without a machine."""

    name = QEMU
    _PROGRAM = "qemu-system-x86_64"

    def missing(self) -> str:
        return "" if shutil.which(self._PROGRAM) else f"{self._PROGRAM} (apt install qemu-system-x86)"

    def version(self) -> str:
        path = shutil.which(self._PROGRAM) or self._PROGRAM
        return f"{Path(path).resolve()}: {_first_line([path, '--version'])}, colo-compare"

    def command(self, directory: Path, *, vnet: bool) -> list[str]:
        argv = [self._PROGRAM, *_QUIET_MACHINE]
        argv += ["-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
        for name in SOCKETS:
            argv += ["-chardev", f"socket,id={name},path={directory / name},server=on,wait=off"]
        options = "primary_in=pri,secondary_in=sec,outdev=out,notify_dev=notify,iothread=io"
        options += f",compare_timeout={_TIMEOUT_MS},expired_scan_cycle={_SCAN_MS}"
        options += ",vnet_hdr_support=on" if vnet else ""
        return [*argv, "-object", "iothread,id=io", "-object", f"colo-compare,id=compare,{options}"]


class ColoCompare(Comparator):
    """`colo compare`.

    Args:
        program: the words that start `colo`; this Python's own without them.
    """

    name = OURS

    def __init__(self, program: str | None = None) -> None:
        self._own = program is None
        self._program = [sys.executable, "-m", "colo"] if program is None else shlex.split(program)

    def missing(self) -> str:
        return "" if shutil.which(self._program[0]) else f"{self._program[0]} (--colo names it)"

    def version(self) -> str:
        text = shlex.join([*self._program, "compare"])
        if not self._own:
            return text
        implementation = "import platform as p; print(p.python_implementation(), p.python_version())"
        code = "import colo.compare; print(colo.compare.__file__)"
        told = [_first_line([sys.executable, "-c", script]) for script in (implementation, code)]
        return f"{text}: {told[0]}, code in {told[1]}"

    def command(self, directory: Path, *, vnet: bool) -> list[str]:
        argv = [shutil.which(self._program[0]) or self._program[0], *self._program[1:], "compare"]
        for option, name in zip(("primary-in", "secondary-in", "out", "notify"), SOCKETS, strict=True):
            argv += [f"--{option}", f"unix:{directory / name},server"]
        argv += ["--compare-timeout", str(_TIMEOUT_MS), "--expired-scan-cycle", str(_SCAN_MS)]
        return [*argv, "--vnet-hdr"] if vnet else argv


def _first_line(argv: Sequence[str]) -> str:
    told = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False, cwd=ROOT)
    return next(iter((told.stdout + told.stderr).strip().splitlines()), "no version")


def comparators(program: str | None = None) -> list[Comparator]:
    """All of them, in the order of the table's columns."""
    return [QemuCompare(), ColoCompare(program)]


def missing_tools() -> list[str]:
    """What else must be installed."""
    return [] if shutil.which("cc") else ["cc (apt install gcc libc6-dev)"]


def rows(payloads: Sequence[int], connections: Sequence[int], *, load: bool, latency: bool) -> list[Row]:
    """The rows of the tables: every payload with every number of connections, and one connection's latency."""
    made = [Row(False, payload, number) for payload in payloads for number in connections] if load else []
    return made + ([Row(True, payload, 1) for payload in payloads] if latency else [])


def measure(
    subjects: Sequence[Comparator], wanted: Sequence[Row], load: Load, *, rounds: int, say: Callable[[str], None]
) -> Results:
    """Run every row of every comparator `rounds` times, each time with processes of its own."""
    about = {subject.name: subject.version() for subject in subjects} | machine()
    results = Results([subject.name for subject in subjects], list(wanted), about=about)
    groups: dict[tuple[bool, int], list[Row]] = {}
    for row in wanted:
        groups.setdefault((row.latency, row.payload), []).append(row)
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        feeder = compile_feeder(Path(name))
        for number in range(rounds):
            for group in groups.values():
                say(f"round {number + 1} of {rounds}: {_together(group)}")
                with contextlib.ExitStack() as stack:
                    rigs = list(_start(stack, subjects, group, load, feeder, results))
                    _take_turns(rigs, number, load, results)
    return results


def _together(group: Sequence[Row]) -> str:
    """The rows of one payload in words."""
    numbers = ", ".join(f"{row.connections:,}" for row in group)
    return group[0].label if len(group) == 1 else f"{group[0].payload:,} bytes, {numbers} connections in turn"


def _start(
    stack: contextlib.ExitStack,
    subjects: Sequence[Comparator],
    group: Sequence[Row],
    load: Load,
    feeder: Path,
    results: Results,
) -> Iterator[Rig]:
    """Every comparator with every row; what does not start is a failure and has no turns."""
    for row in group:
        for subject in subjects:
            try:
                yield stack.enter_context(
                    Rig(subject.name, partial(subject.command, vnet=row.payload > LARGE), feeder, row, load)
                )
            except LabError as error:
                results.failures.append(f"{subject.name}, {row.label}: {error}")


def _take_turns(rigs: list[Rig], number: int, load: Load, results: Results) -> None:
    """Let each have its seconds, a turn at a time; who begins changes with the turn."""
    turns = max(round(load.seconds / TURN), 1)
    for turn in range(turns):
        for rig in rigs[:: -1 if turn % 2 else 1]:
            try:
                results.add(rig.name, rig.row, rig.take_turn(), turn=number * turns + turn)
            except LabError as error:
                results.failures.append(f"{rig.name}, {rig.row.label}: {error}")
                rigs.remove(rig)
