"""Two real QEMU machines behind `colo launch` and `colo selftest`: what a person types, and what is left afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from colo.qemu.image import CARDS, Kernel, fetch_kernel
from pystack import UsageError
from tests.interop.launched import PATIENCE, FullHost, asked, colo, free_port, launched, leftover, pids

pytestmark = [pytest.mark.requires("qemu", "busybox"), pytest.mark.timeout(240), pytest.mark.alone]


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    """Kernels for the guest, with every card: the system's, or Debian's, which are downloaded once."""
    for needs in CARDS.values():
        try:
            Kernel.find(needs=needs)
        except UsageError:
            fetch_kernel(needs=needs)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The sockets of this test's pairs are its own."""
    return {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}


def test_the_selftest_passes(env: dict[str, str], tmp_path: Path) -> None:
    """Twenty checkpoints under traffic, the primary is killed, every connection survives, every checksum is right."""
    done = colo("selftest", "--nic", "rtl8139", env=env)  # test_colo_tap has all cards, and launch has virtio-net
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every checksum is right" in done.stdout
    assert "20 checkpoints" in done.stdout
    assert leftover(tmp_path) == []


def test_launch_and_ctl(env: dict[str, str], tmp_path: Path) -> None:
    """A life: protected, a checkpoint, the loss of the secondary and of the primary, and nothing left in the end."""
    with launched(env) as pair:
        pair.until(state="protected")
        client = pair.connected()
        assert asked(client, b"one\n") == b"one\n"
        assert colo("ctl", "checkpoint", env=env).returncode == 0
        status = pair.status()
        assert status["checkpoints_by_reason"]["asked for"] == 1
        assert (status["state"], status["mode"], status["accelerator"]) == ("protected", "compare", "tcg")
        assert (status["panicked"], status["waiting_frames"]) == ([], 0)
        counted = colo("ctl", "counters", "--json", env=env).stdout
        assert json.loads(counted)["checkpoint.completed"] == status["checkpoints"]
        assert f"{'checkpoint.completed':26} {status['checkpoints']}\n" in colo("ctl", "counters", env=env).stdout

        # The secondary dies: another one joins, and clients notice nothing but a pause.
        (victim,) = pids(tmp_path, status["secondary"])
        os.kill(victim, signal.SIGKILL)
        assert asked(client, b"two\n") == b"two\n"
        deadline = time.monotonic() + PATIENCE
        while pair.until(state="protected")["secondary"] == status["secondary"]:
            assert time.monotonic() < deadline
        assert asked(client, b"three\n") == b"three\n"

        # The primary stands still without dying: it is ended, and the secondary carries on.
        status = pair.status()
        (victim,) = pids(tmp_path, status["primary"])
        os.kill(victim, signal.SIGSTOP)
        assert asked(client, b"four\n") == b"four\n"
        pair.until(primary=status["secondary"])

        # Another secondary joins the survivor. Then that dies, and connections of both times go on.
        later = pair.connected()
        status = pair.until(state="protected")
        assert status["secondary"] not in {"", status["primary"]}
        assert colo("ctl", "failover", env=env).returncode == 0
        for connection, line in ((client, b"five\n"), (later, b"six\n")):
            assert asked(connection, line) == line
        assert pair.until(primary=status["secondary"])["checkpoints_by_reason"]["asked for"] == 1
        for connection in (client, later):
            connection.close()
        said = pair.end()
        assert pair.process.returncode == 0, said
    assert leftover(tmp_path) == []


