"""Two machines under QEMU's own COLO as docs/COLO-FT.txt has them, with `colo compare` in place of `colo-compare`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any, Self

from colo.qemu.image import CARDS, READY, GuestFiles, default_guest
from tests.interop import preload
from tests.interop.guest import find_kernel
from tests.interop.lab import Lab, connect, wait_for

ADDRESS = "10.77.0.2"
PATIENCE = 60.0
ROOT = Path(__file__).resolve().parents[2]

_NETWORK = """
set -e
ip link add br0 type bridge
ip link set br0 address 52:54:00:00:00:01 up
ip address add 10.77.0.1/24 dev br0
for tap in tap0 tap1; do ip tuntap add $tap mode tap {vnet}; ip link set $tap up; done
ip link set tap0 master br0
"""


class Qmp:
    """A client of one machine's monitor. Attributes: events: those heard while an answer was waited for."""

    def __init__(self, path: Path) -> None:
        self.events: Counter[str] = Counter()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(PATIENCE)
        connect(self._sock, path)
        self._lines = self._sock.makefile("r")
        self._lines.readline()
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._sock.sendall(json.dumps({"execute": command, "arguments": named}).encode())
        while True:
            said = json.loads(self._lines.readline())
            if "event" not in said:
                assert "return" in said, (command, said)
                return said["return"]
            self.events[said["event"]] += 1

    def close(self) -> None:
        self._lines.close()
        self._sock.close()


class Said:
    """What a process has said on a stream so far."""

    def __init__(self, stream: Any) -> None:
        self._parts: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        with contextlib.suppress(ValueError):
            for line in stream:
                self._parts.append(line.decode(errors="replace"))

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def rest(self) -> str:
        self._thread.join(PATIENCE)
        return self.text


