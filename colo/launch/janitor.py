"""A directory that goes when we go, however that is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pystack import UsageError

_WATCH: Final = 'read _ || true; rm -rf -- "$@"'


@contextlib.contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A directory for the pair ``name`` alone, for as long as the block lasts.

    A small process of its own watches over it: it waits for the end of a pipe that only we hold, which comes also when
    we are killed. The pair's control socket goes with the directory.

    Raises:
        UsageError: a pair of that name runs already.
    """
    lock = parent / f"{name}.lock"
    holding = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(holding, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(holding)
        raise UsageError(
            f"A pair called {name} runs already: give another --name, or end it with colo ctl stop."
        ) from None
    directory = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=parent))
    going = (directory, lock, parent / f"{name}.ctl")
    watched, hold = os.pipe()
    try:
        janitor = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "janitor", *map(str, going)],
            stdin=watched,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        os.close(watched)
    try:
        yield directory
    finally:
        os.close(hold)
        janitor.wait()
        os.close(holding)
