"""The servers that the interop tests talk to, one process: `python -m tests.interop.servers ADDRESS DIRECTORY`.

Prints one line with "ready" when every port is bound, then a line "got NAME SHA256" for what TAKE received.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import socketserver
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

HTTP = 8000  # GET /big, /middle, /little, /small/N; PUT anything: answers the SHA-256 of the body
ECHO = 8001  # TCP: what came, at once; closes after the client
AFTER_EOF = 8002  # TCP: reads to the end of input, then sends all of it back
BEFORE_EOF = 8003  # TCP: sends BLOB and its FIN at once, then reads to the end and prints its SHA-256
ABORT = 8004  # TCP: answers the first byte with a reset
HANG_UP = 8005  # TCP: sends one line and closes its half first
UDP_ECHO = 8006
DNS = 53
SERVER_NAME = "interop"
CLOSED = 8099  # nobody listens there

NAME, ADDRESS_OF_NAME = "server.test", "198.18.0.53"
BLOB = b"".join(struct.pack("!I", number) for number in range(250_000))


def small(number: int) -> bytes:
    """The body of /small/N: 1 to 8 KiB that no other N has."""
    return f"{number:08d}".encode() * (128 + 128 * (number % 8))


class _Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    directory: Path

    def do_GET(self) -> None:
        if self.path in ("/big", "/middle", "/little"):
            with (self.directory / self.path[1:]).open("rb") as file:
                self._head(file.seek(0, 2))
                self.connection.sendfile(file)
        elif self.path.startswith("/small/"):
            body = small(int(self.path.removeprefix("/small/")))
            self._head(len(body))
            self.wfile.write(body)
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left and (piece := self.rfile.read(min(left, 1 << 16))):
            digest.update(piece)
            left -= len(piece)
        body = digest.hexdigest().encode()
        self._head(len(body))
        self.wfile.write(body)

    def _head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class _WebServer(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the resolver, ourselves, for our name
        self.server_name, self.server_port = SERVER_NAME, HTTP


# ------------------------------------------------------------------------------------------------------------- TCP


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(1 << 16):
        writer.write(piece)
        await writer.drain()


async def _after_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())
    await writer.drain()


async def _before_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(BLOB)
    writer.write_eof()
    print("got", hashlib.sha256(await reader.read()).hexdigest(), flush=True)


async def _abort(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"so long\n")
    writer.write_eof()
    await reader.read()  # closing with unread input would be a reset


async def _listen(address: str, port: int, handler: object) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)  # type: ignore[operator]
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    await asyncio.start_server(serve, address, port, backlog=1024)


# ------------------------------------------------------------------------------------------------------------- UDP


def _echo_datagrams(endpoint: socket.socket) -> None:
    # asyncio swallows empty datagrams (until Python 3.13), sockets do not.
    data, sender = endpoint.recvfrom(65536)
    endpoint.sendto(data, sender)


class _Udp(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)  # asyncio's own is no subclass in 3.11


class _Dns(_Udp):
    """Knows the address of NAME (RFC 1035 4.1) and that nothing else exists."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        question_end = data.index(b"\0", 12) + 5
        labels, position = [], 12
        while data[position]:
            labels.append(data[position + 1 : position + 1 + data[position]].decode().lower())
            position += 1 + data[position]
        known = ".".join(labels) == NAME and data[position + 1 : position + 3] == b"\0\1"
        flags = 0x8180 if ".".join(labels) == NAME else 0x8183  # response, recursion available; NXDOMAIN
        answer = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(ADDRESS_OF_NAME) if known else b""
        head = data[:2] + struct.pack("!HHHHH", flags, 1, int(known), 0, 0)
        self.transport.sendto(head + data[12:question_end] + answer, addr)


async def _main(address: str, directory: Path) -> None:
    loop = asyncio.get_running_loop()
    for port, handler in (
        (ECHO, _echo),
        (AFTER_EOF, _after_eof),
        (BEFORE_EOF, _before_eof),
        (ABORT, _abort),
        (HANG_UP, _hang_up),
    ):
        await _listen(address, port, handler)
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    endpoint.bind((address, UDP_ECHO))
    loop.add_reader(endpoint, _echo_datagrams, endpoint)
    if address != "0.0.0.0":
        await loop.create_datagram_endpoint(_Dns, (address, DNS))
    handler = type("Web", (_Web,), {"directory": directory})
    web = _WebServer((address, HTTP), handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


def write_pattern(path: Path, size: int) -> str:
    """Write `size` bytes (a multiple of 1 MB) without a repeating megabyte; returns their SHA-256."""
    digest = hashlib.sha256()
    block = hashlib.shake_256(b"pystack").digest(1_000_000 - 8)
    with path.open("wb") as file:
        for number in range(size // 1_000_000):
            piece = struct.pack("!Q", number) + block
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2])))
