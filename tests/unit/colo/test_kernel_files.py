"""The files of `colo demo --kernel`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from colo.kernel import files
from pystack import UsageError


def test_what_is_written_is_what_the_client_expects(tmp_path: Path) -> None:
    files.write(tmp_path, 3, 3_000_001)
    contents = [(tmp_path / files.name(number)).read_bytes() for number in range(3)]
    assert {len(content) for content in contents} == {3_000_001}
    assert [hashlib.sha256(content).hexdigest() for content in contents] == [
        files.digest(number, 3_000_001) for number in range(3)
    ]
    assert len(set(contents)) == 3


@pytest.mark.parametrize(
    ("connections", "size", "files_written"),
    [(1, 10, 1), (7, 10, 7), (100, 10_000_000, 16), (100, 100_000_000, 2), (4, 10_000_000_000, 1)],
)
def test_a_disk_is_not_filled(connections: int, size: int, files_written: int) -> None:
    assert files.count(connections, size) == files_written


def test_no_room_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^The files to serve cannot be written to .*give fewer --megabytes"):
        files.write(tmp_path / "gone", 1, 10)
