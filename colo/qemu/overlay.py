"""The copy of what a machine has written to its disk: its qcow2 overlay, copied when its memory is.

A machine that waits for another one's state has opened its own overlay already, and reads nothing of it. When the state
has come, QEMU reads the file's header and tables anew (bdrv_activate_all), as after a migration over shared storage: so
what was copied onto that file in between is what it sees. The machine that is copied stands still, and had written down
everything when it stopped (vm_stop flushes).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from colo.qemu.copying import copy_data

_FICLONE: Final = 0x40049409  # ioctl_ficlone(2)


def copy_onto(source: Path, target: Path) -> int:
    """Give ``target``, which others may have open, the content of ``source``; holes stay holes.

    Where the file system can have files share blocks, it does so, whatever their size.

    Returns:
        How many bytes were copied, 0 if they are shared.

    Raises:
        OSError: one of them is not there, or the disk is full.
    """
    with source.open("rb") as ours, target.open("r+b") as theirs:
        try:
            fcntl.ioctl(theirs, _FICLONE, ours.fileno())
        except OSError:  # there are as many reasons as file systems
            theirs.truncate(0)
            theirs.truncate(os.fstat(ours.fileno()).st_size)
            return copy_data(ours.fileno(), theirs.fileno())
        return 0
