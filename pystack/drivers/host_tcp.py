"""The host's end of a TCP flow: one non-blocking socket, registered once, edge-triggered.

Every socket is registered when it is made and its interest hardly changes after that: no `epoll_ctl` is spent on
opening and closing windows, and a socket that hung up cannot wake us again and again while the guest's window is
closed, which is how others came to burn a whole core. The price is to remember what an edge has said: `readable` and
`writable`.

What an edge means, so that none is missed (epoll(7), "edge-triggered"): a short read or write ends one. A stream whose
peer has finished, failed or sent urgent data is read until the kernel says that there is nothing more, since its short
read can have another reason.
"""

from __future__ import annotations

import socket
import struct
from errno import ECONNRESET, EINPROGRESS, EIO
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP
from typing import TYPE_CHECKING, Final, final

from pystack.clock import Micros
from pystack.slirp.nat import TcpFlow
from pystack.slirp.plan import dotted

if TYPE_CHECKING:
    from pystack.drivers.hostio import HostIO

_CONNECTED: Final = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET
_DIALING: Final = _CONNECTED | EPOLLOUT
_INCOMING: Final = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLHUP | EPOLLERR
_READ_TO_THE_END: Final = EPOLLRDHUP | EPOLLPRI | EPOLLHUP | EPOLLERR

_READ_PER_TURN_BYTES: Final = 1 << 20
"""What one socket brings before the others have their turn."""
_IOV: Final = 1024  # what `Connection.peek` gives at most, and what one sendmsg takes (UIO_MAXIOV)
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: on, without a delay: close() sends an RST
_TYPE: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


def dial(io: HostIO, flow: TcpFlow, now: Micros) -> None:
    """Start connecting to ``flow.address``; the gateway hears of the outcome, at once if there is one."""
    try:
        sock = socket.socket(socket.AF_INET if len(flow.address) == 4 else socket.AF_INET6, _TYPE)
    except OSError as error:
        io.gateway.tcp.dial_failed(flow, error.errno or EIO, now)
        return
    number = sock.connect_ex((_text(flow.address), flow.port))
    if number in (0, EINPROGRESS):
        try:
            TcpSocket(io, flow, sock, dialing=number != 0)
        except OSError as error:
            number = error.errno or EIO
    if number == 0:
        io.gateway.tcp.dialled(flow, now)
    elif number != EINPROGRESS:
        sock.close()
        io.gateway.tcp.dial_failed(flow, number, now)


def _text(address: bytes) -> str:
    return dotted(address) if len(address) == 4 else socket.inet_ntop(socket.AF_INET6, address)


@final
class TcpSocket:
    """One socket, known to its flow as ``flow.host`` and to the epoll by its descriptor.

    Attributes:
        dialing: the connection is not established yet.
        readable: an edge said that there is something to read, and it was not all read.
        writable: the kernel's buffer was not found full since the last edge.
        to_the_end: a short read does not prove that everything was read.
        failed: writing failed; what the host had sent before is still to be read.
    """

    __slots__ = (
        "_events", "_fd", "_flow", "_io", "_recv", "_send", "_sock", "dialing", "failed", "readable", "to_the_end",
        "writable",
    )  # fmt: skip

    def __init__(self, io: HostIO, flow: TcpFlow, sock: socket.socket, *, dialing: bool) -> None:
        self._io = io
        self._flow = flow
        self._sock = sock
        self._fd = sock.fileno()
        self._recv = sock.recv
        self._send = sock.send
        self.dialing = dialing
        self.readable = False
        self.writable = not dialing
        self.to_the_end = False
        self.failed = False
        # The other side decided what a segment is. What is urgent is one byte of the stream (RFC 6093).
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._events = _DIALING if dialing else _CONNECTED
        io.register(self._fd, self._events, self)
        flow.host = self

    # ------------------------------------------------------------------------------------------ what the kernel says

    def on_events(self, events: int, now: Micros) -> None:
        """The epoll reports ``events``."""
        if self.dialing and not self._is_connected(now):
            return
        if events & EPOLLOUT and not self.writable and not self.failed:
            self.writable = True
            self.write(now)
        if events & _INCOMING and self._flow.host is self:
            self.readable = True
            if events & _READ_TO_THE_END:
                self.to_the_end = True
            self.read(now)

    def _is_connected(self, now: Micros) -> bool:
        """The dial was decided, SO_ERROR says how. The same edge may bring what the other side said first."""
        number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number not in (0, ECONNRESET):
            self.close()
            self._io.gateway.tcp.dial_failed(self._flow, number, now)
            return False
        self.dialing = False
        self.writable = True
        self._io.gateway.tcp.dialled(self._flow, now)
        if number:
            # It was connected, and reset before we looked: a refusal would have been another number.
            self._fail_to_write(now)
        return not number

    # ------------------------------------------------------------------------------------------ what the gateway asks

    def read(self, now: Micros) -> None:
        """Carry what came from the host to the guest, as far as the guest's side has space."""
        if not self.readable:
            return
        nat, flow, recv = self._io.gateway.tcp, self._flow, self._recv
        taken = 0
        while taken < _READ_PER_TURN_BYTES:
            space = nat.host_space(flow)
            if not space:
                return  # a READ follows
            try:
                data = recv(space)
            except BlockingIOError:
                self.readable = False
                return
            except OSError:
                self._broken(now)
                return
            if not data:
                if self.failed:
                    self._broken(now)
                    return
                self.readable = False
                nat.host_eof(flow, now)
                return
            taken += len(data)
            nat.host_data(flow, data, now)
            if len(data) < space and not self.to_the_end:
                self.readable = False
                return
        self._io.modify(self._fd, self._events)  # makes a new edge of what is left

    def write(self, now: Micros) -> None:
        """Carry what waits in ``flow.conn`` to the host, as far as the kernel takes it."""
        if not self.writable:
            return
        flow = self._flow
        conn = flow.conn
        while waiting := conn.readable:
            chunks = conn.peek(_IOV)
            try:
                n = self._send(chunks[0]) if len(chunks) == 1 else self._sock.sendmsg(chunks)
            except BlockingIOError:
                self._wait_to_write()
                return
            except OSError:
                self._fail_to_write(now)
                return
            self._io.gateway.tcp.written(flow, n, now)
            if n < waiting and len(chunks) < _IOV:
                self._wait_to_write()
                return

    def _wait_to_write(self) -> None:
        self.writable = False
        if not self._events & EPOLLOUT:
            self._events |= EPOLLOUT
            self._io.modify(self._fd, self._events)

    def _fail_to_write(self, now: Micros) -> None:
        """The connection is over. The kernel still has what came before: the reason, perhaps, why it was ended."""
        self.writable = False
        self.failed = self.readable = self.to_the_end = True
        self.read(now)

    def _broken(self, now: Micros) -> None:
        """The connection is over, and not in an orderly way: an RST, or retransmissions without an answer."""
        self.close()
        self._io.gateway.tcp.host_reset(self._flow, now)

    def shutdown(self) -> None:
        """Send a FIN after what was written."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._io.gateway.counters.bump("host.shutdown_failed")  # an edge tells why, or has told already

    def close(self, *, reset: bool = False) -> None:
        """Close, by an RST if ``reset``. The kernel forgets the registration with the descriptor."""
        if reset:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._flow.host = None
        self._io.forget(self._fd)
        self._sock.close()
