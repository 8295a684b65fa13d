"""A person's mistakes are answered by one sentence and status 2, never by a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pystack import __version__
from pystack.cli import main


def pystack(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--mtu", "5", "--", "true"], "Invalid value for '--mtu': 5 is not in the range 68<=x<=65521."),
        (["run", "--mtu", "many", "--", "true"], "Invalid value for '--mtu': 'many' is not a valid integer range."),
        (["run", "--cidr", "10.0.2.0", "--", "true"], "'10.0.2.0' has no prefix length: write it as 10.0.2.0/24."),
        (
            ["run", "--cidr", "10.0.2.7/24"],
            "'10.0.2.7/24' is an address inside a network: write the network, 10.0.2.0/24.",
        ),
        (["run", "--cidr", "nonsense"], "'nonsense' is not an IPv4 network: write it as 10.0.2.0/24."),
        (["run", "--dns", "nonsense"], "--dns 'nonsense' is not an IP address: write for example 9.9.9.9."),
        (["run", "--dns", "9.9.9.9", "--no-dns"], "--dns and --no-dns contradict each other: give one of them."),
        (
            ["run", "--publish", "80"],
            "--publish '80' is not of the form [ADDR:]HOST:GUEST[/udp]: write for example 8080:80.",
        ),
        (["run", "--impair", "loss=lots"], None),
        (["run", "--impair", "loss=200%"], None),
        (["run", "--impair", "magic=1"], None),
        (["run", "--nonsense"], None),
        (["attach"], "Missing argument 'PID|PATH'."),
        (["attach", "4194305"], "There is no process 4194305."),
        (["attach", "99999999999999999999"], "There is no process 99999999999999999999."),
        (
            ["attach", "/nowhere/at/all"],
            "The network namespace /nowhere/at/all cannot be opened: No such file or directory.",
        ),
        (["vm"], "Say where QEMU connects: give either --socket PATH or --listen HOST:PORT."),
        (["vm", "--listen", "5555"], "--listen '5555' is not of the form HOST:PORT: write for example 127.0.0.1:5555."),
        (
            ["vm", "--socket", "/tmp/" + "x" * 200],
            "A UNIX socket's path is 1 to 107 bytes long, and this one is 205: give a shorter one.",
        ),
        (["trace"], "Say what to print: give either a capture FILE or -i NAME."),
        (["trace", "/nowhere/at/all"], "/nowhere/at/all cannot be read: no such file or directory."),
        (["trace", "/dev/null"], "/dev/null is empty: it is no pcap or pcapng file."),
        (["nonsense"], "No such command 'nonsense'."),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_by_one_sentence_and_status_2(arguments: list[str], sentence: str | None) -> None:
    done = pystack(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("pystack: ")
    assert done.stderr.count("\n") == 1
    if sentence is not None:
        assert done.stderr == f"pystack: {sentence}\n"


@pytest.mark.requires("userns")
def test_a_missing_tun_device_is_named() -> None:
    done = _real("run", "--tun-device", "/dev/nowhere", "true")
    assert done.returncode == 2
    assert done.stderr.startswith("pystack: There is no /dev/nowhere")
    assert done.stderr.count("\n") == 1


@pytest.mark.requires("userns")
def test_a_device_that_is_no_tun_driver_is_named() -> None:
    done = _real("run", "--tun-device", "/dev/null", "true")
    assert done.returncode == 2
    assert "/dev/null" in done.stderr
    assert done.stderr.count("\n") == 1


def _real(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pystack.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_without_arguments_the_commands_are_listed() -> None:
    done = pystack("--help")
    assert done.exit_code == 0
    for name in ("run", "attach", "vm", "trace", "demo"):
        assert f"\n  {name} " in done.stdout


def test_the_version_is_told() -> None:
    assert pystack("--version").stdout == f"pystack, version {__version__}\n"


@pytest.mark.parametrize("name", ["run", "attach", "vm", "trace", "demo"])
def test_every_command_has_help(name: str) -> None:
    done = pystack(name, "--help")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: pystack {name} ") or done.stdout.startswith(f"Usage: main {name} ")


def test_a_reader_who_stops_reading_is_no_error(tmp_path: Path) -> None:
    from pystack.link.pcapng import PcapngWriter

    capture = tmp_path / "many.pcapng"
    writer = PcapngWriter.create(capture)
    for _ in range(20_000):
        writer.write(bytes(60), 0)
    writer.close()
    script = f"{sys.executable} -m pystack.cli trace {capture} | head -n 1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_the_command_line_starts_without_what_it_does_not_need() -> None:
    code = "import sys, pystack.cli, pystack.cli.run; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert not {"asyncio", "construct", "rich", "pcapng", "pyroute2", "pystack.stack"} & set(loaded.split())
