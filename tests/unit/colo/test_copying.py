"""What is copied from one file to another in the kernel: all of it, where it was, and no hole."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from colo.qemu.copying import blank, copy_data, data_of

_PAGE = 4096
_SIZE = 64 * _PAGE


@pytest.fixture
def files() -> Iterator[tuple[int, int]]:
    """Two files in memory, as large as each other, all of each a hole."""
    both = os.memfd_create("source"), os.memfd_create("target")
    for file in both:
        os.ftruncate(file, _SIZE)
    yield both
    for file in both:
        os.close(file)


def whole(file: int) -> bytes:
    return os.pread(file, _SIZE, 0)


@pytest.mark.parametrize("pages", [(), (0,), (63,), (0, 1, 2, 7, 9, 63), tuple(range(64))])
def test_a_copy_is_equal_and_only_data_is_copied(files: tuple[int, int], pages: tuple[int, ...]) -> None:
    source, target = files
    for page in pages:
        os.pwrite(source, bytes([page + 1]) * _PAGE, page * _PAGE)
    assert copy_data(source, target) == len(pages) * _PAGE
    assert whole(target) == whole(source)
    assert list(data_of(target)) == list(data_of(source))


def test_what_was_there_before_is_gone_when_blanked(files: tuple[int, int]) -> None:
    source, target = files
    os.pwrite(source, b"new" * 100, 5 * _PAGE + 17)
    for page in (0, 4, 5, 40):
        os.pwrite(target, b"old" * 1000, page * _PAGE)
    blank(target)
    assert whole(target) == bytes(_SIZE)
    copy_data(source, target)
    assert whole(target) == whole(source)


def test_blank_does_not_make_a_file_longer(files: tuple[int, int]) -> None:
    _, target = files
    os.ftruncate(target, 100_001)
    os.pwrite(target, b"x" * 100_001, 0)
    blank(target)
    assert os.fstat(target).st_size == 100_001
    assert whole(target) == bytes(100_001)


def test_data_after_data_is_one_piece(files: tuple[int, int]) -> None:
    source, _ = files
    for page in (3, 4, 5, 9):
        os.pwrite(source, b"x" * _PAGE, page * _PAGE)
    assert list(data_of(source)) == [(3 * _PAGE, 6 * _PAGE), (9 * _PAGE, 10 * _PAGE)]
