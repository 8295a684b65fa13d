"""Clients of a protected machine: one request at a time for some seconds, each answer checked, each latency kept.

Run in the lab as `python -m tests.bench.pair_load ADDRESS PHASE SECONDS`; prints one JSON object.
"""

from __future__ import annotations

import itertools
import json
import re
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial

from colo.qemu.image import file_bytes

_PATIENCE = 10.0  # seconds for one answer; then it is a failure
_ECHO_BYTES = 64
_PING_BYTES = 56

Request = Callable[[], bool]
"""Makes one request; whether the answer was right."""


def _received(sock: socket.socket, enough: int = sys.maxsize) -> bytes:
    answer = bytearray()
    while len(answer) < enough and (data := sock.recv(1 << 18)):
        answer += data
    return bytes(answer)


def _get(address: str, path: str, wanted: bytes, port: int = 80) -> bool:
    with socket.create_connection((address, port), _PATIENCE) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: guest\r\n\r\n".encode())
        head, _, body = _received(sock).partition(b"\r\n\r\n")
    return head.split(b" ", 2)[1:2] == [b"200"] and body == wanted


def _random(address: str) -> bool:
    with socket.create_connection((address, 9), _PATIENCE) as sock:
        return re.fullmatch(rb"[0-9a-f]{32}\n", _received(sock)) is not None


def _echo(address: str) -> Request:
    sock = socket.create_connection((address, 7), _PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    numbers = itertools.count()

    def request() -> bool:
        line = b"%063d\n" % next(numbers)
        sock.sendall(line)
        return _received(sock, len(line)) == line

    return request


def _udp(address: str) -> Request:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(_PATIENCE)
    sock.connect((address, 7))
    numbers = itertools.count()

    def request() -> bool:
        datagram = b"%0*d" % (_ECHO_BYTES, next(numbers))
        sock.sendall(datagram)
        return sock.recv(2048) == datagram

    return request


def _ping(address: str) -> Request:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    sock.settimeout(_PATIENCE)
    sock.connect((address, 0))
    numbers = itertools.count()

    def request() -> bool:
        number = next(numbers) & 0xFFFF
        sock.sendall(struct.pack("!BBHHH", 8, 0, 0, 0, number) + bytes(_PING_BYTES))
        answer = sock.recv(2048)  # the kernel fills in checksum and identifier, and takes those of others out
        return answer[:1] == b"\0" and answer[6:] == struct.pack("!H", number) + bytes(_PING_BYTES)

    return request


PHASES: dict[str, Callable[[str], Request]] = {
    "GET small": lambda address: partial(_get, address, "/", file_bytes("index.html")),
    "GET fixed": lambda address: partial(_get, address, "/", file_bytes("index.html"), 81),
    "GET 1 MiB": lambda address: partial(_get, address, "/1m", file_bytes("1m")),
    "TCP echo": _echo,
    "UDP echo": _udp,
    "ping": _ping,
    "random": lambda address: partial(_random, address),
}
DETERMINISTIC = ("GET fixed", "TCP echo", "UDP echo", "ping")
"""Whose answers follow from the requests. That of a web server has a date in it, to the second: two machines that are
some milliseconds apart differ in one of some hundred."""


def run(address: str, phase: str, seconds: float) -> dict[str, object]:
    """Returns the latencies in seconds, how long it took, and what failed: at most 20 sentences, and their number."""
    failures: list[str] = []
    latencies: list[float] = []
    failed = 0
    request = PHASES[phase](address)
    begun = now = time.monotonic()
    while now < begun + seconds:
        try:
            why = "" if request() else "a wrong answer"
        except OSError as error:
            why = str(error)
        latencies.append(time.monotonic() - now)
        if why:
            failed += 1
            failures = [*failures, f"after {latencies[-1]:.2f} s: {why}"][:20]
            request = _again(address, phase) or request
        now = time.monotonic()
    return {"latencies": latencies, "seconds": now - begun, "failed": failed, "failures": failures}


def _again(address: str, phase: str) -> Request | None:
    """New sockets after a failure, so that a late answer is not taken for the next one."""
    try:
        return PHASES[phase](address)
    except OSError:
        return None


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
