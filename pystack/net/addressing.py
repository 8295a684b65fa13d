"""Who we are, who is next to us and which addresses nobody may have: pure functions on 4-byte addresses.

Read before editing: RFC 1122 section 3.2.1.3 (special addresses), section 3.3.1 (routing outbound datagrams) and
section 3.3.6 (broadcasts).

Addresses inside the core are ``bytes`` in network order, compared and used as keys as they stand in the packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface
from typing import Final, final

from pystack.errors import UsageError

UNSPECIFIED: Final = bytes(4)
LIMITED_BROADCAST: Final = b"\xff\xff\xff\xff"

_THIS_NETWORK: Final = 0
_LOOPBACK: Final = 127
_FIRST_MULTICAST: Final = 224


def is_unicast(address: bytes) -> bool:
    """Whether ``address`` may belong to one host: not 0/8, loopback, multicast, class E or the limited broadcast.

    RFC 1122 section 3.2.1.3 forms (a), (b), (c), (e) and (g). A directed broadcast needs a mask to be told: see
    `Addressing.is_broadcast`.
    """
    first = address[0]
    return first != _THIS_NETWORK and first != _LOOPBACK and first < _FIRST_MULTICAST


def is_multicast(address: bytes) -> bool:
    """Whether ``address`` is in 224.0.0.0/4 (RFC 1112 section 4)."""
    return 224 <= address[0] <= 239


@final
class Addressing:
    """The addresses of one stack and the one hop that leads to every other one. Immutable.

    Args:
        interfaces: own addresses, each with the length of its network's prefix.
        gateway: the neighbour to which everything goes that is on none of these networks; None: nowhere.

    Raises:
        UsageError: an address no host may have, or a gateway that is no neighbour.
    """

    __slots__ = ("_broadcasts", "_gateway", "_networks", "own", "preferred")

    def __init__(self, interfaces: Sequence[IPv4Interface], gateway: IPv4Address | None) -> None:
        self.own: Final = frozenset(interface.packed for interface in interfaces)
        self.preferred: Final = interfaces[0].packed if interfaces else UNSPECIFIED
        # (network, mask, own address in it), longest prefix first.
        ordered = sorted(interfaces, key=lambda interface: -interface.network.prefixlen)
        self._networks: Final = tuple(
            (int(i.network.network_address), int(i.network.netmask), i.packed) for i in ordered
        )
        # RFC 3021: a /31 has no broadcast address, and neither has a /32.
        self._broadcasts: Final = frozenset(
            i.network.broadcast_address.packed for i in interfaces if i.network.prefixlen <= 30
        ) | {LIMITED_BROADCAST}
        self._gateway: Final = gateway.packed if gateway is not None else None
        for interface in interfaces:
            if not is_unicast(interface.packed) or interface.packed in self._broadcasts:
                raise UsageError(f"{interface.ip} cannot be a host's address: choose one inside {interface.network}.")
        if self._gateway is not None and self.source_for(self._gateway) is None:
            raise UsageError(f"The gateway {gateway} is on none of this stack's networks: choose one that is.")

    def is_broadcast(self, address: bytes) -> bool:
        """Whether ``address`` is the limited broadcast or the directed one of a network of ours."""
        return address in self._broadcasts

    def is_valid_peer(self, address: bytes) -> bool:
        """Whether a packet may come from ``address`` or go to it as to one host (RFC 1122 section 3.2.1.3)."""
        return is_unicast(address) and address not in self._broadcasts

    def source_for(self, neighbour: bytes) -> bytes | None:
        """Our address on the network that ``neighbour`` is on; None when it is on none of ours. O(networks)."""
        value = int.from_bytes(neighbour, "big")
        for network, mask, own in self._networks:
            if value & mask == network:
                return own
        return None

    def is_on_link(self, address: bytes) -> bool:
        """Whether ``address`` is on a network of ours."""
        return self.source_for(address) is not None

    def next_hop(self, destination: bytes) -> bytes | None:
        """The neighbour to hand a packet for ``destination`` to, None when there is no way (RFC 1122 3.3.1.1)."""
        return destination if self.source_for(destination) is not None else self._gateway

    def source_address(self, destination: bytes) -> bytes | None:
        """The address of ours to use towards ``destination``; None when there is no way there."""
        hop = self.next_hop(destination)
        return None if hop is None else self.source_for(hop)
