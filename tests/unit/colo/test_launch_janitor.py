"""What a pair has on disk is its own, goes with it however that ends, and is not taken from anybody else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from colo.launch import control, janitor
from pystack import UsageError

_PATIENCE = 20.0


def test_everything_goes_at_the_end(tmp_path: Path) -> None:
    with janitor.scratch(tmp_path, "pair") as directory:
        (directory / "inner").mkdir()
        (directory / "inner/file").write_text("x")
        (tmp_path / "pair.ctl").write_text("x")
        assert directory.parent == tmp_path
        assert directory.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


def test_everything_goes_after_an_error(tmp_path: Path) -> None:
    with contextlib.suppress(RuntimeError), janitor.scratch(tmp_path, "pair"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with janitor.scratch(tmp_path, "pair") as directory:
        with pytest.raises(UsageError, match="A pair called pair runs already: give another --name, or end it with"):
            janitor.scratch(tmp_path, "pair").__enter__()
        assert directory.is_dir()
        with janitor.scratch(tmp_path, "pair-2"), janitor.scratch(tmp_path, "pair-3"):
            assert len(list(tmp_path.iterdir())) == 6
    with janitor.scratch(tmp_path, "pair"):
        pass
    assert list(tmp_path.iterdir()) == []


_KILLED = """
import sys, time
from pathlib import Path
from colo.launch import janitor
with janitor.scratch(Path(sys.argv[1]), "pair") as directory:
    (directory / "file").write_text("x")
    print(directory, flush=True)
    time.sleep(60)
"""


def test_a_new_pair_may_follow_at_once_on_one_that_is_killed(tmp_path: Path) -> None:
    """The old one's janitor takes nothing of the new one's, over and over."""
    for _ in range(5):
        killed = subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        with killed:
            assert killed.stdout is not None
            old = Path(killed.stdout.readline().strip())
            assert old.is_dir()
            killed.send_signal(signal.SIGKILL)
        with janitor.scratch(tmp_path, "pair") as directory:
            (tmp_path / "pair.ctl").write_text("new")
            assert not (old / "file").exists()
            time.sleep(0.02)
            assert {path.name for path in tmp_path.iterdir()} == {"pair.ctl", "pair.lock", directory.name}
    assert list(tmp_path.iterdir()) == []


def test_what_was_left_with_a_dead_janitor_goes_too(tmp_path: Path) -> None:
    left = tmp_path / "pair.d"
    left.mkdir()
    (left / "vm1.console").write_text("x")
    other = tmp_path / "pair-2.d"
    other.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "pair.ctl"))
    with janitor.scratch(tmp_path, "pair"):
        assert not (left / "vm1.console").exists()
    assert list(tmp_path.iterdir()) == [other]


def test_a_file_in_the_way_stays(tmp_path: Path) -> None:
    (tmp_path / "pair.ctl").write_text("mine")
    with pytest.raises(UsageError, match=r"pair\.ctl is in the way, and is no socket: remove it, or give"):
        janitor.scratch(tmp_path, "pair").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["pair.ctl"]


def test_a_socket_that_is_served_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(tmp_path / "pair.ctl"))
        served.listen()
        with pytest.raises(UsageError, match=r"pair\.ctl is served by another program: end that, or give"):
            janitor.scratch(tmp_path, "pair").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["pair.ctl"]


@pytest.mark.parametrize("name", ["p" * 90, "p" * 300])
def test_paths_that_are_too_long(tmp_path: Path, name: str) -> None:
    folder = tmp_path / ("x" * 40)
    folder.mkdir()
    with pytest.raises(UsageError, match="set XDG_RUNTIME_DIR to a directory nearer to the root, or give a shorter"):
        janitor.scratch(folder, name).__enter__()
    assert list(folder.iterdir()) == []


def test_the_longest_path_that_is_taken_is_one_that_a_socket_can_have(tmp_path: Path) -> None:
    room = 107 - len(os.fsencode(tmp_path)) - 1 - len(janitor._LONGEST)
    with janitor.scratch(tmp_path, "p" * room) as directory, socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(directory / "vm9999999.state"))
    with pytest.raises(UsageError, match="would have 108 bytes, and it may have 107"):
        janitor.scratch(tmp_path, "p" * (room + 1)).__enter__()


def test_a_directory_that_cannot_be_written() -> None:
    with pytest.raises(UsageError, match=r"/proc/pair.lock cannot be made: no such file or directory"):
        janitor.scratch(Path("/proc"), "pair").__enter__()


# --------------------------------------------------------------------------------------------------- the control socket


def answered(path: Path, answer: bytes) -> str:
    """What `control.ask` makes of ``answer``: the sentence, or the status as JSON."""
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(path))
        served.listen()

        def serve() -> None:
            peer, _ = served.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return json.dumps(control.ask(path, "status"))
        except UsageError as error:
            return str(error)
        finally:
            thread.join(_PATIENCE)
            path.unlink()


def test_what_answers_may_be_anything(tmp_path: Path) -> None:
    path = tmp_path / "pair.ctl"
    foreign = f"What answers at {path} is no pair: give the --name of one."
    assert answered(path, b'{"ok": true, "status": {"a": 1}}\n') == '{"a": 1}'
    assert answered(path, b'{"ok": false, "error": "No."}\n') == "No."
    assert answered(path, b'{"ok": false}\n') == "The pair refuses."
    assert answered(path, b"") == "The pair ended before it answered."
    for answer in (b"HTTP/1.1 400\r\n", b"[1]\n", b"null\n", b"\xff\xfe\n", b"{"):
        assert answered(path, answer) == foreign


@pytest.mark.parametrize("name", ["none", "x" * 300])
def test_nobody_is_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="No pair runs under that name"):
        control.ask(tmp_path / f"{name}.ctl", "status")
