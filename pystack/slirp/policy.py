"""Who may be reached: the one place where an address that the guest names becomes an address that the host dials.

The rule that matters most is what a guest can *not* reach: services that listen on the host's loopback believe that
only the host's own processes talk to them (CVE-2021-20199 is what happens otherwise). So 127/8 is never dialled on
behalf of a guest unless the user asked for it, and then under one name only, the gateway's address. Linux treats
0.0.0.0 as loopback too, hence all of 0/8 is refused with it.

The host's own non-loopback addresses are ordinary destinations: what listens there has chosen to be reachable.
"""

from __future__ import annotations

from typing import Final, final

from pystack.slirp.plan import AddressPlan

LOOPBACK: Final = bytes((127, 0, 0, 1))

_THIS_NETWORK: Final = 0
_LOOPBACK_NETWORK: Final = 127
_FIRST_GROUP: Final = 224  # multicast, class E, limited broadcast: nothing above is one host


def is_one_host(address: bytes) -> bool:
    """Whether ``address`` (4 bytes) names a single host somewhere: not 0/8, 127/8, multicast, class E, broadcast."""
    return address[0] not in (_THIS_NETWORK, _LOOPBACK_NETWORK) and address[0] < _FIRST_GROUP


@final
class Policy:
    """Maps addresses between the guest's view and the host's; None is a refusal. Immutable.

    Args:
        plan: the guest's network.
        allow_host_loopback: whether the gateway's address stands for the host's 127.0.0.1.
    """

    __slots__ = ("_loopback", "_plan")

    def __init__(self, plan: AddressPlan, *, allow_host_loopback: bool) -> None:
        self._plan = plan
        self._loopback = allow_host_loopback

    def host_address(self, destination: bytes) -> bytes | None:
        """What the host dials when the guest sends to ``destination``; None: nobody, the guest is refused."""
        if destination == self._plan.gateway:
            return LOOPBACK if self._loopback else None
        if not is_one_host(destination) or self._plan.contains(destination):
            return None
        return destination

    def guest_address(self, source: bytes) -> bytes | None:
        """What the guest sees as the source of a datagram that its own flow got from the host's ``source``.

        None: it must not see it, which keeps the host's own processes from answering where they were not asked.
        """
        if source[0] == _LOOPBACK_NETWORK:
            return self._plan.gateway if self._loopback else None
        if not is_one_host(source) or self._plan.contains(source):
            return None
        return source

    def published_address(self, peer: bytes) -> bytes:
        """What the guest sees as the source of a peer that came in through a published port.

        The peer's own address, so that the guest can tell its clients apart; the gateway's for a peer on the host's
        loopback, or one whose address means something else inside the guest's network.
        """
        return self.guest_address(peer) or self._plan.gateway

    def is_silent(self, destination: bytes) -> bool:
        """Whether a refusal must not be answered: nothing is said about what was sent to many (RFC 1122 3.2.2)."""
        return destination[0] >= _FIRST_GROUP or destination == self._plan.broadcast
