"""The files that the replicas serve: what is in them, and writing them.

Each is the same block of random bytes, begun elsewhere, so that no two files are alike in any place, and the client
knows the checksum of each without having it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

from pystack import UsageError

_BLOCK: Final = Random(4_242).randbytes(1 << 20)  # noqa: S311 - bytes that do not compress, not a secret
_MOST_FILES: Final = 16
_MOST_BYTES: Final = 256 << 20  # on disk, unless one file alone is larger


def count(connections: int, size: int) -> int:
    """How many files of ``size`` bytes to write: one a connection, unless that would fill somebody's disk."""
    return max(1, min(connections, _MOST_FILES, _MOST_BYTES // size))


def name(number: int) -> str:
    """Of the file ``number``."""
    return f"{number}.bin"


def blocks(number: int, size: int) -> Iterator[memoryview]:
    """Its ``size`` bytes, piece by piece."""
    view = memoryview(_BLOCK)
    start = number * 7919 % len(_BLOCK)
    while size:
        piece = view[start : start + size]
        start = 0
        size -= len(piece)
        yield piece


def digest(number: int, size: int) -> str:
    """The SHA-256 of them."""
    sha = hashlib.sha256()
    for piece in blocks(number, size):
        sha.update(piece)
    return sha.hexdigest()


def write(folder: Path, files: int, size: int) -> None:
    """Write ``files`` of them.

    Raises:
        UsageError: there is no room.
    """
    try:
        for number in range(files):
            with (folder / name(number)).open("wb") as file:
                file.writelines(blocks(number, size))
    except OSError as error:
        raise UsageError(
            f"The files to serve cannot be written to {folder} ({error.strerror}): "
            "give fewer --megabytes, or a TMPDIR with room."
        ) from error
