"""Stream sockets by address, many of them behind one epoll that asyncio watches: the edge of the `colo` commands.

Nothing here blocks. One wake-up reads from every socket that has something, in turn so that none starves, before
anything is written: what it releases leaves with one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, final

from colo.address import Address
from pystack import Buffer, Counters, LinkError, Micros
from pystack.drivers import hot
from pystack.drivers.aio import monotonic
from pystack.link import sockets

RECV_BYTES: Final = 256 << 10
SOCKET_BUFFER_BYTES: Final = 4 << 20
MAX_PENDING_BYTES: Final = 64 << 20
"""What is kept for a peer that does not read. A write that finds more than that waiting is dropped whole."""
RETRY_SECONDS: Final = 1.0
"""How often a client whose peer has gone tries to reach it again."""

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_TURN: Final[Micros] = 4_000  # other callbacks of the loop wait no longer than about that
_ROUNDS: Final = 64
_DRAIN_READS: Final = 256  # 64 MiB: many times what sockets hold
_FLUSH_BYTES: Final = 1 << 20
_GONE: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNABORTED, errno.EHOSTUNREACH})
_CREDENTIALS: Final = struct.Struct("3i")  # pid, uid, gid
_FORCED: Final = ((33, socket.SO_RCVBUF), (32, socket.SO_SNDBUF))  # SO_RCVBUFFORCE, SO_SNDBUFFORCE: socket(7)


@final
class Hub:
    """The one epoll of all channels, and the turn that serves it.

    Args:
        after: called with the time at the end of every round in which something happened.

    Attributes:
        failed: has the exception that ends the program, once there is one.
    """

    def __init__(self, after: Callable[[Micros], None]) -> None:
        self._after = after
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._timers: dict[Callable[[Micros], None], asyncio.TimerHandle] = {}
        self.loop = asyncio.get_running_loop()
        hot.add_reader(self.loop, self._epoll.fileno(), self._turn)
        self.failed: asyncio.Future[None] = self.loop.create_future()

    def watch(self, fd: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ``ready(events)`` when ``fd`` is; replaces what was said of it before."""
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def forget(self, fd: int) -> None:
        """Do not watch ``fd`` any more."""
        if self._ready.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def fail(self, error: Exception) -> None:
        """End the program with ``error``."""
        if not self.failed.done():
            self.failed.set_exception(error)

    def guarded(self, call: Callable[[], None]) -> None:
        """Call, and let what goes wrong end the program: asyncio would only log it."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.fail(error)

    def every(self, period: Micros, call: Callable[[Micros], None]) -> None:
        """Call ``call(now)`` again and again, until `close`."""

        def due() -> None:
            self._timers[call] = self.loop.call_later(period / 1e6, self.guarded, due)
            call(monotonic())

        self._timers[call] = self.loop.call_later(period / 1e6, self.guarded, due)

    def _turn(self) -> None:
        self.guarded(self._rounds)

    def _rounds(self) -> None:
        """Serve until nobody has anything to say, or other callbacks have waited long enough: the epoll calls again."""
        ready, poll = self._ready, self._epoll.poll
        until = 0
        for _ in range(_ROUNDS):
            if self.failed.done():
                return
            events = poll(0)
            if not events:
                return
            for fd, happened in events:
                call = ready.get(fd)
                if call is not None:
                    call(happened)
            now = monotonic()
            self._after(now)
            until = until or now + _TURN
            if now > until:
                return

    def close(self) -> None:
        """Watch nothing any more."""
        if self._epoll.closed:
            return
        for timer in self._timers.values():
            timer.cancel()
        hot.remove_reader(self.loop, self._epoll.fileno())
        self._epoll.close()
        self._ready.clear()
        if self.failed.done() and not self.failed.cancelled():
            self.failed.exception()  # looked at, as the loop would complain otherwise
        self.failed.cancel()


@final
class Channel:
    """One stream socket: reads whatever comes, writes what it can and keeps the rest, bounded.

    A server takes one peer at a time and waits for the next when that has gone; others are kept waiting until then. A
    client whose peer goes tries to reach it again every `RETRY_SECONDS`. What was to be sent to a peer that has gone is
    dropped with it, so that the next one starts at the beginning of a frame.

    Args:
        received: called with what was read; without it, what a peer says is read and ignored.
        changed: called with True when a peer has come, with False when it has gone.
        name: in the counters ``channel.<name>.connected``, ``.gone``, ``.stalled`` (the peer stopped reading),
            ``.dropped`` and ``.dropped_bytes`` (frames that it has not been sent, with their prefixes).
        prefix: bytes of framing in front of a frame, whose first four are its length; to count what is dropped.
    """

    def __init__(
        self,
        hub: Hub,
        address: Address,
        name: str,
        counters: Counters,
        *,
        received: Callable[[bytes], None] | None = None,
        changed: Callable[[bool], None] | None = None,
        prefix: int = 4,
    ) -> None:
        self._hub = hub
        self.address = address
        self.name = name
        self._counters = counters
        self._received = received
        self._changed = changed
        self._prefix = prefix
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._again: tuple[socket.AddressFamily, Any] | None = None  # where to connect to, resolved
        self._timer: asyncio.TimerHandle | None = None
        self._unsent = bytearray()
        self._events = 0  # what is watched for; 0 also while a connection is being made
        if address.server:
            self._listener = sockets.listen(address.where)
            hub.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def connect(self) -> None:
        """Of a client: reach the other side. All servers listen before any client does this.

        Raises:
            UsageError: nobody listens there.
        """
        if self._listener is None:
            peer = sockets.connect(self.address.where)
            self._again = (peer.family, peer.getpeername())
            self._attach(peer)

    @property
    def connected(self) -> bool:
        """Whether there is a peer."""
        return self._peer is not None and self._events != 0

    @property
    def peer_pid(self) -> int:
        """The process at the other end, 0 if it is none of this host's or there is none (unix(7), SO_PEERCRED)."""
        peer = self._peer
        if not self.connected or peer is None or peer.family != socket.AF_UNIX:
            return 0
        return int(_CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0])

    @property
    def pending_bytes(self) -> int:
        """What waits for the peer to read."""
        return len(self._unsent)

    @property
    def where(self) -> Address:
        """The address, with the port that the system chose for port 0."""
        if self._listener is not None and isinstance(self.address.where, tuple):
            host, port = self._listener.getsockname()[:2]
            return Address((host, port), server=True)
        return self.address

    # -------------------------------------------------------------------------------------------------------- peers

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            raise self._failure(error) from None
        self._hub.forget(self._listener.fileno())
        self._attach(peer)

    def _attach(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        _enlarge(peer)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._events = select.EPOLLIN
        self._hub.watch(peer.fileno(), self._events, self._ready)
        self._counters.bump(f"channel.{self.name}.connected")
        if self._changed is not None:
            self._changed(True)

    def disconnect(self) -> None:
        """Part with the peer, and wait for the next one."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        self._hub.forget(peer.fileno())
        peer.close()
        self._events = 0
        self._unsent.clear()
        self._counters.bump(f"channel.{self.name}.gone")
        if self._changed is not None:
            self._changed(False)
        if self._listener is not None:
            self._hub.watch(self._listener.fileno(), select.EPOLLIN, self._accept)
        else:
            self._retry_later()

    def _retry_later(self) -> None:
        self._timer = self._hub.loop.call_later(RETRY_SECONDS, self._hub.guarded, self._retry)

    def _retry(self) -> None:
        """Of a client: begin to connect again, without waiting."""
        assert self._again is not None
        family, sockaddr = self._again
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        failure = sock.connect_ex(sockaddr)
        if not failure:
            self._attach(sock)
        elif failure == errno.EINPROGRESS:
            self._peer = sock  # to be closed, whatever happens
            self._hub.watch(sock.fileno(), select.EPOLLOUT, self._reached)
        else:
            sock.close()
            self._retry_later()

    def _reached(self, _events: int) -> None:
        sock, self._peer = self._peer, None
        assert sock is not None
        self._hub.forget(sock.fileno())
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            sock.close()
            self._retry_later()
        else:
            self._attach(sock)

    def close(self) -> None:
        """Release everything."""
        if self._timer is not None:
            self._timer.cancel()
        for sock in (self._peer, self._listener):
            if sock is not None:
                self._hub.forget(sock.fileno())
                sock.close()
        if self._listener is not None:
            sockets.remove(self.address.where)
        self._peer = self._listener = None

    def _failure(self, error: OSError) -> LinkError:
        return LinkError(f"The socket {self.address} failed: {(error.strerror or str(error)).lower()}.")

    # --------------------------------------------------------------------------------------------------- reading

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT:
            self._read()

    def _read(self) -> bool:
        """Read once; whether there may be more."""
        peer = self._peer
        if peer is None or not self._events:
            return False
        try:
            data = peer.recv(RECV_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _GONE:
                raise self._failure(error) from None
            data = b""
        if not data:
            self.disconnect()
            return False
        if self._received is not None:
            self._received(data)
        return True

    def drain(self) -> None:
        """Read until there is nothing more, within a bound: what a peer that never stops sends later stays."""
        for _ in range(_DRAIN_READS):
            if not self._read():
                return

    # --------------------------------------------------------------------------------------------------- writing

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Write ``buffers`` one after the other, whole frames all together, or drop all of them where there is no room.

        What the system does not take at once is copied: a view into what another socket brought would keep all of that.
        """
        if not buffers:
            return
        peer = self._peer
        if peer is None or not self._events or len(self._unsent) > MAX_PENDING_BYTES:
            self._drop(buffers)
            return
        if self._unsent:
            self._unsent += b"".join(buffers)
            return
        at = 0
        while at < len(buffers):
            some = buffers if len(buffers) <= _IOV_MAX else buffers[at : at + _IOV_MAX]
            try:
                sent = peer.sendmsg(some)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._write_failed(error)
                return
            at += len(some)
            if sent < sum(map(len, some)):
                self._unsent += memoryview(b"".join(some))[sent:]
                self._unsent += b"".join(buffers[at:])
                self._counters.bump(f"channel.{self.name}.stalled")
                self._watch(select.EPOLLIN | select.EPOLLOUT)
                return

    def _flush(self) -> None:
        """Write more of what was kept."""
        peer = self._peer
        while self._unsent and peer is not None:
            try:
                with memoryview(self._unsent) as view:
                    sent = peer.send(view[:_FLUSH_BYTES])
            except BlockingIOError:
                return
            except OSError as error:
                self._write_failed(error)
                return
            del self._unsent[:sent]
        self._watch(select.EPOLLIN)

    def _write_failed(self, error: OSError) -> None:
        """Of a peer that is gone nothing more need be said: reading meets the end."""
        if error.errno not in _GONE:
            raise self._failure(error) from None
        self._unsent.clear()
        self._watch(select.EPOLLIN)

    def _watch(self, events: int) -> None:
        if self._peer is not None and events != self._events:
            self._events = events
            self._hub.watch(self._peer.fileno(), events, self._ready)

    def _drop(self, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        frames = at = 0
        while at + 4 <= len(data):
            at += self._prefix + int.from_bytes(data[at : at + 4], "big")
            frames += 1
        self._counters.bump(f"channel.{self.name}.dropped", frames)
        self._counters.bump(f"channel.{self.name}.dropped_bytes", len(data))


def _enlarge(sock: socket.socket) -> None:
    """Large buffers, so that a burst, or a machine that is busy for a moment, stalls nobody.

    Without privileges a TCP socket is left to the kernel, whose own tuning goes further than what may be asked for.
    """
    for forced, ordinary in _FORCED:
        try:
            sock.setsockopt(socket.SOL_SOCKET, forced, SOCKET_BUFFER_BYTES)
        except PermissionError:
            if sock.family == socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, ordinary, SOCKET_BUFFER_BYTES)
