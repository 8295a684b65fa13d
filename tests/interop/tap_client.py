"""A client in a pair's network: long connections, downloads, datagrams and pings over both families, each byte checked.

    python -m tests.interop.tap_client SECONDS

Says `started` when everything is under way, and in the end one line of JSON: how many of each, and the longest wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import sys
import time
from collections import Counter

from colo.launch.plan import GUEST_ADDRESS, GUEST_ADDRESS6
from colo.qemu.image import file_bytes

ADDRESSES = (str(GUEST_ADDRESS.ip), str(GUEST_ADDRESS6.ip))
PATIENCE = 20.0


class Seen:
    """What has come to pass."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.longest = 0.0

    @property
    def going(self) -> bool:
        return time.monotonic() < self.until

    def note(self, what: str, begun: float) -> None:
        self.counts[what] += 1
        self.longest = max(self.longest, time.monotonic() - begun)


async def echo(address: str, seen: Seen) -> None:
    """One connection from the beginning to the end."""
    reader, writer = await asyncio.open_connection(address, 7)
    turn = 0
    while seen.going:
        turn += 1
        begun, line = time.monotonic(), f"{address} {turn}\n".encode()
        writer.write(line)
        assert await asyncio.wait_for(reader.readline(), PATIENCE) == line
        seen.note(f"echo {address}", begun)
        await asyncio.sleep(0.005)
    writer.close()


async def download(address: str, seen: Seen) -> None:
    """A file again and again."""
    right = hashlib.sha256(file_bytes("1m")).digest()
    while seen.going:
        reader, writer = await asyncio.open_connection(address, 80)
        writer.write(b"GET /1m HTTP/1.0\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        assert hashlib.sha256(await asyncio.wait_for(reader.read(-1), PATIENCE)).digest() == right
        writer.close()
        seen.counts[f"download {address}"] += 1


async def datagrams(address: str, seen: Seen) -> None:
    """One at a time; what is lost is said again, as UDP's users do."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((address, 7))
        turn = 0
        while seen.going:
            turn += 1
            word = f"{address} {turn}".encode()
            for _ in range(20):
                sock.send(word)
                try:
                    answer = await asyncio.wait_for(loop.sock_recv(sock, 100), 1.0)
                except TimeoutError:
                    seen.counts["datagrams again"] += 1
                    continue
                if answer == word:
                    break
            else:
                raise AssertionError(f"{address} does not answer datagrams")
            seen.counts[f"datagram {address}"] += 1
            await asyncio.sleep(0.005)


async def ping(address: str, seen: Seen) -> None:
    """Twenty echo requests, judged by the system's own ping."""
    words = ["ping", "-q", "-i", "0.05", "-c", "20", "-W", "2", address]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    said, _ = await process.communicate()
    assert process.returncode == 0, said
    seen.counts[f"ping {address}"] += 1


async def main(seconds: float) -> None:
    seen = Seen(seconds)
    work = [
        asyncio.create_task(job(address, seen)) for address in ADDRESSES for job in (echo, download, datagrams, ping)
    ]
    await asyncio.sleep(1)
    print("started", flush=True)
    await asyncio.gather(*work)
    print(json.dumps({"longest": seen.longest, **seen.counts}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
