"""Services for replicas: HTTP with deterministic and differing answers, echo, and connections that the guest opens.

Sans-I/O, and picklable together with the stack.
"""

from __future__ import annotations

import hashlib
from binascii import crc32
from typing import Final, final

from pystack import Connection, Listener, Micros, Stack, UsageError

HTTP_PORT: Final = 80
ECHO_PORT: Final = 7
SINK_PORT: Final = 9
DIAL_PORT: Final = 8080
"""Where a client listens that asks for ``/dial``."""
FLAT: Final = b"flat"
FLAWED: Final = b"flawed"
_KINDS: Final = (b"same", b"own", b"flat", b"part", b"dial")
_MAX_REQUEST: Final = 8192
_PIECE: Final = 16 << 10


def body_bytes(seed: bytes, start: int, length: int, total: int = 0) -> bytes:
    """Bytes ``start`` to ``start + length`` of a body: SHA-256 of the seed and a counter, 32 at a time.

    With `FLAT` or `FLAWED` as seed it is dots, and the one in the middle of the ``total`` bytes may be wrong.
    """
    if seed in (FLAT, FLAWED):
        body = bytearray(b"." * length)
        if seed == FLAWED and start <= total // 2 < start + length:
            body[total // 2 - start] = ord("!")
        return bytes(body)
    first, last = start // 32, (start + length + 31) // 32
    blocks = b"".join(hashlib.sha256(seed + index.to_bytes(8, "big")).digest() for index in range(first, last))
    return blocks[start - 32 * first : start - 32 * first + length]


@final
class Exchange:
    """One HTTP connection: what of the request has come, and how far the answer is."""

    __slots__ = ("answer", "at", "ends", "length", "request", "seed", "shut")

    def __init__(self) -> None:
        self.request = b""
        self.answer = b""  # head that has not been queued yet
        self.seed = b""
        self.at = self.length = 0  # of the body
        self.ends = self.shut = False


@final
class Tally:
    """What was received on a connection to the sink."""

    __slots__ = ("checksum", "count", "told")

    def __init__(self) -> None:
        self.count = self.checksum = 0
        self.told = False


def tally_line(count: int, checksum: int) -> bytes:
    """What the sink says in the end."""
    return b"%d bytes, CRC-32 %08x\n" % (count, checksum)


@final
class WebService:
    """``GET /same/N`` is N bytes that every replica has alike; ``GET /own/N`` N bytes that only this one has.

    ``GET /flat/N`` is N dots, of which the replica with identity 2 has one wrong. After ``GET /part/N``, which is as
    same, every replica but that one closes. ``GET /dial/N`` is answered with an empty body, and the machine opens a
    connection to `DIAL_PORT` of who asked, from the same port as the request's, on which N bytes follow. And there is
    an echo on port 7, for TCP and UDP, and a sink on port 9, which says in the end what it has received. Answers have
    no Date.

    Attributes:
        served: answers that were begun.
    """

    def __init__(self, stack: Stack) -> None:
        self._http: Listener = stack.listen(HTTP_PORT)
        self._echo: Listener = stack.listen(ECHO_PORT)
        self._sink: Listener = stack.listen(SINK_PORT)
        self._datagrams = stack.udp_bind(ECHO_PORT)
        self._wanted: list[tuple[bytes, int, bytes]] = []  # connections to open: to whom, from which port, what to send
        self.served = 0

    def step(self, stack: Stack, identity: int, now: Micros) -> None:
        """See `colo.replica.Service`."""
        while happened := stack.events():
            for endpoint, _ in happened:
                if isinstance(endpoint, Connection):
                    self._serve(endpoint, identity)
                elif isinstance(endpoint, Listener):
                    while (connection := endpoint.take()) is not None:
                        if endpoint is self._http:
                            connection.user = Exchange()
                        else:
                            connection.user = Tally() if endpoint is self._sink else self
                        self._serve(connection, identity)
                elif endpoint is self._datagrams:
                    while (datagram := self._datagrams.take()) is not None:
                        self._datagrams.send(datagram.payload, now, to=datagram.source)
            self._dial(stack, now)

    def _serve(self, connection: Connection, identity: int) -> None:
        exchange = connection.user
        if isinstance(exchange, Exchange):
            self._answer(connection, exchange, identity)
        elif isinstance(exchange, Tally):
            _count(connection, exchange)
        elif connection.user is self:
            _echo(connection)

    def _dial(self, stack: Stack, now: Micros) -> None:
        """Open the connections that were asked for."""
        wanted, self._wanted = self._wanted, []
        for address, port, seed in wanted:
            try:
                connection = stack.connect((address, DIAL_PORT), now, local_port=port)
            except UsageError:  # asked twice, or there is no room
                continue
            exchange = Exchange()
            exchange.seed, exchange.length, exchange.ends = seed, int(seed), True
            connection.user = exchange

    def _answer(self, connection: Connection, exchange: Exchange, identity: int) -> None:
        if connection.readable:
            exchange.request += connection.read(_MAX_REQUEST - len(exchange.request))
            if len(exchange.request) >= _MAX_REQUEST:
                connection.abort()
                return
        while True:
            _send(connection, exchange)
            if exchange.answer or exchange.at < exchange.length:
                return
            head, found, rest = exchange.request.partition(b"\r\n\r\n")
            if not found:
                break
            exchange.request = rest
            self._begin(connection, exchange, head, identity)
        if (connection.eof or exchange.ends) and not exchange.shut:
            exchange.shut = True
            connection.shutdown()

    def _begin(self, connection: Connection, exchange: Exchange, head: bytes, identity: int) -> None:
        self.served += 1
        words = head.split(b" ", 2)
        kind, _, size = words[1].strip(b"/").partition(b"/") if len(words) == 3 else (b"", b"", b"")
        if kind not in _KINDS or not size.isdigit() or len(size) > 12:
            exchange.answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            exchange.at = exchange.length = 0
            return
        if kind == b"dial":
            self._wanted.append((connection.remote_addr, connection.remote_port, size))
            size = b"0"
        exchange.at, exchange.length = 0, int(size)
        exchange.seed = size
        if kind == b"own":
            exchange.seed = b"%d of %d" % (self.served, identity)
        elif kind == b"flat":
            exchange.seed = FLAWED if identity == 2 else FLAT
        exchange.ends = kind == b"part" and identity != 2
        exchange.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % exchange.length


def _send(connection: Connection, exchange: Exchange) -> None:
    """Queue as much of the answer as there is room for."""
    try:
        while exchange.answer:
            taken = connection.write(exchange.answer)
            if not taken:
                return
            exchange.answer = exchange.answer[taken:]
        while exchange.at < exchange.length:
            piece = body_bytes(exchange.seed, exchange.at, min(_PIECE, exchange.length - exchange.at), exchange.length)
            taken = connection.write(piece)
            if not taken:
                return
            exchange.at += taken
    except UsageError:  # it is over: a client that went away, or a reset
        exchange.answer, exchange.at = b"", exchange.length


def _echo(connection: Connection) -> None:
    try:
        while connection.readable and connection.send_space:
            connection.write(connection.read(min(connection.send_space, _PIECE)))
        if connection.eof and not connection.readable:
            connection.shutdown()
    except UsageError:
        return


def _count(connection: Connection, tally: Tally) -> None:
    try:
        while connection.readable:
            piece = connection.read(_PIECE)
            tally.count += len(piece)
            tally.checksum = crc32(piece, tally.checksum)
        if connection.eof and not tally.told:
            tally.told = True
            connection.write(tally_line(tally.count, tally.checksum))
            connection.shutdown()
    except UsageError:
        return
