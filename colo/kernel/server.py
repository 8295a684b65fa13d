"""The web server of a replica, run in its namespace: `python -m colo.kernel.server PORT`.

``GET /N/SIZE`` is SIZE bytes that only N has. Both replicas must answer alike, so there is no Date header: what a pair
of real machines would need a checkpoint for cannot be had here, as nobody can copy a kernel's TCP.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Final, final

_BLOCK: Final = Random(4_242).randbytes(1 << 20)  # noqa: S311 - bytes that do not compress, not a secret
_PATIENCE: Final = 120.0


def blocks(number: int, size: int) -> Iterator[memoryview]:
    """The ``size`` bytes that ``number`` has, piece by piece: the block, begun elsewhere for each number."""
    view = memoryview(_BLOCK)
    start = number * 7919 % len(_BLOCK)
    while size:
        piece = view[start : start + size]
        start = 0
        size -= len(piece)
        yield piece


def digest(number: int, size: int) -> str:
    """The SHA-256 of that."""
    sha = hashlib.sha256()
    for piece in blocks(number, size):
        sha.update(piece)
    return sha.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        number, _, size = self.path.strip("/").partition("/")
        if not number.isdecimal() or not size.isdecimal():
            self.send_error(404)
            return
        self.send_response_only(200)
        self.send_header("Content-Length", size)
        self.end_headers()
        for piece in blocks(int(number), int(size)):
            self.wfile.write(piece)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@final
class _Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


def main() -> None:
    """Serve until killed."""
    _Server(("0.0.0.0", int(sys.argv[1])), _Handler).serve_forever()


if __name__ == "__main__":
    main()
