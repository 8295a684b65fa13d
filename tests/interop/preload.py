"""Builds what is preloaded into QEMU.

tcgcolo.c, which QEMU 7.2's COLO needs under TCG, and lateend.c, which lets a race be lost: see there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.interop.lab import LabError

TCG_COLO = "tcgcolo"
LATE_END = "lateend"


def missing() -> str:
    """What must be installed first; "" when nothing is missing."""
    return "" if shutil.which("cc") else "cc: apt install gcc libc6-dev"


def library(name: str = TCG_COLO) -> Path:
    """The path of the library ``name``, for LD_PRELOAD; built once for each version of its source.

    Raises:
        LabError: it cannot be built.
    """
    if lacking := missing():
        raise LabError(lacking)
    source = Path(__file__).with_name(f"{name}.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"pystack-tcgcolo-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat(follow_symlinks=False)
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise LabError(f"{folder} is open to others or not ours: remove it")
    built = folder / f"{name}-{digest}.so"
    if not built.exists():
        partial = folder / f"{name}-{os.getpid()}.so"
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(partial), str(source), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise LabError(f"{source.name} cannot be built: {done.stderr.strip()[-300:]}")
        partial.rename(built)
    return built
