"""The service units: what is in them, that systemd takes them, and what is told to the service manager."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from colo.cli import main, units
from colo.launch import manager

NAMES = ["colo-pair@.service"]


def read(text: str) -> ConfigParser:
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    parser.read_string(text)
    return parser


@pytest.fixture
def written(tmp_path: Path) -> Path:
    done = CliRunner().invoke(main, ["units", "--into", str(tmp_path)])
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [
        f"{tmp_path / name} was written: systemctl daemon-reload makes it known." for name in NAMES
    ]
    return tmp_path


def test_they_are_written_and_printed_alike(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == NAMES
    printed = CliRunner().invoke(main, ["units"]).stdout
    assert printed == "\n\n".join(f"# {name}\n{(written / name).read_text().rstrip()}" for name in NAMES) + "\n"


def test_the_pairs_unit(written: Path) -> None:
    service = read((written / "colo-pair@.service").read_text())["Service"]
    program, *words = service["ExecStart"].split()[-6:]
    assert Path(program).name == "colo" or (program, words[0]) == ("-m", "colo")
    assert service["ExecStart"].endswith(" launch --config /etc/colo/%i.toml --name %i")
    assert service["Type"] == "notify"
    # Signals go to the command alone; a mistake is not tried again, a loss is.
    assert (service["KillMode"], service["Restart"], service["RestartPreventExitStatus"]) == (
        "mixed",
        "on-failure",
        "2",
    )
    assert service["Environment"] == "XDG_RUNTIME_DIR=%t/colo-%i"
    assert service["RuntimeDirectory"] == "colo-%i"
    assert service["DeviceAllow"].endswith("rw")
    assert "MemoryDenyWriteExecute" not in service
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE"


def test_the_path_of_a_socket_is_short_enough(written: Path) -> None:
    """With the name of a pair twice in it."""
    from colo.launch import janitor

    name = "a-web-server-27"
    assert len(f"/run/colo-{name}/colo/{name}{janitor._LONGEST}") < janitor._PATH_BYTES


def test_systemd_takes_them(written: Path) -> None:
    """Looked at by systemd itself where it is there, and in any case free of lines that it would not read."""
    for name in NAMES:
        text = (written / name).read_text()
        assert "@COLO@" not in text
        assert all(line.startswith(("#", "[")) or "=" in line for line in text.splitlines() if line)
        program = shutil.which("systemd-analyze")
        if program is not None:
            done = subprocess.run([program, "verify", written / name], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("argv0", "which", "wanted"),
    [
        ("FOLDER/colo", None, "FOLDER/colo"),
        ("FOLDER/a b/colo", None, '"FOLDER/a b/colo"'),
        ("FOLDER/100%/colo", None, "FOLDER/100%%/colo"),
        ("FOLDER/none/colo", "/usr/bin/colo", "/usr/bin/colo"),
        ("-m", "/usr/bin/colo", "/usr/bin/colo"),
        ("-m", None, f"{sys.executable} -m colo"),
    ],
)
def test_the_path_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv0: str, which: str | None, wanted: str
) -> None:
    for folder in (tmp_path, tmp_path / "a b", tmp_path / "100%"):
        folder.mkdir(exist_ok=True)
        (folder / "colo").touch()
    monkeypatch.setattr(sys, "argv", [argv0.replace("FOLDER", str(tmp_path))])
    monkeypatch.setattr(shutil, "which", lambda _: which)
    assert units._this_program() == wanted.replace("FOLDER", str(tmp_path))


def test_a_directory_that_is_not_there() -> None:
    done = CliRunner().invoke(main, ["units", "--into", "/nowhere"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "colo: /nowhere/colo-pair@.service cannot be written: no such file or directory.\n"


# ------------------------------------------------------------------------------------------------- the service manager


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.bind(f"\0{path}" if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{path}" if abstract else path)
        manager.tell(READY="1", STATUS="protected:\nvm2")
        assert sock.recv(1000) == b"READY=1\nSTATUS=protected: vm2"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify", "@nobody-is-here"])
def test_nobody_is_there_to_be_told(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    before = os.listdir("/proc/self/fd")
    manager.tell(READY="1")  # goes by without an error
    assert os.listdir("/proc/self/fd") == before, "and leaves no socket behind"
