"""Stands in the migration stream of a pair under COLO, and holds it at every boundary until its owner has drawn it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import Final, final

from colo.qemu.colo_stream import ColoStream, Event, Piece
from pystack import Counters, LinkError, UsageError
from pystack.link import sockets

_READ: Final = 1 << 20
_MAX_UNSENT: Final = 1 << 20
_AGAIN: Final = (errno.EAGAIN, errno.EWOULDBLOCK)


@final
class Relay:
    """Between the primary, which connects to ``path``, and the secondary, which listens at ``target``.

    Args:
        path: or the socket of a primary that has connected. target: or what reaches the secondary, in a thread.
        happened: called with every event before anything behind it is handed on: neither machine goes on meanwhile. If
            it returns True, that is not before `release`.
        ended: called once, when both ends have closed the stream, or the secondary's has.
        closed: called once, as soon as either end has.

    Attributes:
        stream: what is known of both. passed: bytes handed on so far. why_not: why the secondary was not reached.

    Raises:
        LinkError: ``path`` cannot be had.
    """

    def __init__(
        self,
        path: sockets.Address | socket.socket,
        target: sockets.Address | Callable[[], socket.socket],
        happened: Callable[[Event], bool | None],
        ended: Callable[[], None],
        counters: Counters,
        closed: Callable[[], None] = lambda: None,
        *,
        stream: ColoStream | None = None,
    ) -> None:
        self.stream = ColoStream(counters) if stream is None else stream
        self.why_not = ""
        self._path = path
        self._target = target
        self._happened = happened
        self._on_end = ended
        self._on_close = closed
        self._loop = asyncio.get_running_loop()
        self._ends: tuple[_End, _End] | None = None
        self._ended = False
        self.passed = 0
        self._held: tuple[_End, _End, list[Piece]] | None = None  # from, to, and what is held back
        self._listener: socket.socket | None = None
        self._reaching: asyncio.Task[None] | None = None
        if isinstance(path, socket.socket):
            self._reaching = self._loop.create_task(self._reach(path))
            return
        try:
            self._listener = sockets.listen(path)
        except UsageError as error:
            raise LinkError(str(error)) from None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            primary, _ = self._listener.accept()
        except OSError:
            return
        self._stop_listening()
        self._reaching = self._loop.create_task(self._reach(primary))

    async def _reach(self, primary: socket.socket) -> None:
        """Reach the secondary, which may be far away, while everything else goes on."""
        try:
            target = self._target
            secondary = await asyncio.to_thread(target if callable(target) else partial(sockets.connect, target))
        except (UsageError, asyncio.CancelledError) as error:
            primary.close()
            self.why_not = str(error)
            self._end()
            return
        if self._ended:
            primary.close()
            secondary.close()
            return
        ends = self._ends = _End(primary, self._loop), _End(secondary, self._loop)
        for end, other, follow in (
            (ends[0], ends[1], self.stream.from_primary),
            (ends[1], ends[0], self.stream.from_secondary),
        ):
            end.sock.setblocking(False)
            if end.sock.family != socket.AF_UNIX:
                end.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.start(self._passing(follow, end, other), self._closed_by)

    @property
    def begun(self) -> bool:
        """Whether a primary has come."""
        return self._reaching is not None

    def _passing(self, follow: Callable[[bytes], list[Piece]], one: _End, other: _End) -> Callable[[bytes], None]:
        def passes(data: bytes) -> None:
            pieces = follow(data)
            if self._held is not None and self._held[0] is one:
                self._held[2].extend(pieces)
            else:
                self._pass(pieces, one, other)

        return passes

    def _pass(self, pieces: list[Piece], one: _End, other: _End) -> None:
        for number, piece in enumerate(pieces, 1):
            if not isinstance(piece, Event):
                self.passed += len(piece)
                other.send(piece, one)
            elif self._happened(piece):
                self._held = one, other, pieces[number:]
                one.rest()
                return

    def release(self) -> None:
        """Hand on what was held back since ``happened`` has returned True; nothing if nothing was."""
        if self._held is not None and not self._ended:
            (one, other, pieces), self._held = self._held, None
            one.go_on()
            self._pass(pieces, one, other)

    def drop_primary(self) -> None:
        """The primary is gone, though its end of the stream may not say so: let the secondary meet the end."""
        if self._ends is not None and not self._ends[0].closed:
            self._ends[0].close()
            self._closed_by(self._ends[0])

    def _closed_by(self, end: _End) -> None:
        """One end has closed. The other one may have something to say yet, and closes when it has heard of it."""
        assert self._ends is not None
        told, self._on_close = self._on_close, lambda: None
        if not self._ended:
            told()
        one, other = self._ends
        left = other if end is one else one
        if left.closed:
            self._end()
        else:
            left.finish()
            if end is other:
                self._end()  # a secondary that is silent has decided

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.stream.undecided = False
            told, self._on_close = self._on_close, lambda: None
            told()
            self._on_end()

    def _stop_listening(self) -> None:
        if self._listener is None or isinstance(self._path, socket.socket):
            return
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        sockets.remove(self._path)

    def close(self) -> None:
        """Part with both; nothing is told any more. May be repeated."""
        self._ended = True
        self._stop_listening()
        if self._reaching is not None:
            self._reaching.cancel()
        for end in self._ends or ():
            end.close()


@final
class _End:
    """One of two sockets: what was read goes to the other one, which stops reading when that does not take it."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.sock = sock
        self.closed = False
        self._loop = loop
        self._unsent = bytearray()
        self._writing = False
        self._finishing = False
        self._feeder: _End | None = None  # waits until there is room
        self._passes: Callable[[bytes], None] = lambda _: None
        self._on_close: Callable[[_End], None] = lambda _: None

    def start(self, passes: Callable[[bytes], None], on_close: Callable[[_End], None]) -> None:
        """Read from now on."""
        self._passes, self._on_close = passes, on_close
        self._loop.add_reader(self.sock.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = self.sock.recv(_READ)
        except OSError as error:
            if error.errno in _AGAIN:
                return
            data = b""
        if data:
            self._passes(data)
        else:
            self.close()
            self._on_close(self)

    def send(self, data: bytes, feeder: _End) -> None:
        """Hand it on; what the socket does not take now goes later, and ``feeder`` reads no more until then."""
        if self.closed:
            return
        if not self._unsent:
            data = data[self._write(data) :]
        if data:
            self._unsent += data
            self._watch()
            if len(self._unsent) > _MAX_UNSENT:
                self._feeder = feeder
                feeder.rest()

    def rest(self) -> None:
        """Read no more until `go_on`."""
        if not self.closed:
            self._loop.remove_reader(self.sock.fileno())

    def go_on(self) -> None:
        """Read again."""
        if not self.closed:
            self._loop.add_reader(self.sock.fileno(), self._read)

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return self.sock.send(data)
        except OSError as error:
            if error.errno not in _AGAIN:
                self._unsent.clear()
                return len(data)  # reading meets the end
            return 0

    def _watch(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self.sock.fileno(), self._flush)

    def _flush(self) -> None:
        while self._unsent:
            sent = self._write(self._unsent)
            if not sent:
                return
            del self._unsent[:sent]
        self._writing = False
        self._loop.remove_writer(self.sock.fileno())
        feeder, self._feeder = self._feeder, None
        if feeder is not None:
            feeder.go_on()
        if self._finishing:
            self.finish()

    def finish(self) -> None:
        """Nothing more will be sent."""
        self._finishing = True
        if not self._unsent:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Give the socket back; may be repeated."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self.sock.fileno())
            self._loop.remove_writer(self.sock.fileno())
            self.sock.close()
            if self._feeder is not None:
                self._feeder.go_on()  # to meet the end
