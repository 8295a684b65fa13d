"""Published ports: the host's listening sockets, whose connections and datagrams go to the guest."""

from __future__ import annotations

import os
import socket
import struct
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL, EMFILE, ENFILE, EPERM
from select import EPOLLET, EPOLLIN
from typing import TYPE_CHECKING, Final, final

from pystack.clock import Micros
from pystack.drivers.host_tcp import TcpSocket
from pystack.errors import UsageError
from pystack.slirp.forwards import Publish
from pystack.slirp.nat import InboundPeer
from pystack.slirp.plan import dotted, packed

if TYPE_CHECKING:
    from pystack.drivers.hostio import HostIO

_BACKLOG: Final = 1024
_PER_TURN: Final = 64
_EDGE: Final = EPOLLIN | EPOLLET
_LARGEST: Final = 65_535
_PKTINFO: Final = struct.Struct("=I4s4s")  # struct in_pktinfo: interface, local address, destination
_IP_PKTINFO: Final = 8  # linux/in.h; the socket module does not name it before Python 3.14
_LINGER_RESET: Final = struct.pack("ii", 1, 0)


def listening_socket(publish: Publish) -> socket.socket:
    """A socket bound to the published port (and, for TCP, listening).

    Raises:
        UsageError: the port is taken, not allowed, or the address is not the host's.
    """
    kind = socket.SOCK_DGRAM if publish.udp else socket.SOCK_STREAM
    sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        if publish.udp:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((dotted(publish.address), publish.host_port))
        if not publish.udp:
            sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise UsageError(_why(publish, error)) from None
    return sock


def _why(publish: Publish, error: OSError) -> str:
    where = f"port {publish.host_port}/{'udp' if publish.udp else 'tcp'} of {dotted(publish.address)}"
    if error.errno == EADDRINUSE:
        return f"Cannot publish {where}: it is taken, so choose another one or stop what uses it."
    if error.errno in (EACCES, EPERM):
        return f"Cannot publish {where}: only root may listen there, so choose a port from 1024 on."
    if error.errno == EADDRNOTAVAIL:
        return f"Cannot publish {where}: this host does not have that address, so choose one of its own."
    return f"Cannot publish {where}: {os.strerror(error.errno or 0)}."


@final
class PublishedTcp:
    """A listening socket. Raises UsageError when the port is not to be had.

    Edge-triggered, so that a connection that cannot be accepted for want of descriptors wakes nobody twice.
    """

    __slots__ = ("_fd", "_io", "_publish", "_sock", "_spare")

    def __init__(self, io: HostIO, publish: Publish) -> None:
        self._io = io
        self._publish = publish
        self._sock = listening_socket(publish)
        self._fd = self._sock.fileno()
        self._spare = _spare_descriptor()
        io.register(self._fd, _EDGE, self)

    def on_events(self, _events: int, now: Micros) -> None:
        """Accept who has come."""
        for _ in range(_PER_TURN):
            try:
                sock, (host, port) = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (EMFILE, ENFILE) and not self._turn_away():
                    return
                continue  # whoever it was has gone again (ECONNABORTED and the like, accept(2))
            self._take(sock, (packed(host), port), now)
        self._io.modify(self._fd, _EDGE)  # makes a new edge of what is left

    def _take(self, sock: socket.socket, peer: tuple[bytes, int], now: Micros) -> None:
        sock.setblocking(False)
        flow = self._io.gateway.inbound(self._publish, peer, now)
        if flow is None:
            _reset(sock)
            return
        try:
            TcpSocket(self._io, flow, sock, dialing=False)
        except OSError:
            _reset(sock)
            self._io.gateway.tcp.host_reset(flow, now)

    def _turn_away(self) -> bool:
        """No descriptor is left: use the spare one to end a connection, whose client else would wait for ever.

        Returns:
            Whether there was one to end; if not, the next one to come is the next edge.
        """
        self._io.gateway.counters.bump("host.no_descriptors")
        if self._spare >= 0:
            os.close(self._spare)
        try:
            sock, _ = self._sock.accept()
            _reset(sock)
        except OSError:
            return False
        finally:
            self._spare = _spare_descriptor()
        return True

    def close(self) -> None:
        """Stop listening."""
        self._io.forget(self._fd)
        self._sock.close()
        if self._spare >= 0:
            os.close(self._spare)


def _spare_descriptor() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


@final
class PublishedUdp:
    """A bound socket that all peers of a published UDP port share. Raises UsageError when the port is not to be had.

    With IP_PKTINFO an answer leaves from the address that its peer had sent to, whichever of the host's that was.
    """

    __slots__ = ("_fd", "_io", "_publish", "_sock")

    def __init__(self, io: HostIO, publish: Publish) -> None:
        self._io = io
        self._publish = publish
        self._sock = listening_socket(publish)
        self._fd = self._sock.fileno()
        io.register(self._fd, EPOLLIN, self)

    def on_events(self, _events: int, now: Micros) -> None:
        """Take what has come."""
        for _ in range(_PER_TURN):
            try:
                data, ancillary, _, (host, port) = self._sock.recvmsg(_LARGEST, 64)
            except BlockingIOError:
                return
            except OSError:
                continue
            peer = self._io.gateway.inbound_datagram(self._publish, (packed(host), port), data, now)
            if peer is not None and ancillary:
                interface, local, _ = _PKTINFO.unpack_from(ancillary[0][2])
                peer.host = _PKTINFO.pack(interface, local, local)

    def send(self, peer: InboundPeer, payload: bytes) -> None:
        """Send the guest's answer to ``peer``."""
        info = [(socket.IPPROTO_IP, _IP_PKTINFO, peer.host)] if isinstance(peer.host, bytes) else []
        try:
            self._sock.sendmsg([payload], info, 0, (dotted(peer.host_address), peer.host_port))
        except OSError:
            self._io.gateway.counters.bump("host.udp_not_sent")

    def close(self) -> None:
        """Close the socket."""
        self._io.forget(self._fd)
        self._sock.close()
