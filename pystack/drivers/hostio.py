"""The host side of a gateway: carries out its requests on real, non-blocking sockets, and tells it what they did.

All sockets stand in one epoll of our own, whose descriptor is all that the event loop knows of them. `HostIO.serve` is
called whenever that is readable and after every batch of frames; it never waits.
"""

from __future__ import annotations

import contextlib
import resource
import select
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, final

from pystack.clock import SECOND, Micros
from pystack.drivers import host_tcp, host_udp
from pystack.drivers.host_published import PublishedTcp, PublishedUdp
from pystack.drivers.host_tcp import TcpSocket
from pystack.drivers.host_udp import UdpSocket
from pystack.drivers.resolvers import ResolvConf
from pystack.slirp import requests as op
from pystack.slirp.forwards import Publish
from pystack.slirp.gateway import Gateway
from pystack.slirp.nat import UdpFlow
from pystack.slirp.requests import HostRequest

_EVENTS_PER_TURN: Final = 256
_ROUNDS: Final = 16
"""How often what arises from carrying out requests is carried out in one turn: a failed dial may ask for another."""
_LOOK_EVERY: Final[Micros] = SECOND


class Source(Protocol):
    """What stands behind a descriptor."""

    def on_events(self, events: int, now: Micros) -> None:
        """The epoll reports ``events``."""

    def close(self) -> None:
        """Close the descriptor."""


def raise_file_limit() -> None:
    """Let this process have as many descriptors as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@final
class HostIO:
    """The sockets of one gateway.

    Args:
        gateway: whose requests to carry out.
        publish: ports of the host that lead to the guest.
        resolv_conf: names the host's resolvers, and is watched; None leaves the gateway's own as they are.

    Raises:
        UsageError: a published port is not to be had.
    """

    def __init__(self, gateway: Gateway, *, publish: Sequence[Publish] = (), resolv_conf: Path | None = None) -> None:
        self.gateway: Final = gateway
        raise_file_limit()
        self._epoll = select.epoll()
        self._sources: dict[int, Source] = {}
        self._published_udp: dict[Publish, PublishedUdp] = {}
        self._resolv_conf = ResolvConf(resolv_conf) if resolv_conf is not None else None
        self._look_at: Micros = 0
        self._look_at_resolvers(0)
        try:
            for port in publish:
                if port.udp:
                    self._published_udp[port] = PublishedUdp(self, port)
                else:
                    PublishedTcp(self, port)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------------------------ for the driver

    def fileno(self) -> int:
        """A descriptor that is readable when `serve` has something to do."""
        return self._epoll.fileno()

    def serve(self, now: Micros) -> None:
        """Carry out what the gateway requests, and tell it what the host's sockets have to say."""
        if now >= self._look_at:
            self._look_at_resolvers(now)
        self.poll(now)
        for _ in range(_ROUNDS):
            requests = self.gateway.requests()
            if not requests:
                return
            self.perform(requests, now)

    def poll(self, now: Micros) -> None:
        """Tell the gateway what the sockets have to say."""
        source_of = self._sources.get
        for fd, events in self._epoll.poll(0, _EVENTS_PER_TURN):
            # A source closes no descriptor but its own while it is told, so a number cannot have changed hands.
            source = source_of(fd)
            if source is not None:
                source.on_events(events, now)

    def perform(self, requests: Sequence[HostRequest], now: Micros) -> None:
        """Carry out ``requests`` in their order. One about a socket that is gone meanwhile is done already."""
        for operation, flow, argument in requests:
            host = flow.host
            if operation == op.WRITE:
                if host is not None:
                    host.write(now)
            elif operation == op.READ:
                if host is not None:
                    host.read(now)
            elif operation == op.DIAL:
                host_tcp.dial(self, flow, now)
            elif operation in _TCP_ENDS:
                if host is not None:
                    _end(host, operation)
            elif operation == op.UDP_SEND:
                self._send_udp(flow, argument, now)
            elif operation == op.DNS_QUERY:
                host_udp.ask(self, flow, argument, now)
            elif operation == op.PING_SEND:
                host_udp.ping(self, flow, argument, now)
            elif operation == op.INBOUND_SEND:
                self._published_udp[flow.publish].send(flow, argument)
            elif host is not None:
                host.close()

    def close(self) -> None:
        """Close every socket. Idempotent."""
        for source in list(self._sources.values()):
            source.close()
        self._epoll.close()

    # ---------------------------------------------------------------------------------------------- for the sockets

    def register(self, fd: int, events: int, source: Source) -> None:
        """Report ``events`` of ``fd`` to ``source``. Raises OSError when the kernel has no room."""
        self._epoll.register(fd, events)
        self._sources[fd] = source

    def modify(self, fd: int, events: int) -> None:
        """Report ``events`` from now on, and at once what is true of them already."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """``fd`` is about to be closed, which takes it out of the epoll."""
        self._sources.pop(fd, None)

    # ------------------------------------------------------------------------------------------------------ the rest

    def _send_udp(self, flow: UdpFlow, argument: tuple[bytes, int, int, bytes], now: Micros) -> None:
        sock = flow.host
        if sock is None:
            try:
                sock = UdpSocket(self, flow)
            except OSError as error:
                address, port, _, payload = argument
                self.gateway.udp.send_failed(flow, (address, port), error.errno or 0, payload, now)
                return
        assert isinstance(sock, UdpSocket)
        sock.send(*argument, now)

    def _look_at_resolvers(self, now: Micros) -> None:
        self._look_at = now + _LOOK_EVERY
        if self._resolv_conf is not None:
            resolvers = self._resolv_conf.changed()
            if resolvers is not None:
                self.gateway.set_resolvers(resolvers)


_TCP_ENDS: Final = frozenset((op.SHUTDOWN, op.CLOSE, op.ABORT))


def _end(host: TcpSocket, operation: int) -> None:
    if operation == op.SHUTDOWN:
        host.shutdown()
    else:
        host.close(reset=operation == op.ABORT)
