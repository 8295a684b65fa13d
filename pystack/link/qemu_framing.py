"""QEMU's framing of Ethernet frames in a byte stream. Sans-I/O.

    0                   4
    +-------------------+----------------------+
    | length, 32 bit BE | frame, length bytes  |        -netdev stream, -netdev socket
    +-------------------+----------------------+

    0                   4                    8
    +-------------------+--------------------+----------------------------------------+
    | length, 32 bit BE | vnet_hdr_len, same | virtio_net_hdr and frame, length bytes |
    +-------------------+--------------------+----------------------------------------+

The second form is that of QEMU's filter-mirror, filter-redirector and colo-compare with ``vnet_hdr_support``; the
length counts the virtio_net_hdr in. A declared length is bounded before anything is kept: a peer must not choose how
much memory this side allocates.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias, final

from pystack.errors import WireError
from pystack.frame import Buffer

MAX_FRAME_BYTES: Final = 69_632
"""The largest frame accepted: QEMU's own NET_BUFSIZE, 64 KiB and 4 KiB of headers."""

Framed: TypeAlias = tuple[int, bytes]
"""The length of the virtio_net_hdr (0 without one), and the frame that starts with it."""

_PLAIN: Final = struct.Struct("!I")
_VNET: Final = struct.Struct("!II")


def header(length: int, vnet_hdr_len: int | None = None) -> bytes:
    """What precedes a frame in the stream.

    Args:
        length: of the frame in bytes, any virtio_net_hdr included.
        vnet_hdr_len: None for the plain form, otherwise the length that the second form declares.
    """
    return _PLAIN.pack(length) if vnet_hdr_len is None else _VNET.pack(length, vnet_hdr_len)


def encode(frame: Buffer, vnet_hdr_len: int | None = None) -> bytes:
    """``frame`` as it travels in the stream, its `header` in front."""
    return header(len(frame), vnet_hdr_len) + frame


@final
class FrameDecoder:
    """A stream of bytes in, cut anywhere; whole frames out.

    Holds less than one frame of ``max_frame`` bytes and its header, whatever arrives.

    Args:
        vnet_hdr: whether the stream has the second form.
        max_frame: the longest frame accepted, in bytes.

    Attributes:
        error: why the stream cannot be followed any more, None while it can: ``qemu.too_long`` for a length above
            ``max_frame``, ``qemu.bad_vnet_hdr_len`` for a virtio_net_hdr longer than its frame.
    """

    __slots__ = ("_buffer", "_header", "_max_frame", "_vnet_hdr", "error")

    def __init__(self, *, vnet_hdr: bool = False, max_frame: int = MAX_FRAME_BYTES) -> None:
        self._vnet_hdr = vnet_hdr
        self._header = _VNET if vnet_hdr else _PLAIN
        self._max_frame = max_frame
        self._buffer = bytearray()  # the start of a frame whose end has not come
        self.error: WireError | None = None

    @property
    def buffered(self) -> int:
        """Bytes that are held until the rest of their frame comes: 0 at the boundary between two frames."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Framed]:
        """The frames that ``data`` completes, in order, each in a `bytes` of its own.

        Never raises. A declared length that cannot be right sets ``error``: where the next frame would start is unknown
        from there on, so nothing that follows gives frames.
        """
        if self.error is not None:
            return []
        if not self._buffer:
            if not self._vnet_hdr and 4 <= len(data) == 4 + int.from_bytes(data[:4], "big") <= self._max_frame:
                return [(0, data[4:])]  # one frame, as a guest that answers sends it
            frames, used = self._walk(data)
            if used < len(data):
                self._buffer += memoryview(data)[used:]
        else:
            # Appended and not joined: a frame that comes byte by byte must not be copied for each of them.
            self._buffer += data
            frames, used = self._walk(self._buffer)
            del self._buffer[:used]
        return frames

    def _walk(self, data: bytes | bytearray) -> tuple[list[Framed], int]:
        """The whole frames at the start of ``data``, and how many bytes are dealt with."""
        frames: list[Framed] = []
        header, plain = self._header, not self._vnet_hdr
        at, size, end = 0, header.size, len(data)
        vnet_hdr_len = 0
        with memoryview(data) as view:
            while end - at >= size:
                if plain:
                    (length,) = _PLAIN.unpack_from(view, at)
                else:
                    length, vnet_hdr_len = _VNET.unpack_from(view, at)
                if length > self._max_frame:
                    self.error = WireError("qemu.too_long", f"a frame of {length} bytes")
                    return frames, end
                if vnet_hdr_len > length:
                    self.error = WireError("qemu.bad_vnet_hdr_len", f"{vnet_hdr_len} of {length} bytes")
                    return frames, end
                start = at + size
                if end - start < length:
                    break
                at = start + length
                frames.append((vnet_hdr_len, bytes(view[start:at])))
        return frames, at
