"""QEMU's own COLO pair in a lab: colo-compare, filter-mirror, filter-redirector and filter-rewriter at work.

The wiring is that of docs/COLO-FT.txt in QEMU, without disks. The primary's card is in a bridge, whose address is the
clients' end; the secondary's TAP joins the bridge only after a failover.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Self

from colo.launch.plan import GATEWAY, GUEST_ADDRESS
from colo.qemu.image import CARDS, READY, GuestFiles, Kernel, default_guest, fetch_kernel
from pystack import UsageError
from tests.interop import preload
from tests.interop.lab import Lab, LabError, connect, wait_for

MAC = "52:54:00:12:34:56"
NEVER_MS = 100_000_000  # x-checkpoint-delay without periodic checkpoints
_BOOT_SECONDS = 60.0
_ANSWER_SECONDS = 10.0

# The bridge's address is fixed: else it changes with the TAPs in it, and the guest's neighbour table is wrong.
_NETWORK = f"""
set -e
ip link add br0 type bridge
ip link set br0 address 52:54:00:00:00:01
ip address add {GATEWAY}/24 dev br0
ip tuntap add tap0 mode tap
ip tuntap add tap1 mode tap
ip link set tap0 master br0
ip link set br0 up
ip link set tap0 up
ip link set tap1 up
"""


def kernel_for(nic: str) -> Kernel:
    """A kernel with that card's driver: the system's, or else Debian's, downloaded once."""
    try:
        return Kernel.find(needs=CARDS[nic])
    except UsageError:
        return fetch_kernel(needs=CARDS[nic])


