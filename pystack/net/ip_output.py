"""IPv4 datagrams on their way out: route, header, fragments, neighbour. For UDP and ICMP; TCP builds its own frames.

Read before editing: RFC 791 section 3.1, RFC 1122 section 3.3.1, RFC 6864 section 4 (identification), virtio 1.2
section 5.1.6 (partial checksums).
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.frame import Buffer, LinkInfo, TxFrame
from pystack.net.addressing import Addressing
from pystack.net.fragmentation import fragments
from pystack.net.neighbours import NeighbourTable
from pystack.net.pmtu import PathMtus
from pystack.net.txqueue import TxQueue
from pystack.wire import ethernet, ipv4, vnet
from pystack.wire.packet import ETHERTYPE_IPV4, IP_DF, VNET_NEEDS_CSUM

_IP_HEADER: Final = 20
_L4_START: Final = 14 + _IP_HEADER
_MAX_PACKET: Final = 65_535


@final
class IpOutput:
    """Sends datagrams for the endpoints of one stack."""

    __slots__ = (
        "_addressing", "_counters", "_ident", "_link", "_mac", "_mtus", "_neighbours", "_plain_vnet",
        "_ttl", "_tx",
    )  # fmt: skip

    def __init__(
        self,
        mac: bytes,
        addressing: Addressing,
        link: LinkInfo,
        neighbours: NeighbourTable,
        tx: TxQueue,
        counters: Counters,
        mtus: PathMtus,
        ttl: int,
        seed: int,
    ) -> None:
        self._mac = mac
        self._addressing = addressing
        self._link = link
        self._neighbours = neighbours
        self._tx = tx
        self._counters = counters
        self._mtus = mtus
        self._ttl = ttl
        self._plain_vnet = bytes(link.vnet_hdr_len)
        digest = blake2b(b"ipv4 identification", key=seed.to_bytes(32, "big"), digest_size=2).digest()
        self._ident = int.from_bytes(digest, "big")

    @property
    def offloads_checksum(self) -> bool:
        """Whether a datagram that needs no fragmentation may be sent with a partial checksum."""
        return self._link.tx_checksum and self._link.vnet_hdr_len > 0

    def fits(self, dst: bytes, length: int, now: Micros) -> bool:
        """Whether ``length`` bytes of L4 packet go to ``dst`` in one piece."""
        return _IP_HEADER + length <= self._mtu(dst, now)

    def _mtu(self, dst: bytes, now: Micros) -> int:
        return min(self._link.mtu, self._mtus.get(dst, now) or self._link.mtu)

    def send(
        self,
        src: bytes,
        dst: bytes,
        proto: int,
        head: bytes,
        payload: Buffer,
        now: Micros,
        *,
        tos: int = 0,
        partial_at: int = 0,
        dst_mac: bytes | None = None,
    ) -> bool:
        """Send one datagram.

        Args:
            head: the L4 header, its checksum filled. payload: what follows; kept by reference until it is sent.
            partial_at: where in ``head`` the checksum field is that the link is to complete; 0 when it is complete.
                Only when `offloads_checksum` and `fits` say so.
            dst_mac: the Ethernet destination for a host that cannot be asked for it (a DHCP client without an address).

        Returns:
            False when it was dropped, and counted.
        """
        total = _IP_HEADER + len(head) + len(payload)
        if total > _MAX_PACKET:
            self._counters.bump("ipv4.tx_too_big")
            return False
        if self._addressing.is_broadcast(dst):
            dst_mac = ethernet.BROADCAST
        hop = dst if dst_mac is not None else self._hop(dst)
        if hop is None:
            self._counters.bump("ipv4.no_route")
            return False
        if total <= self._mtu(dst, now):
            # An atomic datagram: DF set, and the identification means nothing (RFC 6864 section 4.1).
            header = ipv4.build_header(
                src=src, dst=dst, proto=proto, payload_len=total - _IP_HEADER, ttl=self._ttl, tos=tos, fragment=IP_DF
            )
            prefix = self._partial_vnet(partial_at) if partial_at else self._plain_vnet
            frame = (prefix, header + head, payload) if len(payload) else (prefix, header + head)
            return self._emit(hop, dst_mac, frame, now)
        self._ident = (self._ident + 1) & 0xFFFF
        room = self._mtu(dst, now) - _IP_HEADER
        self._counters.bump("ipv4.fragmented")
        for frag, parts in fragments(head, payload, room):
            length = sum(map(len, parts))
            header = ipv4.build_header(
                src=src,
                dst=dst,
                proto=proto,
                payload_len=length,
                ttl=self._ttl,
                tos=tos,
                fragment=frag,
                ident=self._ident,
            )
            if not self._emit(hop, dst_mac, (self._plain_vnet, header, *parts), now):
                return False
        return True

    def _partial_vnet(self, partial_at: int) -> bytes:
        flags = VNET_NEEDS_CSUM
        return vnet.build(self._link.vnet_hdr_len, flags=flags, csum_start=_L4_START, csum_offset=partial_at)

    def _hop(self, dst: bytes) -> bytes | None:
        if not self._addressing.is_valid_peer(dst) or dst in self._addressing.own:
            return None
        return self._addressing.next_hop(dst)

    def _emit(self, hop: bytes, dst_mac: bytes | None, frame: TxFrame, now: Micros) -> bool:
        if dst_mac is None:
            return self._neighbours.send(hop, frame, now)
        prefix, head, *rest = frame
        return self._tx.put(
            (b"".join((prefix, ethernet.build_header(dst_mac, self._mac, ETHERTYPE_IPV4), head)), *rest)
        )
