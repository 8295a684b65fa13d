"""Clients of the default guest, run where it is reached: `python -m tests.interop.attach_traffic WHAT ADDRESS ...`.

`get`, `random` and `echo` go on for some seconds and print a line of JSON: how long each request took in milliseconds,
and what went wrong. `talk` keeps one connection to the echo, and says there what it reads on its standard input.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Callable

from colo.qemu.image import file_bytes

PATIENCE = 10.0


def connected(address: str, port: int) -> socket.socket:
    sock = socket.create_connection((address, port), PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def everything(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(1 << 18):
        parts.append(data)
    return b"".join(parts)


def get(address: str, name: str) -> str:
    """Fetch a file; "" if it is what it must be."""
    with connected(address, 80) as sock:
        sock.sendall(f"GET /{name} HTTP/1.0\r\n\r\n".encode())
        head, _, body = everything(sock).partition(b"\r\n\r\n")
    return "" if body == file_bytes(name) else f"{name}: {len(body)} bytes, {head[:20]!r}"


def random(address: str) -> str:
    """A line that no two machines say alike."""
    with connected(address, 9) as sock:
        said = everything(sock)
    return "" if re.fullmatch(rb"[0-9a-f]{32}\n", said) else f"random: {said!r}"


def said_back(sock: socket.socket, line: bytes) -> str:
    sock.sendall(line)
    got = b""
    while len(got) < len(line):
        data = sock.recv(4096)
        if not data:
            return "echo: closed"
        got += data
    return "" if got == line else f"echo: {got!r}"


def repeat(once: Callable[[], str], seconds: float) -> dict[str, list[float] | list[str]]:
    """Call it for so long; times in milliseconds, and what went wrong."""
    took: list[float] = []
    wrong: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end and len(wrong) < 10:
        began = time.monotonic()
        try:
            error = once()
        except OSError as problem:
            error = str(problem)
        took.append(round(1000 * (time.monotonic() - began), 2))
        if error:
            wrong.append(error)
    return {"ms": took, "wrong": wrong}


def talk(address: str) -> None:
    with connected(address, 7) as sock:
        print(said_back(sock, b"there?\n"), flush=True)
        for line in sys.stdin:
            print(said_back(sock, line.encode()), flush=True)


def main(what: str, address: str, *rest: str) -> None:
    if what == "get":
        print(json.dumps(repeat(lambda: get(address, rest[0]), float(rest[1]))))
    elif what == "random":
        print(json.dumps(repeat(lambda: random(address), float(rest[0]))))
    elif what == "echo":
        with connected(address, 7) as sock:
            print(json.dumps(repeat(lambda: said_back(sock, b"hello\n"), float(rest[0]))))
    else:
        talk(address)


if __name__ == "__main__":
    main(*sys.argv[1:])
