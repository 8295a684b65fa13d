"""The overlays of a pair's machines: what each of them writes to its disk.

That of the machine that serves is the file that the person named, at every moment, so that it is what is left whatever
ends. Those of the others are in a folder beside it, which goes with the pair. A machine that takes over keeps its own
name for the file too, by which QEMU opens it again at each checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final, final

from colo.launch.checks import image_format
from pystack import UsageError

QEMU_IMG: Final = "qemu-img"

_SECONDS: Final = 60.0
_EMPTY: Final = "empty"
_FIRST: Final = "first"
_SERVED: Final = "served"
_OURS: Final = re.compile(rf"{_EMPTY}|{_SERVED}|{_FIRST}\.qcow2|vm\d+\.qcow2")


def folder(overlay: Path) -> Path:
    """Where the overlays of the other machines are."""
    return overlay.with_name(f"{overlay.name}.colo")


def lock_of(overlay: Path) -> Path:
    """What a pair that writes there holds."""
    return overlay.with_name(f"{overlay.name}.colo.lock")


def clear_folder(overlay: Path) -> None:
    """Remove what a pair has left that was killed together with its janitor. Its lock is ours.

    Raises:
        UsageError: there is something that is not ours to remove.
    """
    left = folder(overlay)
    if not left.is_dir() or left.is_symlink():
        return
    files = list(left.iterdir())
    if any(not _OURS.fullmatch(path.name) for path in files):
        raise UsageError(f"{left} is in the way, and has more in it than a pair leaves: remove it.")
    shutil.rmtree(left, ignore_errors=True)


def create_command(overlay: Path, disk: Path) -> list[str]:
    """What makes an empty overlay of ``disk`` (qemu-img(1))."""
    base = os.path.realpath(disk)
    return [QEMU_IMG, "create", "-q", "-f", "qcow2", "-F", image_format(disk), "-b", base, os.fspath(overlay)]


@final
class Overlays:
    """Those of one pair, whose folder is there and its own.

    Args:
        overlay: what the person named. disk: the image below it, which is only read.

    Attributes:
        made: whether the person's file is one that `prepare` has made.
    """

    def __init__(self, overlay: Path, disk: Path) -> None:
        self._overlay = overlay
        self._disk = disk
        self._folder = folder(overlay)
        self.made = False

    def prepare(self) -> None:
        """See to the person's file: make it if it is not there, and see that it is what it must be if it is.

        Raises:
            UsageError: it is not, or cannot be made.
        """
        empty = self._folder / _EMPTY
        if self._overlay.exists():
            said = _info(self._overlay)
            if said.get("format") != "qcow2" or not _same(said.get("full-backing-filename"), self._disk):
                raise UsageError(
                    f"{self._overlay} is no overlay of {self._disk}: name another file, or one to be made."
                )
            cluster = said.get("cluster-size", 1 << 16)
            make = create_command(empty, self._disk)
            _run([*make[:2], "-o", f"cluster_size={cluster}", *make[2:], str(said["virtual-size"])], self._overlay)
        else:
            _run(create_command(empty, self._disk), self._overlay)
            self.of(_FIRST).rename(self._overlay)
            self.made = True

    def of(self, name: str) -> Path:
        """An overlay for the machine ``name``, with nothing in it yet."""
        path = self._folder / f"{name}.qcow2"
        shutil.copyfile(self._folder / _EMPTY, path)
        return path

    def serve(self, path: Path) -> None:
        """The machine with that overlay is the one that serves now: the person's file is that one from here on.

        Raises:
            OSError: the file system has not what it takes, hard links.
        """
        served = self._folder / _SERVED
        served.hardlink_to(path)
        served.replace(self._overlay)

    def drop(self, path: Path) -> None:
        """The machine with that overlay has ended."""
        if path != self._overlay:
            path.unlink(missing_ok=True)

    def undo(self) -> None:
        """Nothing has come of the pair: what `prepare` has made goes."""
        if self.made:
            self._overlay.unlink(missing_ok=True)


def _same(one: object, other: Path) -> bool:
    try:
        return Path(str(one)).samefile(other)
    except OSError:
        return False


def _info(overlay: Path) -> dict[str, Any]:
    said = json.loads(_run([QEMU_IMG, "info", "--output=json", os.fspath(overlay)], overlay))
    assert isinstance(said, dict)
    return said


def _run(command: list[str], overlay: Path) -> bytes:
    try:
        return subprocess.run(command, capture_output=True, timeout=_SECONDS, check=True).stdout
    except FileNotFoundError:
        raise UsageError(f"{QEMU_IMG} was not found, and an overlay needs it: install qemu-utils.") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines() or [f"status {error.returncode}"]
        why = said[-1].removeprefix(f"{QEMU_IMG}: ").rstrip(".")
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error).rstrip(".")
    raise UsageError(f"{overlay} is of no use as an overlay: {why}.")