class Qmp:
    """One machine's monitor. A thread counts its events in `events`, while others wait for answers."""

    def __init__(self, path: Path) -> None:
        self.events: Counter[str] = Counter()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._socket = socket.socket(socket.AF_UNIX)
        connect(self._socket, path)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.execute("qmp_capabilities")

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                said = json.loads(line)
                if "event" in said:
                    self.events[said["event"]] += 1
                elif "QMP" not in said:
                    self._answers.put(said)

    def execute(self, command: str, **arguments: object) -> Any:
        """Returns the answer to `command`, underscores for hyphens in the names of arguments; LabError on refusal."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._socket.sendall(json.dumps({"execute": command, "arguments": named}).encode())
        try:
            answer = self._answers.get(timeout=_ANSWER_SECONDS)
        except queue.Empty:
            raise LabError(f"QEMU does not answer {command}") from None
        if "return" not in answer:
            raise LabError(f"QEMU refuses {command}: {answer}")
        return answer["return"]

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(2)


def _sockets(directory: Path, *ends: tuple[str, str, str]) -> list[str]:
    words = []
    for identity, path, options in ends:
        words += ["-chardev", f"socket,id={identity},path={directory / path},{options}"]
    return words


class QemuColo:
    """A pair in COLO state, once entered. `primary` and `secondary` are the processes, `pvm` and `svm` the monitors.

    Args:
        vnet: frames have a virtio_net_hdr, and a machine with virtio-net sends large segments.
    """

    def __init__(self, lab: Lab, *, nic: str = "rtl8139", vnet: bool = False, delay_ms: int = NEVER_MS) -> None:
        self.lab = lab
        self.nic = nic
        self.vnet = vnet
        self.delay_ms = delay_ms
        self.directory = lab.directory / "qemu-colo"
        self.primary: subprocess.Popen[bytes]
        self.secondary: subprocess.Popen[bytes]
        self.pvm: Qmp
        self.svm: Qmp
        self._monitors: list[Qmp] = []

    def __enter__(self) -> Self:
        self.directory.mkdir()
        done = self.lab.run(["sh", "-c", _NETWORK])
        if done.returncode:
            raise LabError(f"the pair's network: {done.stderr.decode(errors='replace').strip()}")
        files = default_guest(self.directory, address=GUEST_ADDRESS, gateway=GATEWAY, kernel=kernel_for(self.nic))
        try:
            self.primary, self.pvm = self._start("pvm", files, self._primary_words())
            wait_for(lambda: READY in self.console("pvm"), "the guest's boot", _BOOT_SECONDS)
            self.secondary, self.svm = self._start("svm", files, self._secondary_words())
            self._protect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, name: str, files: GuestFiles, words: list[str]) -> tuple[subprocess.Popen[bytes], Qmp]:
        monitor = self.directory / f"{name}.qmp"
        tap = "tap0" if name == "pvm" else "tap1"
        vnet, support = ("on", ",vnet_hdr_support=on") if self.vnet else ("off", "")
        argv = [
            *("qemu-system-x86_64", "-name", name, "-machine", "pc", "-accel", "tcg,thread=single"),
            *("-m", "128", "-smp", "1", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-serial", f"file:{self.directory / name}.console", "-qmp", f"unix:{monitor},server=on,wait=off"),
            *("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", files.append),
            *("-netdev", f"tap,id=hn0,ifname={tap},script=no,downscript=no,vhost=off,vnet_hdr={vnet}"),
            *("-device", f"{self.nic},id=e0,netdev=hn0,mac={MAC},romfile="),
            *(word + support if word.startswith(("filter-", "colo-compare")) else word for word in words),
        ]
        environment = {**os.environ, "LD_PRELOAD": str(preload.library())}
        with (self.directory / f"{name}.log").open("wb") as log:
            process = self.lab.popen(argv, env=environment, stdout=log.fileno(), stderr=log.fileno())
        wait_for(lambda: self._listens(monitor, process), f"{name}'s monitor")
        self._monitors.append(Qmp(monitor))
        return process, self._monitors[-1]

    def _listens(self, monitor: Path, process: subprocess.Popen[bytes]) -> bool:
        if process.poll() is not None:
            said = monitor.with_suffix(".log").read_text(errors="replace").strip()
            raise LabError(f"QEMU ended with status {process.returncode}: {said[-300:]}")
        return monitor.exists()

    def _primary_words(self) -> list[str]:
        server = "server=on,wait=off"
        return [
            *_sockets(
                self.directory,
                ("mirror0", "mirror0", server),
                ("compare1", "compare1", server),
                ("compare0", "compare0", server),
                ("compare0-0", "compare0", "server=off"),
                ("compare_out", "compare_out", server),
                ("compare_out0", "compare_out", "server=off"),
            ),
            *("-object", "filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0"),
            *("-object", "filter-redirector,netdev=hn0,id=redire0,queue=rx,indev=compare_out"),
            *("-object", "filter-redirector,netdev=hn0,id=redire1,queue=rx,outdev=compare0"),
            *("-object", "iothread,id=iothread1", "-object"),
            "colo-compare,id=comp0,primary_in=compare0-0,secondary_in=compare1,outdev=compare_out0,iothread=iothread1",
        ]

    def _secondary_words(self) -> list[str]:
        return [
            *_sockets(
                self.directory,
                ("red0", "mirror0", "server=off,reconnect=1"),
                ("red1", "compare1", "server=off,reconnect=1"),
            ),
            *("-object", "filter-redirector,id=f1,netdev=hn0,queue=tx,indev=red0"),
            *("-object", "filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=red1"),
            *("-object", "filter-rewriter,id=rew0,netdev=hn0,queue=all"),
            *("-incoming", f"unix:{self.directory / 'migration'}"),
        ]

    def _protect(self) -> None:
        for monitor in (self.svm, self.pvm):
            monitor.execute("migrate-set-capabilities", capabilities=[{"capability": "x-colo", "state": True}])
        delay: dict[str, object] = {"x-checkpoint-delay": self.delay_ms, "max-bandwidth": 10 << 30}
        self.pvm.execute("migrate-set-parameters", **delay)
        self.pvm.execute("migrate", uri=f"unix:{self.directory / 'migration'}")
        wait_for(self._in_step, "COLO state", 30)

    def _in_step(self) -> bool:
        state = self.pvm.execute("query-migrate").get("status")
        if state == "failed":
            raise LabError("the migration failed")
        return bool(state == "colo" and self.pvm.execute("query-status")["running"])

    def console(self, name: str) -> str:
        """What the guest in ``pvm`` or ``svm`` has printed."""
        path = self.directory / f"{name}.console"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def checkpoints(self) -> int:
        """How many were taken so far, the first state transfer included: each stops the primary once."""
        return self.pvm.events["STOP"]

    def assert_sound(self) -> None:
        """LabError if a machine was reset, has panicked, has ended, or they have left COLO state."""
        for name, process, monitor in (("pvm", self.primary, self.pvm), ("svm", self.secondary, self.svm)):
            if process.poll() is not None:
                raise LabError(f"{name} has ended with status {process.returncode}")
            for event in ("RESET", "GUEST_PANICKED", "COLO_EXIT"):
                if monitor.events[event]:
                    raise LabError(f"{name}: {event}, {monitor.events[event]} times")
            if "Kernel panic" in self.console(name):
                raise LabError(f"{name}: its kernel has panicked")

    def close(self) -> None:
        """End both machines."""
        for monitor in self._monitors:
            monitor.close()
        for name in ("secondary", "primary"):
            if hasattr(self, name):
                self.lab.end(getattr(self, name))
