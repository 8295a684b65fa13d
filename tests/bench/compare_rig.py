"""One comparator with a feeder of its own: started, filled with connections, and measured a turn at a time.

feeder.c plays both machines and the client. It runs in a process of its own, so that only what the comparator itself
uses is in its CPU time.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.bench.compare_report import Row, Run
from tests.interop.lab import LabError
from tests.interop.qemu_judge.oracle import Judge, OracleError, Process

SOCKETS: Final = ("pri", "sec", "out", "notify")
"""And "qmp"; the names that Judge knows."""
LARGE: Final = 8192
"""A larger payload comes as offloading guests send it, with a virtio_net_hdr, and fewer at a time."""
TURN: Final = 0.25
"""Seconds."""

_ACCEPTS = 1 << 16  # __SO_ACCEPTCON, a flag in /proc/net/unix
_SOURCE = Path(__file__).with_name("feeder.c")
_HEADERS = 54  # Ethernet, IPv4, TCP
_TIMESTAMPS = 12
_WARM_UP_MS = 300
_PATIENCE = 30.0  # seconds a command may take beyond its own time


@dataclass(frozen=True)
class Load:
    """How the streams look, beside a row's own figures.

    Attributes:
        seconds: of each row in each round. timestamps: whether segments have the timestamps option, each machine's
            clock its own.
        request_every: the acknowledgement number grows with every so many packets of a connection; 0: never.
    """

    seconds: float
    timestamps: bool = False
    request_every: int = 0


def compile_feeder(directory: Path) -> Path:
    """Compile feeder.c; LabError has the compiler's words."""
    program = directory / "feeder"
    command = ["cc", "-O2", "-std=gnu11", "-Wall", "-pthread", "-o", os.fspath(program), os.fspath(_SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise LabError(f"cc: {done.stderr.strip()[-2000:]}")
    return program


class Rig:
    """A comparator at work; a context manager, within which it has its connections open and is warm.

    Args:
        name: the comparator's. command: its command line, given the directory of its sockets.

    Raises:
        LabError: on entry and by `take_turn`: the feeder cannot, or the comparator does not answer.
    """

    def __init__(self, name: str, command: Callable[[Path], Sequence[str]], feeder: Path, row: Row, load: Load) -> None:
        self.name = name
        self.row = row
        self._command = command
        self._program = feeder
        self._load = load
        self._word = "ping" if row.latency else "run"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench")))
            self._process = Process(self._command(directory), directory)
            stack.callback(self._process.end)
            with self._explained():
                _wait_listening(self._process, directory)
                self._judge = Judge(directory, self._process, vnet=self.row.payload > LARGE)
                stack.callback(self._judge.close)
                self._feeder = stack.enter_context(self._start_feeder())
                stack.callback(self._feeder.kill)
                for command in ("open", f"{self._word} {_WARM_UP_MS}"):
                    warm = ask(self._feeder, command, _PATIENCE)
                    if warm["released"] != warm["sent"]:
                        raise LabError(f"{command}: {warm['released']} of {warm['sent']} packets were released")
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start_feeder(self) -> subprocess.Popen[bytes]:
        judge, row, load = self._judge, self.row, self._load
        wires = [wire.sock for wire in (judge.primary, judge.secondary, judge.out)]
        for wire in wires:
            wire.settimeout(None)  # the feeder's own time limits hold, and it wants sockets that block
        fds = [wire.fileno() for wire in wires]
        at_once, chunk = (1, 1) if row.latency else (48, 8) if judge.vnet else (768, 128)  # below QEMU's queue of 1024
        shape = (
            row.connections,
            row.payload,
            at_once,
            chunk,
            int(judge.vnet),
            int(load.timestamps),
            load.request_every,
        )
        argv = [os.fspath(self._program), *map(str, (*fds, *shape))]
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds)

    def take_turn(self) -> Run:
        """Have it work for a turn, and say what came of it."""
        with self._explained():
            before = _cpu_seconds(self._process.popen.pid)
            told = ask(self._feeder, f"{self._word} {round(TURN * 1000)}", TURN + _PATIENCE)
            after = _cpu_seconds(self._process.popen.pid)
            asked = len(self._judge.notify.waiting())
        frame = self.row.payload + _HEADERS + (_TIMESTAMPS if self._load.timestamps else 0)
        return Run(**told, cpu_seconds=after - before, frame_bytes=frame, requests=asked)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (LabError, OracleError, OSError) as error:
            said = self._process.said()[-500:].strip() or "nothing"
            raise LabError(f"{error}; it said: {said}") from error


def _wait_listening(process: Process, directory: Path) -> None:
    """Until all four sockets can be connected to: a path is there a moment before that."""
    paths = {os.fspath(directory / name) for name in SOCKETS}
    deadline = time.monotonic() + _PATIENCE
    while not paths <= {fields[7] for fields in _unix_sockets() if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS}:
        if process.popen.poll() is not None or time.monotonic() > deadline:
            raise OracleError("it does not listen")
        time.sleep(0.005)


def _unix_sockets() -> list[list[str]]:
    """/proc/net/unix: Num RefCount Protocol Flags Type St Inode Path, see proc_net(5)."""
    return [line.split() for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]]


def _cpu_seconds(pid: int) -> float:
    """What all threads of a process that live have used: /proc/PID/schedstat, which counts in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def ask(process: subprocess.Popen[bytes], command: str, patience: float) -> dict[str, Any]:
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
