"""The content of one file given to another, in the kernel, without what is a hole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

_AT_ONCE: Final = 1 << 30  # bytes
_ZEROES: Final = bytes(1 << 16)


def copy_data(source: int, target: int) -> int:
    """Copy what is no hole in the file descriptor ``source`` to where it is in ``target``; returns how many bytes."""
    copied = 0
    for begin, end in data_of(source):
        os.lseek(source, begin, os.SEEK_SET)
        os.lseek(target, begin, os.SEEK_SET)
        left = end - begin
        while left:
            count = os.sendfile(target, source, None, min(left, _AT_ONCE))
            if not count:
                return copied  # it has become shorter
            left -= count
            copied += count
    return copied


def blank(target: int) -> None:
    """Overwrite with zeroes what is no hole."""
    for begin, end in data_of(target):
        for at in range(begin, end, len(_ZEROES)):
            os.pwrite(target, _ZEROES[: end - at], at)


def data_of(file: int) -> Iterator[tuple[int, int]]:
    """Where the file has data, from and to, in bytes (lseek(2), SEEK_DATA)."""
    end = 0
    while True:
        try:
            begin = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole behind it
                return
            raise
        end = os.lseek(file, begin, os.SEEK_HOLE)
        yield begin, end
