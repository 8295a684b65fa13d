"""The few Linux system calls that Python 3.11 does not wrap: namespaces(7), mount(2), prctl(2).

Every function raises OSError with the kernel's errno; who calls them makes a sentence of it.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000

MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str | None = None) -> None:
    if result:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), what)


def unshare(flags: int) -> None:
    """Leave the namespaces of the kinds in ``flags`` for new ones (unshare(2))."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, kind: int) -> None:
    """Enter the namespace that ``fd`` names, which must be of the ``kind`` CLONE_NEW... (setns(2))."""
    _checked(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)))


def mount(source: str, target: str, filesystem: str | None, flags: int, data: str | None = None) -> None:
    """Mount a filesystem, or bind one place to another (mount(2)). A symbolic link as ``target`` is followed."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        None if filesystem is None else filesystem.encode(),
        ctypes.c_ulong(flags),
        None if data is None else os.fsencode(data),
    )
    _checked(result, target)


def unmount(target: str, flags: int = 0) -> None:
    """Unmount what is mounted there (umount2(2))."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def die_with_parent(signal: int) -> None:
    """Have the kernel send ``signal`` to this process when its parent dies (prctl(2), PR_SET_PDEATHSIG).

    Kept across exec, lost by a change of credentials: call it after those.
    """
    _checked(_libc.prctl(ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal), 0, 0, 0))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    _checked(_libc.prctl(ctypes.c_int(_PR_SET_CHILD_SUBREAPER), ctypes.c_ulong(1), 0, 0, 0))
