"""asyncio's server on a listener of a stack."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import final

from pystack.tcp.listener import Listener
from pystack.tcp.tcb import Connection


@final
class StackServer(asyncio.AbstractServer):
    """A listener of a stack, with asyncio's server methods. Made by `AioStack.create_server`.

    Attributes:
        port: where it listens.
    """

    def __init__(
        self,
        listener: Listener,
        accept: Callable[[Connection, Callable[[], None]], None],
        closed: Callable[[StackServer], None],
    ) -> None:
        self._listener = listener
        self._accept = accept
        self._on_closed = closed
        self._serving = True
        self._active = 0
        self._ended = asyncio.Event()
        self.port = listener.key[1]
        listener.user = self

    def on_events(self, _flags: int) -> None:
        """Take the connections that wait."""
        while self._serving and (connection := self._listener.take()) is not None:
            self._active += 1
            self._accept(connection, self._on_lost)

    def _on_lost(self) -> None:
        self._active -= 1
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if not self._serving and not self._active:
            self._ended.set()

    def close(self) -> None:
        """Listen no more. Connections that were accepted go on."""
        if self._serving:
            self._serving = False
            self._listener.close()
            self._on_closed(self)
            self._end_if_idle()

    async def wait_closed(self) -> None:
        """Wait until `close` was called and every connection is over, as Python 3.12's servers do."""
        await self._ended.wait()

    def is_serving(self) -> bool:
        """Whether it accepts connections."""
        return self._serving

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop it belongs to."""
        return asyncio.get_running_loop()

    async def start_serving(self) -> None:
        """Nothing: it has been serving since it was made."""

    async def serve_forever(self) -> None:
        """Wait until cancelled, then close."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.close()
