"""Builds tcgcolo.c, which QEMU 7.2's COLO needs under TCG: see there."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.interop.lab import LabError

SOURCE = Path(__file__).with_name("tcgcolo.c")


def missing() -> str:
    """What must be installed first; "" when nothing is missing."""
    return "" if shutil.which("cc") else "cc: apt install gcc libc6-dev"


def library() -> Path:
    """The library's path, for LD_PRELOAD; built once for each version of its source.

    Raises:
        LabError: it cannot be built.
    """
    if lacking := missing():
        raise LabError(lacking)
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"pystack-tcgcolo-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat(follow_symlinks=False)
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise LabError(f"{folder} is open to others or not ours: remove it")
    built = folder / f"tcgcolo-{digest}.so"
    if not built.exists():
        partial = folder / f"{os.getpid()}.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(partial), str(SOURCE), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise LabError(f"{SOURCE.name} cannot be built: {done.stderr.strip()[-300:]}")
        partial.rename(built)
    return built
