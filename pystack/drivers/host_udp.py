"""The host's ends of UDP flows, echo requests and DNS queries: one non-blocking socket each, level-triggered.

With IP_RECVERR the kernel keeps the ICMP errors that a socket's datagrams caused, together with their destination
(ip(7)): they are handed to the guest as ICMP errors about its own datagrams.
"""

from __future__ import annotations

import socket
import struct
from abc import ABC, abstractmethod
from errno import EACCES, EPERM, EPROTONOSUPPORT
from select import EPOLLERR, EPOLLIN
from typing import TYPE_CHECKING, Final, NamedTuple, final

from pystack.clock import Micros
from pystack.slirp.dns_forwarder import Transaction
from pystack.slirp.nat import PingFlow, UdpFlow
from pystack.slirp.plan import dotted, packed

if TYPE_CHECKING:
    from pystack.drivers.hostio import HostIO

_TYPE: Final = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
_LARGEST: Final = 65_535
_PER_TURN: Final = 32
"""Datagrams of one socket before the others have their turn."""

_IP_RECVERR: Final = 11  # linux/in.h; the socket module does not name it before Python 3.14
_ERROR: Final = struct.Struct("=IBBBBII")  # struct sock_extended_err (linux/errqueue.h)
_ORIGIN_ICMP: Final = 2
_DEFAULT_TTL: Final = 64
_ECHO: Final = struct.Struct("!BBHHH")
_ECHO_REQUEST: Final = 8
_NO_PING_SOCKETS: Final = frozenset((EACCES, EPERM, EPROTONOSUPPORT))


class IcmpReport(NamedTuple):
    """An ICMP error that the kernel kept: its type, code and second word, who sent it, and what it is about."""

    error: tuple[int, int, int]
    offender: bytes | None
    destination: tuple[bytes, int]
    payload: bytes


