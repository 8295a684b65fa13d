"""What the client sends goes to both machines; and the secondary's questions about the link are answered here.

The secondary's ARP requests are dropped with all else that it sends, and the primary may have asked long before, so
that no answer would ever come: who is where is learnt from the client's own ARP packets (RFC 826), and told to the
secondary.
"""

from __future__ import annotations

from typing import Final, final

from pystack import Counters
from pystack.wire import arp
from pystack.wire.packet import ETHERTYPE_ARP, Packet

MAX_WAITING: Final = 4096
MAX_NEIGHBOURS: Final = 1024

_HEADER: Final = b"\x00\x01\x08\x00\x06\x04\x00"  # Ethernet, IPv4, their lengths, and the operation's high byte
_REQUEST: Final = 1


@final
class Mirror:
    """The input of both machines, in order.

    Attributes:
        waiting: frames that came while both stood still, the client's, for both. Bounded: more are dropped, as a
        network
            may, and counted as ``mirror.dropped``.
    """

    __slots__ = ("_counters", "_limit", "_neighbours", "waiting")

    def __init__(self, counters: Counters, limit: int = MAX_WAITING) -> None:
        self._counters = counters
        self._limit = limit
        self._neighbours: dict[bytes, bytes] = {}  # IPv4 address -> Ethernet address
        self.waiting: list[bytes] = []

    def hold(self, frame: bytes) -> None:
        """Keep a frame until both machines run."""
        if len(self.waiting) < self._limit:
            self.waiting.append(frame)
        else:
            self._counters.bump("mirror.dropped")

    def take_waiting(self) -> list[bytes]:
        """What was kept."""
        waiting, self.waiting = self.waiting, []
        return waiting

    def learn_untrusted(self, packet: Packet) -> None:
        """Note the sender of a client's ARP packet."""
        body = _arp_untrusted(packet)
        if not body:
            return
        address = body[14:18]
        if address in self._neighbours or len(self._neighbours) < MAX_NEIGHBOURS:
            self._neighbours[address] = body[8:14]

    def answer_untrusted(self, packet: Packet) -> bytes | None:
        """The reply to the secondary's ARP request when it is known, as a frame for the secondary."""
        body = _arp_untrusted(packet)
        if not body or body[7] != _REQUEST:
            return None
        known = self._neighbours.get(body[24:28])
        if known is None:
            return None
        self._counters.bump("mirror.arp_answered")
        reply = arp.build_reply(sha=known, spa=body[24:28], tha=body[8:14], tpa=body[14:18])
        return bytes(packet.eth) + reply


def _arp_untrusted(packet: Packet) -> bytes:
    """The 28 bytes of an ARP packet for IPv4 over Ethernet, b"" for anything else."""
    if packet.ethertype != ETHERTYPE_ARP or packet.tags:
        return b""
    body = packet.frame[packet.l3 : packet.l3 + 28]
    return body if len(body) == 28 and body[:7] == _HEADER else b""
