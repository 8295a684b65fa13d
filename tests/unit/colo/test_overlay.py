"""Overlays: a copy is what was copied, nobody's file is removed, the person's is that of the machine that serves."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from colo.launch import janitor
from colo.launch.overlays import Overlays, clear_folder, create_command, folder
from colo.qemu.overlay import copy_onto
from pystack import UsageError

_HOLE = 64 << 20


def sparse(path: Path, *pieces: tuple[int, bytes], size: int) -> Path:
    with path.open("wb") as file:
        for at, data in pieces:
            file.seek(at)
            file.write(data)
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        ((0, b"head" * 5000),),
        ((5000, b"odd" * 7000), (_HOLE, b"far" * 9000)),
        ((_HOLE - 3, b"end"),),
    ],
)
def test_a_copy_has_the_same_bytes_and_the_same_holes(tmp_path: Path, pieces: tuple[tuple[int, bytes], ...]) -> None:
    source = sparse(tmp_path / "source", *pieces, size=_HOLE + 100_000)
    target = tmp_path / "target"
    target.write_bytes(b"what was there" * 100_000)
    with target.open("rb") as opened:
        copied = copy_onto(source, target)
        assert opened.read() == source.read_bytes(), "who has it open sees the copy"
    assert copied <= sum(len(data) for _, data in pieces) + 4 * 4096 * len(pieces)
    assert target.stat().st_blocks <= source.stat().st_blocks + 16


def test_a_smaller_copy_leaves_nothing_of_the_larger_one(tmp_path: Path) -> None:
    target = sparse(tmp_path / "target", (0, b"x" * 100_000), size=100_000)
    assert copy_onto(sparse(tmp_path / "source", (10, b"y"), size=20), target) <= 20
    assert target.read_bytes() == bytes(10) + b"y" + bytes(9)


def test_what_is_not_there_is_not_copied(tmp_path: Path) -> None:
    here = sparse(tmp_path / "here", size=10)
    for source, target in ((tmp_path / "none", here), (here, tmp_path / "none")):
        with pytest.raises(FileNotFoundError):
            copy_onto(source, target)


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder, an image, and an overlay that is not there."""
    image = sparse(tmp_path / "image", (0, b"of the image"), size=1 << 20)
    folder(tmp_path / "written").mkdir()
    return tmp_path, image, tmp_path / "written"


@pytest.mark.requires("qemu-img")
def test_the_persons_file_is_always_that_of_the_machine_that_serves(place: tuple[Path, Path, Path]) -> None:
    _, image, written = place
    overlays = Overlays(written, image)
    overlays.prepare()
    assert overlays.made
    first = written.read_bytes()
    survivor, other = overlays.of("vm2"), overlays.of("vm3")
    assert survivor.read_bytes() == other.read_bytes() == first
    survivor.write_bytes(b"of the survivor")
    overlays.drop(written)  # the first machine has ended, and its file stays until another one is
    assert written.read_bytes() == first
    overlays.serve(survivor)
    assert written.samefile(survivor), "QEMU opens it again by the name that it knows"
    overlays.drop(survivor)
    overlays.drop(other)
    assert written.read_bytes() == b"of the survivor"
    overlays.undo()
    assert not written.exists()


@pytest.mark.requires("qemu-img")
def test_an_overlay_that_is_there_stays_and_others_are_like_it(place: tuple[Path, Path, Path]) -> None:
    """The same size and the same clusters: a machine that waits sees the same disk from the start."""
    _, image, written = place
    make = create_command(written, image)
    subprocess.run([*make[:2], "-o", "cluster_size=4096", *make[2:], str(3 << 20)], check=True)
    overlays = Overlays(written, image)
    overlays.prepare()
    assert not overlays.made
    overlays.undo()
    head = written.read_bytes()[:104]
    assert overlays.of("vm2").read_bytes()[:104] == head
    assert int.from_bytes(head[20:24], "big") == 12, "clusters of 4 KiB (docs/interop/qcow2.txt)"
    assert int.from_bytes(head[24:32], "big") == 3 << 20


@pytest.mark.requires("qemu-img")
def test_a_damaged_image_is_said_to_be_one(place: tuple[Path, Path, Path]) -> None:
    root, image, written = place
    image.write_bytes(b"QFI\xfb\0\0\0\3" + bytes(2000))
    with pytest.raises(UsageError, match=rf"^{root}/written is of no use as an overlay: .*image"):
        Overlays(written, image).prepare()


def test_without_qemu_img_it_says_what_to_install(
    place: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, image, written = place
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"^qemu-img was not found, and an overlay needs it: install qemu-utils.$"):
        Overlays(written, image).prepare()


def test_what_a_dead_pair_has_left_goes_and_nothing_else(tmp_path: Path) -> None:
    written = tmp_path / "written"
    left = folder(written)
    left.mkdir()
    for name in ("empty", "vm7.qcow2"):
        (left / name).write_bytes(b"x")
    clear_folder(written)
    assert not left.exists()
    clear_folder(written)
    left.mkdir()
    (left / "somebody's").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"is in the way, and has more in it than a pair leaves: remove it.$"):
        clear_folder(written)
    assert (left / "somebody's").exists()


def test_the_folder_goes_with_the_pair_and_the_overlay_stays(tmp_path: Path) -> None:
    run, disks = tmp_path / "run", tmp_path / "disks"
    run.mkdir()
    disks.mkdir()
    written = disks / "written"
    written.write_bytes(b"x")
    with janitor.scratch(run, "pair", written):
        (folder(written) / "vm2.qcow2").write_bytes(b"x")
        with pytest.raises(UsageError, match=r"A pair writes to .*/written already: name another --overlay"):
            janitor.scratch(run, "other", written).__enter__()
        assert sorted(path.name for path in run.iterdir()) == ["pair.d", "pair.lock"]
    assert list(run.iterdir()) == []
    assert list(disks.iterdir()) == [written]


def test_a_folder_in_the_way_leaves_everything_as_it_was(tmp_path: Path) -> None:
    written = tmp_path / "written"
    folder(written).mkdir()
    (folder(written) / "somebody's").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="is in the way"):
        janitor.scratch(tmp_path, "pair", written).__enter__()
    assert sorted(tmp_path.rglob("*")) == before