def take_report(sock: socket.socket) -> IcmpReport | None:
    """The oldest ICMP error in the socket's error queue; None when the queue is empty. Local errors are skipped."""
    for _ in range(_PER_TURN):
        try:
            payload, ancillary, _, address = sock.recvmsg(_LARGEST, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return None
        for level, kind, data in ancillary:
            if (level, kind) != (socket.IPPROTO_IP, _IP_RECVERR) or len(data) < _ERROR.size:
                continue
            _, origin, icmp_type, code, _, info, _ = _ERROR.unpack_from(data)
            if origin != _ORIGIN_ICMP or not address:
                continue
            # SO_EE_OFFENDER: a sockaddr_in behind the structure.
            offender = data[_ERROR.size + 4 : _ERROR.size + 8]
            host, port = address[:2]
            destination = packed(host), int(port)
            return IcmpReport((icmp_type, code, info), offender if len(offender) == 4 else None, destination, payload)
    return None


def _open(protocol: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET, _TYPE, protocol)
    try:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    except OSError:
        sock.close()
        raise
    return sock


class _Sender(ABC):
    """What UDP and ping sockets share: a TTL that follows the guest's, and errors that belong to earlier datagrams."""

    __slots__ = ("_fd", "_io", "_sock", "_ttl")

    def __init__(self, io: HostIO, sock: socket.socket) -> None:
        self._io = io
        self._sock = sock
        self._fd = sock.fileno()
        self._ttl = _DEFAULT_TTL

    def _send(self, payload: bytes, to: tuple[str, int], ttl: int, now: Micros) -> int:
        """Send, and return the errno of what prevented it, 0 for nothing."""
        number = 0
        for _ in range(2):
            try:
                if ttl != self._ttl:
                    self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                    self._ttl = ttl
                self._sock.sendto(payload, to)
                return 0
            except BlockingIOError:
                self._io.gateway.counters.bump("host.send_buffer_full")
                return 0
            except OSError as error:
                # It may be the error of an earlier datagram, which is reported once: then the second try succeeds.
                number = error.errno or 0
                self._report_errors(now)
        return number

    @abstractmethod
    def _report_errors(self, now: Micros) -> None:
        """Hand on what the socket's error queue holds."""

    def _close(self) -> None:
        self._io.forget(self._fd)
        self._sock.close()


@final
class UdpSocket(_Sender):
    """The socket of a UDP flow, whatever it talks to. Raises OSError when the system refuses one."""

    __slots__ = ("_flow",)

    def __init__(self, io: HostIO, flow: UdpFlow) -> None:
        super().__init__(io, _open())
        self._flow = flow
        flow.host = self
        io.register(self._fd, EPOLLIN, self)

    def send(self, address: bytes, port: int, ttl: int, payload: bytes, now: Micros) -> None:
        """Send one datagram, which may be empty."""
        number = self._send(payload, (dotted(address), port), ttl, now)
        if number:
            self._io.gateway.udp.send_failed(self._flow, (address, port), number, payload, now)

    def on_events(self, events: int, now: Micros) -> None:
        """The epoll reports ``events``."""
        if events & EPOLLERR:
            self._report_errors(now)
        nat, flow, recvfrom = self._io.gateway.udp, self._flow, self._sock.recvfrom
        for _ in range(_PER_TURN):
            try:
                data, (host, port) = recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # what the error queue has told; it is cleared by being returned
            nat.received(flow, data, (packed(host), port), now)

    def close(self) -> None:
        """Close the socket."""
        self._flow.host = None
        self._close()

    def _report_errors(self, now: Micros) -> None:
        while (report := take_report(self._sock)) is not None:
            self._io.gateway.udp.icmp_error(
                self._flow, report.destination, report.error, report.offender, report.payload, now
            )


@final
class PingSocket(_Sender):
    """The ping socket of an echo identifier. Raises OSError when the system refuses one."""

    __slots__ = ("_flow",)

    def __init__(self, io: HostIO, flow: PingFlow) -> None:
        super().__init__(io, _open(socket.IPPROTO_ICMP))
        self._flow = flow
        flow.host = self
        io.register(self._fd, EPOLLIN, self)

    def send(self, address: bytes, seq: int, ttl: int, payload: bytes, now: Micros) -> None:
        """Send one echo request; the kernel fills in its identifier and the checksum."""
        message = _ECHO.pack(_ECHO_REQUEST, 0, 0, 0, seq) + payload
        number = self._send(message, (dotted(address), 0), ttl, now)
        if number:
            self._io.gateway.ping.send_failed(self._flow, address, seq, number, payload, now)

    def on_events(self, events: int, now: Micros) -> None:
        """The epoll reports ``events``."""
        if events & EPOLLERR:
            self._report_errors(now)
        for _ in range(_PER_TURN):
            try:
                message, (host, _) = self._sock.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue
            if len(message) >= _ECHO.size:
                _, _, _, _, seq = _ECHO.unpack_from(message)
                self._io.gateway.ping.reply(self._flow, packed(host), seq, message[_ECHO.size :], now)

    def close(self) -> None:
        """Close the socket."""
        self._flow.host = None
        self._close()

    def _report_errors(self, now: Micros) -> None:
        while (report := take_report(self._sock)) is not None:
            if len(report.payload) >= _ECHO.size:
                _, _, _, _, seq = _ECHO.unpack_from(report.payload)
                payload = report.payload[_ECHO.size :]
                self._io.gateway.ping.icmp_error(
                    self._flow, report.destination[0], seq, report.error, report.offender, payload, now
                )


def ping(io: HostIO, flow: PingFlow, request: tuple[bytes, int, int, bytes], now: Micros) -> None:
    """Send an echo request (address, sequence number, TTL, payload), from a socket made for the flow if need be."""
    sock = flow.host
    if sock is None:
        try:
            sock = PingSocket(io, flow)
        except OSError as error:
            address, seq, _, payload = request
            if error.errno in _NO_PING_SOCKETS:
                io.gateway.ping.unavailable(flow, address, seq, payload, now)
            else:
                io.gateway.ping.send_failed(flow, address, seq, error.errno or 0, payload, now)
            return
    assert isinstance(sock, PingSocket)
    sock.send(*request, now)


@final
class DnsSocket:
    """A socket for one question to one resolver: a source port that nobody can know before (RFC 5452 section 9.2)."""

    __slots__ = ("_fd", "_io", "_sock", "_transaction")

    def __init__(self, io: HostIO, transaction: Transaction) -> None:
        address, port = transaction.resolver
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        self._io = io
        self._transaction = transaction
        self._sock = socket.socket(family, _TYPE)
        try:
            self._sock.connect((socket.inet_ntop(family, address), port))
        except OSError:
            self._sock.close()
            raise
        self._fd = self._sock.fileno()
        transaction.host = self
        io.register(self._fd, EPOLLIN, self)

    def send(self, message: bytes) -> None:
        """Send a question. Raises OSError when the kernel knows that it is in vain."""
        self._sock.send(message)

    def on_events(self, _events: int, now: Micros) -> None:
        """The epoll reports something: an answer, or that the resolver is not there."""
        try:
            message = self._sock.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            self._io.gateway.dns_failed(self._transaction, now)
            return
        self._io.gateway.dns_reply(self._transaction, message, now)

    def close(self) -> None:
        """Close the socket."""
        self._transaction.host = None
        self._io.forget(self._fd)
        self._sock.close()


def ask(io: HostIO, transaction: Transaction, message: bytes, now: Micros) -> None:
    """Send a question to its resolver, from a socket made for it if need be."""
    sock = transaction.host
    try:
        if sock is None:
            sock = DnsSocket(io, transaction)
        assert isinstance(sock, DnsSocket)
        sock.send(message)
    except BlockingIOError:
        io.gateway.counters.bump("host.send_buffer_full")  # it is asked again in a while
    except OSError:
        io.gateway.dns_failed(transaction, now)
