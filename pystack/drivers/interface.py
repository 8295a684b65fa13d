"""Addresses, flags and the default route of an interface, in the network namespace that we are in.

Everything goes through pyroute2. Importing it takes about 0.1 s, so it is imported here at first use, which is in the
process that enters the namespace while the other one loads the gateway.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, Final, Self, final

_ADDR_GEN_MODE_NONE: Final = 1  # IN6_ADDR_GEN_MODE_NONE of linux/if_link.h


@final
class Interface:
    """An interface of this network namespace, by name. A context manager. Every method raises OSError."""

    def __init__(self, name: str) -> None:
        from pyroute2 import IPRoute  # noqa: PLC0415 - see the module's first lines

        self._index = socket.if_nametoindex(name)
        self._netlink: Any = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def bring_up(self) -> None:
        """Let it send and receive."""
        with _os_errors():
            self._netlink.link("set", index=self._index, state="up")

    def set_mac(self, mac: bytes) -> None:
        """Give it an Ethernet address, 6 bytes, while it is down."""
        with _os_errors():
            self._netlink.link("set", index=self._index, address=mac.hex(":"))

    def set_queue(self, frames: int) -> None:
        """Set the length of its transmit queue."""
        with _os_errors():
            self._netlink.link("set", index=self._index, txqlen=frames)

    def silence_ipv6(self) -> None:
        """Let it make itself no link-local address, and so ask for no router."""
        inet6 = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]}
        with contextlib.suppress(OSError), _os_errors():  # a kernel without IPv6 is silent
            self._netlink.link("set", index=self._index, IFLA_AF_SPEC={"attrs": [("AF_INET6", inet6)]})

    def add_address(self, address: IPv4Interface) -> None:
        """Give it an address and, once it is up, the route to its network."""
        network = address.network
        with _os_errors():
            self._netlink.addr(
                "add",
                index=self._index,
                address=str(address.ip),
                prefixlen=network.prefixlen,
                broadcast=str(network.broadcast_address),
            )

    def add_default_route(self, gateway: bytes) -> None:
        """Send what no other route takes to ``gateway``, 4 bytes, which its network holds."""
        with _os_errors():
            self._netlink.route("add", dst="default", gateway=str(IPv4Address(gateway)), oif=self._index)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """The kernel's verdict as the OSError that it is; pyroute2's own has another base."""
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from None
