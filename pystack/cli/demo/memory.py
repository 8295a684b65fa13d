"""The demonstration without namespace and TAP: the client is a second stack of ours, in the same process."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, TypeAlias, final

from pystack.cli.demo import server, steps
from pystack.cli.demo.show import Show
from pystack.cli.demo.steps import Begin, End
from pystack.cli.demo.watch import Watch
from pystack.cli.options import Settings
from pystack.cli.serving import Session
from pystack.counters import Counters
from pystack.drivers.streams import AioStack
from pystack.frame import LinkInfo
from pystack.link import memory
from pystack.link.base import Link
from pystack.slirp.plan import AddressPlan, dotted
from pystack.stack import Stack, StackConfig

LARGE_SEGMENTS: Final = LinkInfo(vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True)
"""As between a TAP's two sides: segments of up to 64 KiB, checksums left undone."""

_MAC: Final = b"\x02\0\0\0\0\x64"
_DISCARD_PORT: Final = 9
_PIECE: Final = 256 << 10

Tell: TypeAlias = Callable[[Begin | End], None]


def client_stack(plan: AddressPlan, link: Link) -> AioStack:
    """The guest: a host of its own on the other end of the gateway's link."""
    config = StackConfig(mac=_MAC, addresses=(plan.interface(plan.configured),), gateway=IPv4Address(plan.gateway))
    return AioStack(Stack(config, link.info, seed=secrets.randbits(128)), link)


def run(settings: Settings, port: int, heading: str, remark: str, svg: Path | None) -> int:
    """Show it; the exit status says whether all went well."""
    near, far = memory.pair(LARGE_SEGMENTS, wakeup=True)
    with Session(settings, far, Counters(), guest=settings.plan.configured) as session, Show(heading) as show:
        show.say(remark)
        watch = Watch(show, session)

        async def work() -> int:
            async with client_stack(settings.plan, near) as net, watch.refreshing():
                return await MemoryClient(net, dotted(settings.plan.gateway), port, watch.hear).run(steps.MEMORY_BYTES)

        status = session.serve(work)
    show.finish(session.gateway.stats(), svg)
    return status


@final
class MemoryClient:
    """Talks HTTP to ``host`` and ``port`` over the streams of a stack; ``tell`` hears of every step."""

    def __init__(self, net: AioStack, host: str, port: int, tell: Tell) -> None:
        self._net = net
        self._host = host
        self._port = port
        self._tell = tell

    async def run(self, size: int) -> int:
        """All steps, with bulk transfers of ``size`` bytes; 0 when all were good."""
        for step, work in (
            (steps.HELLO, self._hello),
            (steps.REFUSED, self._refused),
            (steps.MANY, self._many),
            (steps.download(size), lambda: self._download(size)),
            (steps.upload(size), lambda: self._upload(size)),
        ):
            if not await self._step(step, work):
                return 1
        return 0

    async def _step(self, step: Begin, work: Callable[[], Awaitable[End]]) -> bool:
        self._tell(step)
        end = await work()
        self._tell(end)
        return end.good

    async def _hello(self) -> End:
        begin = time.perf_counter()
        good = (await self._get("hello")) == hashlib.sha256(server.HELLO).hexdigest()
        return steps.hello_end("a client on the stack's streams", time.perf_counter() - begin, good=good)

    async def _refused(self) -> End:
        begin = time.perf_counter()
        try:
            await self._net.open_connection(self._host, _DISCARD_PORT)
            refused = False
        except ConnectionRefusedError:
            refused = True
        return steps.refused_end(time.perf_counter() - begin, refused=refused)

    async def _many(self) -> End:
        gate = asyncio.Semaphore(steps.AT_ONCE)

        async def one(number: int) -> bool:
            async with gate:
                return await self._get(f"small/{number}") == hashlib.sha256(server.small(number)).hexdigest()

        begin = time.perf_counter()
        good = sum(await asyncio.gather(*map(one, range(steps.SMALL_DOWNLOADS))))
        return steps.many_end(good, time.perf_counter() - begin)

    async def _download(self, size: int) -> End:
        expected = server.bulk_digest(size)
        begin = time.perf_counter()
        good = await self._get(f"bulk/{size}") == expected
        return steps.bulk_end(size, time.perf_counter() - begin, good=good)

    async def _upload(self, size: int) -> End:
        expected = server.bulk_digest(size)
        begin = time.perf_counter()
        reader, writer = await self._ask(f"PUT / HTTP/1.1\r\nContent-Length: {size}\r\n")
        for block in server.blocks(size):
            writer.write(block)
            await writer.drain()
        await reader.readuntil(b"\r\n\r\n")
        good = (await reader.read()).decode() == expected
        writer.close()
        return steps.bulk_end(size, time.perf_counter() - begin, good=good)

    async def _get(self, what: str) -> str:
        """The SHA-256 of what the server has under this name."""
        reader, writer = await self._ask(f"GET /{what} HTTP/1.1\r\n")
        await reader.readuntil(b"\r\n\r\n")
        digest = hashlib.sha256()
        while piece := await reader.read(_PIECE):
            digest.update(piece)
        writer.close()
        await writer.wait_closed()
        return digest.hexdigest()

    async def _ask(self, head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await self._net.open_connection(self._host, self._port, limit=_PIECE)
        writer.write(f"{head}Host: {self._host}\r\nConnection: close\r\n\r\n".encode())
        return reader, writer
