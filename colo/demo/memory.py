"""`colo demo`: client, replicas and proxy in this process, in real time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import time
from ipaddress import IPv4Interface
from pathlib import Path
from random import Random
from typing import Final, final

from colo.clients import InProcessClient
from colo.compare import CompareConfig
from colo.demo.show import Show
from colo.drive import ProxyDriver
from colo.proxy import Proxy, ProxyConfig
from colo.replica import Replica
from colo.service import HTTP_PORT, WebService, body_bytes
from pystack import AioStack, Driver, Link, Micros, Stack, StackConfig, memory_pair

_HEADING: Final = "A web server twice, each on a TCP of its own, and one client that sees a single one"
_GUEST: Final = "10.77.0.2"
_GUEST_MAC: Final = bytes.fromhex("525400123456")
_CLIENT_MAC: Final = bytes.fromhex("525400000001")
_DOWNLOAD: Final = 8_000_000
_PATIENCE: Final = 60.0


@final
class _Machine:
    """A replica behind a link, and what drives it."""

    def __init__(self, number: int, seed: int) -> None:
        self.link, near = memory_pair(wakeup=True)
        config = StackConfig(mac=_GUEST_MAC, addresses=(IPv4Interface(f"{_GUEST}/24"),))
        stack = Stack(config, near.info, seed=seed)
        self.replica = Replica(stack, WebService(stack), identity=number)
        self.driver = Driver(self.replica, near)
        self._near: Link = near
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run."""
        self._task = asyncio.create_task(self.driver.run())

    async def kill(self) -> None:
        """End, without a word to anybody."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None


@final
class Demo:
    """The whole of it."""

    def __init__(self, seed: int, show: Show) -> None:
        random = Random(seed)  # noqa: S311 - initial numbers of a demonstration
        self._show = show
        self.primary = _Machine(1, random.getrandbits(128))
        self.secondary = _Machine(2, random.getrandbits(128))
        client_link, client_near = memory_pair(wakeup=True)
        checkpoints = InProcessClient(self._copy, pause=self._pause, resume=self._resume)
        self.proxy = Proxy(
            ProxyConfig(compare=CompareConfig(compare_timeout=1_000_000, scan_cycle=200_000)), checkpoints
        )
        self.driver = ProxyDriver(self.proxy, client_link, self.primary.link, self.secondary.link)
        config = StackConfig(mac=_CLIENT_MAC, addresses=(IPv4Interface("10.77.0.1/24"),))
        self._client = AioStack(Stack(config, client_near.info, seed=random.getrandbits(128)), client_near)
        self.outcome: dict[str, object] = {}

    # ------------------------------------------------------------------------------------------------ checkpoints

    def _pause(self, _now: Micros) -> None:
        for machine in (self.primary, self.secondary):
            machine.replica.standing = True

    def _resume(self, _now: Micros) -> None:
        for machine in (self.primary, self.secondary):
            machine.replica.standing = False
            machine.driver.wake()

    def _copy(self, _now: Micros) -> bool:
        self.secondary.replica.restore(self.primary.replica.snapshot())
        return True

    # ------------------------------------------------------------------------------------------------------ steps

    async def run(self) -> None:
        """All three steps, one after the other."""
        for machine in (self.primary, self.secondary):
            machine.start()
        driving = asyncio.create_task(self.driver.run())
        refreshing = asyncio.create_task(self._refresh())
        try:
            async with self._client:
                await asyncio.wait_for(self._steps(), _PATIENCE)
        finally:
            for task in (refreshing, driving):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await self.primary.kill()
            await self.secondary.kill()

    async def _steps(self) -> None:
        await self._equal()
        await self._different()
        await self._failover()

    async def _refresh(self) -> None:
        while True:
            self._show.refresh(self.proxy)
            await asyncio.sleep(0.1)

    async def _equal(self) -> None:
        reader, writer = await self._client.open_connection(_GUEST, HTTP_PORT)
        right = 0
        for size in range(0, 50_000, 1000):
            writer.write(b"GET /same/%d HTTP/1.1\r\n\r\n" % size)
            right += await _answer(reader) == body_bytes(b"%d" % size, 0, size)
        writer.close()
        checkpoints = self.proxy.counters["checkpoint.completed"]
        self.outcome["equal"] = right == 50 and checkpoints == 0
        self._show.step(
            f"equal output is released: {right} of 50 answers right, {checkpoints} checkpoints",
            good=right == 50 and checkpoints == 0,
        )

    async def _different(self) -> None:
        reader, writer = await self._client.open_connection(_GUEST, HTTP_PORT)
        writer.write(b"GET /own/20000 HTTP/1.1\r\n\r\n")
        body = await _answer(reader)
        writer.close()
        # Its 51st answer: the primary's own bytes, which no copy of it could have made up.
        right = body == body_bytes(b"51 of 1", 0, 20_000)
        found = [difference.reason for difference in self.proxy.differences]
        checkpoints = self.proxy.counters["checkpoint.completed"]
        self.outcome["different"] = right and checkpoints > 0
        self._show.step(
            f"a difference ({', '.join(sorted(set(found)))}) leads to {checkpoints} "
            f"checkpoint{'s' if checkpoints != 1 else ''}, and the client sees one correct answer",
            good=right and checkpoints > 0,
        )

    async def _failover(self) -> None:
        reader, writer = await self._client.open_connection(_GUEST, HTTP_PORT)
        writer.write(b"GET /same/%d HTTP/1.1\r\n\r\n" % _DOWNLOAD)
        await reader.readuntil(b"\r\n\r\n")
        digest, received, silence, last, killed = hashlib.sha256(), 0, 0.0, time.monotonic(), False
        while received < _DOWNLOAD:
            data = await reader.read(1 << 16)
            if not data:
                break
            now = time.monotonic()
            silence, last = max(silence, now - last), now
            digest.update(data)
            received += len(data)
            if received > _DOWNLOAD // 2 and not killed:
                killed = True
                await self.primary.kill()
                self.driver.lose_primary()
        writer.close()
        wanted = hashlib.sha256(body_bytes(b"%d" % _DOWNLOAD, 0, _DOWNLOAD)).hexdigest()
        right = digest.hexdigest() == wanted
        self.outcome["failover"] = right
        self.outcome["sha256"] = digest.hexdigest()
        self.outcome["longest_silence_s"] = round(silence, 4)
        self._show.step(
            f"the primary is killed after {_DOWNLOAD / 2e6:.0f} of {_DOWNLOAD / 1e6:.0f} MB: the secondary carries the "
            f"same connection on, SHA-256 {wanted[:12]}... is {'right' if right else 'WRONG'}, "
            f"longest silence {silence * 1000:.0f} ms",
            good=right,
        )


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """One HTTP answer's body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


def run_memory(seed: int | None, json_file: Path | None, svg: Path | None) -> int:
    """Show it; the exit status says whether all was as it should be.

    Raises:
        LinkError: the picture ``svg`` cannot be written.
    """
    with Show(_HEADING) as show:

        async def work() -> Demo:
            demo = Demo(secrets.randbits(64) if seed is None else seed, show)
            await demo.run()
            return demo

        demo = asyncio.run(work())
        show.finish(demo.proxy, svg)
    if json_file is not None:
        json_file.write_text(json.dumps(demo.outcome, indent=1) + "\n", encoding="utf-8")
    return 0 if show.good else 1
