"""virtio_net_hdr: what a TAP with IFF_VNET_HDR, or a virtio queue, puts in front of every frame.

Read before editing: virtio 1.2 sections 5.1.6 (the header), 5.1.6.2 (sending) and 5.1.6.4 (receiving), and
include/uapi/linux/virtio_net.h for the values. Little-endian.

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |     flags     |   gso_type    |            hdr_len            |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |           gso_size            |          csum_start           |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |          csum_offset          |  num_buffers (12 bytes only)  |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from typing import Final, NamedTuple

import construct as c

from pystack.wire.layout import Layout

F_NEEDS_CSUM: Final = 1
"""The checksum field at ``csum_start + csum_offset`` holds the pseudo-header's sum; the receiver completes it."""
F_DATA_VALID: Final = 2
"""The checksum was verified already."""
F_RSC_INFO: Final = 4

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3
"""UDP fragmentation offload: the receiver makes IP fragments."""
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
"""UDP segmentation offload: the receiver makes datagrams of ``gso_size`` bytes."""
GSO_ECN: Final = 0x80
"""Added to a TCP type: CWR is set on the first segment only."""

LENGTHS: Final = (0, 10, 12)
"""What `LinkInfo.vnet_hdr_len` may be."""


class Header(NamedTuple):
    """The header in its short form, 10 bytes. ``csum_start`` counts from the start of the Ethernet header."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int


class HeaderWithBuffers(NamedTuple):
    """The header with VIRTIO_NET_F_MRG_RXBUF or VIRTIO_F_VERSION_1, 12 bytes."""

    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int
    num_buffers: int


_FIELDS: Final = (
    "flags" / c.Int8ul,
    "gso_type" / c.Int8ul,
    "hdr_len" / c.Int16ul,
    "gso_size" / c.Int16ul,
    "csum_start" / c.Int16ul,
    "csum_offset" / c.Int16ul,
)
HEADER: Final = Layout.derive(c.Struct(*_FIELDS), Header)
HEADER_WITH_BUFFERS: Final = Layout.derive(c.Struct(*_FIELDS, "num_buffers" / c.Int16ul), HeaderWithBuffers)


def parse_untrusted(frame: bytes, vnet_hdr_len: int) -> Header | None:
    """The header in front of ``frame``; None without one (``vnet_hdr_len`` 0, or a frame shorter than that)."""
    if not vnet_hdr_len or len(frame) < vnet_hdr_len:
        return None
    return HEADER.unpack_from(frame)


def build(
    vnet_hdr_len: int,
    *,
    flags: int = 0,
    gso_type: int = GSO_NONE,
    hdr_len: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
) -> bytes:
    """The header in the form that the link uses: ``vnet_hdr_len`` is 0 (gives b""), 10 or 12.

    Raises:
        struct.error: a number does not fit in its field.
    """
    if not vnet_hdr_len:
        return b""
    header = HEADER.struct.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)
    # num_buffers is the device's to fill, 0 in a frame that a driver sends (virtio 1.2 section 5.1.6.2.1).
    return header if vnet_hdr_len == HEADER.size else header + b"\0\0"
