"""A person's mistakes are answered by one sentence and status 2, never by a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from colo.cli import main
from pystack import __version__
from pystack.link.pcap import PcapWriter
from pystack.testing.frames import Crafter

THREE = ["compare", "--primary-in", "unix:/nowhere/p", "--secondary-in", "unix:/nowhere/s", "--out", "unix:/nowhere/o"]
COMMANDS = ("compare", "rewrite", "mirror", "replay")


def colo(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def compare_at(address: str) -> list[str]:
    """A compare command whose first address is ``address``; the others listen at ports of their own."""
    others = "tcp:127.0.0.1:0,server"
    return ["compare", "--primary-in", address, "--secondary-in", others, "--out", others]


def assert_one_sentence(arguments: list[str], sentence: str | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "colo", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("colo: ")
    assert done.stderr.count("\n") == 1
    if sentence is not None:
        assert done.stderr == f"colo: {sentence}\n"
    return done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], None),
        (["nonsense"], "No such command 'nonsense'."),
        (["compare"], "Missing option '--primary-in'."),
        (["rewrite"], "Missing option '--in-client'."),
        (["mirror", "--in", "unix:/x"], "Missing option '--out'."),
        ([*THREE, "--max-queue-size", "0"], "Invalid value for '--max-queue-size': 0 is not in the range"),
        ([*THREE, "--compare-timeout", "soon"], "Invalid value for '--compare-timeout'"),
        (
            [*THREE, "--notify", "unix:/n", "--checkpoint-command", "true"],
            "--notify and --checkpoint-command both make checkpoints: give one of them.",
        ),
        (
            [*THREE, "--notify", "unix:/nowhere/s"],
            "--secondary-in and --notify name the same socket, unix:/nowhere/s: give each one of its own.",
        ),
        (
            ["mirror", "--in", "unix:/i", "--out", "unix:/o", "--copy", "unix:/o,server"],
            "--out and --copy name the same socket, unix:/o: give each one of its own.",
        ),
        (["replay", "one.pcap"], "Missing argument 'SECONDARY'."),
        (
            ["replay", "a", "b", "--guest", "nobody"],
            "--guest 'nobody' is not an IP address: write for example 192.0.2.1.",
        ),
        (
            ["replay", "/nowhere/a", "/nowhere/b"],
            "/nowhere/a cannot be read: no such file or directory.",
        ),
        (["replay", "/dev/null", "/dev/null"], "/dev/null is empty: it is no pcap or pcapng file."),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_by_one_sentence_and_status_2(arguments: list[str], sentence: str | None) -> None:
    done = colo(*arguments)
    assert done.exit_code == 2
    if arguments:
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert sentence is not None
        assert done.stderr.startswith(f"colo: {sentence}")


@pytest.mark.parametrize(
    "address",
    [
        "", "nonsense", "unix:", "tcp:", "tcp:host", "tcp:80", "tcp::80", "tcp:host:", "tcp:host:http",
        "tcp:host:70000", "tcp:host:-1", "udp:host:80", "/tmp/path", "unix", "tcp:" + "x" * 64 + ":80", "tcp:a..b:80",
        "tcp:" + "x." * 200 + ":80",
    ],
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    done = colo(*compare_at(address))
    assert done.exit_code == 2
    assert done.stderr == (
        f"colo: {address!r} is no address: write unix:PATH or tcp:HOST:PORT, and ,server behind it to listen.\n"
    )


@pytest.mark.parametrize("option", ["server=on", "", "wait", "server,wait"])
def test_what_is_no_option_of_an_address(option: str) -> None:
    done = colo(*compare_at(f"unix:/x,{option}"))
    assert done.exit_code == 2
    assert "after the comma only 'server' is known" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_path_that_is_too_long() -> None:
    path = "/tmp/" + "x" * 200
    assert_one_sentence(
        compare_at(f"unix:{path},server"),
        "A UNIX socket's path is 1 to 107 bytes long, and this one is 205: give a shorter one.",
    )


def test_a_path_in_a_folder_that_is_not_there() -> None:
    assert_one_sentence(
        compare_at("unix:/nowhere/socket,server"), "Cannot listen at /nowhere/socket: no such file or directory."
    )


def test_nobody_listens_at_a_path(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert_one_sentence(
        compare_at(f"unix:{path}"),
        f"Cannot connect to {path}: no such file or directory; is the other side listening?",
    )
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert_one_sentence(
        compare_at(f"unix:{path}"), f"Cannot connect to {path}: connection refused; is the other side listening?"
    )


def test_nobody_listens_at_a_port() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert_one_sentence(
            compare_at(f"tcp:127.0.0.1:{port}"),
            f"Cannot connect to 127.0.0.1:{port}: connection refused; is the other side listening?",
        )


def test_a_path_or_port_in_use(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as taken, socket.socket() as port_taken:
        taken.bind(str(path))
        taken.listen()
        port_taken.bind(("127.0.0.1", 0))
        port_taken.listen()
        port = port_taken.getsockname()[1]
        assert_one_sentence(
            compare_at(f"unix:{path},server"),
            f"{path} is served by another program already: give another path, or end that program.",
        )
        assert_one_sentence(
            compare_at(f"tcp:127.0.0.1:{port},server"), f"Cannot listen at 127.0.0.1:{port}: address already in use."
        )
    assert path.exists()


def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert_one_sentence(
        compare_at(f"unix:{path},server"),
        f"{path} exists and is not a socket: give another path, or remove it.",
    )
    assert path.read_text() == "data"


def test_a_host_that_is_not_known() -> None:
    assert "host.invalid" in assert_one_sentence(compare_at("tcp:host.invalid:80"))


def test_a_failed_start_leaves_no_socket(tmp_path: Path) -> None:
    arguments = ["mirror", "--in", f"unix:{tmp_path / 'in'},server", "--out", f"unix:{tmp_path / 'out'}"]
    assert_one_sentence(arguments)
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- replay


@pytest.fixture
def captures(tmp_path: Path) -> tuple[str, str]:
    """Two equal captures of one datagram."""
    paths = (str(tmp_path / "p.pcap"), str(tmp_path / "s.pcap"))
    for path in paths:
        writer = PcapWriter.create(path)
        writer.write(Crafter("10.0.0.2", "10.0.0.1").udp(53, 6000, b"answer"), 10**9)
        writer.close()
    return paths


def test_a_capture_that_is_cut_short(captures: tuple[str, str]) -> None:
    path = Path(captures[1])
    path.write_bytes(path.read_bytes()[:-3])
    assert "ends in the middle of a record" in assert_one_sentence(["replay", *captures])


def test_a_guest_that_is_not_there(captures: tuple[str, str]) -> None:
    assert_one_sentence(
        ["replay", *captures, "--guest", "10.0.0.77"],
        "Neither capture has a frame of that guest: give another --guest ADDR.",
    )


def test_a_guest_that_cannot_be_told(captures: tuple[str, str]) -> None:
    writer = PcapWriter.create(captures[0])
    writer.write(Crafter("10.0.0.2", "10.0.0.1").udp(53, 6000, b"answer"), 10**9)
    writer.write(Crafter("10.0.0.1", "10.0.0.2").udp(6000, 53, b"question"), 10**9)
    writer.close()
    assert_one_sentence(["replay", *captures], "Who the guest is cannot be told from the captures: give --guest ADDR.")


def test_an_output_that_cannot_be_written(captures: tuple[str, str]) -> None:
    arguments = ["replay", *captures, "--pcapng", "/nowhere/out.pcapng"]
    done = subprocess.run(
        [sys.executable, "-m", "colo", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "colo: /nowhere/out.pcapng cannot be written: no such file or directory.\n"


def test_an_output_that_is_an_input_is_refused(captures: tuple[str, str]) -> None:
    before = Path(captures[1]).read_bytes()
    done = colo("replay", *captures, "--pcapng", captures[1])
    assert done.exit_code == 2
    assert done.stderr == f"colo: {captures[1]} is one of the captures: give another FILE to --pcapng.\n"
    assert Path(captures[1]).read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_difference(captures: tuple[str, str]) -> None:
    done = colo("replay", *captures, "--pcapng", "/dev/full")
    assert done.exit_code == 2
    assert done.stderr == "colo: /dev/full cannot be written: no space left on device.\n"


# ---------------------------------------------------------------------------------------------------------------- help


def test_without_arguments_the_commands_are_listed() -> None:
    done = colo("--help")
    assert done.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_the_version_is_told() -> None:
    assert colo("--version").stdout == f"colo, version {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = colo(name, "--help")
    assert done.exit_code == 0
    assert f" {name} [OPTIONS]" in done.stdout


def test_the_command_line_starts_without_what_it_does_not_need() -> None:
    code = "import sys, colo.cli, colo.cli.compare, colo.cli.replay; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert not {"asyncio", "construct", "rich", "pcapng", "pyroute2", "colo.compare", "colo.aio"} & set(loaded.split())


def test_a_reader_who_stops_reading_is_no_error(captures: tuple[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m colo replay {captures[0]} {captures[1]} | true"],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.stderr == ""
