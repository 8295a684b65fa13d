"""What the documentation says of `colo launch --config`, done with real machines: the recipe, the file, the end."""

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
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from colo.qemu.image import CARDS, Kernel, fetch_kernel, initramfs
from pystack import UsageError
from tests.docs.blocks import Block, read_blocks

pytestmark = [pytest.mark.requires("qemu", "busybox"), pytest.mark.timeout(240), pytest.mark.alone]

HOWTO = Path(__file__).resolve().parents[2] / "docs/howto"
COLO = (sys.executable, "-m", "colo")
_PATIENCE = 60.0


@pytest.fixture(scope="module", autouse=True)
def kernel() -> Kernel:
    try:
        return Kernel.find()
    except UsageError:
        return fetch_kernel()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ctl(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [*COLO, "ctl", *words, "--name", "web"]
    return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, env=env, check=False)


def status(env: dict[str, str]) -> dict[str, Any]:
    answer = ctl(env, "status", "--json")
    return dict(json.loads(answer.stdout)) if answer.returncode == 0 else {}


def blocks(page: str, language: str) -> list[Block]:
    return [block for block in read_blocks(HOWTO / page) if block.language == language]


@contextlib.contextmanager
def launched(folder: Path, text: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    (folder / "web.toml").write_text(text)
    command = [*COLO, "launch", "--config", str(folder / "web.toml")]
    pair = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    with pair:
        try:
            deadline = time.monotonic() + _PATIENCE
            while status(env).get("state") != "protected":
                assert pair.poll() is None, pair.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield pair
        finally:
            pair.kill()


def ended(pair: subprocess.Popen[str], number: signal.Signals) -> str:
    pair.send_signal(number)
    said = pair.communicate(timeout=_PATIENCE)[0]
    assert pair.returncode == 0, said
    return said


def test_the_protected_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made as the page says, it serves; its death in the middle of a download is not noticed; systemd is told."""
    monkeypatch.chdir(tmp_path)
    page = os.urandom(6 << 20)
    (tmp_path / "www").mkdir()
    (tmp_path / "www/big").write_bytes(page)
    recipe = blocks("protected-web-server.md", "python")[0].text
    exec(compile(recipe, "recipe", "exec"), {"__name__": "__docs__"})  # the page's own code
    (file,) = (block.text for block in blocks("protected-web-server.md", "toml"))
    port = free_port()
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(_PATIENCE)
        env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "NOTIFY_SOCKET": str(tmp_path / "notify")}
        with launched(tmp_path, file.replace(":8080:", f":{port}:"), env) as pair:
            told = b""
            while b"READY=1" not in told:
                told += manager.recv(4096) + b"\n"
            assert b"STATUS=protected: " in told
            assert downloaded(port, env) == page
            assert status(env)["primary"] == "vm2"
            assert "protected" in ended(pair, signal.SIGTERM)
            told = b""
            while b"STOPPING=1" not in told:
                told += manager.recv(4096)
    assert list((tmp_path / "run/colo").iterdir()) == []


def downloaded(port: int, env: dict[str, str]) -> bytes:
    """The big page; after the first part of it the primary is ended."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/big", timeout=_PATIENCE) as answer:
        first = answer.read(1 << 20)
        assert ctl(env, "failover").returncode == 0
        return bytes(first + answer.read())


_NEVER = """
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
nc -lll -p 9 -e clock &
echo it serves
while :; do sleep 86400; done
"""
_CLOCK = b"#!/bin/sh\nwhile :; do grep nsecs /proc/timer_list | head -n 1; usleep 5000; done\n"


def test_answers_that_never_match_are_told_in_the_status(tmp_path: Path, kernel: Kernel) -> None:
    """A service that tells its clock in nanoseconds: every line costs a checkpoint, and clients see one clock."""
    (tmp_path / "initrd").write_bytes(
        initramfs(
            _NEVER, kernel=kernel, drivers=CARDS["virtio-net-pci"], files=[("bin/clock", 0o100755, _CLOCK)]
        )
    )  # fmt: skip
    port = free_port()
    text = f"""
name = "web"
ready = "it serves"
guest = {{ kernel = "{kernel.image}", initrd = "initrd", append = "console=ttyS0 quiet no_timer_check tsc=reliable" }}
network.publish = ["127.0.0.1:{port}:9"]
"""
    env = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    lines: list[bytes] = []

    def listen(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock.makefile("rb") as answers:
            lines.extend(answers)

    with launched(tmp_path, text, env) as pair:
        with socket.create_connection(("127.0.0.1", port), _PATIENCE) as sock:
            client = threading.Thread(target=listen, args=(sock,))
            client.start()
            try:
                now = until(env, lambda now: now["checkpoints_by_reason"].get("payload", 0) >= 8)
            finally:
                sock.shutdown(socket.SHUT_RDWR)
                client.join(_PATIENCE)
        assert any("the streams differ: TCP 10.0.2.15:9 > " in line for line in now["differences"])
        times = [int(line.split()[2]) for line in lines if line.endswith(b" nsecs\n")]
        assert len(times) >= 8
        assert times == sorted(set(times))
        ended(pair, signal.SIGINT)
    assert list((tmp_path / "colo").iterdir()) == []


def until(env: dict[str, str], wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The status, once it is as it is wanted."""
    deadline = time.monotonic() + _PATIENCE
    while not wanted(now := status(env)):
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    return now
