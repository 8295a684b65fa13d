"""What a serving command waits for: the end of its guest, or a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from pystack.cli import signals
from pystack.drivers.namespace import CommandGuest

_FROM_KEYBOARD: Final = frozenset({signal.SIGINT, signal.SIGQUIT})
_POLITE_SECONDS: Final = 1.0


async def stopped(process: int = -1) -> int:
    """Wait for SIGTERM, SIGINT or SIGHUP, or for the end of the pidfd ``process``; the exit status is 0."""
    loop = asyncio.get_running_loop()
    end = asyncio.Event()
    for number in signals.STOP:
        loop.add_signal_handler(number, end.set)
    if process >= 0:
        loop.add_reader(process, end.set)
    signals.release()
    try:
        await end.wait()
    finally:
        for number in signals.STOP:
            loop.remove_signal_handler(number)
        if process >= 0:
            loop.remove_reader(process)
    return 0


async def command_status(guest: CommandGuest) -> int:
    """Wait for the end of the command, passing signals on to it, and end what it left behind.

    Returns:
        Its exit status, 128 + N when signal N ended it.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def reap_all() -> None:
        # Not only the command: what it left behind is our child now and must not stay a zombie.
        for pid, status in _reaped():
            if pid == guest.pid and not ended.done():
                guest.reaped()
                ended.set_result(os.waitstatus_to_exitcode(status))

    loop.add_signal_handler(signal.SIGCHLD, reap_all)
    for number in signals.FORWARDED:
        loop.add_signal_handler(number, _forward, guest, number)
    signals.release()
    try:
        reap_all()  # it may have ended before there was a handler
        code = await ended
        await _end_orphans()
    finally:
        for number in (signal.SIGCHLD, *signals.FORWARDED):
            loop.remove_signal_handler(number)
    return code if code >= 0 else 128 - code


def _forward(guest: CommandGuest, number: signal.Signals) -> None:
    """Pass a signal on, unless the terminal has sent it to the command already."""
    if number in _FROM_KEYBOARD and _in_foreground():
        return
    guest.send_signal(number)


def _in_foreground() -> bool:
    """Whether the keys of our terminal send their signals to us, and so to the command as well."""
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False


def _reaped() -> list[tuple[int, int]]:
    found = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            found.append((pid, status))
    return found


async def _end_orphans() -> None:
    """End the processes that the command left behind: their network ends with it. First by SIGTERM, then by SIGKILL."""
    for number, seconds in ((signal.SIGTERM, _POLITE_SECONDS), (signal.SIGKILL, _POLITE_SECONDS)):
        deadline = asyncio.get_running_loop().time() + seconds
        while children := _children():
            for pid in children:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(0.01)
            _reaped()


def _children() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []  # a kernel without CONFIG_PROC_CHILDREN
