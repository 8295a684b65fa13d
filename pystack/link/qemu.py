"""A QEMU guest's network card over a stream socket: ``-netdev stream`` (and the older ``socket``), server or client.

The framing is in `pystack.link.qemu_framing`. QEMU gives such a network card no virtio_net_hdr, so frames are ordinary
ones of at most the MTU with complete checksums.

    qemu-system-x86_64 -netdev stream,id=n0,server=off,addr.type=unix,addr.path=PATH -device virtio-net,netdev=n0
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import sys
import termios
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Final, Self, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.errors import LinkClosed, LinkError
from pystack.frame import Buffer, LinkInfo, TxFrame
from pystack.link import qemu_framing, sockets
from pystack.link.memory import ETHERNET

_RECV_BYTES: Final = 256 << 10
_SHORT: Final = 4096
_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_PAST: Final[Micros] = 0
_GONE: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ECONNABORTED, errno.EHOSTUNREACH})


@final
class QemuLink:
    """One QEMU at a time at the other end of a stream socket.

    A server waits for a peer, drops what is sent meanwhile (as a card without a cable does), and waits again when the
    peer has gone; a second one is kept waiting until then. A client ends with its connection.

    A peer that announces a frame that is too long, or a virtio_net_hdr of another length than `LinkInfo.vnet_hdr_len`
    says, is disconnected. When a peer does not read, at most one frame is held for it, and `send` accepts no more.

    The descriptor is that of an epoll of its own, which stands for the listening socket and for the connection: it
    never changes, and is *readable* also when a connection that was full can be written again.

    Attributes:
        counters: ``qemu.connected``, ``qemu.disconnected``, ``qemu.too_long``, ``qemu.bad_vnet_hdr_len``,
            ``qemu.empty``, ``qemu.cut``, ``qemu.tx_no_peer``, ``qemu.tx_too_long``.
    """

    def __init__(
        self,
        info: LinkInfo,
        counters: Counters | None,
        listener: socket.socket | None,
        peer: socket.socket | None,
        address: sockets.Address,
    ) -> None:
        """Use `listen` or `connect`."""
        self._info = info
        self.counters = Counters() if counters is None else counters
        self._vnet_hdr_len = info.vnet_hdr_len or None
        self._epoll = select.epoll()
        self._listener = listener
        self._address = address
        self._peer: socket.socket | None = None
        self._decoder = qemu_framing.FrameDecoder()
        self._ready: deque[bytes] = deque()  # decoded, and not asked for yet
        self._unsent = b""  # the rest of the last frame that was accepted
        self._refused = False  # the last `send` met a full socket
        self._events = 0  # what the epoll waits for on the connection
        self._unread = 0  # bytes that were in the socket when `mark` was called
        self._marked = False
        self._cut = False  # the frame whose start was read before the mark, and whose end was not, is of no interest
        if listener is not None:
            self._epoll.register(listener.fileno(), select.EPOLLIN)
        if peer is not None:
            self._attach(peer)

    @classmethod
    def listen(cls, address: sockets.Address, *, info: LinkInfo = ETHERNET, counters: Counters | None = None) -> Self:
        """Serve QEMU's ``server=off`` at ``address``; see `pystack.link.sockets.listen`.

        Args:
            address: the path of a UNIX socket, or host and port.
            info: with a ``vnet_hdr_len``, the framing is that of ``vnet_hdr_support``.
            counters: where to count; a set of its own by default.

        Raises:
            UsageError: the address cannot be had.
        """
        return cls(info, counters, sockets.listen(address), None, address)

    @classmethod
    def connect(cls, address: sockets.Address, *, info: LinkInfo = ETHERNET, counters: Counters | None = None) -> Self:
        """Connect to QEMU's ``server=on`` at ``address``; the arguments are those of `listen`.

        Raises:
            UsageError: nobody listens there.
        """
        return cls(info, counters, None, sockets.connect(address), address)

    @property
    def info(self) -> LinkInfo:
        """What the link was made with."""
        return self._info

    @property
    def address(self) -> sockets.Address:
        """Where a server listens, with the port that the system chose; where a client connected to."""
        if self._listener is not None and isinstance(self._address, tuple):
            host, port = self._listener.getsockname()[:2]
            return (host, port)
        return self._address

    @property
    def connected(self) -> bool:
        """Whether there is a peer."""
        return self._peer is not None

    @property
    def _ended(self) -> bool:
        return self._peer is None and self._listener is None

    def fileno(self) -> int:
        """The descriptor of the link's epoll, -1 once closed."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def peer_fileno(self) -> int:
        """The descriptor of the connection itself, -1 while there is none; it changes with the peer.

        For whoever would spare an epoll within an epoll: look at it again after each `recv`, and have `send` called,
        with nothing perhaps, when it is writable and either `wants_write` or a frame was refused.
        """
        return -1 if self._peer is None else self._peer.fileno()

    # ---------------------------------------------------------------------------------------------------- receiving

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:  # noqa: ARG002  (the protocol's)
        """Up to ``limit`` frames; see `pystack.link.base.Link.recv`. Also accepts a peer, and flushes what it left."""
        if self._unsent or self._refused:
            self._flush()
        ready = self._ready
        if len(ready) < limit:
            self._fill()
        if not ready and self._ended:
            raise LinkClosed(f"The connection to {sockets.text(self._address)} is closed.")
        if len(ready) > limit:
            return [ready.popleft() for _ in range(limit)]
        frames = list(ready)
        ready.clear()
        return frames

    def _fill(self) -> None:
        peer = self._peer or self._accept()
        if peer is None:
            return
        try:
            data = peer.recv(_RECV_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _GONE:
                raise self._failure(error) from None
            data = b""
        if data:
            self._decode(data)
        else:
            self._detach("qemu.disconnected")

    def _decode(self, data: bytes) -> None:
        expected = self._info.vnet_hdr_len
        for vnet_hdr_len, frame in self._decoder.feed(data):
            if vnet_hdr_len != expected:
                self._detach("qemu.bad_vnet_hdr_len")
                return
            if self._cut:
                self._cut = False
                self.counters.bump("qemu.cut")
            elif frame:
                self._ready.append(frame)
            else:
                self.counters.bump("qemu.empty")
        if self._decoder.error is not None:
            self._detach(self._decoder.error.reason)

    def mark(self) -> None:
        """Draw a line behind everything that the peer has sent by now. Nothing is read: what it cannot send, it cannot.

        A QEMU that stands still writes into its guest's memory when it becomes able to send what waits in it.
        """
        self._marked = True
        self._unread = 0
        peer = self._peer or self._accept()
        if peer is not None:
            count = bytearray(4)
            fcntl.ioctl(peer.fileno(), termios.FIONREAD, count)
            self._unread = int.from_bytes(count, sys.byteorder)

    def recv_to_mark(self, *, drop_cut: bool) -> list[bytes]:
        """Every frame that ends before the line drawn by `mark`, which is erased; none when there is no line.

        Args:
            drop_cut: whether a frame that begins before it and ends behind it is dropped; if not, it counts as behind.
        """
        if not self._marked:
            return []
        while self._unread and self._peer is not None:
            try:
                data = self._peer.recv(min(self._unread, _RECV_BYTES))
            except OSError:
                break  # the next `recv` meets it again
            if not data:
                break
            self._unread -= len(data)
            self._decode(data)
        self._marked, self._unread = False, 0
        self._cut = drop_cut and self._decoder.buffered > 0
        frames = list(self._ready)
        self._ready.clear()
        return frames

    # ------------------------------------------------------------------------------------------------------ sending

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:  # noqa: ARG002  (the protocol's)
        """Write ``frames``, many in one system call; see `pystack.link.base.Link.send`."""
        peer = self._peer
        if peer is None:
            if self._ended:
                raise LinkClosed(f"The connection to {sockets.text(self._address)} is closed.")
            self.counters.bump("qemu.tx_no_peer", len(frames))
            return len(frames)
        if self._unsent:
            self._flush()
        sent = 0
        if len(frames) == 1 and not self._unsent and len(frames[0]) == 1 and len(frames[0][0]) <= _SHORT:
            sent = self._send_one(peer, frames[0][0])
        while sent < len(frames) and not self._unsent:
            accepted = self._send_some(peer, frames[sent:])
            if not accepted:
                break
            sent += accepted
        self._refused = sent < len(frames)
        self._watch()
        return sent

    def _send_one(self, peer: socket.socket, frame: Buffer) -> int:
        """Write one short frame: joined with its header it costs less than a vector of two. Returns as `_send_some`."""
        data = qemu_framing.header(len(frame), self._vnet_hdr_len) + frame
        try:
            written = peer.send(data)
        except OSError:
            return 0  # the ordinary way meets it again
        self._unsent = data[written:]
        return 1

    def _send_some(self, peer: socket.socket, frames: Sequence[TxFrame]) -> int:
        """Write as many as one system call takes; how many were accepted, the last perhaps with a rest in `_unsent`."""
        buffers: list[Buffer] = []
        ends: list[int] = []  # where each frame ends in what is written
        total = 0
        for frame in frames:
            pieces: TxFrame = frame if len(frame) < _IOV_MAX else (b"".join(frame),)
            length = sum(map(len, pieces))
            if length > qemu_framing.MAX_FRAME_BYTES and not ends:
                self.counters.bump("qemu.tx_too_long")
                return 1
            if length > qemu_framing.MAX_FRAME_BYTES or len(buffers) + len(pieces) >= _IOV_MAX:
                break
            header = qemu_framing.header(length, self._vnet_hdr_len)
            buffers.append(header)
            buffers.extend(pieces)
            total += len(header) + length
            ends.append(total)
        written = self._write(peer, buffers)
        whole = bisect_right(ends, written)
        start = ends[whole - 1] if whole else 0
        if written == start:
            return whole
        frame_bytes = qemu_framing.encode(b"".join(frames[whole]), self._vnet_hdr_len)
        self._unsent = frame_bytes[written - start :]
        return whole + 1

    def _write(self, peer: socket.socket, buffers: Sequence[Buffer]) -> int:
        try:
            return peer.sendmsg(buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno not in _GONE:
                raise self._failure(error) from None
            # What the peer sent before it went is still to be read, and then `recv` meets the end: until then it drops.
            self.counters.bump("qemu.tx_no_peer")
            return sum(map(len, buffers))

    def _flush(self) -> None:
        """Write what is left of a frame, and find out whether there is room for more."""
        if self._peer is None:
            return
        if self._unsent:
            self._unsent = self._unsent[self._write(self._peer, [self._unsent]) :]
        if not self._unsent and self._refused:
            self._refused = not any(events & ~select.EPOLLIN for _, events in self._epoll.poll(0))
        self._watch()

    def wants_write(self) -> bool:
        """Whether the rest of a frame waits until the peer reads."""
        return bool(self._unsent)

    def next_timeout(self) -> Micros | None:
        """At once while frames were decoded and not asked for yet: the descriptor does not tell of them."""
        return _PAST if self._ready else None

    # --------------------------------------------------------------------------------------------------- connections

    def _accept(self) -> socket.socket | None:
        if self._listener is None:
            return None
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        except OSError as error:
            raise self._failure(error) from None
        self._epoll.unregister(self._listener.fileno())
        self._attach(peer)
        return peer

    def _attach(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peer = peer
        self._decoder = qemu_framing.FrameDecoder(vnet_hdr=self._vnet_hdr_len is not None)
        self._cut = False
        self._events = select.EPOLLIN
        self._epoll.register(peer.fileno(), self._events)
        self.counters.bump("qemu.connected")

    def _detach(self, reason: str) -> None:
        """Part with the peer, and wait for the next if this is a server."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        self.counters.bump(reason)
        self._epoll.unregister(peer.fileno())
        peer.close()
        self._unsent, self._refused = b"", False
        if self._listener is not None:
            self._epoll.register(self._listener.fileno(), select.EPOLLIN)

    def _watch(self) -> None:
        """Have the epoll wait for room while something is kept from the peer."""
        events = select.EPOLLIN | (select.EPOLLOUT if self._unsent or self._refused else 0)
        if self._peer is not None and events != self._events:
            self._events = events
            self._epoll.modify(self._peer.fileno(), events)

    def _failure(self, error: OSError) -> LinkError:
        reason = (error.strerror or str(error)).lower()
        return LinkError(f"The socket {sockets.text(self._address)} failed: {reason}.")

    def close(self) -> None:
        """Close the connection and the listening socket, and remove its file."""
        if self._epoll.closed:
            return
        if self._peer is not None:
            self._peer.close()
            self._peer = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            sockets.remove(self._address)
        self._ready.clear()
        self._epoll.close()