def test_nothing_is_left_when_it_is_killed_half_way(env: dict[str, str], tmp_path: Path) -> None:
    with launched(env) as pair:
        deadline = time.monotonic() + PATIENCE
        while not pids(tmp_path, "vm2"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pair.process.kill()
        while leftover(tmp_path):
            assert time.monotonic() < deadline, leftover(tmp_path)
            time.sleep(0.05)


def said_at_random(port: int) -> bytes:
    """What no two machines say alike, once their randomness is not the same any more; it is some time after a copy."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.settimeout(PATIENCE)
        return sock.recv(100)


def test_clients_do_not_wait_for_checkpoints_that_cannot_be_taken(env: dict[str, str], tmp_path: Path) -> None:
    """No machine starts any more. The secondary is given up, the primary serves, and another one joins in the end."""
    host, port = FullHost(tmp_path), free_port()
    words = ("--engine", "stop-copy", "--qemu", str(host.qemu), "--publish", f"127.0.0.1:{port}:9")
    with launched(env, *words) as pair:
        pair.until(state="protected")
        client = pair.connected()
        host.fill()
        deadline = time.monotonic() + PATIENCE
        while pair.status()["state"] == "protected":
            for _ in range(20):
                assert len(said_at_random(port)) == 33
            assert time.monotonic() < deadline
        assert asked(client, b"alone\n") == b"alone\n"
        host.free()
        pair.until(state="protected")
        assert asked(client, b"together\n") == b"together\n"
        client.close()
        said = pair.end()
        assert "checkpoints fail (cannot set up guest memory: Cannot allocate memory): vm" in said
        assert "goes on alone, and another one is to join" in said
    assert leftover(tmp_path) == []


@pytest.mark.parametrize("name", ["vm2", "vm3"])
def test_a_machine_that_hangs_is_replaced_after_a_pause(env: dict[str, str], tmp_path: Path, name: str) -> None:
    """The secondary; or the next one, in the middle of a copy: the primary waits, and must not be taken for dead."""
    port = free_port()
    with launched(env, "--engine", "stop-copy", "--publish", f"127.0.0.1:{port}:9") as pair:
        pair.until(state="protected")
        client = pair.connected()
        deadline = time.monotonic() + PATIENCE
        while not pids(tmp_path, "vm3"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(1)  # it is waited for
        (victim,) = pids(tmp_path, name)
        os.kill(victim, signal.SIGSTOP)
        while pair.status()["checkpoints"] < 2:
            assert len(said_at_random(port)) == 33
            assert time.monotonic() < deadline
        assert asked(client, b"still\n") == b"still\n"
        status = pair.until(state="protected")
        assert (status["primary"], pids(tmp_path, name)) == ("vm1", [])
        client.close()
        pair.end()
    assert leftover(tmp_path) == []


@pytest.mark.parametrize("order", [("vm1", "vm2"), ("vm2", "vm1")])
def test_the_service_is_lost_with_the_last_machine(env: dict[str, str], tmp_path: Path, order: tuple[str, str]) -> None:
    with launched(env, "--engine", "stop-copy") as pair:
        pair.until(state="protected")
        for name in order:
            (victim,) = pids(tmp_path, name)
            os.kill(victim, signal.SIGKILL)
        said = pair.process.communicate(timeout=PATIENCE)[0]
        assert pair.process.returncode == 1
        assert "and nobody can carry on: the service is lost." in said
        assert "Traceback" not in said
    assert leftover(tmp_path) == []


def test_print_only_prints(env: dict[str, str], tmp_path: Path) -> None:
    done = colo("launch", "--print", "--nic", "e1000", env=env)
    assert done.returncode == 0
    assert "-device e1000,netdev=net0,mac=52:54:00:12:34:56,romfile=" in done.stdout
    assert "-incoming defer" in done.stdout
    assert leftover(tmp_path) == []


_OTHER = """#!/bin/sh
if [ "$1" = --version ]; then echo "QEMU emulator version 7.2.22"; exit; fi
echo 'no such machine' >&2; exit 1
"""


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--qemu", "no-such-qemu"], "no-such-qemu was not found: install qemu-system-x86, or name the program"),
        (["--kernel", "/no/such/kernel"], "/no/such/kernel cannot be read: give a file that is there."),
        (["--nic", "ne2000"], "The card is 'ne2000': it must be one of virtio-net-pci, e1000, rtl8139."),
        (["--tap", "a-name-too-long-for-it"], "a-name-too-long-for-it"),
        (["--qemu", "OTHER"], "QEMU does not start: no such machine"),
        (["--publish", "127.0.0.1:BUSY:80"], "BUSY"),
        (["--name", "a/b"], "The name 'a/b' is no good: use letters, digits and hyphens."),
    ],
)
def test_a_persons_errors(env: dict[str, str], tmp_path: Path, words: list[str], sentence: str) -> None:
    other = tmp_path / "other-qemu"
    other.write_text(_OTHER)
    other.chmod(0o755)
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = str(busy.getsockname()[1])
        words = [word.replace("OTHER", str(other)).replace("BUSY", port) for word in words]
        done = colo("launch", *words, env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert sentence.replace("BUSY", port) in done.stderr
    assert "Traceback" not in done.stderr
    assert leftover(tmp_path) in ([], [str(tmp_path / "other-qemu")])


def test_ctl_without_a_pair(env: dict[str, str]) -> None:
    done = colo("ctl", "status", env=env)
    assert done.returncode == 2
    assert done.stderr.startswith("colo: No pair runs under that name")


def test_two_pairs_cannot_have_one_name(env: dict[str, str]) -> None:
    with launched(env) as pair:
        pair.until(state="protected")
        done = colo("launch", env=env)
        assert done.returncode == 2
        assert done.stderr.startswith("colo: A pair called pair runs already: give another --name")
        assert pair.status()["state"] == "protected"


def test_a_guest_that_does_not_boot(env: dict[str, str], tmp_path: Path) -> None:
    """Known of one that says when it serves."""
    nothing = tmp_path / "kernel"
    nothing.write_bytes(bytes(4096))
    done = colo("launch", "--kernel", str(nothing), "--ready", "login:", "--boot-timeout", "2", env=env)
    assert done.returncode == 2
    assert "colo: The guest does not boot within 2 s; it has printed nothing.\n" in done.stderr
    assert leftover(tmp_path) == []
