"""`colo selftest`: a pair on this system, traffic, checkpoints, the death of the primary, and every byte checked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final, final

from colo.launch.pair import Pair
from colo.launch.plan import Plan
from colo.qemu.image import file_bytes
from pystack import Publish, UsageError

CHECKPOINTS: Final = 20
ECHOES: Final = 10
DOWNLOADS: Final = 4
_FILE: Final = "8m"
_ANSWER_SECONDS: Final = 30.0
_BETWEEN_SECONDS: Final = 0.1


@dataclass(slots=True)
class Figures:
    """What was seen. Times in seconds; silence is when no client received a byte."""

    boot: float = 0.0
    join: float = 0.0
    pauses: list[float] = field(default_factory=list)
    echoes: list[float] = field(default_factory=list)
    downloads: int = 0
    silence_before: float = 0.0
    silence_after: float = 0.0


class Failed(UsageError):
    """The first thing that did not work, in one sentence."""


@final
class Selftest:
    """One run over ``plan``, whose published ports lead to this."""

    def __init__(self, plan: Plan, directory: Path, ports: tuple[int, int], tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._http, self._echo = ports
        self._tell = tell
        self.figures = Figures()
        self.pair = Pair(plan, directory, lambda _: None)
        self._stop = asyncio.Event()
        self._wanted = hashlib.sha256(file_bytes(_FILE)).digest()  # long enough for frames to wait: not under traffic
        self._received = 0
        self._killed_at = 0.0

    async def run(self) -> None:
        """All of it.

        Raises:
            Failed: the first thing that did not work.
        """
        work = asyncio.ensure_future(self._work())
        try:
            await asyncio.wait({work, self.pair.failed}, return_when=asyncio.FIRST_COMPLETED)
            if self.pair.failed.done() and (error := self.pair.failed.exception()) is not None:
                raise Failed(f"The proxy between the machines failed: {error}") from error
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self.pair.close()

    async def _work(self) -> None:
        await self._bring_up()
        await self._traffic()

    async def _bring_up(self) -> None:
        pair, begun = self.pair, time.monotonic()
        await pair.start()
        await pair.booted()
        self.figures.boot = time.monotonic() - begun
        self._tell(f"the guest serves after {self.figures.boot:.1f} s")
        begun = time.monotonic()
        await pair.protect()
        self.figures.join = time.monotonic() - begun
        chosen = pair.chosen
        self._tell(f"the secondary is in step after {self.figures.join:.2f} s, by {chosen.name}: {chosen.why}")

    async def _traffic(self) -> None:
        echoes = [asyncio.create_task(self._echo_on(number)) for number in range(ECHOES)]
        downloads = [asyncio.create_task(self._download(number)) for number in range(DOWNLOADS)]
        watched = asyncio.create_task(self._silence())
        clients = [*echoes, *downloads]
        try:
            for number in range(CHECKPOINTS):
                await asyncio.sleep(_BETWEEN_SECONDS)
                self._look_at(clients)
                await self.pair.checkpoint(f"selftest {number % 4}")
            self._assert_sound()
            self.figures.pauses = [pause / 1e6 for pause in self.pair.pauses]
            self._tell(f"{CHECKPOINTS} checkpoints under traffic, both machines stood still for {self._pause()}")
            await asyncio.sleep(Random().random() * 0.5)  # noqa: S311 - a moment, not a secret
            self._killed_at = time.monotonic()
            await self.pair.failover()
            self._tell("the primary is killed")
            await asyncio.sleep(1.0)
            self._stop.set()
            for client in clients:
                await asyncio.wait_for(client, _ANSWER_SECONDS)
            await self._protected_again()
        finally:
            for task in (*clients, watched):
                task.cancel()
            await asyncio.gather(*clients, watched, return_exceptions=True)
        self._assert_sound()

    async def _protected_again(self) -> None:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not self.pair.proxy.protected:
            if time.monotonic() > deadline:
                raise Failed(f"No other secondary joins the survivor within {_ANSWER_SECONDS:.0f} s.")
            await asyncio.sleep(0.01)
        self._tell("another secondary has joined the survivor")

    def _pause(self) -> str:
        pauses = self.figures.pauses
        return f"{median(pauses) * 1000:.0f} ms each (worst: {max(pauses) * 1000:.0f} ms)"

    @staticmethod
    def _look_at(clients: list[asyncio.Task[None]]) -> None:
        for client in clients:
            if client.done():
                client.result()

    def _assert_sound(self) -> None:
        """A replica that was reset, or has panicked, proves nothing."""
        for name in self.pair.panicked:
            raise Failed(f"The guest in {name} was reset or has panicked: what it was given was no copy.")

    def _note(self, size: int) -> None:
        self._received += size

    async def _silence(self) -> None:
        """The longest time in which no client received a byte, before the kill and from then on."""
        seen, since = 0, time.monotonic()
        while not self._stop.is_set():
            await asyncio.sleep(0.005)
            now = time.monotonic()
            if self._received != seen:
                seen, since = self._received, now
            else:
                silence = now - max(since, self._killed_at)
                if self._killed_at:
                    self.figures.silence_after = max(self.figures.silence_after, silence)
                else:
                    self.figures.silence_before = max(self.figures.silence_before, silence)

    async def _echo_on(self, number: int) -> None:
        """One long connection, which says something again and again."""
        async with _connected(self._echo) as (reader, writer):
            turn = 0
            while not self._stop.is_set():
                turn += 1
                line = b"connection %d says %d\n" % (number, turn)
                begun = time.monotonic()
                writer.write(line)
                answer = await _within(reader.readline(), f"echo connection {number}")
                if answer != line:
                    raise Failed(f"Echo connection {number} answered {answer!r} to {line!r}.")
                self.figures.echoes.append(time.monotonic() - begun)
                self._note(len(answer))
                await asyncio.sleep(0.02)

    async def _download(self, number: int) -> None:
        """The same file again and again, a connection each."""
        while not self._stop.is_set():
            async with _connected(self._http) as (reader, writer):
                writer.write(b"GET /%s HTTP/1.0\r\n\r\n" % _FILE.encode())
                await _within(reader.readuntil(b"\r\n\r\n"), f"download {number}")
                digest = hashlib.sha256()
                while data := await _within(reader.read(1 << 16), f"download {number}"):
                    digest.update(data)
                    self._note(len(data))
            if digest.digest() != self._wanted:
                raise Failed(f"The checksum of download {number} is wrong.")
            self.figures.downloads += 1


@contextlib.asynccontextmanager
async def _connected(port: int) -> Any:
    reader, writer = await _within(asyncio.open_connection("127.0.0.1", port), f"the connection to port {port}")
    try:
        yield reader, writer
    finally:
        writer.close()


async def _within(work: Any, what: str) -> Any:
    try:
        return await asyncio.wait_for(work, _ANSWER_SECONDS)
    except TimeoutError:
        raise Failed(f"{what} stands still for more than {_ANSWER_SECONDS:.0f} s.") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Failed(f"{what} was cut off: {error}.") from None


def publishing() -> tuple[tuple[Publish, ...], tuple[int, int]]:
    """Ports of this host's loopback, free at the moment, that lead to the default guest's HTTP and echo."""
    with socket.socket() as one, socket.socket() as other:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
        http, echo = (sock.getsockname()[1] for sock in (one, other))
    return (Publish.parse(f"127.0.0.1:{http}:80"), Publish.parse(f"127.0.0.1:{echo}:7")), (http, echo)
