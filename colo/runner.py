"""Runs the command that takes checkpoints: what `colo.clients.CommandClient` hands out, beside a hub's channels."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from typing import Final, final

from colo.channel import Hub
from colo.clients import CommandClient

_READ_BYTES: Final = 4096
_LAST_READS: Final = 64
_NOT_STARTED: Final = 127
DRAINED: Final = b"drained\n"
"""What a command reads on its standard input once the boundary that its `paused` asked for has been drawn."""


@final
class CommandRunner:
    """One command at a time, in a session of its own so that all of it can be ended.

    Its environment has COLO_REASON. What it prints are its steps; when it has said ``paused``, and everything that both
    machines had sent is read, it finds `DRAINED` on its standard input, and may let them run again.
    """

    def __init__(self, hub: Hub, client: CommandClient) -> None:
        self._hub = hub
        self._client = client
        self._process: subprocess.Popen[bytes] | None = None
        self._serial = 0
        self._pidfd = -1

    def serve(self) -> None:
        """Start and end what the client says."""
        wanted = self._client.take_command()
        if wanted is not None:
            self._serial = wanted.serial
            try:
                self._process = subprocess.Popen(
                    wanted.argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "COLO_REASON": wanted.reason},
                    start_new_session=True,
                    bufsize=0,
                )
            except OSError:  # no process to be had at the moment
                self._client.ended(wanted.serial, _NOT_STARTED)
                return
            assert self._process.stdout is not None
            assert self._process.stdin is not None
            for pipe in (self._process.stdout, self._process.stdin):
                os.set_blocking(pipe.fileno(), False)
            self._pidfd = os.pidfd_open(self._process.pid)
            self._hub.watch(self._process.stdout.fileno(), select.EPOLLIN, self._said)
            self._hub.watch(self._pidfd, select.EPOLLIN, self._ended)
        if self._client.take_kill() == self._serial:
            self._kill()

    def drained(self) -> None:
        """Tell the command that the boundary is drawn; one that does not listen misses nothing else."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(DRAINED)

    def _said(self, _events: int) -> None:
        self._read()

    def _read(self) -> bool:
        """Take a part of what it printed; whether there may be more."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            data = os.read(self._process.stdout.fileno(), _READ_BYTES)
        except BlockingIOError:
            return False
        if data:
            self._client.feed(self._serial, data)
        else:
            self._hub.forget(self._process.stdout.fileno())
        return bool(data)

    def _ended(self, _events: int) -> None:
        for _ in range(_LAST_READS):
            if not self._read():
                break
        self._client.ended(self._serial, self._forget())

    def _forget(self) -> int:
        """Release what belongs to the command, which has ended or is about to; its status."""
        process, self._process = self._process, None
        assert process is not None
        self._hub.forget(self._pidfd)
        os.close(self._pidfd)
        for pipe in (process.stdout, process.stdin):
            assert pipe is not None
            self._hub.forget(pipe.fileno())
            with contextlib.suppress(OSError):
                pipe.close()
        return process.wait()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the command, if one runs."""
        if self._process is not None:
            self._kill()
            self._forget()
