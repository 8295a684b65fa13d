"""The demonstration's web server: a process of its own on the host's loopback.

``GET /hello`` is a line of text, ``GET /small/N`` a few kilobytes that only N has, ``GET /bulk/SIZE`` SIZE bytes;
``PUT /`` answers the SHA-256 of what was sent, in hexadecimal.
"""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Final, Self, final

from pystack.drivers import linux
from pystack.drivers.child import reap

HELLO: Final = b"Hello from a web server that never heard of pystack.\n"
_BLOCK: Final = Random(2_147_483_647).randbytes(1 << 20)  # noqa: S311 - bytes that do not compress, not a secret
_CHUNK: Final = 256 << 10
_PATIENCE: Final = 30.0


def blocks(size: int) -> Iterator[bytes]:
    """The ``size`` bytes of a bulk transfer, piece by piece."""
    for _ in range(size // len(_BLOCK)):
        yield _BLOCK
    if size % len(_BLOCK):
        yield _BLOCK[: size % len(_BLOCK)]


def bulk_digest(size: int) -> str:
    """The SHA-256 of a bulk transfer of ``size`` bytes."""
    digest = hashlib.sha256()
    for block in blocks(size):
        digest.update(block)
    return digest.hexdigest()


def small(number: int) -> bytes:
    """What /small/N is."""
    return b"%d " % number * (1000 + number % 1000)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        kind, _, number = self.path.strip("/").partition("/")
        if kind == "bulk" and number.isdecimal():
            self._start(int(number))
            for block in blocks(int(number)):
                self.wfile.write(block)
            return
        body = small(int(number)) if kind == "small" and number.isdecimal() else HELLO
        self._start(len(body))
        self.wfile.write(body)

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        for piece in self._body():
            digest.update(piece)
        answer = digest.hexdigest().encode()
        self._start(len(answer))
        self.wfile.write(answer)

    def _body(self) -> Iterator[bytes]:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while length := int(self.rfile.readline(32), 16):
                yield self.rfile.read(length)
                self.rfile.readline(2)
            self.rfile.readline(2)
            return
        left = int(self.headers.get("Content-Length", "0"))
        while left and (piece := self.rfile.read(min(left, _CHUNK))):
            left -= len(piece)
            yield piece

    def _start(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing: what happens is shown on the other side."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@final
class WebServer:
    """The server's process. A context manager.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self) -> None:
        server = _Server(("127.0.0.1", 0), _Handler)
        self.port = int(server.server_address[1])
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid:
            server.socket.close()
            return
        try:
            linux.die_with_parent(signal.SIGKILL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
            if os.getppid() == parent:
                server.serve_forever()
        finally:
            os._exit(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        reap(self._pid, kill=True)
