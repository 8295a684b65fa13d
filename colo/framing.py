"""How the frames of one comparator look: bare, or in QEMU's stream with a length in front; with or without vnet header.

The stream's forms are those of `pystack.link.qemu_framing`.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, final

from pystack import Counters
from pystack.link.qemu_framing import MAX_FRAME_BYTES
from pystack.wire.packet import Packet, parse_untrusted

PLAIN: Final = struct.Struct("!I")
VNET: Final = struct.Struct("!II")

MAX_VNET_HDR_LEN: Final = 20
"""sizeof(struct virtio_net_hdr_v1_hash), the longest header that QEMU knows."""

TOO_LONG: Final = -1
BAD_VNET_HDR_LEN: Final = -2


class Found(NamedTuple):
    """One frame in a stream: where it and its prefix are, and how long its virtio_net_hdr is."""

    low: int
    start: int
    high: int
    vnet_hdr_len: int


@final
class Framing:
    """The form of all frames.

    Args:
        framed: whether frames come in QEMU's stream.
        vnet: whether that stream declares the length of a virtio_net_hdr.
        vnet_hdr_len: bytes of virtio_net_hdr in front of a bare frame.
    """

    __slots__ = ("framed", "prefix", "vnet", "vnet_hdr_len")

    def __init__(self, *, framed: bool, vnet: bool, vnet_hdr_len: int) -> None:
        self.framed = framed
        self.vnet = vnet
        self.vnet_hdr_len = vnet_hdr_len
        self.prefix = 0 if not framed else VNET.size if vnet else PLAIN.size

    def lengths_untrusted(self, data: bytes | bytearray, at: int) -> tuple[int, int]:
        """What the prefix at ``at`` declares, (frame, virtio_net_hdr) in bytes.

        The first is `TOO_LONG` or `BAD_VNET_HDR_LEN` when the stream cannot be followed any more. All of the prefix
        must be there.
        """
        if self.vnet:
            length, vnet_hdr_len = VNET.unpack_from(data, at)
        else:
            (length,) = PLAIN.unpack_from(data, at)
            vnet_hdr_len = 0
        if length > MAX_FRAME_BYTES:
            return TOO_LONG, 0
        if vnet_hdr_len > length:
            return BAD_VNET_HDR_LEN, 0
        return length, vnet_hdr_len

    def parse_again(self, data: bytes, low: int, high: int, counters: Counters) -> tuple[bytes, Packet | None]:
        """The prefix and the packet of a frame that was accepted before."""
        start = low + self.prefix
        vnet_hdr_len = self.lengths_untrusted(data, low)[1] if self.framed else self.vnet_hdr_len
        return data[low:start], parse_untrusted(data[start:high], vnet_hdr_len, counters)

    def wrap(self, frame: bytes, prefix: bytes) -> bytes:
        """``frame`` as it goes out, with a prefix of the same form as ``prefix``, which is an accepted frame's."""
        if not self.framed:
            return frame
        if self.vnet:
            return VNET.pack(len(frame), VNET.unpack(prefix)[1]) + frame
        return PLAIN.pack(len(frame)) + frame
