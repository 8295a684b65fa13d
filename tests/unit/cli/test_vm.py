"""`pystack vm` serves whoever connects as QEMU does, one after the other, and cleans up when it is told to stop."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE = 20.0
GATEWAY_MAC = bytes.fromhex("52550a000202")
WHO_HAS_GATEWAY = bytes.fromhex("ffffffffffff0200000000010806000108000604000102000000000a0a00020f0000000000000a000202")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """The path of a socket that a `pystack vm` serves, and its process."""
    path = tmp_path / "net.sock"
    command = [sys.executable, "-m", "pystack.cli", "vm", "--socket", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline() == f"pystack: waiting for QEMU at {path}; Ctrl-C ends it.\n"
            yield path, process
        finally:
            process.kill()


def _asks_for_the_gateway(path: Path) -> bytes:
    """Connect as QEMU does, ask for the gateway's Ethernet address by ARP, and return what is answered."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as card:
        card.settimeout(PATIENCE)
        card.connect(str(path))
        card.sendall(struct.pack("!I", len(WHO_HAS_GATEWAY)) + WHO_HAS_GATEWAY)
        with card.makefile("rb") as stream:
            (length,) = struct.unpack("!I", stream.read(4))
            return stream.read(length)


def test_a_guest_that_comes_again_is_served_again(served: tuple[Path, subprocess.Popen[str]]) -> None:
    path, _ = served
    for _ in range(3):
        assert _asks_for_the_gateway(path)[6:12] == GATEWAY_MAC


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_and_removes_the_socket(
    served: tuple[Path, subprocess.Popen[str]], number: signal.Signals
) -> None:
    path, process = served
    process.send_signal(number)
    assert process.wait(PATIENCE) == 0
    assert not path.exists()


def test_a_socket_in_use_is_left_alone(served: tuple[Path, subprocess.Popen[str]]) -> None:
    path, _ = served
    command = [sys.executable, "-m", "pystack.cli", "vm", "--socket", str(path)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert second.returncode == 2
    assert second.stderr == (
        f"pystack: {path} is served by another program already: give another path, or end that program.\n"
    )
    assert _asks_for_the_gateway(path)[6:12] == GATEWAY_MAC
