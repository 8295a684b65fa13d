"""A directory that goes when we go, however that is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from colo.launch.overlays import clear_folder, folder, lock_of
from pystack import UsageError

_WATCH: Final = 'read _ || true; rm -rf -- "$@"'
_PATH_BYTES: Final = 107  # of a UNIX socket, unix(7)
_LONGEST: Final = ".d/vm9999999.state"  # what stands behind the pair's name in the path of a socket
_LOCK_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.02


@contextlib.contextmanager
def scratch(parent: Path, name: str, overlay: Path | None = None) -> Iterator[Path]:
    """A directory for the pair ``name`` alone, for as long as the block lasts, and another one beside its ``overlay``.

    A small process of its own watches over it: it waits for the end of a pipe that only we hold, which comes also when
    we are killed. The pair's control socket goes with the directory. Until all of it has gone the name is taken.

    Raises:
        UsageError: a pair of that name runs already, or with that overlay, or the paths of its sockets would be too
            long, or a directory cannot be made.
    """
    length = len(os.fsencode(parent / name)) + len(_LONGEST)
    if length > _PATH_BYTES:
        raise UsageError(
            f"The path of a socket in {parent} would have {length} bytes, and it may have {_PATH_BYTES}: "
            "set XDG_RUNTIME_DIR to a directory nearer to the root, or give a shorter --name."
        )
    directories = [parent / f"{name}.d"]
    taken = f"A pair called {name} runs already: give another --name, or end it with colo ctl stop."
    locks = {parent / f"{name}.lock": taken}
    if overlay is not None:
        directories.append(folder(overlay))
        locks[lock_of(overlay)] = f"A pair writes to {overlay} already: name another --overlay."
    with contextlib.ExitStack() as undo:
        holding = [_taken(undo, lock, why_not) for lock, why_not in locks.items()]
        _clear(parent, name)
        if overlay is not None:
            clear_folder(overlay)
        for directory in directories:
            _make(directory)
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
        hold, janitor = _watched((*directories, parent / f"{name}.ctl", *locks), holding)
        undo.pop_all()
    try:
        yield directories[0]
    finally:
        os.close(hold)
        janitor.wait()
        for descriptor in holding:
            os.close(descriptor)


def _taken(undo: contextlib.ExitStack, lock: Path, why_not: str) -> int:
    """The descriptor of ``lock``, which ``undo`` gives back."""
    holding = _locked(lock, why_not)
    undo.callback(os.close, holding)
    undo.callback(lock.unlink, missing_ok=True)
    return holding


def _make(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700)
    except OSError as error:
        raise UsageError(f"{directory} cannot be made: {(error.strerror or str(error)).lower()}.") from None


def _locked(lock: Path, why_not: str) -> int:
    """A descriptor of ``lock`` that holds it. The janitor of a pair that was killed may need a moment to let go."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            holding = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(f"{lock} cannot be made: {(error.strerror or str(error)).lower()}.") from None
        with contextlib.suppress(OSError):
            fcntl.flock(holding, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(holding), lock.stat()):  # and was not removed in between
                return holding
        os.close(holding)
        if time.monotonic() > deadline:
            raise UsageError(why_not)
        time.sleep(_RETRY_SECONDS)


def _clear(parent: Path, name: str) -> None:
    """Remove what a pair of that name has left that was killed together with its janitor.

    Raises:
        UsageError: there is something that is not ours to remove.
    """
    for path in parent.glob(f"{name}.*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    control = parent / f"{name}.ctl"
    if not control.exists():
        return
    if not control.is_socket():
        raise UsageError(f"{control} is in the way, and is no socket: remove it, or give another --name.")
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(control))
        raise UsageError(f"{control} is served by another program: end that, or give another --name.")


def _watched(going: tuple[Path, ...], holding: Sequence[int]) -> tuple[int, subprocess.Popen[bytes]]:
    """A process that removes ``going`` once the descriptor beside it is closed, and holds the locks until then."""
    watched, hold = os.pipe()
    try:
        janitor = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "janitor", *map(str, going)],
            stdin=watched,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=holding,
        )
    except OSError:
        os.close(hold)
        raise
    finally:
        os.close(watched)
    return hold, janitor
