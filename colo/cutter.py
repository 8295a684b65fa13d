"""Cuts QEMU's stream between two frames, and nowhere else, without looking into them. Sans-I/O.

For what passes frames on as they are: a copy that is given up must be given up in whole frames, and a peer that goes
in the middle of one must not leave half of it in front of what the next peer says.
"""

from __future__ import annotations

from typing import final

from colo.framing import BAD_VNET_HDR_LEN, Framing
from pystack import Buffer, Counters


@final
class Cutter:
    """A stream of bytes in, cut anywhere; runs of whole frames out.

    Args:
        vnet: whether the stream declares the length of a virtio_net_hdr for each frame.
        name: of the counters ``<name>.frames``, ``.empty`` (frames without a byte, on which QEMU would end itself: left
            out), ``.too_long`` and ``.bad_vnet_hdr_len``.

    Attributes:
        error: why the stream cannot be followed any more, a counter's name; "" while it can.
    """

    __slots__ = ("_counters", "_framing", "_name", "_rest", "error")

    def __init__(self, *, vnet: bool, name: str, counters: Counters) -> None:
        self._framing = Framing(framed=True, vnet=vnet, vnet_hdr_len=0)
        self._name = name
        self._counters = counters
        self._rest = bytearray()  # the start of a frame whose end has not come
        self.error = ""

    def feed_untrusted(self, data: bytes) -> list[Buffer]:
        """The frames that ``data`` completes, prefixes included, in as few pieces as possible."""
        if self.error:
            return []
        if self._rest:
            # Appended and not joined: a frame that comes byte by byte must not be copied for each of them.
            self._rest += data
            runs, used = self._walk_untrusted(self._rest)
            pieces: list[Buffer] = [bytes(self._rest[low:high]) for low, high in runs]
            del self._rest[:used]
            return pieces
        runs, used = self._walk_untrusted(data)
        if used < len(data) and not self.error:
            self._rest += memoryview(data)[used:]
        return [data if high - low == len(data) else memoryview(data)[low:high] for low, high in runs]

    def _walk_untrusted(self, data: bytes | bytearray) -> tuple[list[tuple[int, int]], int]:
        """The runs of whole frames, and how many bytes are dealt with."""
        lengths, prefix, end = self._framing.lengths_untrusted, self._framing.prefix, len(data)
        runs: list[tuple[int, int]] = []
        at = low = frames = 0
        while at + prefix <= end:
            length, _ = lengths(data, at)
            if length < 0:
                self.error = (
                    f"{self._name}.bad_vnet_hdr_len" if length == BAD_VNET_HDR_LEN else f"{self._name}.too_long"
                )
                self._counters.bump(self.error)
                break
            if at + prefix + length > end:
                break
            if length:
                frames += 1
            else:
                self._counters.bump(f"{self._name}.empty")
                if at > low:
                    runs.append((low, at))
                low = at + prefix
            at += prefix + length
        if at > low:
            runs.append((low, at))
        if frames:
            self._counters.bump(f"{self._name}.frames", frames)
        return runs, at

    def reset(self) -> None:
        """The stream starts anew."""
        self._rest.clear()
        self.error = ""
