"""The pairs that are compared: QEMU's own COLO, and `colo launch` with either engine. Each in a lab of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from colo.launch.plan import GATEWAY, GUEST_ADDRESS
from colo.qemu.image import READY
from tests.interop import attach_pair, preload
from tests.interop.lab import Lab, LabError, wait_for
from tests.interop.qemu_colo import MAC, NEVER_MS, QemuColo, kernel_for

ADDRESS = str(GUEST_ADDRESS.ip)
QEMU = "qemu"
ATTACHED = "attached"
ENGINES = ("x-colo", "stop-copy")
SIDES = (QEMU, ATTACHED, *ENGINES)
NIC = "e1000"  # rtl8139 loses the FIN behind a large answer, which then comes 0.2 s later, with COLO or without
_PROTECTED_SECONDS = 90.0
_TOLD_BYTES = 4000

_NETWORK = f"""
set -e
ip tuntap add colo0 mode tap
ip link set colo0 address 52:54:00:00:00:01
ip address add {GATEWAY}/24 dev colo0
ip link set colo0 up
"""


class Side(Protocol):
    """A protected pair, at `address` in `lab`."""

    lab: Lab
    address: str

    def checkpoints(self) -> Counter[str]:
        """How many were taken so far, by reason."""

    def assert_sound(self) -> None:
        """LabError if a machine was reset, has panicked or has ended, or the pair has come apart."""

    def notes(self) -> dict[str, Any]:
        """What else it can say of itself."""

    def story(self) -> str:
        """Everything there is to find out from why a request failed."""


class QemuSide:
    """QEMU's own, which does not tell why it takes a checkpoint."""

    address = ADDRESS

    def __init__(self, pair: QemuColo) -> None:
        self.lab = pair.lab
        self._pair = pair

    def checkpoints(self) -> Counter[str]:
        return Counter({"any": self._pair.checkpoints})

    def assert_sound(self) -> None:
        self._pair.assert_sound()

    def notes(self) -> dict[str, Any]:
        return {"monitor": {"pvm": dict(self._pair.pvm.events), "svm": dict(self._pair.svm.events)}}

    def story(self) -> str:
        return f"{self.notes()}\n{_consoles(self.lab)}"


class Attached:
    """QEMU's own with `colo compare` in colo-compare's place: all that is between the client and it is QEMU's."""

    address = attach_pair.ADDRESS

    def __init__(self, pair: attach_pair.Pair) -> None:
        self.lab = pair.lab
        self._pair = pair

    def checkpoints(self) -> Counter[str]:
        monitor = self._pair.qmp["primary"]
        monitor("query-status")  # events are heard on the way to the answer
        return Counter({"any": monitor.events["STOP"]})

    def assert_sound(self) -> None:
        for name, process in self._pair.processes.items():
            if process.poll() is not None:
                raise LabError(f"{name} has ended with status {process.returncode}")
        for name in ("primary", "secondary"):
            if "Kernel panic" in self._pair.console(name):
                raise LabError(f"{name}: its kernel has panicked")
        said = self._pair.said
        if said is not None and " is lost" in said.text:
            raise LabError(f"the pair has come apart: {said.text.strip()[-300:]}")

    def notes(self) -> dict[str, Any]:
        return {}

    def story(self) -> str:
        return f"{'' if self._pair.said is None else self._pair.said.text[-_TOLD_BYTES:]}\n{_consoles(self.lab)}"


