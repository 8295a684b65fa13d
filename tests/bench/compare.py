"""Comparators under load: QEMU's colo-compare and `colo compare` get the same two streams over UNIX sockets, in turn.

feeder.c plays both machines and the client. It runs in a process of its own, so that only what the comparator itself
uses is in its CPU time; each run has a comparator and a feeder of its own.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.compare_report import OURS, QEMU, Results, Row, Run
from tests.bench.peers import cpu_seconds
from tests.bench.report import machine
from tests.interop.lab import LabError
from tests.interop.qemu_judge.oracle import ROOT, Judge, OracleError, Process

CONNECTIONS = (1, 100, 1000, 5000)
PAYLOADS = (64, 512, 1448, 60_000)
MOST_CONNECTIONS = 16_384  # QEMU's table holds no more: one more clears it

_QUIET_MACHINE = ("-M", "none", "-nodefaults", "-display", "none", "-serial", "none", "-monitor", "none")
_SOCKETS = ("pri", "sec", "out", "notify")  # and "qmp"; the names that Judge knows
_ACCEPTS = 1 << 16  # __SO_ACCEPTCON, a flag in /proc/net/unix
_SOURCE = Path(__file__).with_name("feeder.c")
_HEADERS = 54  # Ethernet, IPv4, TCP
_TIMESTAMPS = 12
_LARGE = 8192  # a larger payload comes as offloading guests send it, with a virtio_net_hdr, and fewer at a time
_WARM_UP_MS = 300
_PATIENCE = 30.0  # seconds a run may take beyond its load's own time
_TIMEOUT_MS, _SCAN_MS = 3000, 1000  # QEMU's defaults


@dataclass(frozen=True)
class Load:
    """How the streams look, beside a row's own figures.

    Attributes:
        timestamps: whether segments have the timestamps option, each machine's clock its own.
        request_every: the acknowledgement number grows with every so many packets of a connection; 0: never.
    """

    seconds: float
    timestamps: bool = False
    request_every: int = 0


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
        for name in _SOCKETS:
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
        for option, name in zip(("primary-in", "secondary-in", "out", "notify"), _SOCKETS, strict=True):
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
    """Run every row of every comparator `rounds` times; who begins changes with the round."""
    about = {subject.name: subject.version() for subject in subjects} | machine()
    results = Results([subject.name for subject in subjects], list(wanted), about=about)
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        feeder = compile_feeder(Path(name))
        for number in range(rounds):
            for row in wanted:
                for subject in subjects if number % 2 == 0 else reversed(subjects):
                    say(f"round {number + 1} of {rounds}: {row.label}: {subject.name}")
                    try:
                        results.add(subject.name, row, run_one(subject, feeder, row, load))
                    except LabError as error:
                        results.failures.append(f"{subject.name}, {row.label}: {error}")
    return results


def compile_feeder(directory: Path) -> Path:
    """Compile feeder.c; LabError has the compiler's words."""
    program = directory / "feeder"
    command = ["cc", "-O2", "-std=gnu11", "-Wall", "-pthread", "-o", os.fspath(program), os.fspath(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise LabError(f"cc: {done.stderr.strip()[-2000:]}")
    return program


def run_one(subject: Comparator, feeder: Path, row: Row, load: Load) -> Run:
    """Measure one comparator once, a new one.

    Raises:
        LabError: the feeder cannot, or the comparator does not answer.
    """
    vnet = row.payload > _LARGE
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        directory = Path(name)
        process = Process(subject.command(directory, vnet=vnet), directory)
        try:
            _wait_listening(process, directory)
            judge = Judge(directory, process, vnet=vnet)
            try:
                return _feed(judge, feeder, row, load)
            finally:
                judge.close()
        except (LabError, OracleError, OSError) as error:
            raise LabError(f"{error}; it said: {process.said()[-500:].strip() or 'nothing'}") from error
        finally:
            process.end()


def _wait_listening(process: Process, directory: Path) -> None:
    """Until all four sockets can be connected to: a path is there a moment before that."""
    paths = {os.fspath(directory / name) for name in _SOCKETS}
    deadline = time.monotonic() + _PATIENCE
    while not paths <= {fields[7] for fields in _unix_sockets() if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS}:
        if process.popen.poll() is not None or time.monotonic() > deadline:
            raise OracleError("it does not listen")
        time.sleep(0.005)


def _unix_sockets() -> list[list[str]]:
    """/proc/net/unix: Num RefCount Protocol Flags Type St Inode Path, see proc_net(5)."""
    return [line.split() for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]]


def _feed(judge: Judge, feeder: Path, row: Row, load: Load) -> Run:
    wires = [wire.sock for wire in (judge.primary, judge.secondary, judge.out)]
    for wire in wires:
        wire.settimeout(None)  # the feeder's own time limits hold, and it wants sockets that block
    fds = [wire.fileno() for wire in wires]
    at_once, chunk = (1, 1) if row.latency else (48, 8) if judge.vnet else (768, 128)  # below QEMU's queue of 1024
    shape = (row.connections, row.payload, at_once, chunk, int(judge.vnet), int(load.timestamps), load.request_every)
    argv = [os.fspath(feeder), *map(str, (*fds, *shape))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds) as process:
        try:
            word = "ping" if row.latency else "run"
            for command in ("open", f"{word} {_WARM_UP_MS}"):
                warm = _ask(process, command, _PATIENCE)
                if warm["released"] != warm["sent"]:
                    raise LabError(f"{command}: {warm['released']} of {warm['sent']} packets were released")
            before = cpu_seconds(judge.process.popen.pid)
            told = _ask(process, f"{word} {round(load.seconds * 1000)}", load.seconds + _PATIENCE)
            after = cpu_seconds(judge.process.popen.pid)
            frame = row.payload + _HEADERS + (_TIMESTAMPS if load.timestamps else 0)
            asked = len(judge.notify.waiting(0.05))
            return Run(**told, cpu_seconds=after - before, frame_bytes=frame, requests=asked)
        finally:
            process.kill()


def _ask(process: subprocess.Popen[bytes], command: str, patience: float) -> dict[str, Any]:
    """Tell the feeder something and return its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(command.encode() + b"\n")
    process.stdin.flush()
    readable, _, _ = select.select([process.stdout], [], [], patience)
    answer = process.stdout.readline() if readable else b""
    if not answer:
        raise LabError(f"feeder: no answer to {command!r}")
    told = json.loads(answer)
    assert isinstance(told, dict)
    return told
