"""A stack in asyncio's own conventions: streams, transports, servers, datagram endpoints, and ping.

    async with AioStack(Stack(config, link.info, seed=secrets.randbits(128)), link) as net:
        reader, writer = await net.open_connection("10.0.2.2", 80)

Hosts are IPv4 addresses: a stack resolves no names, and the host's resolver is not its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl as ssl_module
from collections.abc import Awaitable, Callable
from ipaddress import AddressValueError, IPv4Address
from typing import Any, Final, Protocol, Self, TypeVar, cast, final

from pystack.drivers.aio import Driver, monotonic
from pystack.drivers.datagram import StackDatagramTransport, os_error
from pystack.drivers.server import StackServer
from pystack.drivers.transport import StackTransport
from pystack.errors import LinkClosed, UsageError
from pystack.link.base import Link
from pystack.net.icmp import Echo, PingEndpoint
from pystack.stack import Stack
from pystack.tcp import state
from pystack.tcp.events import CLOSED
from pystack.tcp.tcb import Connection

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)
DatagramT = TypeVar("DatagramT", bound=asyncio.DatagramProtocol)
_ClientConnected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]

_STREAM_LIMIT: Final = 64 * 1024
_LINGER_SECONDS: Final = 2.0
_PING_PAYLOAD: Final = bytes(range(0x10, 0x48))  # as much as ping(8) sends
_DELIVERED: Final = frozenset({state.CLOSED, state.SYN_SENT, state.FIN_WAIT_2, state.TIME_WAIT})


class _Handler(Protocol):
    """What stands in the `user` slot of an endpoint."""

    def on_events(self, flags: int) -> None: ...


def _address(host: str) -> bytes:
    try:
        return IPv4Address(host).packed
    except AddressValueError:
        raise UsageError(f"{host!r} is not an IPv4 address: a stack does not resolve names.") from None


@final
class AioStack:
    """A stack, its link and the driver between them. An async context manager; it owns ``link``.

    Leaving it closes what listens, gives what was written ``linger`` seconds to be delivered, and resets the rest.
    When the link fails, every connection is lost with an error, and leaving raises it, unless the link merely closed.
    """

    def __init__(self, stack: Stack, link: Link, *, linger: float = _LINGER_SECONDS) -> None:
        self.stack = stack
        self._link = link
        self._linger = linger
        self._driver = Driver(stack, link, dispatch=self._dispatch)
        self._running: asyncio.Task[None] | None = None
        self._transports: set[StackTransport] = set()
        self._servers: set[StackServer] = set()
        self._undelivered: set[Connection] = set()  # closed by the application, but not yet by TCP
        self._delivered: asyncio.Future[None] | None = None

    # ------------------------------------------------------------------------------------------------- its own life

    async def __aenter__(self) -> Self:
        self._running = asyncio.get_running_loop().create_task(self._driver.run(), name="pystack driver")
        self._running.add_done_callback(self._on_driver_end)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._running is not None
        try:
            for server in tuple(self._servers):
                server.close()
            await self._deliver()
            for transport in tuple(self._transports):
                transport.abort()
            await asyncio.sleep(0)  # the driver's turn, in which a reset leaves
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError, LinkClosed):
                await self._running
        finally:
            self._link.close()

    async def _deliver(self) -> None:
        """Close every connection and wait until the peers have acknowledged it all, or for `linger` seconds."""
        assert self._running is not None
        loop = asyncio.get_running_loop()
        self._undelivered |= {transport.get_extra_info("connection") for transport in self._transports}
        for transport in tuple(self._transports):
            transport.close()
        self._delivered = loop.create_future()
        self._driver.wake()
        await asyncio.wait({self._running, self._delivered}, timeout=self._linger, return_when=asyncio.FIRST_COMPLETED)

    def _on_driver_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = OSError(errno.ENETDOWN, f"{os.strerror(errno.ENETDOWN)}: {task.exception()}")
        for transport in tuple(self._transports):
            transport.fail(error)

    def _dispatch(self) -> bool:
        """Hand the stack's events to whom they concern; the driver calls this in every round."""
        events = self.stack.events()
        for endpoint, flags in events:
            if flags & CLOSED:
                self._undelivered.discard(cast("Connection", endpoint))
            handler = endpoint.user
            if handler is None:
                continue
            try:
                cast("_Handler", handler).on_events(flags)
            except Exception as error:  # noqa: BLE001 - the application's: reported, and no other endpoint's affair
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"{handler!r} raised while it was told of events", "exception": error}
                )
        if self._delivered is not None and not self._delivered.done():
            self._undelivered = {each for each in self._undelivered if each.state not in _DELIVERED}
            if not self._undelivered:
                self._delivered.set_result(None)
        return bool(events)

    def wake(self) -> None:
        """Have the stack's frames sent soon, after it was used directly."""
        self._driver.wake()

    def _check_running(self) -> asyncio.AbstractEventLoop:
        if self._running is None or self._running.done():
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        return asyncio.get_running_loop()

    def _lost(self, transport: StackTransport) -> None:
        self._transports.discard(transport)
        connection = cast("Connection", transport.get_extra_info("connection"))
        if connection.state not in _DELIVERED:
            self._undelivered.add(connection)

    # ----------------------------------------------------------------------------------------------------------- TCP

    async def create_connection(
        self,
        protocol_factory: Callable[[], ProtocolT],
        host: str,
        port: int,
        *,
        ssl: ssl_module.SSLContext | None = None,
        server_hostname: str | None = None,
        local_port: int = 0,
    ) -> tuple[asyncio.Transport, ProtocolT]:
        """Connect, like ``loop.create_connection``.

        Args:
            host: an IPv4 address.
            ssl: speak TLS; ``server_hostname`` is whose certificate is expected, ``host`` by default.
            local_port: 0 for any.

        Raises:
            ConnectionRefusedError, TimeoutError, OSError: as for a socket.
            UsageError: ``host`` is not an address.
        """
        if ssl is not None:
            plain, _ = await self.create_connection(asyncio.Protocol, host, port, local_port=local_port)
            return await _start_tls(plain, protocol_factory(), ssl, server_hostname or host)
        loop = self._check_running()
        opened: asyncio.Future[None] = loop.create_future()

        def on_open(error: OSError | None) -> None:
            if opened.done():
                return
            if error is None:
                opened.set_result(None)
            else:
                opened.set_exception(error)

        connection = self.stack.connect((_address(host), port), monotonic(), local_port=local_port)
        protocol = protocol_factory()
        transport = self._adopt(connection, protocol, on_open)
        self._driver.wake()
        try:
            await opened
        except BaseException:
            transport.abort()
            raise
        return transport, protocol

    def _adopt(
        self,
        connection: Connection,
        protocol: asyncio.BaseProtocol,
        on_open: Callable[[OSError | None], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> StackTransport:
        def lost(transport: StackTransport) -> None:
            self._lost(transport)
            if on_lost is not None:
                on_lost()

        transport = StackTransport(
            asyncio.get_running_loop(), connection, protocol, self._driver.wake, on_open=on_open, on_lost=lost
        )
        connection.user = transport
        self._transports.add(transport)
        return transport

    async def open_connection(
        self, host: str, port: int, *, limit: int = _STREAM_LIMIT, **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and return a reader and a writer, like ``asyncio.open_connection``.

        Args:
            limit: of the reader's buffer, in bytes. options: as of `create_connection`.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=limit, loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await self.create_connection(lambda: protocol, host, port, **options)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        port: int,
        *,
        host: str | None = None,
        backlog: int = 128,
    ) -> StackServer:
        """Listen, like ``loop.create_server``.

        Args:
            host: one of the stack's addresses; None for all of them.
            backlog: connections that may wait; more are not answered.

        Raises:
            UsageError: the port is taken.
        """
        self._check_running()
        address = None if host is None else _address(host)
        listener = self.stack.listen(port, address=address, backlog=backlog)

        def accept(connection: Connection, on_lost: Callable[[], None]) -> None:
            try:
                protocol = protocol_factory()
            except BaseException:
                connection.abort()
                on_lost()
                raise
            self._adopt(connection, protocol, on_lost=on_lost).start()

        def closed(server: StackServer) -> None:
            self._servers.discard(server)
            self._driver.wake()

        server = StackServer(listener, accept, closed)
        self._servers.add(server)
        return server

    async def start_server(
        self,
        client_connected_cb: _ClientConnected,
        port: int,
        *,
        host: str | None = None,
        limit: int = _STREAM_LIMIT,
        backlog: int = 128,
    ) -> StackServer:
        """Listen and call ``client_connected_cb(reader, writer)`` for each connection, as ``asyncio.start_server``."""
        loop = self._check_running()

        def factory() -> asyncio.StreamReaderProtocol:
            reader = asyncio.StreamReader(limit=limit, loop=loop)
            return asyncio.StreamReaderProtocol(reader, client_connected_cb, loop=loop)

        return await self.create_server(factory, port, host=host, backlog=backlog)

    # ------------------------------------------------------------------------------------------------------ UDP, ICMP

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], DatagramT],
        local_addr: tuple[str, int] | None = None,
        remote_addr: tuple[str, int] | None = None,
    ) -> tuple[asyncio.DatagramTransport, DatagramT]:
        """A UDP endpoint, like ``loop.create_datagram_endpoint``.

        Args:
            local_addr: host ("0.0.0.0" for all of ours) and port (0 for any).
            remote_addr: the only peer.

        Raises:
            UsageError: the port is taken.
        """
        loop = self._check_running()
        host, port = local_addr or ("0.0.0.0", 0)
        address = _address(host)
        endpoint = self.stack.udp_bind(port, address if any(address) else None)
        if remote_addr is not None:
            endpoint.connect((_address(remote_addr[0]), remote_addr[1]))
        protocol = protocol_factory()
        transport = StackDatagramTransport(loop, endpoint, protocol, monotonic, self._driver.wake)
        endpoint.user = transport
        protocol.connection_made(transport)
        return transport, protocol

    async def ping(self, host: str, *, timeout: float = 5.0, payload: bytes = _PING_PAYLOAD) -> float:
        """Send one echo request and return the seconds until its reply.

        Raises:
            TimeoutError: none came within ``timeout`` seconds.
            OSError: somebody reported that it cannot be delivered.
        """
        loop = self._check_running()
        endpoint = self.stack.ping_open()
        try:
            answer: asyncio.Future[Echo] = loop.create_future()
            endpoint.user = _Ping(endpoint, answer)
            begin = monotonic()
            if not endpoint.send_echo(_address(host), 1, payload, begin):
                raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))
            self._driver.wake()
            async with asyncio.timeout(timeout):
                await answer
            return (monotonic() - begin) / 1e6
        finally:
            endpoint.close()


async def _start_tls(
    plain: asyncio.Transport, protocol: ProtocolT, context: ssl_module.SSLContext, server_hostname: str
) -> tuple[asyncio.Transport, ProtocolT]:
    loop = asyncio.get_running_loop()
    try:
        transport = await loop.start_tls(plain, protocol, context, server_hostname=server_hostname)
    except BaseException:
        plain.abort()
        raise
    assert transport is not None
    protocol.connection_made(transport)  # which start_tls leaves out, for protocols that have one already
    return transport, protocol


@final
class _Ping:
    """Waits for the one reply."""

    def __init__(self, endpoint: PingEndpoint, answer: asyncio.Future[Echo]) -> None:
        self._endpoint = endpoint
        self._answer = answer

    def on_events(self, _flags: int) -> None:
        while (item := self._endpoint.take()) is not None:
            if self._answer.done():
                return
            if isinstance(item, Echo):
                self._answer.set_result(item)
            else:
                self._answer.set_exception(os_error(item))
