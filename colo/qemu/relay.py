"""Stands in the migration stream of a pair under COLO, and holds it at every boundary until its owner has drawn it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

from colo.qemu.colo_stream import ColoStream, Event, Piece
from pystack import Counters, LinkError

_READ: Final = 1 << 20
_MAX_UNSENT: Final = 1 << 20
_AGAIN: Final = (errno.EAGAIN, errno.EWOULDBLOCK)


@final
class Relay:
    """Between the primary, which connects to ``path``, and the secondary, which listens at ``target``.

    Args:
        happened: called with every event before anything behind it is handed on: neither machine goes on meanwhile.
        ended: called once, when either end has closed the stream.

    Attributes:
        stream: what is known of both. passed: bytes handed on so far.

    Raises:
        LinkError: the system refused.
    """

    def __init__(
        self,
        path: Path,
        target: Path,
        happened: Callable[[Event], None],
        ended: Callable[[], None],
        counters: Counters,
    ) -> None:
        self.stream = ColoStream(counters)
        self._path = path
        self._target = target
        self._happened = happened
        self._on_end = ended
        self._loop = asyncio.get_running_loop()
        self._ends: tuple[_End, _End] | None = None
        self._ended = False
        self.passed = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(str(path))
            self._listener.listen(1)
        except OSError as error:
            self._listener.close()
            raise LinkError(f"{path} cannot be had: {(error.strerror or str(error)).lower()}.") from None
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            primary, _ = self._listener.accept()
        except OSError:
            return
        self._stop_listening()
        secondary = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            secondary.connect(str(self._target))
        except OSError:
            primary.close()
            secondary.close()
            self._end()
            return
        ends = self._ends = _End(primary, self._loop), _End(secondary, self._loop)
        for end, other, follow in (
            (ends[0], ends[1], self.stream.from_primary),
            (ends[1], ends[0], self.stream.from_secondary),
        ):
            end.sock.setblocking(False)
            end.start(self._passing(follow, end, other), self._closed_by)

    def _passing(self, follow: Callable[[bytes], list[Piece]], one: _End, other: _End) -> Callable[[bytes], None]:
        def passes(data: bytes) -> None:
            for piece in follow(data):
                if isinstance(piece, Event):
                    self._happened(piece)
                else:
                    self.passed += len(piece)
                    other.send(piece, one)

        return passes

    def _closed_by(self, end: _End) -> None:
        """One end has closed. The other one may have something to say yet, and closes when it has heard of it."""
        assert self._ends is not None
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
            self._on_end()

    def _stop_listening(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Part with both; nothing is told any more. May be repeated."""
        self._ended = True
        self._stop_listening()
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