class Pair:
    """The machines in a lab, and `colo compare` beside them; started step by step."""

    def __init__(self, lab: Lab, directory: Path, nic: str, *, vnet: bool) -> None:
        self.lab, self.directory, self.nic, self.vnet = lab, directory, nic, vnet
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.qmp: dict[str, Qmp] = {}
        done = lab.run(["sh", "-c", _NETWORK.format(vnet="vnet_hdr" if vnet else "")])
        assert done.returncode == 0, done.stderr
        self.image: GuestFiles = default_guest(
            directory,
            address=IPv4Interface(f"{ADDRESS}/24"),
            gateway=IPv4Address("10.77.0.1"),
            kernel=find_kernel(CARDS[nic]),
        )
        self.said: Said | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for qmp in self.qmp.values():
            qmp.close()
        for process in self.processes.values():
            self.lab.end(process)

    def at(self, name: str) -> Path:
        return self.directory / name

    def _machine(self, name: str, tap: str, *words: str) -> None:
        argv = ["qemu-system-x86_64", "-name", name, "-machine", "pc", "-accel", "tcg,thread=single"]
        argv += ["-m", "128", "-nodefaults", "-no-user-config", "-display", "none"]
        argv += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", self.image.append]
        argv += ["-serial", f"file:{self.at(name)}.console"]
        for monitor in ("qmp", "qmp2"):
            argv += ["-qmp", f"unix:{self.at(name)}.{monitor},server=on,wait=off"]
        vnet = "on" if self.vnet else "off"
        argv += ["-netdev", f"tap,id=hn0,ifname={tap},script=no,downscript=no,vhost=off,vnet_hdr={vnet}"]
        argv += ["-device", f"{self.nic},id=e0,netdev=hn0,mac=52:54:00:12:34:56,romfile="]
        support = ",vnet_hdr_support=on" if self.vnet else ""
        argv += [word + support if word.startswith("filter-") else word for word in words]
        log = self.at(f"{name}.log").open("wb")
        self.processes[name] = self.lab.popen(
            argv, env={**os.environ, "LD_PRELOAD": str(preload.library())}, stdout=log.fileno(), stderr=log.fileno()
        )
        log.close()
        wait_for(self.at(f"{name}.qmp").exists, f"{name}'s monitor", PATIENCE)
        self.qmp[name] = Qmp(self.at(f"{name}.qmp"))

    def start_primary(self) -> None:
        self._machine(
            "primary", "tap0",
            "-chardev", f"socket,id=mirror0,path={self.at('mirror')},server=on,wait=off",
            "-chardev", f"socket,id=primary0,path={self.at('primary_in')},reconnect=1",
            "-chardev", f"socket,id=released0,path={self.at('out')},reconnect=1",
            "-object", "filter-mirror,id=m0,netdev=hn0,queue=tx,outdev=mirror0",
            "-object", "filter-redirector,id=r0,netdev=hn0,queue=rx,indev=released0",
            "-object", "filter-redirector,id=r1,netdev=hn0,queue=rx,outdev=primary0",
        )  # fmt: skip
        wait_for(lambda: READY in self.console("primary"), "the guest", PATIENCE)

    def start_secondary(self) -> None:
        self._machine(
            "secondary", "tap1",
            "-chardev", f"socket,id=mirror1,path={self.at('mirror')},reconnect=1",
            "-chardev", f"socket,id=secondary0,path={self.at('secondary_in')},reconnect=1",
            "-object", "filter-redirector,id=f1,netdev=hn0,queue=tx,indev=mirror1",
            "-object", "filter-redirector,id=f2,netdev=hn0,queue=rx,outdev=secondary0",
            "-object", "filter-rewriter,id=rew0,netdev=hn0,queue=all",
            "-incoming", f"unix:{self.at('state')}",
        )  # fmt: skip

    def start_compare(self, *options: str) -> None:
        argv = [sys.executable, "-m", "colo", "compare", "--stats"]
        for name in ("primary_in", "secondary_in", "out"):
            argv += [f"--{name.replace('_', '-')}", f"unix:{self.at(name)},server"]
        argv += ["--qmp", f"unix:{self.at('primary.qmp2')}", "--secondary-qmp", f"unix:{self.at('secondary.qmp2')}"]
        argv += ["--migration-in", f"unix:{self.at('through')}", "--migration-out", f"unix:{self.at('state')}"]
        argv += ["--vnet-hdr"] if self.vnet else []
        process = self.lab.popen([*argv, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT)
        self.processes["compare"] = process
        self.said = Said(process.stderr)
        self.until_said("comparing, listening")

    def protect(self, delay_ms: int = 10_000, *options: str) -> None:
        """All of it, `colo compare` with these options.

        Both guests have drawn before what they draw once: the kernel's secrets, and its entropy.
        """
        self.start_primary()
        self.start_secondary()
        self.start_compare(*options)
        self.until_served()
        assert self.traffic("random", "0.1")["wrong"] == []
        self.migrate(delay_ms=delay_ms)
        self.until_said("under COLO")

    def until_said(self, text: str, seconds: float = PATIENCE) -> None:
        said = self.said
        assert said is not None
        deadline = time.monotonic() + seconds
        while text not in said.text:
            assert time.monotonic() < deadline, f"not {text!r} but {said.text}"
            time.sleep(0.005)

    def migrate(self, to: str = "through", delay_ms: int = 10_000) -> None:
        for name in ("secondary", "primary"):
            self.qmp[name]("migrate-set-capabilities", capabilities=[{"capability": "x-colo", "state": True}])
        self.qmp["primary"]("migrate-set-parameters", x_checkpoint_delay=delay_ms, max_bandwidth=10 << 30)
        self.qmp["primary"]("migrate", uri=f"unix:{self.at(to)}")

    def traffic(self, *words: str) -> Any:
        argv = [sys.executable, "-m", "tests.interop.attach_traffic", words[0], ADDRESS, *words[1:]]
        done = self.lab.run(argv, cwd=ROOT, timeout=2 * PATIENCE)
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def until_served(self) -> None:
        """Until a request is answered through the command; the filters try to reach it once a second."""
        wait_for(lambda: not self.traffic("get", "1k", "0.01")["wrong"], "a GET", PATIENCE)

    @contextlib.contextmanager
    def talking(self) -> Iterator[subprocess.Popen[bytes]]:
        """A client that keeps one connection."""
        argv = [sys.executable, "-m", "tests.interop.attach_traffic", "talk", ADDRESS]
        process = self.lab.popen(argv, cwd=ROOT, stdin=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            self.lab.end(process)

    def take_over(self) -> None:
        """What QEMU's documentation has a person do when the primary is lost; the rewriter stays."""
        for name in ("f1", "f2"):
            self.qmp["secondary"]("object-del", id=name)
        done = self.lab.run(["ip", "link", "set", "tap1", "master", "br0"])
        assert done.returncode == 0, done.stderr

    def console(self, name: str) -> str:
        path = self.at(f"{name}.console")
        return path.read_text(errors="replace") if path.exists() else ""

    def memory_mib(self) -> float:
        """Of `colo compare`, resident."""
        status = Path(f"/proc/{self.processes['compare'].pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop_compare(self) -> str:
        """End it, which must succeed; all that it has said."""
        assert self.said is not None
        process = self.processes["compare"]
        process.terminate()
        assert process.wait(PATIENCE) == 0, self.said.text
        return self.said.rest()


def asked(client: subprocess.Popen[bytes], line: bytes) -> str:
    """What is wrong with the echo's answer; "" if nothing is."""
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdin.write(line)
    client.stdin.flush()
    return client.stdout.readline().decode().strip()
