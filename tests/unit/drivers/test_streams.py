"""A stack's streams and transports follow asyncio's conventions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl

import pytest

from pystack.drivers.streams import AioStack
from pystack.errors import UsageError
from pystack.frame import LinkInfo
from pystack.link.memory import ETHERNET, pair
from pystack.stack import Stack
from pystack.tcp.config import TcpConfig
from tests.unit.drivers.pairs import LARGE_SEGMENTS, LEFT, NOBODY, RIGHT, config, run

PORT = 8000
BLOB = bytes(range(251)) * 40_000


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("info", [ETHERNET, LARGE_SEGMENTS], ids=["ethernet", "large segments"])
def test_streams_carry_bytes_both_ways(info: LinkInfo) -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        await right.start_server(_echo, PORT)
        reader, writer = await left.open_connection(RIGHT, PORT)
        writer.write(BLOB)
        writer.write_eof()
        assert hashlib.sha256(await reader.read()).digest() == hashlib.sha256(BLOB).digest()
        writer.close()
        await writer.wait_closed()

    run(scenario, info)


def test_the_names_of_both_ends_are_known() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        names: asyncio.Queue[tuple[object, object]] = asyncio.Queue()

        async def served(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            names.put_nowait((writer.get_extra_info("sockname"), writer.get_extra_info("peername")))
            writer.close()

        await right.start_server(served, PORT)
        _, writer = await left.open_connection(RIGHT, PORT, local_port=4000)
        assert writer.get_extra_info("peername") == (RIGHT, PORT)
        assert writer.get_extra_info("sockname") == (LEFT, 4000)
        assert writer.get_extra_info("socket") is None
        assert await names.get() == ((RIGHT, PORT), (LEFT, 4000))
        writer.close()

    run(scenario)


def test_the_side_that_closed_its_half_still_reads() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        async def answer_after_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked = await reader.read()
            writer.write(asked + BLOB)
            writer.close()

        await right.start_server(answer_after_eof, PORT)
        reader, writer = await left.open_connection(RIGHT, PORT)
        writer.write(b"then: ")
        writer.write_eof()
        assert await reader.read() == b"then: " + BLOB
        writer.close()

    run(scenario)


def test_a_refused_port_raises_connection_refused() -> None:
    async def scenario(left: AioStack, _right: AioStack) -> None:
        with pytest.raises(ConnectionRefusedError):
            await left.open_connection(RIGHT, PORT)

    run(scenario)


def test_a_name_is_not_resolved() -> None:
    async def scenario(left: AioStack, _right: AioStack) -> None:
        with pytest.raises(UsageError, match="not an IPv4 address"):
            await left.open_connection("example.com", PORT)

    run(scenario)


def test_an_abort_reaches_the_peer_as_connection_reset() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(1)
            writer.transport.abort()

        await right.start_server(slam, PORT)
        reader, writer = await left.open_connection(RIGHT, PORT)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()

    run(scenario)


def test_a_cancelled_connect_leaves_nothing_behind() -> None:
    async def scenario(left: AioStack, _right: AioStack) -> None:
        connecting = asyncio.create_task(left.open_connection(NOBODY, PORT))
        await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await asyncio.sleep(0)
        assert left.stack.sizes()["connections"] == 0

    run(scenario)


def test_writing_waits_for_a_reader_that_does_not_read() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        read_now = asyncio.Event()
        total: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def lazy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_now.wait()
            total.set_result(len(await reader.read()))
            writer.close()

        await right.start_server(lazy, PORT)
        _, writer = await left.open_connection(RIGHT, PORT)
        written = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    writer.write(bytes(10_000))
                    written += 10_000
                    await writer.drain()
        # Both buffers, the reader's limit and the writer's mark; not what a second of writing would bring.
        assert written < 600_000
        read_now.set()
        writer.write_eof()
        assert await total == written
        writer.close()

    run(scenario, tcp=TcpConfig(receive_buffer=65_536, send_buffer=65_536))


class _Pausing(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.got = bytearray()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_a_paused_protocol_gets_nothing_until_it_resumes_and_loses_nothing() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        async def send(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(BLOB[:1000])
            writer.close()

        await right.start_server(send, PORT)
        transport, protocol = await left.create_connection(_Pausing, RIGHT, PORT)
        assert not transport.is_reading()
        await left.ping(RIGHT)  # by then the data has arrived
        assert not protocol.got
        transport.resume_reading()
        assert await protocol.lost is None
        assert protocol.got == BLOB[:1000]

    run(scenario)


class _Buffered(asyncio.BufferedProtocol):
    def __init__(self) -> None:
        self.buffer = bytearray(1000)
        self.got = bytearray()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self.buffer[:nbytes]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_a_buffered_protocol_reads_into_its_own_buffer() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        async def send(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(BLOB[:123_456])
            writer.close()

        await right.start_server(send, PORT)
        _, protocol = await left.create_connection(_Buffered, RIGHT, PORT)
        assert await protocol.lost is None
        assert protocol.got == BLOB[:123_456]

    run(scenario)


class _Raising(asyncio.Protocol):
    lost: asyncio.Future[Exception | None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        raise ValueError("a bug of the application")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_a_protocol_that_raises_loses_its_connection_and_no_other() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        reported: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
        await right.start_server(_echo, PORT)
        reader, writer = await left.open_connection(RIGHT, PORT)
        transport, protocol = await left.create_connection(_Raising, RIGHT, PORT)
        transport.write(b"x")
        lost = await protocol.lost
        assert isinstance(lost, ValueError)
        assert [context["exception"] for context in reported] == [lost]
        writer.write(b"still here")
        writer.write_eof()
        assert await reader.read() == b"still here"
        writer.close()

    run(scenario)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: asyncio.Queue[tuple[bytes, tuple[str | object, int]] | Exception] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        self.got.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.got.put_nowait(exc)


class _Lost(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_a_reset_while_closing_still_ends_with_connection_lost() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        served: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

        async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.put_nowait(writer)

        await right.start_server(hold, PORT, limit=1000)
        transport, protocol = await left.create_connection(_Lost, RIGHT, PORT)
        transport.write(bytes(1_000_000))
        transport.close()
        assert transport.is_closing()
        writer = await served.get()
        assert not protocol.lost.done()
        writer.transport.abort()
        assert isinstance(await protocol.lost, ConnectionResetError)

    run(scenario, tcp=TcpConfig(receive_buffer=65_536, send_buffer=65_536))


def test_a_datagram_protocol_that_raises_is_reported_and_goes_on() -> None:
    class Raising(_Datagrams):
        def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
            if data == b"bad":
                raise ValueError("a bug of the application")
            super().datagram_received(data, addr)

    async def scenario(left: AioStack, right: AioStack) -> None:
        reported: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
        _, server = await right.create_datagram_endpoint(Raising, local_addr=(RIGHT, PORT))
        transport, _ = await left.create_datagram_endpoint(_Datagrams, remote_addr=(RIGHT, PORT))
        for payload in (b"bad", b"good"):
            transport.sendto(payload)
            await left.ping(RIGHT)
        datagram = await server.got.get()
        assert isinstance(datagram, tuple)
        assert datagram[0] == b"good"
        assert len(reported) == 1

    run(scenario)


def test_a_protocol_factory_that_raises_resets_the_connection_and_the_server_goes_on() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        made: list[asyncio.Protocol] = []

        def factory() -> asyncio.Protocol:
            made.append(asyncio.Protocol())
            if len(made) == 1:
                raise ValueError("a bug of the application")
            return made[-1]

        server = await right.create_server(factory, PORT)
        reader, writer = await left.open_connection(RIGHT, PORT)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        _, other = await left.open_connection(RIGHT, PORT)
        other.close()
        server.close()
        await left.ping(RIGHT)

    run(scenario)


def test_the_marks_of_the_write_buffer_have_asyncios_defaults_and_can_be_set() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        await right.start_server(_echo, PORT)
        transport, _ = await left.create_connection(asyncio.Protocol, RIGHT, PORT)
        assert transport.get_write_buffer_limits() == (16_384, 65_536)
        transport.set_write_buffer_limits(high=1000)
        assert transport.get_write_buffer_limits() == (250, 1000)
        transport.set_write_buffer_limits(low=1000)
        assert transport.get_write_buffer_limits() == (1000, 4000)
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(high=1, low=2)
        transport.close()

    run(scenario)


def test_writing_after_write_eof_is_the_callers_error() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        await right.start_server(_echo, PORT)
        transport, _ = await left.create_connection(asyncio.Protocol, RIGHT, PORT)
        transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.write(b"x")
        transport.close()

    run(scenario)


def test_a_buffer_that_is_changed_after_writing_was_sent_as_it_was() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        await right.start_server(_echo, PORT)
        reader, writer = await left.open_connection(RIGHT, PORT)
        buffer = bytearray(b"before")
        writer.write(buffer)
        buffer[:] = b"after!"
        writer.write_eof()
        assert await reader.read() == b"before"
        writer.close()

    run(scenario)


def test_leaving_delivers_what_was_written() -> None:
    async def scenario(_left: AioStack, _right: AioStack) -> None:
        got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.set_result(await reader.read())
            writer.close()

        one, other = pair(wakeup=True)
        async with AioStack(Stack(config(RIGHT), one.info, seed=3), one) as server:
            await server.start_server(collect, PORT)
            async with AioStack(Stack(config(LEFT), other.info, seed=4), other) as client:
                _, writer = await client.open_connection(RIGHT, PORT)
                writer.write(BLOB)
            assert await got == BLOB

    run(scenario)


def _anonymous_tls(purpose: int) -> ssl.SSLContext:
    """TLS without certificates, by the anonymous ciphers of TLS 1.2: what is tested is the transport below it."""
    context = ssl.SSLContext(purpose)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return context


def test_tls_of_asyncio_runs_on_a_stacks_transport() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await writer.start_tls(_anonymous_tls(ssl.PROTOCOL_TLS_SERVER))
            writer.write((await reader.readuntil(b"\n")).upper() + BLOB)
            writer.close()
            await writer.wait_closed()

        await right.start_server(serve, PORT)
        context = _anonymous_tls(ssl.PROTOCOL_TLS_CLIENT)
        reader, writer = await left.open_connection(RIGHT, PORT, ssl=context, server_hostname="right")
        writer.write(b"hello\n")
        assert await reader.read() == b"HELLO\n" + BLOB
        assert writer.get_extra_info("cipher") is not None
        writer.close()
        await writer.wait_closed()

    run(scenario, LARGE_SEGMENTS)


def test_a_server_can_be_closed_and_waited_for() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        server = await right.start_server(_echo, PORT)
        assert server.is_serving()
        assert server.port == PORT
        _, writer = await left.open_connection(RIGHT, PORT)
        await left.ping(RIGHT)
        server.close()
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            await left.open_connection(RIGHT, PORT)
        waiting = asyncio.create_task(server.wait_closed())
        await left.ping(RIGHT)
        assert not waiting.done()  # one connection is left
        writer.close()
        await waiting

    run(scenario)


def test_a_port_that_is_taken_is_the_callers_error() -> None:
    async def scenario(_left: AioStack, right: AioStack) -> None:
        await right.start_server(_echo, PORT)
        with pytest.raises(UsageError):
            await right.start_server(_echo, PORT)

    run(scenario)


def test_ping_measures_a_round_trip_and_times_out_when_nobody_answers() -> None:
    async def scenario(left: AioStack, _right: AioStack) -> None:
        assert 0 < await left.ping(RIGHT) < 5
        with pytest.raises(TimeoutError):
            await left.ping(NOBODY, timeout=0.05)

    run(scenario)


def test_datagrams_keep_their_borders_and_their_senders() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        _, server = await right.create_datagram_endpoint(_Datagrams, local_addr=("0.0.0.0", PORT))
        transport, _ = await left.create_datagram_endpoint(_Datagrams, local_addr=(LEFT, 4001))
        for payload in (b"one", b"", bytes(20_000)):
            transport.sendto(payload, (RIGHT, PORT))
            assert await server.got.get() == (payload, (LEFT, 4001))
        transport.close()
        assert transport.is_closing()

    run(scenario)


def test_a_datagram_to_a_closed_port_is_reported_as_refused() -> None:
    async def scenario(left: AioStack, _right: AioStack) -> None:
        transport, protocol = await left.create_datagram_endpoint(_Datagrams, remote_addr=(RIGHT, PORT))
        transport.sendto(b"anybody?")
        assert isinstance(await protocol.got.get(), ConnectionRefusedError)
        with pytest.raises(ValueError, match="Invalid address"):
            transport.sendto(b"x", (NOBODY, 1))

    run(scenario)


def test_a_link_that_is_closed_ends_the_connections_with_an_error() -> None:
    async def scenario(left: AioStack, right: AioStack) -> None:
        await right.start_server(_echo, PORT)
        reader, writer = await left.open_connection(RIGHT, PORT)
        right._link.close()
        with pytest.raises(OSError, match="Network is down"):
            await reader.read()
        with pytest.raises(OSError, match="Network is down"):
            await left.open_connection(RIGHT, PORT)
        writer.close()

    run(scenario)
