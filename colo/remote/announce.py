"""Tells a network where a machine is now: ARP announcements and unsolicited neighbour advertisements. Sans-I/O.

Read before editing: RFC 5227 section 2.3 (two announcements, two seconds apart), RFC 4861 section 7.2.6 (up to three
advertisements, at least a second apart, to all nodes, with the Override flag).
"""

from __future__ import annotations

from typing import Final, final

from pystack import Micros
from pystack.wire import arp, ethernet, ipv6, ndp
from pystack.wire.packet import ETHERTYPE_IPV6, PROTO_ICMPV6, Packet

MAX_ADDRESSES: Final = 32
_ROUNDS: Final = 3
_BETWEEN: Final[Micros] = 1_000_000
_ALL_NODES: Final = b"\xff\x02" + bytes(13) + b"\x01"


@final
class Announcer:
    """Learns which addresses a machine uses from what it sends, and announces them when told to.

    Of a machine that forwards for others, the first `MAX_ADDRESSES` sources are taken for its own.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, bytes] = {}  # IP address: Ethernet address
        self._left = 0
        self._at: Micros = 0

    @property
    def addresses(self) -> dict[bytes, bytes]:
        """IP address: Ethernet address."""
        return self._known

    def learn_untrusted(self, packet: Packet) -> None:
        """Note whose frame of the machine this is."""
        address = packet.src
        if len(self._known) >= MAX_ADDRESSES or address in self._known or packet.tags:
            return
        if packet.version == 4:
            fit = 0 < address[0] < 224
        else:
            fit = packet.version == 6 and any(address) and not ipv6.is_multicast(address)
        if fit:
            self._known[address] = packet.src_mac()

    def begin(self, now: Micros) -> None:
        """Announce from now on."""
        self._left, self._at = _ROUNDS, now

    def due(self, now: Micros) -> list[bytes]:
        """Frames for the network."""
        if not self._left or now < self._at:
            return []
        first = self._left == _ROUNDS
        self._left -= 1
        self._at = now + _BETWEEN
        frames = []
        for address, mac in self._known.items():
            if len(address) == 16:
                frames.append(_advertisement(address, mac))
            elif first or not self._left:
                frames.append(arp.build_request(sha=mac, spa=address, tpa=address))
        return frames

    def next_timeout(self) -> Micros | None:
        """When `due` has something to give."""
        return self._at if self._left else None


def _advertisement(address: bytes, mac: bytes) -> bytes:
    message = ndp.build_neighbour_advertisement(
        src=address, dst=_ALL_NODES, target=address, flags=ndp.FLAG_OVERRIDE, target_link=mac
    )
    header = ipv6.build_header(
        src=address, dst=_ALL_NODES, next_header=PROTO_ICMPV6, payload_len=len(message), hop_limit=255
    )
    target = ethernet.ipv6_multicast_mac(_ALL_NODES)
    return ethernet.build_header(target, mac, ETHERTYPE_IPV6) + header + message
