"""Addresses, flags and the default route of an interface, in the network namespace that we are in.

Read before editing: netlink(7), rtnetlink(7). Four requests with an acknowledgement each, which take a millisecond.
pyroute2, which speaks all of netlink, takes 110 ms to import: a fifth of the time a command may take to its first
packet. The older ioctls of netdevice(7) cannot set a queue's length in a user namespace.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from ipaddress import IPv4Interface
from typing import Final, Self, final

_RTM_NEWLINK: Final = 16
_RTM_NEWADDR: Final = 20
_RTM_NEWROUTE: Final = 24
_NLMSG_ERROR: Final = 2

_REQUEST_ACK: Final = 0x1 | 0x4
_CREATE: Final = 0x400 | 0x200  # NLM_F_CREATE | NLM_F_EXCL

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ERROR: Final = struct.Struct("=i")
_ATTRIBUTE: Final = struct.Struct("=HH")
_U32: Final = struct.Struct("=I")
_IFINFO: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
_IFADDR: Final = struct.Struct("=BBBBi")  # struct ifaddrmsg
_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg

_IFF_UP: Final = 1
_IFLA_TXQLEN: Final = 13
_IFLA_AF_SPEC: Final = 26
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_ADDR_GEN_MODE_NONE: Final = 1
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_BROADCAST: Final = 4
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RT_TABLE_MAIN: Final = 254
_RTPROT_STATIC: Final = 4
_RTN_UNICAST: Final = 1


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


@final
class Interface:
    """An interface of this network namespace, by name. A context manager. Every method raises OSError."""

    def __init__(self, name: str) -> None:
        self._index = socket.if_nametoindex(name)
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def bring_up(self) -> None:
        """Let it send and receive."""
        self._request(_RTM_NEWLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, self._index, _IFF_UP, _IFF_UP))

    def set_queue(self, frames: int) -> None:
        """Set the length of its transmit queue."""
        self._set_link(_attribute(_IFLA_TXQLEN, _U32.pack(frames)))

    def silence_ipv6(self) -> None:
        """Let it make itself no link-local address, and so ask for no router."""
        mode = _attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes((_ADDR_GEN_MODE_NONE,)))
        with contextlib.suppress(OSError):  # a kernel without IPv6 is silent
            self._set_link(_attribute(_IFLA_AF_SPEC, _attribute(socket.AF_INET6, mode)))

    def add_address(self, address: IPv4Interface) -> None:
        """Give it an address and, once it is up, the route to its network."""
        local = address.packed
        self._request(
            _RTM_NEWADDR,
            _IFADDR.pack(socket.AF_INET, address.network.prefixlen, 0, 0, self._index)
            + _attribute(_IFA_LOCAL, local)
            + _attribute(_IFA_ADDRESS, local)
            + _attribute(_IFA_BROADCAST, address.network.broadcast_address.packed),
            _CREATE,
        )

    def add_default_route(self, gateway: bytes) -> None:
        """Send what no other route takes to ``gateway``, 4 bytes, which its network holds."""
        self._request(
            _RTM_NEWROUTE,
            _RTMSG.pack(socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, 0, _RTN_UNICAST, 0)
            + _attribute(_RTA_GATEWAY, gateway)
            + _attribute(_RTA_OIF, _U32.pack(self._index)),
            _CREATE,
        )

    def _set_link(self, attributes: bytes) -> None:
        self._request(_RTM_NEWLINK, _IFINFO.pack(socket.AF_UNSPEC, 0, self._index, 0, 0) + attributes)

    def _request(self, kind: int, body: bytes, flags: int = 0) -> None:
        """Send one request and take the kernel's verdict on it."""
        self._sequence += 1
        length = _HEADER.size + len(body)
        self._netlink.sendto(_HEADER.pack(length, kind, _REQUEST_ACK | flags, self._sequence, 0) + body, (0, 0))
        answer = self._netlink.recv(65_536)
        _, verdict, _, sequence, _ = _HEADER.unpack_from(answer)
        assert (verdict, sequence) == (_NLMSG_ERROR, self._sequence)
        (error,) = _ERROR.unpack_from(answer, _HEADER.size)
        if error:
            raise OSError(-error, os.strerror(-error))
