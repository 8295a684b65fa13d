"""What the client sends goes to both machines; and what the secondary asks is answered here.

The secondary's ARP requests are dropped with all else that it sends, and the primary may have asked long before, so
that no answer would ever come: who is where is learnt from the client's own ARP packets (RFC 826), and told to the
secondary.

And its retransmissions are dropped as well. When the client's acknowledgement got lost on its way to the secondary
alone, the primary needs no other one, the client sends no other one, and the secondary would repeat itself without ever
being heard: the connection stands still, for good. So the client's last word is kept, and given again to a secondary
that asks for it, by repeating what was acknowledged or by probing a window that is open (RFC 9293 sections 3.8.1 and
3.8.6.1).
"""

from __future__ import annotations

from typing import Final, final

from colo.window import bare_ack
from pystack import Counters
from pystack.flow.tcp_state import State
from pystack.flow.tracker import Tracker
from pystack.seq import MASK, sub
from pystack.wire import arp
from pystack.wire.packet import ACK, ETHERTYPE_ARP, PROTO_TCP, RST, SYN, Packet, parse_untrusted

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

    __slots__ = ("_counters", "_last_words", "_limit", "_neighbours", "_vnet_hdr_len", "waiting")

    def __init__(self, counters: Counters, limit: int = MAX_WAITING, vnet_hdr_len: int = 0) -> None:
        self._vnet_hdr_len = vnet_hdr_len
        # By flow: what the client has acknowledged, its next sequence number, and its headers. As many as are tracked.
        self._last_words: dict[bytes, tuple[int, int, bytes]] = {}
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

    def note_client(self, key: bytes, packet: Packet) -> None:
        """Keep the headers of the client's last segment of the flow ``key`` (`pystack.flow.key.flow_key`)."""
        if packet.proto == PROTO_TCP and packet.flags & (ACK | SYN | RST) == ACK:
            last = self._last_words.get(key)
            if last is None or sub(packet.ack, last[0]) >= 0:
                self._last_words[key] = (
                    packet.ack,
                    packet.seq + packet.payload_len & MASK,
                    packet.frame[: packet.payload],
                )

    def forget(self, key: bytes) -> None:
        """The flow is over."""
        self._last_words.pop(key, None)

    def repeat_for(self, key: bytes, seq: int, length: int) -> Packet | None:
        """What the client said last, when the secondary's segment asks for it: one below what was acknowledged.

        Args:
            seq: of the secondary's segment, in the primary's space. length: of its payload.

        Returns:
            A pure ACK of the client, to be translated for the secondary.
        """
        last = self._last_words.get(key)
        if last is None:
            return None
        acked, mine, head = last
        if sub(acked, seq) <= 0 or sub(acked, seq + length & MASK) < 0:
            return None
        self._counters.bump("mirror.ack_repeated")
        return _as_pure_ack(head, self._vnet_hdr_len, mine, self._counters)

    def last_words(self, tracker: Tracker) -> list[Packet]:
        """What the client said last, as a pure ACK, of every connection that ``tracker`` does not know to be finished.

        Most may be, on a busy host: one stays in TIME-WAIT for longer than it had lived.
        """
        packets = [
            _as_pure_ack(head, self._vnet_hdr_len, mine, self._counters)
            for key, (_, mine, head) in self._last_words.items()
            if tracker.state(key) is not State.TIME_WAIT
        ]
        return [packet for packet in packets if packet is not None]

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


def _as_pure_ack(head: bytes, vnet_hdr_len: int, seq: int, counters: Counters) -> Packet | None:
    """Headers of a segment as a pure ACK with ``seq``, everything else as it was."""
    packet = _shortened(head, vnet_hdr_len, counters)
    if packet is None:
        return None
    return parse_untrusted(bare_ack(packet, seq, packet.window), vnet_hdr_len, counters)


def _shortened(head: bytes, vnet_hdr_len: int, counters: Counters) -> Packet | None:
    """The packet that ``head`` is when its IP header counts no payload."""
    at = vnet_hdr_len + 12
    while head[at : at + 2] in (b"\x81\0", b"\x88\xa8"):
        at += 4
    l3 = at + 2
    whole = bytearray(head)
    if head[l3] >> 4 == 4:
        whole[l3 + 2 : l3 + 4] = (len(head) - l3).to_bytes(2, "big")
    else:
        whole[l3 + 4 : l3 + 6] = (len(head) - l3 - 40).to_bytes(2, "big")
    return parse_untrusted(bytes(whole), vnet_hdr_len, counters)
