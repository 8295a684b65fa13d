"""Signals while a serving command starts: they wait until there is somebody to act on them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOP: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FORWARDED: Final = (*STOP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What is passed on to a command."""


@contextmanager
def held() -> Iterator[None]:
    """Within this, signals wait until `release`: none that comes during the start ends us without cleaning up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Let the signals that were held come, now that they are handled."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
