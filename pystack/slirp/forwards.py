"""Ports of the host that lead into the guest: ``--publish [ADDR:]HOST:GUEST[/udp]``.

Without ADDR the host listens on all of its IPv4 addresses, as slirp4netns' and podman's users expect of a published
port; ``127.0.0.1:`` in front keeps it to the host itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Final, Self, final

from pystack.errors import UsageError

ALL_ADDRESSES: Final = bytes(4)

_FORM: Final = "[ADDR:]HOST:GUEST[/udp]"
_MAX_PORT: Final = 65_535
_PARTS: Final = 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """One published port.

    Attributes:
        address: where the host listens, 4 bytes; all zero for every address.
        host_port: the host's port; guest_port: the guest's.
        udp: whether datagrams are forwarded, and not TCP connections.
        guest: the guest's address, 4 bytes, when it is known; None for the guest that the gateway serves.
    """

    address: bytes = ALL_ADDRESSES
    host_port: int
    guest_port: int
    udp: bool = False
    guest: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``[ADDR:]HOST:GUEST[/udp]``; ``/tcp`` is accepted for what is the default.

        Raises:
            UsageError: it is not of that form.
        """
        body, slash, protocol = text.partition("/")
        if slash and protocol not in ("tcp", "udp"):
            raise UsageError(f"--publish {text!r}: {protocol!r} is neither tcp nor udp.")
        address, *ports = body.rsplit(":", _PARTS) if body.count(":") >= _PARTS else ("", *body.split(":"))
        if len(ports) != _PARTS:
            raise UsageError(f"--publish {text!r} is not of the form {_FORM}: write for example 8080:80.")
        try:
            listen = IPv4Address(address).packed if address else ALL_ADDRESSES
        except AddressValueError:
            raise UsageError(f"--publish {text!r}: {address!r} is not an IPv4 address of this host.") from None
        host_port, guest_port = (_port(port, text) for port in ports)
        return cls(address=listen, host_port=host_port, guest_port=guest_port, udp=protocol == "udp")

    def __str__(self) -> str:
        return f"{IPv4Address(self.address)}:{self.host_port}:{self.guest_port}/{'udp' if self.udp else 'tcp'}"


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= _MAX_PORT:
        raise UsageError(f"--publish {whole!r}: {text!r} is not a port, which is a number from 1 to {_MAX_PORT}.")
    return int(text)
