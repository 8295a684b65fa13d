"""What the tests do inside the guest where no tool does it: `python -m tests.interop.clients NAME [ARGUMENT...]`.

Each prints one JSON value.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.interop.lab import wait_for

_PATIENCE = 20.0
_IP_RECVERR = 11  # <linux/in.h>


def connect(address: str, port: str) -> dict[str, object]:
    """How a connection attempt ends, and the seconds it took."""
    begin = time.monotonic()
    try:
        socket.create_connection((address, int(port)), _PATIENCE).close()
        outcome = "connected"
    except OSError as error:
        outcome = _name(error)
    return {"outcome": outcome, "seconds": time.monotonic() - begin}


def reset(address: str, port: str) -> str:
    """What reading brings after one byte was sent."""
    with socket.create_connection((address, int(port)), _PATIENCE) as connection:
        connection.sendall(b"x")
        try:
            return repr(connection.recv(100))
        except OSError as error:
            return _name(error)


def datagram(address: str, port: str, size: str) -> object:
    """The length of the echo of a datagram, or the error of waiting for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.settimeout(_PATIENCE)
        endpoint.setsockopt(socket.SOL_IP, _IP_RECVERR, 1)  # else Linux keeps "no route" from UDP (RFC 1122 4.1.3.3)
        endpoint.connect((address, int(port)))
        payload = bytes(index & 0xFF for index in range(int(size)))
        try:
            endpoint.send(payload)
            answer = endpoint.recv(65536)
        except OSError as error:
            return _name(error)
        return len(answer) if answer == payload else "another payload"


def _name(error: OSError) -> str:
    return "timeout" if isinstance(error, TimeoutError) else errno.errorcode.get(error.errno or 0, str(error))


def many(address: str, port: str, number: str, at_once: str) -> dict[str, int]:
    """Open `number` connections, `at_once` at a time, and count how the exchanges of a line ended.

    Returns when every connection is closed on both sides.
    """
    outcomes = asyncio.run(_many(address, int(port), int(number), int(at_once)))
    wait_for(lambda: not _open_connections(), "connections: closed", _PATIENCE)
    return outcomes


async def _many(address: str, port: int, number: int, at_once: int) -> dict[str, int]:
    gate = asyncio.Semaphore(at_once)
    outcomes: dict[str, int] = {}

    async def one(index: int) -> None:
        line = f"connection {index}\n".encode()
        async with gate:
            try:
                async with asyncio.timeout(_PATIENCE):
                    reader, writer = await asyncio.open_connection(address, port)
                    writer.write(line)
                    writer.write_eof()
                    answer = await reader.read()
                    writer.close()
                    await writer.wait_closed()
                outcome = "echoed" if answer == line else "greeted" if answer == b"so long\n" else repr(answer)
            except OSError as error:
                outcome = _name(error)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    await asyncio.gather(*(one(index) for index in range(number)))
    return outcomes


def _open_connections() -> bool:
    """Whether this namespace has TCP sockets beyond TIME_WAIT and LISTEN (the fourth column of /proc/net/tcp)."""
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[3] not in ("06", "0A") for line in lines)


_COMMANDS: dict[str, Callable[..., object]] = {
    "connect": connect,
    "reset": reset,
    "datagram": datagram,
    "many": many,
}

if __name__ == "__main__":
    print(json.dumps(_COMMANDS[sys.argv[1]](*sys.argv[2:])))
