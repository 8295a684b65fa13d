"""A pair of real machines in this process, and clients that check every byte."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from colo.launch.engines import X_COLO
from colo.launch.pair import Pair
from colo.launch.plan import Plan
from colo.launch.setup import accelerator, with_default_guest
from colo.qemu.image import file_bytes
from colo.qemu.machine import Guest, Machine, find_qemu
from pystack import Publish
from tests.interop import preload

PATIENCE = 30.0
HTTP, ECHO, RANDOM = 80, 7, 9
_FILE = "8m"


@dataclass
class Live:
    """A pair under way, the ports of this host that lead to its services, and what clients have seen."""

    pair: Pair
    ports: dict[int, int]
    heard_at: float = 0.0
    heard: int = 0
    silences: list[float] = field(default_factory=list)

    def note(self, size: int) -> None:
        now = time.monotonic()
        if self.heard_at:
            self.silences.append(now - self.heard_at)
        self.heard_at, self.heard = now, self.heard + size

    async def connect(self, service: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", self.ports[service]), PATIENCE)

    def assert_sound(self) -> None:
        """A replica that was reset or has panicked proves nothing."""
        for machine in (self.pair.primary, self.pair.engine.secondary):
            assert machine is None or not machine.panicked, machine.console()[-500:]

    async def kill(self, machine: Machine) -> float:
        """SIGKILL; when."""
        assert machine.process is not None
        os.kill(machine.process.pid, signal.SIGKILL)
        return time.monotonic()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in socks]


@contextlib.asynccontextmanager
async def live(
    directory: Path, *, engine: str = X_COLO, nic: str = "virtio-net-pci", patience: float = 5.0
) -> AsyncIterator[Live]:
    """A pair of default guests, in step."""
    accel = accelerator()
    environment = {"LD_PRELOAD": str(preload.library())} if accel == "tcg" and engine == X_COLO else {}
    guest = Guest(qemu=find_qemu("qemu-system-x86_64"), accel=accel, nic=nic, environment=environment)
    ports = dict(zip((HTTP, ECHO, RANDOM), _free_ports(3), strict=True))
    publish = tuple(Publish.parse(f"127.0.0.1:{ours}:{guest_port}") for guest_port, ours in ports.items())
    plan = await asyncio.to_thread(
        with_default_guest, Plan(guest=guest, name="live", engine=engine, publish=publish, patience=patience), directory
    )
    pair = Pair(plan, directory, lambda _: None)
    try:
        await pair.start()
        await pair.booted()
        await pair.protect()
        assert pair.chosen.name == engine
        yield Live(pair, ports)
        if pair.failed.done():
            pair.failed.result()
    finally:
        await pair.close()


class Echo:
    """A long connection, each of whose answers is checked."""

    def __init__(self, live_pair: Live, name: str) -> None:
        self.live = live_pair
        self.name = name
        self.turns = 0
        self.latencies: list[float] = []

    async def open(self) -> None:
        self.reader, self.writer = await self.live.connect(ECHO)
        await self.turn()

    async def turn(self) -> None:
        self.turns += 1
        line = f"{self.name} says {self.turns}\n".encode()
        begun = time.monotonic()
        self.writer.write(line)
        assert await asyncio.wait_for(self.reader.readline(), PATIENCE) == line
        self.latencies.append(time.monotonic() - begun)
        self.live.note(len(line))

    async def talk(self, stop: asyncio.Event, pause: float = 0.01) -> None:
        while not stop.is_set():
            await self.turn()
            await asyncio.sleep(pause)

    def close(self) -> None:
        self.writer.close()


async def download(live_pair: Live, name: str = _FILE, started: asyncio.Event | None = None) -> int:
    """One file, its checksum checked; returns its size."""
    reader, writer = await live_pair.connect(HTTP)
    writer.write(f"GET /{name} HTTP/1.0\r\n\r\n".encode())
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    digest, size = hashlib.sha256(), 0
    while data := await asyncio.wait_for(reader.read(1 << 16), PATIENCE):
        digest.update(data)
        size += len(data)
        live_pair.note(len(data))
        if started is not None and size > 1 << 20:
            started.set()
    writer.close()
    assert digest.digest() == hashlib.sha256(file_bytes(name)).digest(), f"{name}: {size} bytes, wrong"
    return size


@dataclass(frozen=True)
class Loss:
    """What clients saw of the loss of a machine, in seconds: until the next byte, and the longest silence after it."""

    next_byte: float
    longest_silence: float


async def lose(live_pair: Live, victim: str, *, idle: int = 50, busy: int = 10) -> Loss:
    """Kill ``victim`` ("primary" or "secondary") in the middle of a download, with connections around; all survive."""
    sleepers = [Echo(live_pair, f"idle {number}") for number in range(idle)]
    talkers = [Echo(live_pair, f"busy {number}") for number in range(busy)]
    for echo in (*sleepers, *talkers):
        await echo.open()
    stop, started = asyncio.Event(), asyncio.Event()
    talking = [asyncio.create_task(echo.talk(stop)) for echo in talkers]
    downloading = asyncio.create_task(download(live_pair, started=started))
    await asyncio.wait_for(started.wait(), PATIENCE)
    machine = live_pair.pair.primary if victim == "primary" else live_pair.pair.engine.secondary
    assert machine is not None
    live_pair.silences.clear()
    heard = live_pair.heard
    killed_at = live_pair.heard_at = await live_pair.kill(machine)
    while live_pair.heard == heard:
        await asyncio.sleep(0.0005)
        assert time.monotonic() < killed_at + PATIENCE, "no client hears anything"
    next_byte = live_pair.heard_at - killed_at
    await asyncio.sleep(1.0)
    stop.set()
    await asyncio.wait_for(asyncio.gather(downloading, *talking), PATIENCE)
    silence = max(live_pair.silences)
    for echo in (*sleepers, *talkers):
        await echo.turn()
        echo.close()
    live_pair.assert_sound()
    return Loss(next_byte, silence)
