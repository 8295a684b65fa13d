"""What a frame is between the layers, and what a link says of itself. Shared by everything that reads or writes frames.

A received frame is one immutable ``bytes`` object, never a view of a buffer that will be filled again: whoever gets it
may keep views into it for as long as it likes. When `LinkInfo.vnet_hdr_len` is not 0, a frame starts with a
virtio_net_hdr of that many bytes (virtio 1.2 section 5.1.6), whether it is received or sent.

A frame to send is a tuple of buffers to be gathered: the first one holds all the headers, the others payload that was
not copied on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
TxFrame: TypeAlias = tuple[Buffer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkInfo:
    """What a link can do. Immutable for the life of the link.

    Attributes:
        mtu: the largest IP packet in bytes that the other side takes in one piece.
        vnet_hdr_len: bytes of virtio_net_hdr in front of every frame: 0 (none), 10 or 12.
        rx_checksum: a received frame may say (VIRTIO_NET_HDR_F_NEEDS_CSUM or _DATA_VALID) that its TCP or UDP checksum
            need not be verified. Without it every checksum is verified.
        tx_checksum: the other side fills a TCP or UDP checksum that is marked NEEDS_CSUM.
        tso4, tso6, uso: the other side takes a TCP/IPv4, TCP/IPv6 or UDP segment larger than the MTU with a gso_size.
        gso_max_bytes: the largest IP packet in bytes that may be sent with a gso_size.
    """

    mtu: int = 1500
    vnet_hdr_len: int = 0
    rx_checksum: bool = False
    tx_checksum: bool = False
    tso4: bool = False
    tso6: bool = False
    uso: bool = False
    gso_max_bytes: int = 65_535
