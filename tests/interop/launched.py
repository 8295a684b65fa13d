"""A `colo launch` under way, as a person has it: what it is told, what it says, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 60.0
COLO = (sys.executable, "-m", "colo")


def colo(*words: str, env: dict[str, str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COLO, *words], capture_output=True, text=True, timeout=seconds, env=env, check=False)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def leftover(directory: Path) -> list[str]:
    """What is still on disk, and which QEMU of ours still runs."""
    found = [str(path) for path in (directory / "colo").glob("*")]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(directory).encode() in (folder / "cmdline").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
    return found


class Launched:
    """A `colo launch` under way, with one port that leads to its web server and one to its echo."""

    def __init__(self, env: dict[str, str], *words: str) -> None:
        self.env = env
        self.http, self.echo = free_port(), free_port()
        publish = ("--publish", f"127.0.0.1:{self.http}:80", "--publish", f"127.0.0.1:{self.echo}:7")
        self.process = subprocess.Popen(
            [*COLO, "launch", *publish, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True
        )

    def status(self) -> dict[str, Any]:
        answer = colo("ctl", "status", "--json", env=self.env)
        status: dict[str, Any] = json.loads(answer.stdout) if answer.returncode == 0 else {"error": answer.stderr}
        return status

    def until(self, **wanted: Any) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        status: dict[str, Any] = {}
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()[0]
            status = self.status()
            if all(status.get(name) == value for name, value in wanted.items()):
                return status
            time.sleep(0.1)
        raise AssertionError(f"not {wanted} within {PATIENCE} s: {status}")

    def connected(self) -> socket.socket:
        """A connection to the echo, once the guest serves it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            sock = socket.create_connection(("127.0.0.1", self.echo), PATIENCE)
            try:
                sock.settimeout(5)
                sock.sendall(b"there?\n")
                if sock.recv(100) == b"there?\n":
                    return sock
            except OSError:
                pass
            sock.close()
            assert time.monotonic() < deadline, "the guest does not serve"
            time.sleep(0.2)

    def end(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return self.process.communicate(timeout=PATIENCE)[0]


@contextlib.contextmanager
def launched(env: dict[str, str], *words: str) -> Iterator[Launched]:
    pair = Launched(env, *words)
    try:
        yield pair
    finally:
        pair.process.kill()
        pair.process.wait()
        assert pair.process.stdout is not None
        pair.process.stdout.close()


def asked(sock: socket.socket, line: bytes) -> bytes:
    sock.settimeout(PATIENCE)
    sock.sendall(line)
    answer = b""
    while len(answer) < len(line):
        data = sock.recv(4096)
        assert data, "the connection was closed"
        answer += data
    return answer


class FullHost:
    """A QEMU that does not start any more once the host is said to be full, as one without memory does not."""

    def __init__(self, directory: Path) -> None:
        self._full = directory / "full"
        self.qemu = directory / "qemu-of-a-full-host"
        self.qemu.write_text(
            f'#!/bin/sh\n[ -e {self._full} ] || exec qemu-system-x86_64 "$@"\n'
            "echo 'cannot set up guest memory: Cannot allocate memory' >&2; exit 1\n"
        )
        self.qemu.chmod(0o755)

    def fill(self) -> None:
        self._full.touch()

    def free(self) -> None:
        self._full.unlink()


def pids(directory: Path, name: str) -> list[int]:
    """The processes of the machine ``name`` whose files are in ``directory``."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"-name" in words and words[words.index(b"-name") + 1] == name.encode():
                if str(directory).encode() in b" ".join(words):
                    found.append(int(folder.name))
    return found
