"""Stream sockets by address, many of them behind one epoll that asyncio watches: the edge of the `colo` commands.

Nothing here blocks. One wake-up reads everything that is there, on all sockets in turn, before anything is written:
what a wake-up releases leaves with one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self, final

from pystack import Buffer, Counters, LinkError, UsageError
from pystack.link import sockets

RECV_BYTES: Final = 256 << 10
SOCKET_BUFFER_BYTES: Final = 4 << 20
MAX_PENDING_BYTES: Final = 64 << 20
"""What is kept for a peer that does not read; beyond it whole writes are dropped and counted."""

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_ROUNDS: Final = 64
_GONE: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNABORTED, errno.EHOSTUNREACH})


@dataclass(frozen=True, slots=True)
class Address:
    """Where a stream socket is, and whether this side listens there.

    Attributes:
        where: the path of a UNIX socket, or host and port. server: whether to listen and wait.
    """

    where: sockets.Address
    server: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``unix:PATH`` or ``tcp:HOST:PORT``, with ``,server`` behind it to listen.

        Raises:
            UsageError: it is neither.
        """
        body, comma, option = text.rpartition(",")
        if not comma:
            body, option = text, ""
        if option not in ("", "server"):
            raise UsageError(f"{text!r}: after the comma only 'server' is known; write {body},server to listen there.")
        kind, _, rest = body.partition(":")
        if kind == "unix" and rest:
            return cls(rest, option == "server")
        host, _, port = rest.rpartition(":")
        if kind == "tcp" and host and port.isdecimal() and int(port) <= 65_535:
            return cls((host.removeprefix("[").removesuffix("]"), int(port)), option == "server")
        raise UsageError(f"{text!r} is no address: write unix:PATH or tcp:HOST:PORT, and ,server behind it to listen.")

    def __str__(self) -> str:
        return ("" if isinstance(self.where, tuple) else "unix:") + sockets.text(self.where)


@final
class Hub:
    """The one epoll of all channels, and the turn that serves it.

    Args:
        after: called at the end of every turn in which something was read, and when `later` says so.
    """

    def __init__(self, after: Callable[[], None]) -> None:
        self._after = after
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._turn)
        self.failed: asyncio.Future[None] = self._loop.create_future()

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

    def _turn(self) -> None:
        ready = self._ready
        poll = self._epoll.poll
        try:
            for _ in range(_ROUNDS):
                events = poll(0)
                if not events:
                    break
                for fd, happened in events:
                    call = ready.get(fd)
                    if call is not None:
                        call(happened)
                self._after()
        except Exception as error:  # noqa: BLE001 - asyncio would only log it, and the turn would come again at once
            self.fail(error)

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._ready.clear()


@final
class Channel:
    """One stream socket: reads whatever comes, writes what it can and keeps the rest, bounded.

    A server takes one peer at a time and waits for the next when that has gone. A client whose peer goes ends the
    program, as its name will not come back by itself.

    Args:
        received: called with what was read. changed: called with True when a peer has come, with False when it has
        gone. name: for counters: ``channel.<name>.connected``, ``.gone``, ``.dropped`` (writes), ``.dropped_bytes``.
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
    ) -> None:
        self._hub = hub
        self.address = address
        self.name = name
        self._counters = counters
        self._received = received
        self._changed = changed
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._unsent: list[Buffer] = []
        self.pending_bytes = 0
        if address.server:
            self._listener = sockets.listen(address.where)
            hub.watch(self._listener.fileno(), select.EPOLLIN, self._accept)
        else:
            self._attach(sockets.connect(address.where))

    @property
    def connected(self) -> bool:
        """Whether there is a peer."""
        return self._peer is not None

    # -------------------------------------------------------------------------------------------------------- peers

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self._hub.forget(self._listener.fileno())
        self._attach(peer)

    def _attach(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            peer.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._hub.watch(peer.fileno(), select.EPOLLIN, self._ready)
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
        self._unsent.clear()
        self.pending_bytes = 0
        self._counters.bump(f"channel.{self.name}.gone")
        if self._changed is not None:
            self._changed(False)
        if self._listener is not None:
            self._hub.watch(self._listener.fileno(), select.EPOLLIN, self._accept)
        else:
            self._hub.fail(LinkError(f"The other side of {self.address} has gone."))

    def close(self) -> None:
        """Release everything."""
        for sock in (self._peer, self._listener):
            if sock is not None:
                self._hub.forget(sock.fileno())
                sock.close()
        if self._listener is not None:
            sockets.remove(self.address.where)
        self._peer = self._listener = None

    # --------------------------------------------------------------------------------------------------- reading

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT:
            self._read()

    def _read(self) -> bool:
        """Read once; whether there may be more."""
        peer = self._peer
        if peer is None:
            return False
        try:
            data = peer.recv(RECV_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _GONE:
                raise
            data = b""
        if not data:
            self.disconnect()
            return False
        if self._received is not None:
            self._received(data)
        return True

    def drain(self) -> None:
        """Read until there is nothing more, within a bound."""
        for _ in range(_ROUNDS * 16):
            if not self._read():
                return

    # --------------------------------------------------------------------------------------------------- writing

    def send(self, buffers: Sequence[Buffer]) -> None:
        """Write ``buffers`` one after the other; each is whole frames, and is dropped whole if it must be."""
        if not buffers:
            return
        if self._peer is None or self.pending_bytes > MAX_PENDING_BYTES:
            self._counters.bump(f"channel.{self.name}.dropped", len(buffers))
            return
        if self._unsent:
            self._unsent += buffers
            self.pending_bytes += sum(map(len, buffers))
        else:
            self._write(list(buffers))

    def _write(self, buffers: list[Buffer]) -> None:
        peer = self._peer
        at = 0
        while peer is not None and at < len(buffers):
            try:
                sent = peer.sendmsg(buffers[at : at + _IOV_MAX])
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                return  # reading meets the end
            while at < len(buffers) and sent >= len(buffers[at]):
                sent -= len(buffers[at])
                at += 1
            if sent:
                buffers[at] = memoryview(buffers[at])[sent:]
        self._unsent = buffers[at:]
        self.pending_bytes = sum(map(len, self._unsent))
        if peer is not None:
            events = select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)
            self._hub.watch(peer.fileno(), events, self._ready)

    def _flush(self) -> None:
        if self._unsent:
            self._write(self._unsent)
