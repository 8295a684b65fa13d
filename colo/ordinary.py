"""How the ordinary frame of a framed stream looks: untagged IPv4 without options, TCP, whole, ACK with or without PSH.

One `struct` call reads its prefix and its headers, RFC 791 section 3.1 and RFC 9293 section 3.1; whether it is ordinary
shows in a few comparisons of integers, written in line where each frame counts (`colo.lane`, `colo.recent`).
"""

from __future__ import annotations

import struct
from typing import Final, final

from colo.framing import Framing

IPV4_NO_OPTIONS: Final = 0x08004500  # EtherType, version and header length; the DS field is masked out
IPV4_MASK: Final = 0xFFFFFF00
TCP_WHOLE: Final = 6  # protocol; no MF, no offset
TCP_MASK: Final = 0x3FFF00FF
# Acknowledgement, data offset, flags and window stand together in the header, and are read as one integer, the tail.
ACK_ONLY: Final = 0x10 << 16
FLAGS_MASK: Final = 0x0FF7 << 16  # reserved bits and all flags but PSH
DATA_OFFSET: Final = 0xF000 << 16
DATA_OFFSET_MIN: Final = 0x5000 << 16
ACK_AND_WINDOW: Final = 0xFFFF_FFFF_0000_FFFF


@final
class Ordinary:
    """The layout of ordinary frames with ``vnet_hdr_len`` bytes of virtio_net_hdr, in the stream of ``framing``.

    Attributes:
        struct: reads (prefix, kind, total, protocol, key, seq, tail): the prefix as one integer; EtherType to DS field;
            IP's total length; IP's fragment field to protocol; addresses and ports; and what follows them in TCP.
        overhead: bytes in front of the IP header, the prefix among them.
        scale, bias: a frame without padding has the prefix ``total * scale + bias``: its length, or that and the
            header's length.
    """

    __slots__ = ("bias", "overhead", "scale", "struct", "vnet_hdr_len")

    def __init__(self, framing: Framing, vnet_hdr_len: int) -> None:
        self.vnet_hdr_len = vnet_hdr_len
        self.struct = struct.Struct(f"!{'Q' if framing.vnet else 'I'}{vnet_hdr_len + 12}xIH2xIxx12sIQ")
        self.scale = 1 << 32 if framing.vnet else 1
        self.overhead = framing.prefix + vnet_hdr_len + 14
        self.bias = ((vnet_hdr_len + 14) << 32 | vnet_hdr_len) if framing.vnet else 14
