"""asyncio's datagram transport on a UDP endpoint of a stack."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any, final

from pystack.clock import Micros
from pystack.drivers.transport import name_of
from pystack.net.icmp import IcmpError
from pystack.net.udp import UdpEndpoint


@final
class StackDatagramTransport(asyncio.DatagramTransport):
    """One UDP endpoint of a stack. A datagram that cannot be sent is dropped, as UDP may."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoint: UdpEndpoint,
        protocol: asyncio.DatagramProtocol,
        clock: Callable[[], Micros],
        wake: Callable[[], None],
    ) -> None:
        extra: dict[str, object] = {"sockname": name_of(endpoint.local_addr, endpoint.local_port)}
        if endpoint.remote is not None:
            extra["peername"] = name_of(*endpoint.remote)
        super().__init__(extra)
        self._loop = loop
        self._endpoint = endpoint
        self._protocol = protocol
        self._clock = clock
        self._wake = wake

    def on_events(self, _flags: int) -> None:
        """Hand over the datagrams and errors that wait."""
        while (error := self._endpoint.take_error()) is not None:
            self._protocol.error_received(os_error(error))
        while (datagram := self._endpoint.take()) is not None:
            address, port = datagram.source
            self._protocol.datagram_received(datagram.payload, name_of(address, port))

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send one datagram to ``addr`` (host, port), or to the address that the endpoint was made for."""
        to = None if addr is None else (IPv4Address(addr[0]).packed, addr[1])
        remote = self._endpoint.remote
        if to is None and remote is None:
            raise ValueError("sendto() needs an address: the endpoint was made without one")
        if to is not None and remote is not None and to != remote:
            raise ValueError(f"Invalid address: must be None or {name_of(*remote)}")
        self._endpoint.send(data if isinstance(data, bytes) else bytes(data), self._clock(), to=to)
        self._wake()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._endpoint.closed

    def close(self) -> None:
        """Give the port back. What was sent is with the stack."""
        if not self._endpoint.closed:
            self._endpoint.close()
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        """Do the same as `close`: nothing is held back that could be dropped."""
        self.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Talk to ``protocol`` from now on."""
        assert isinstance(protocol, asyncio.DatagramProtocol)
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whom it talks to."""
        return self._protocol


def os_error(error: IcmpError) -> OSError:
    """The errno that a socket's owner gets for an ICMP error."""
    number = errno.ECONNREFUSED if error.is_hard else errno.EMSGSIZE if error.is_too_big else errno.EHOSTUNREACH
    return OSError(number, os.strerror(number))