class Launched:
    """`colo launch --tap` under way. Attributes: process, log: of the command."""

    address = ADDRESS

    def __init__(self, lab: Lab, engine: str, nic: str = NIC) -> None:
        self.lab = lab
        done = lab.run(["sh", "-c", _NETWORK])
        if done.returncode:
            raise LabError(f"the pair's network: {done.stderr.decode(errors='replace').strip()}")
        kernel_for(nic)
        self._directory = lab.directory / "run"
        self._directory.mkdir(mode=0o700)
        self._env = {**os.environ, "XDG_RUNTIME_DIR": str(self._directory)}
        repaired = {**self._env, "LD_PRELOAD": str(preload.library())}
        words = ["launch", "--tap", "colo0", "--nic", nic, "--mac", MAC, "--accel", "tcg", "--engine", engine]
        self.log = lab.directory / "launch.log"
        with self.log.open("wb") as log:
            self.process = lab.popen(
                [sys.executable, "-m", "colo", *words], env=repaired, stdout=log.fileno(), stderr=log.fileno()
            )
        wait_for(self._protected, f"{engine}: a protected pair", _PROTECTED_SECONDS)
        self.primary, self.secondary = self.pid("primary"), self.pid("secondary")

    def _protected(self) -> bool:
        if self.process.poll() is not None:
            raise LabError(f"colo launch ended with status {self.process.returncode}: {self._said()}")
        with contextlib.suppress(LabError):
            return bool(self.status().get("state") == "protected")
        return False

    def _said(self, most: int = 500) -> str:
        return self.log.read_text(errors="replace").strip()[-most:]

    def status(self) -> dict[str, Any]:
        """What `colo ctl status` says."""
        status: dict[str, Any] = json.loads(self.ask("status"))
        return status

    def ask(self, what: str) -> str:
        """What `colo ctl` answers."""
        command = [sys.executable, "-m", "colo", "ctl", "--json", what]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise LabError(f"colo ctl {what}: {done.stderr.strip()}; colo launch said: {self._said()}")
        return done.stdout

    def pid(self, role: str) -> int:
        """The process id of the ``primary`` or ``secondary``."""
        name = self.status()[role]
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_text(errors="replace").split("\0")
                ours = any(str(self._directory) in word for word in words)
                if ours and "-name" in words and words[words.index("-name") + 1] == name:
                    return int(folder.name)
        raise LabError(f"there is no process of the {role}, {name}")

    def checkpoints(self) -> Counter[str]:
        return Counter(self.status()["checkpoints_by_reason"])

    def assert_sound(self) -> None:
        self.assert_no_panic()
        status = self.status()
        if status["state"] != "protected" or status["mode"] != "compare":
            raise LabError(f"the pair is {status['state']}, in mode {status['mode']}: {self._said()}")
        if " is gone" in self._said():
            raise LabError(f"a machine was lost: {self._said()}")

    def assert_no_panic(self) -> None:
        """LabError if a kernel has panicked, or has booted a second time."""
        for path in self._directory.rglob("*.console"):
            text = path.read_text(errors="replace")
            if "Kernel panic" in text or text.count(READY) > 1:
                raise LabError(f"{path.stem} has panicked or was reset: {text[-300:]}")

    def notes(self) -> dict[str, Any]:
        return {"status": self.status()}

    def story(self) -> str:
        with contextlib.suppress(LabError):
            said = [self._said(_TOLD_BYTES), self.ask("status"), self.ask("counters"), _consoles(self.lab)]
            return "\n".join([*said, self._network_told()])
        return self._said(_TOLD_BYTES)

    def _network_told(self) -> str:
        """What the lab's kernel says of the pair's network."""
        commands = (["ip", "-s", "link", "show", "dev", "colo0"], ["ip", "neighbour"])
        return "".join(self.lab.run(command).stdout.decode(errors="replace") for command in commands)

    def close(self) -> None:
        """End it, and see that it ends as it should."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.lab.end(self.process)


def _consoles(lab: Lab) -> str:
    """The end of what each machine has printed."""
    paths = sorted(lab.directory.rglob("*.console"))
    return "\n".join(f"{path.name}: {path.read_text(errors='replace').strip()[-_TOLD_BYTES:]}" for path in paths)


@contextmanager
def launched(engine: str, nic: str = NIC) -> Iterator[Launched]:
    """A pair of ours in a fresh lab."""
    with Lab() as lab, contextlib.closing(Launched(lab, engine, nic)) as pair:
        yield pair


@contextmanager
def _qemu_side(nic: str, *, vnet: bool) -> Iterator[Side]:
    with Lab() as lab, QemuColo(lab, nic=nic, vnet=vnet) as pair:
        yield QemuSide(pair)


@contextmanager
def _attached(nic: str, *, vnet: bool) -> Iterator[Side]:
    kernel_for(nic)
    with Lab() as lab:
        directory = lab.directory / "attached"
        directory.mkdir()
        with attach_pair.Pair(lab, directory, nic, vnet=vnet) as pair:
            pair.protect(NEVER_MS, "--placing")
            yield Attached(pair)


def side(name: str, nic: str = NIC, *, vnet: bool = False) -> AbstractContextManager[Side]:
    """The pair called ``name``, one of `SIDES`, in a fresh lab; its machines have the card ``nic``.

    ``vnet``: frames have a virtio_net_hdr, and segments may be large, where QEMU's filters carry them.
    """
    if name == QEMU:
        return _qemu_side(nic, vnet=vnet)
    return _attached(nic, vnet=vnet) if name == ATTACHED else launched(name, nic)


def missing() -> list[str]:
    """What must be installed first."""
    lacking = [preload.missing()]
    for tool, package in (("qemu-system-x86_64", "qemu-system-x86"), ("busybox", "busybox-static")):
        lacking += [] if shutil.which(tool) else [f"{tool}: apt install {package}"]
    return [word for word in lacking if word]


Say = Callable[[str], None]
