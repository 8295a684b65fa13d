"""Two stacks in one process, on in-memory links that an asyncio loop can wait on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from typing import TypeAlias

from pystack.drivers.streams import AioStack
from pystack.frame import LinkInfo
from pystack.link.memory import ETHERNET, pair
from pystack.stack import Stack, StackConfig
from pystack.tcp.config import TcpConfig

LEFT = "192.0.2.1"
RIGHT = "192.0.2.2"
NOBODY = "192.0.2.99"
LARGE_SEGMENTS = LinkInfo(vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True)

Scenario: TypeAlias = Callable[[AioStack, AioStack], Awaitable[None]]


def config(address: str, *, tcp: TcpConfig | None = None) -> StackConfig:
    made = StackConfig(
        mac=b"\x02\0\0\0\0" + bytes([IPv4Address(address).packed[3]]), addresses=(IPv4Interface(f"{address}/24"),)
    )
    return made if tcp is None else replace(made, tcp=tcp)


@asynccontextmanager
async def two_stacks(
    info: LinkInfo = ETHERNET, *, tcp: TcpConfig | None = None
) -> AsyncIterator[tuple[AioStack, AioStack]]:
    """The stacks LEFT and RIGHT, running."""
    one, other = pair(info, wakeup=True)
    left = AioStack(Stack(config(LEFT, tcp=tcp), one.info, seed=1), one)
    right = AioStack(Stack(config(RIGHT, tcp=tcp), other.info, seed=2), other)
    async with left, right:
        yield left, right


def run(scenario: Scenario, info: LinkInfo = ETHERNET, *, tcp: TcpConfig | None = None, seconds: float = 20.0) -> None:
    """Run ``scenario`` on two stacks, for at most ``seconds``."""

    async def main() -> None:
        async with asyncio.timeout(seconds), two_stacks(info, tcp=tcp) as (left, right):
            await scenario(left, right)

    asyncio.run(main())
