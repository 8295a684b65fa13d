"""The client, run in its namespace: `python -m colo.kernel.client HOST PORT CONNECTIONS FILES BYTES FD`.

Opens all connections at once, downloads one of the FILES of BYTES over each, and writes JSON to FD, one object a line:
what has arrived, many times a second, and at the end for each connection whether its checksum was right, what failed,
and its longest silence.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from typing import IO, Any, Final, final

from colo.kernel import files

_PATIENCE: Final = 60.0
_READ_BYTES: Final = 1 << 20


@final
class _Download:
    """One connection and what came of it."""

    def __init__(self, number: int, file: int) -> None:
        self.number = number
        self._file = file
        self.received = 0
        self.silence = 0.0
        self.failure = ""

    async def run(self, host: str, port: int, size: int) -> None:
        """Do it; never raises."""
        try:
            await asyncio.wait_for(self._download(host, port, size), _PATIENCE * 4)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            self.failure = f"{type(error).__name__}: {error}"

    async def _download(self, host: str, port: int, size: int) -> None:
        reader, writer = await asyncio.open_connection(host, port, limit=_READ_BYTES)
        try:
            writer.write(_request(files.name(self._file), host))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200 "):
                self.failure = head.partition(b"\r\n")[0].decode(errors="replace")
                return
            sha = hashlib.sha256()
            last = time.monotonic()
            while data := await asyncio.wait_for(reader.read(_READ_BYTES), _PATIENCE):
                now = time.monotonic()
                self.silence = max(self.silence, now - last)
                last = now
                self.received += len(data)
                sha.update(data)
            if sha.hexdigest() != files.digest(self._file, size):
                self.failure = f"{self.received} of {size} bytes with a wrong checksum"
        finally:
            writer.close()


def _request(path: str, host: str) -> bytes:
    return f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()


async def _main(host: str, port: int, connections: int, served: int, size: int, tell: IO[str]) -> None:
    def say(**fields: Any) -> None:
        print(json.dumps(fields), file=tell, flush=True)

    downloads = [_Download(number, number % served) for number in range(connections)]
    tasks = [asyncio.create_task(download.run(host, port, size)) for download in downloads]
    while any(not task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=0.02)
        say(received=sum(download.received for download in downloads))
    for download in downloads:
        say(
            connection=download.number,
            received=download.received,
            failure=download.failure,
            silence=round(download.silence, 4),
        )


if __name__ == "__main__":
    with open(int(sys.argv[6]), "w", encoding="utf-8") as pipe:  # noqa: PTH123 - a descriptor has no path
        port, connections, served, size = map(int, sys.argv[2:6])
        asyncio.run(_main(sys.argv[1], port, connections, served, size, pipe))
