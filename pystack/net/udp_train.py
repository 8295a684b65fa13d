"""Several datagrams in one frame: what a sender with UDP segmentation offload hands over (VIRTIO_NET_HDR_GSO_UDP_L4).

Read before editing: virtio 1.2 section 5.1.6.2; Linux' Documentation/networking/segmentation-offloads.rst. A program in
a guest makes them with UDP_SEGMENT, which is what QUIC implementations do. The datagrams share one header; all but the
last carry ``gso_size`` bytes.
"""

from __future__ import annotations

import struct
from typing import Final

from pystack.counters import Counters
from pystack.wire import checksum, vnet
from pystack.wire.packet import Packet, parse_untrusted

MAX_DATAGRAMS: Final = 128
"""Linux' UDP_MAX_SEGMENTS. A frame that asks for more is not one of its, and would cost more than it brings."""


def is_train(packet: Packet) -> bool:
    """Whether ``packet``, a UDP one, stands for several datagrams."""
    return packet.gso_type & ~vnet.GSO_ECN == vnet.GSO_UDP_L4 and packet.payload_len > packet.gso_size


def datagrams_untrusted(packet: Packet, counters: Counters) -> list[Packet]:
    """The datagrams that ``packet`` stands for (`is_train`), each with a frame of its own.

    Returns:
        An empty list (`udp.bad_segment_size`) when there would be more than `MAX_DATAGRAMS`.
    """
    size, payload = packet.gso_size, packet.payload_bytes()
    if not size or len(payload) > size * MAX_DATAGRAMS:
        counters.bump("udp.bad_segment_size")
        return []
    pieces = (payload[at : at + size] for at in range(0, len(payload), size))
    made = (parse_untrusted(_frame(packet, piece), 0, counters) for piece in pieces)
    return [datagram for datagram in made if datagram is not None]


def _frame(packet: Packet, payload: bytes) -> bytes:
    """One of the datagrams: the shared headers with lengths of its own. Its checksum was vouched for: there is none."""
    header = bytearray(packet.frame[packet.l3 : packet.l4])
    struct.pack_into("!H", header, 2, len(header) + 8 + len(payload))
    struct.pack_into("!H", header, 10, 0)
    struct.pack_into("!H", header, 10, checksum.finish(checksum.sum16(header)))
    ports = struct.pack("!HHHH", packet.sport, packet.dport, 8 + len(payload), 0)
    return b"".join((packet.frame[packet.eth : packet.l3], header, ports, payload))
