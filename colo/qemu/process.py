"""A process that is started, and waited for, without the loop's standing still.

`asyncio.create_subprocess_exec` does not return before the child executes its program, nor, in Python 3.11, before a
thread runs that waits for the child's end. No frame goes anywhere meanwhile: 13 ms where guests keep the processors
busy, now and then 30 to 90, with each checkpoint that needs a fresh machine. Here a thread starts it (6 ms, at most 9,
for what cannot be done beside the loop, fork(2)), and its end is a descriptor that becomes readable (pidfd_open(2)).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Self, final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# For as long as Python runs: a child hears of the death of the *thread* that has started it (prctl(2)).
_STARTER: Final = ThreadPoolExecutor(1, "starter")


@final
class Process:
    """A child, which is killed when we end, however that is.

    Attributes:
        pid: its number, somebody else's once its end was told.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Use `start`."""
        self._process = process
        self.pid = process.pid
        self._handle = -1  # a pidfd: this process, whoever has its number by now
        with contextlib.suppress(OSError):  # Linux is older than 5.3
            self._handle = os.pidfd_open(process.pid)

    @classmethod
    async def start(
        cls, argv: Sequence[str], log: Path, environment: Mapping[str, str], files: Sequence[int] = ()
    ) -> Self:
        """Start ``argv`` in a session of its own; what it prints goes to the file ``log``.

        Args:
            environment: all of it. files: descriptors that it has, too.

        Raises:
            OSError: it does not start.
        """

        def run() -> subprocess.Popen[bytes]:
            with log.open("wb") as output:
                return subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,
                    pass_fds=files,
                    preexec_fn=_die_with_parent,  # noqa: PLW1509 - it only makes one system call
                )

        starting = asyncio.get_running_loop().run_in_executor(_STARTER, run)
        try:
            return cls(await asyncio.shield(starting))
        except asyncio.CancelledError:
            starting.add_done_callback(_unwanted)
            await asyncio.wait({starting})
            raise

    async def wait(self) -> int:
        """Wait for its end; returns its status, negative for a signal. May be repeated, one at a time."""
        if self._process.returncode is None:
            if self._handle < 0:
                return await asyncio.to_thread(self._process.wait)
            loop, over = asyncio.get_running_loop(), asyncio.Event()
            loop.add_reader(self._handle, over.set)
            try:
                await over.wait()
            finally:
                loop.remove_reader(self._handle)
        return self._process.wait()

    def kill(self) -> None:
        """End it at once, unless it has ended."""
        if self._handle < 0:
            self._process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def close(self) -> None:
        """Give back what this holds, after `wait`. May be repeated."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _unwanted(starting: asyncio.Future[subprocess.Popen[bytes]]) -> None:
    """Nobody waits for it any more."""
    if not starting.cancelled() and starting.exception() is None:
        process = starting.result()
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    """In the child: end when whoever started us ends, however that is (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
