"""One connection of records: the socket and the clock around a `colo.remote.records.Peer`."""

from __future__ import annotations

import asyncio  # noqa: TID251
import contextlib
import socket  # noqa: TID251
from collections.abc import Callable
from typing import Final, final

from colo.remote.records import HELLO_BYTES, MAX_SAID, Beat, Hello, Kind, Peer, Record, Side, decode_hello_untrusted
from pystack import Counters, LinkError
from pystack.drivers.aio import monotonic

_READ: Final = 1 << 18
_ROOM: Final = 4 << 20  # bytes that may wait for the other side; frames beyond that are dropped
_LIMIT: Final = 8 << 20  # and beyond this, it is taken for lost
_GREETING_SECONDS: Final = 5.0
_FRAMES: Final = frozenset({Kind.CLIENT, Kind.SECONDARY})


@final
class Session:
    """Records in and out, until the other side is lost.

    Args:
        received: called with each record, in order. turned: called after each batch of them. lost: called once.
    """

    def __init__(
        self,
        sock: socket.socket,
        theirs: Side,
        beat: Beat,
        counters: Counters,
        *,
        received: Callable[[Record], None],
        turned: Callable[[], None],
        lost: Callable[[str], None],
    ) -> None:
        self.peer = Peer(theirs, beat, counters, monotonic())
        self.closed = False
        self._sock = sock
        self._counters = counters
        self._received = received
        self._turned = turned
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._flushing = False  # a flush has been asked for
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._read)
        self._loop.call_soon(self._tick)  # once its owner knows it

    def say(self, kind: Kind, body: bytes = b"", epoch: int | None = None) -> None:
        """Say it soon."""
        if self.closed:
            return
        waiting = len(self.peer.out)
        if waiting > _ROOM and kind in _FRAMES:
            self._counters.bump("remote.full")
            return
        self.peer.say(kind, body, epoch)
        if waiting > _LIMIT:
            self.peer.lost = self.peer.lost or "it takes nothing any more"
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _read(self) -> None:
        if self.closed:
            return
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.peer.ended()
        for record in self.peer.feed_untrusted(data, monotonic()) if data else ():
            self._received(record)
            if self._is_closed():
                return
        self._turned()
        self._judge()

    def _flush(self) -> None:
        self._flushing = False
        if self.closed:
            return
        out = self.peer.out
        try:
            while out:
                del out[: self._sock.send(out)]
        except BlockingIOError:
            pass
        except OSError:
            out.clear()  # reading meets the end
        if bool(out) != self._writing:
            self._writing = bool(out)
            if out:
                self._loop.add_writer(self._sock.fileno(), self._flush)
            else:
                self._loop.remove_writer(self._sock.fileno())
        self._judge()

    def _tick(self) -> None:
        if self.closed:
            return
        self._read()  # what came while we were busy is a sign of life, too
        if self._is_closed():
            return
        self.peer.tick(monotonic())
        self._flush()
        if not self._is_closed():
            self._timer = self._loop.call_at(self.peer.next_timeout() / 1e6 + 0.001, self._tick)

    def _is_closed(self) -> bool:
        return self.closed

    def _judge(self) -> None:
        if self.peer.lost and not self.closed:
            self.close()
            self._lost(self.peer.lost)

    def close(self, bye: str | None = None) -> None:
        """Part, with a word if there is one to say; may be repeated. Nothing is told any more."""
        if self.closed:
            return
        if bye is not None:
            self.peer.say(Kind.BYE, bye.encode()[:MAX_SAID])
            self.last_words()
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def last_words(self) -> None:
        """Hand to the system what waits, within a short time."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(0.5)
            self._sock.sendall(self.peer.out)
        self.peer.out.clear()
        with contextlib.suppress(OSError):
            self._sock.setblocking(False)


def no_delay(sock: socket.socket) -> None:
    """Send records at once, where that is a matter of choice."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def read_hello(sock: socket.socket) -> Hello:
    """The other side's first record, and not a byte more.

    Raises:
        LinkError: it says something else, or nothing within 5 seconds.
    """
    data = b""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_GREETING_SECONDS):
            while len(data) < HELLO_BYTES:
                more = await loop.sock_recv(sock, HELLO_BYTES - len(data))
                if not more:
                    break
                data += more
    except (OSError, TimeoutError):
        data = b""
    hello = decode_hello_untrusted(data)
    if hello is None:
        raise LinkError("The other side does not greet as this version of colo does.")
    return hello
