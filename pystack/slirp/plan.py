"""Which address is whose on the guest's network: the plan that users of SLIRP, QEMU and slirp4netns know.

```text
10.0.2.0/24     the network, which ``--cidr`` moves; the offsets stay
10.0.2.2        the gateway, and the host when its loopback is allowed
10.0.2.3        DNS
10.0.2.15-30    what DHCP gives away
10.0.2.100      a namespace that was configured by us
```
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network, NetmaskValueError
from typing import Final, Self, final

from pystack.errors import UsageError

DEFAULT_CIDR: Final = "10.0.2.0/24"

_GATEWAY: Final = 2
_DNS: Final = 3
_POOL_FIRST: Final = 15
_POOL_LAST: Final = 30
_CONFIGURED: Final = 100
_LONGEST_PREFIX: Final = 25  # the shortest network that still holds .100
_SHORTEST_PREFIX: Final = 8


@final
@dataclass(frozen=True, slots=True)
class AddressPlan:
    """The guest's network and who is who in it. Make one with `from_cidr`.

    Attributes:
        network: the guest's network.
        gateway, dns: our two addresses in it, 4 bytes each.
        pool: what the DHCP server may lease, in order.
        configured: the address that we give to a namespace, never leased.
    """

    network: IPv4Network
    gateway: bytes
    dns: bytes
    pool: tuple[bytes, ...]
    configured: bytes

    @classmethod
    def from_cidr(cls, cidr: str = DEFAULT_CIDR) -> Self:
        """The plan inside the network ``cidr`` (``a.b.c.d/len``).

        Raises:
            UsageError: no IPv4 network, one that is too small or too large, or one that no guest can be in.
        """
        address, slash, _ = cidr.partition("/")
        try:
            network = IPv4Network(cidr)
        except (AddressValueError, NetmaskValueError):
            raise UsageError(f"{cidr!r} is not an IPv4 network: write it as {DEFAULT_CIDR}.") from None
        except ValueError:
            right = IPv4Interface(cidr).network
            raise UsageError(f"{cidr!r} is an address inside a network: write the network, {right}.") from None
        if not slash:
            raise UsageError(f"{cidr!r} has no prefix length: write it as {address}/24.")
        if not _SHORTEST_PREFIX <= network.prefixlen <= _LONGEST_PREFIX:
            raise UsageError(
                f"{cidr!r} does not fit the address plan: choose a prefix from /{_SHORTEST_PREFIX}"
                f" to /{_LONGEST_PREFIX}."
            )
        if network.is_loopback or network.is_multicast or network.is_reserved or network.network_address.packed[0] == 0:
            raise UsageError(f"{cidr!r} cannot be a guest's network: choose a private one, such as {DEFAULT_CIDR}.")
        at = network.network_address
        return cls(
            network=network,
            gateway=(at + _GATEWAY).packed,
            dns=(at + _DNS).packed,
            pool=tuple((at + offset).packed for offset in range(_POOL_FIRST, _POOL_LAST + 1)),
            configured=(at + _CONFIGURED).packed,
        )

    @property
    def netmask(self) -> bytes:
        """The network's mask, 4 bytes."""
        return self.network.netmask.packed

    @property
    def broadcast(self) -> bytes:
        """The network's directed broadcast address, 4 bytes."""
        return self.network.broadcast_address.packed

    @property
    def own(self) -> tuple[bytes, bytes]:
        """The addresses that we answer for."""
        return self.gateway, self.dns

    def interface(self, address: bytes) -> IPv4Interface:
        """``address`` together with the network's prefix length."""
        return IPv4Interface((IPv4Address(address), self.network.prefixlen))

    def contains(self, address: bytes) -> bool:
        """Whether ``address`` (4 bytes) lies inside the guest's network."""
        value = int.from_bytes(address, "big")
        return value & int(self.network.netmask) == int(self.network.network_address)

    def may_be_guest(self, address: bytes) -> bool:
        """Whether ``address`` is one that a guest can have: inside the network, not ours, not for everybody."""
        return (
            self.contains(address)
            and address not in self.own
            and address not in (self.network.network_address.packed, self.broadcast)
        )


def dotted(address: bytes) -> str:
    """4 bytes as ``a.b.c.d``. Faster than `ipaddress`, as every new flow needs it."""
    return ".".join(map(str, address))


def packed(text: str) -> bytes:
    """``a.b.c.d``, as a socket's call returned it, as 4 bytes."""
    return bytes(map(int, text.split(".")))
