"""The `colo` commands as processes of their own, and QEMU's end of their sockets."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pystack.link.qemu_framing import FrameDecoder, encode

PATIENCE = 20.0


class Command:
    """`colo ARGUMENTS`, running. What it says on stderr is read by `said` and `wait`."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "colo", *arguments], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.stderr = self.process.stderr
        self.greeting = self.stderr.readline()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """End it, which must succeed, and return what it has said since."""
        self.process.send_signal(number)
        rest = self.stderr.read()
        assert self.process.wait(PATIENCE) == 0, rest
        return rest

    def line(self) -> str:
        """The next line that it says."""
        return self.stderr.readline()


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Command]:
    """A command that is killed at the end, unless it was stopped; it must have started well."""
    command = Command(*arguments)
    try:
        assert "Ctrl-C ends it" in command.greeting, command.greeting + command.stderr.read()
        yield command
    finally:
        command.process.kill()
        command.process.wait()
        command.stderr.close()


def counters(stats: str) -> dict[str, int]:
    """What `--stats` printed."""
    found = {}
    for line in stats.splitlines():
        number, _, name = line.strip().partition("  ")
        if number.replace(",", "").isdecimal() and name:
            found[name.strip()] = int(number.replace(",", ""))
    return found


class End:
    """One end of a stream of frames, connected to a command."""

    def __init__(self, where: Path | tuple[str, int] | socket.socket, *, vnet_hdr_len: int | None = None) -> None:
        if isinstance(where, socket.socket):
            self.sock = where
        else:
            family = socket.AF_INET if isinstance(where, tuple) else socket.AF_UNIX
            self.sock = socket.socket(family, socket.SOCK_STREAM)
            self.sock.connect(where if isinstance(where, tuple) else str(where))
        self.sock.settimeout(PATIENCE)
        self.vnet_hdr_len = vnet_hdr_len
        self._decoder = FrameDecoder(vnet_hdr=vnet_hdr_len is not None)
        self._frames: list[bytes] = []

    def send(self, *frames: bytes) -> None:
        """Send whole frames, in one piece."""
        self.sock.sendall(b"".join(encode(frame, self.vnet_hdr_len) for frame in frames))

    def receive(self, count: int = 1) -> list[bytes]:
        """The next frames; fails when they do not come."""
        while len(self._frames) < count:
            data = self.sock.recv(1 << 18)
            assert data, "the command has closed the connection"
            self._frames += [frame for _, frame in self._decoder.feed(data)]
        got, self._frames = self._frames[:count], self._frames[count:]
        return got

    def silent(self, seconds: float = 0.1) -> bool:
        """Whether nothing comes for a while."""
        if self._frames:
            return False
        self.sock.settimeout(seconds)
        try:
            data = self.sock.recv(1 << 18)
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(PATIENCE)
        self._frames += [frame for _, frame in self._decoder.feed(data)]
        return False

    def is_closed(self) -> bool:
        """Wait for the end of the connection; False when frames come instead."""
        try:
            return self.sock.recv(1 << 18) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


def eventually(what: str, done: object) -> None:
    """Wait until ``done()`` is true."""
    deadline = time.monotonic() + PATIENCE
    assert callable(done)
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
