"""Clients of a pair that loses a machine: idle and busy echo connections, and a download that goes on meanwhile.

Run in the lab as `python -m tests.bench.pair_outage ADDRESS PID`: kills that process once the download is under way,
and prints one JSON object.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any

from colo.qemu.image import file_bytes

IDLE, BUSY = 50, 10
_FILE = "8m"
_UNDER_WAY = 1 << 20  # bytes of the download when the machine dies
_PATIENCE = 60.0
_AFTERWARDS = 0.5  # seconds for which busy connections go on when the download is done


class Outage:
    """The clients. Attributes: heard: when something came in; broken: what went wrong, for a person."""

    def __init__(self, address: str, victim: int) -> None:
        self._address = address
        self._victim = victim
        self.heard: list[float] = []
        self.broken: list[str] = []
        self.killed_at = 0.0
        self._over = asyncio.Event()

    async def run(self) -> dict[str, object]:
        """Returns the longest time that nobody heard anything, the time from the kill to a byte, and what broke."""
        idle = [await self._connected(f"idle {number}") for number in range(IDLE)]
        busy = [await self._connected(f"busy {number}") for number in range(BUSY)]
        echoing = [asyncio.create_task(self._keep_busy(number, *ends)) for number, ends in enumerate(busy)]
        await self._whole(self._download(), "download")
        await asyncio.sleep(_AFTERWARDS)
        self._over.set()
        await asyncio.gather(*echoing)
        for number, (reader, writer) in enumerate(idle):
            await self._whole(self._asked(reader, writer, b"still there %d\n" % number), f"idle {number}")
        if not self.killed_at:
            self.broken.append("the download ended before the machine was killed")
        silence, first = silence_after(self.killed_at, self.heard)
        return {"silence": silence, "first": first, "broken": self.broken}

    async def _connected(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self._address, 7)
        await self._asked(reader, writer, f"{name}\n".encode())
        return reader, writer

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        answer = await asyncio.wait_for(reader.readexactly(len(line)), _PATIENCE)
        self.heard.append(time.monotonic())
        if answer != line:
            raise OSError("a wrong answer")

    async def _keep_busy(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        while not self._over.is_set():
            count += 1
            if not await self._whole(self._asked(reader, writer, b"%d of %d\n" % (count, number)), f"busy {number}"):
                return

    async def _whole(self, work: Coroutine[Any, Any, None], name: str) -> bool:
        try:
            await work
        except (OSError, EOFError, TimeoutError) as error:
            self.broken.append(f"{name}: {str(error) or type(error).__name__}")
            return False
        return True

    async def _download(self) -> None:
        reader, writer = await asyncio.open_connection(self._address, 80)
        writer.write(f"GET /{_FILE} HTTP/1.0\r\nHost: guest\r\n\r\n".encode())
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE)
        digest, size = hashlib.sha256(), 0
        while data := await asyncio.wait_for(reader.read(1 << 16), _PATIENCE):
            self.heard.append(time.monotonic())
            digest.update(data)
            size += len(data)
            if size >= _UNDER_WAY and not self.killed_at:
                os.kill(self._victim, signal.SIGKILL)
                self.killed_at = time.monotonic()
        writer.close()
        if digest.digest() != hashlib.sha256(file_bytes(_FILE)).digest():
            raise OSError(f"{size} bytes with a wrong checksum")


def silence_after(killed_at: float, heard: list[float]) -> tuple[float, float]:
    """The longest time after ``killed_at`` in which nobody heard anything, and the time until the first byte.

    The first bytes may have left the pair before the kill; the silence may be another one than the failover's. The wait
    for the survivor lies between the two.
    """
    times = [killed_at, *(moment for moment in sorted(heard) if moment > killed_at)]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    return (max(gaps), gaps[0]) if gaps else (0.0, 0.0)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(Outage(sys.argv[1], int(sys.argv[2])).run())))
