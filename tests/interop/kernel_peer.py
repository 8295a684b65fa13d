"""Our stack against the kernel's over a TAP, no gateway between: `python -m tests.interop.kernel_peer JSON-SCENARIO`.

To be run in a network namespace of the caller's. Both ends are in this process: ours through asyncio's conventions of
AioStack, the kernel's through asyncio itself, so that the same coroutine plays either part. Prints a JSON report.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from ipaddress import IPv4Interface

from pystack import AioStack, ImpairLink, Link, Stack, StackConfig, TapLink
from pystack.link.impairment import Impairment
from tests.interop.lab import pauses

KERNEL, OURS, PORT = "10.9.0.1", "10.9.0.2", 7000
_PATIENCE = 60.0
_PIECE = 50_000


@dataclass(frozen=True)
class Scenario:
    """Who connects, who closes first ("ours", "kernel" or "both": at the same time), and how bad the link is."""

    client: str
    first: str
    size: int
    offload: bool = True
    impair: str = ""
    seed: int = 1


@dataclass
class Report:
    """What each end received (SHA-256), and how the connection ended."""

    ours_got: str = ""
    kernel_got: str = ""
    ours_state: str = ""
    kernel_time_wait: bool = False
    kernel_left: bool = True  # a socket that is not in TIME-WAIT is still there
    retransmitted: int = 0


def payload(who: str, size: int) -> bytes:
    """What `who` sends."""
    return hashlib.shake_256(who.encode()).digest(size)


async def _speak(writer: asyncio.StreamWriter, data: bytes) -> None:
    for start in range(0, len(data), _PIECE):
        writer.write(data[start : start + _PIECE])
        await writer.drain()
    writer.write_eof()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes, order: str) -> str:
    """Send and receive everything; `order` says whether this end closes "first", "second" or at the "same" time."""
    if order == "same":
        _, got = await asyncio.gather(_speak(writer, data), reader.read())
    elif order == "first":
        await _speak(writer, data)
        got = await reader.read()
    else:
        got = await reader.read()
        await _speak(writer, data)
    return hashlib.sha256(got).hexdigest()


def _order(scenario: Scenario, who: str) -> str:
    if scenario.first == "both":
        return "same"
    return "first" if scenario.first == who else "second"


async def _play(scenario: Scenario, net: AioStack, report: Report) -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()
    connection: list[object] = []

    def part(who: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if who == "ours":
                connection.append(writer.get_extra_info("connection"))
            got = await _converse(reader, writer, payload(who, scenario.size), _order(scenario, who))
            setattr(report, f"{who}_got", got)
            writer.close()
            await writer.wait_closed()
            await ended.put(who)

        return play

    if scenario.client == "ours":
        await asyncio.start_server(part("kernel"), KERNEL, PORT)
        await part("ours")(*await net.open_connection(KERNEL, PORT))
    else:
        await net.start_server(part("ours"), PORT)
        await part("kernel")(*await asyncio.open_connection(OURS, PORT))
    for _ in range(2):
        await ended.get()
    await _settle(report)
    report.ours_state = str(getattr(connection[0], "state", ""))


async def _settle(report: Report) -> None:
    """Wait until the kernel has nothing but, at most, TIME-WAIT."""
    for _ in pauses(10.0):
        states = [line.split()[0] for line in _sockets()]
        report.kernel_left = any(state not in ("TIME-WAIT", "LISTEN") for state in states)
        report.kernel_time_wait = "TIME-WAIT" in states
        if not report.kernel_left:
            return
        await asyncio.sleep(0.02)


def _sockets() -> list[str]:
    command = ["ss", "-Htan", f"( sport = :{PORT} or dport = :{PORT} )"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _join(scenario: Scenario) -> Link:
    tap = TapLink.open("kernel%d", offload=scenario.offload)
    for arguments in (f"address add {KERNEL}/24 dev {tap.name}", f"link set {tap.name} up"):
        subprocess.run(["ip", *arguments.split()], check=True)
    if not scenario.impair:
        return tap
    return ImpairLink(tap, Impairment.parse(scenario.impair), seed=scenario.seed)


async def main(scenario: Scenario) -> Report:
    """Play one scenario."""
    report = Report()
    link = _join(scenario)
    config = StackConfig(mac=bytes.fromhex("02005e000902"), addresses=(IPv4Interface(f"{OURS}/24"),))
    stack = Stack(config, link.info, seed=scenario.seed)
    async with AioStack(stack, link) as net:
        async with asyncio.timeout(_PATIENCE):
            await _play(scenario, net, report)
        report.retransmitted = sum(count for name, count in stack.counters.snapshot().items() if "retransmit" in name)
    return report


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(main(Scenario(**json.loads(sys.argv[1])))))))
