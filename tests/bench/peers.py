"""What is measured: this stack, its C peers, and a veth pair of the kernel's as the limit.

Each subject joins an empty guest namespace to the lab (see tests.interop.lab) and is then one or more processes whose
CPU time can be read. Addresses are slirp4netns' plan for all: the guest is 10.0.2.100, its gateway 10.0.2.2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from tests.interop.lab import Guest, Lab, LabError, wait_for

GUEST_ADDRESS = "10.0.2.100"
GATEWAY_ADDRESS = "10.0.2.2"
_TICKS = os.sysconf("SC_CLK_TCK")


def _descendants(pid: int) -> set[int]:
    found = {pid}
    waiting = [pid]
    while waiting:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{waiting.pop()}/task").iterdir():
                children = {int(child) for child in (task / "children").read_text().split()} - found
                found |= children
                waiting += children
    return found


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process, its children that ended, and all its descendants that live (proc(5))."""
    ticks = 0
    for process in _descendants(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / _TICKS


class Running:
    """A subject at work: a guest to run load in, and the process whose CPU time counts (none for the kernel)."""

    def __init__(self, lab: Lab, guest: Guest, process: subprocess.Popen[bytes] | None) -> None:
        self.lab = lab
        self.guest = guest
        self.process = process

    def cpu_seconds(self) -> float | None:
        """CPU seconds used so far."""
        return None if self.process is None else cpu_seconds(self.process.pid)

    def close(self) -> None:
        """End the gateway and drop its guest."""
        if self.process is not None:
            self.lab.end(self.process)
        self.guest.close()


class Subject(ABC):
    """Something that joins a guest to the lab."""

    name: str

    @abstractmethod
    def missing(self) -> str:
        """What must be installed first; "" when nothing is missing."""

    @abstractmethod
    def version(self) -> str:
        """Which binary is under test, and what it says of itself."""

    @abstractmethod
    def start(self, lab: Lab, mtu: int) -> Running:
        """Join a new guest; returns when the guest has its route and the gateway forwards."""


@dataclass(frozen=True)
class Gateway(Subject):
    """A program that attaches to a namespace by its process id."""

    name: str
    program: str
    package: str
    options: tuple[str, ...]  # {pid} and {mtu} are filled in
    as_user: bool = False

    def missing(self) -> str:
        if shutil.which(self.program):
            return ""
        return f"{self.program}: apt install {self.package}"

    def version(self) -> str:
        path = shutil.which(self.program) or self.program
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
        words = (told.stdout + told.stderr).strip().splitlines() or ["no version"]
        if " unknown version" in words[0]:  # Debian 12's pasta does not know; its package does
            words = _debian_version(self.package) or words
        return f"{Path(path).resolve()}: {words[0]}{_code_of(Path(path))}"

    def command(self, pid: int, mtu: int) -> list[str]:
        """The command line that attaches to process `pid`'s namespace."""
        return [self.program, *(option.format(pid=pid, mtu=mtu) for option in self.options)]

    def start(self, lab: Lab, mtu: int) -> Running:
        guest = Guest(lab, as_user=self.as_user)
        log = (lab.directory / f"{self.name.replace(' ', '')}.log").open("wb")
        with log:
            process = lab.popen(
                self.command(guest.pid, mtu), as_user=self.as_user, stdout=log.fileno(), stderr=log.fileno()
            )
        running = Running(lab, guest, process)
        try:
            wait_for(lambda: _routed(guest, process), f"{self.name}: a route in the guest")
        except LabError as error:
            said = Path(log.name).read_text(errors="replace").strip()
            running.close()
            raise LabError(f"{error}; it said: {said[-300:] or 'nothing'}") from None
        return running


def _code_of(program: Path) -> str:
    """Where a Python program's code comes from: its version alone does not tell a checkout from an installation."""
    with program.open("rb") as script:
        first = script.readline().decode(errors="replace").strip()
    if not first.startswith("#!") or "python" not in first:
        return ""
    ask = [first[2:], "-c", "import pystack; print(pystack.__path__[0])"]
    told = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=False)
    return f", code in {told.stdout.strip()}"


def _debian_version(package: str) -> list[str]:
    query = ["dpkg-query", "--show", package]
    with contextlib.suppress(OSError):
        return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[:1]
    return []


def _routed(guest: Guest, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise LabError(f"it ended at once with status {process.returncode}")
    return b"default" in guest.run(["ip", "-4", "route", "show"], timeout=10).stdout


@dataclass(frozen=True)
class VethPair(Subject):
    """The kernel alone: what a packet costs when nobody but it touches it."""

    name: str = "veth"

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return f"Linux {os.uname().release}"

    def start(self, lab: Lab, mtu: int) -> Running:
        guest = Guest(lab)
        script = (
            f"ip link add host0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {guest.pid} && "
            f"ip address add {GATEWAY_ADDRESS}/24 dev host0 && ip link set host0 up"
        )
        inside = (
            f"ip address add {GUEST_ADDRESS}/24 dev eth0 && ip link set eth0 up && "
            f"ip route add default via {GATEWAY_ADDRESS}"
        )
        for done in (lab.run(["sh", "-c", script]), guest.run(["sh", "-c", inside])):
            if done.returncode:
                raise LabError(f"veth: {done.stderr.decode(errors='replace').strip()}")
        return Running(lab, guest, None)


_PASTA = tuple(
    f"--foreground --quiet --config-net --ipv4-only --mtu {{mtu}} --address {GUEST_ADDRESS} --netmask 24"
    f" --gateway {GATEWAY_ADDRESS} --tcp-ports none --udp-ports none --tcp-ns none --udp-ns none {{pid}}".split()
)


def pystack_program() -> str:
    """The `pystack` of the Python that runs the benchmark, so that nothing else on PATH is measured."""
    beside = Path(sys.executable).with_name("pystack")
    return str(beside) if beside.exists() else "pystack"


def subjects(program: str | None = None) -> list[Subject]:
    """All subjects, in the order of the table's columns."""
    ours = program or pystack_program()
    attach = ("attach", "--mtu", "{mtu}")
    return [
        Gateway("pystack", ours, "(pip install .)", (*attach, "{pid}")),
        Gateway("pystack --no-offload", ours, "(pip install .)", (*attach, "--no-offload", "{pid}")),
        Gateway("slirp4netns", "slirp4netns", "slirp4netns", ("--configure", "--mtu={mtu}", "{pid}", "tap0")),
        Gateway(
            "pasta",
            "pasta",
            "passt",
            _PASTA,
            as_user=True,  # as root it would drop to nobody, who may not enter the guest
        ),
        VethPair(),
    ]
