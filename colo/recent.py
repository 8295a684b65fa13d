"""What the primary has sent lately, to hold its retransmissions against.

It is kept as it was read, and nothing is looked for in it until a retransmission comes: then the frames are put into an
index, each once. So remembering costs the ordinary frame nothing, neither time nor memory of its connection's own,
which with many connections is what a frame costs (docs/adr/0016-remembered-frames.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from colo.framing import MAX_VNET_HDR_LEN, Framing
from colo.ordinary import (
    ACK_ONLY,
    DATA_OFFSET,
    DATA_OFFSET_MIN,
    FLAGS_MASK,
    IPV4_MASK,
    IPV4_NO_OPTIONS,
    TCP_MASK,
    TCP_WHOLE,
    Ordinary,
)
from pystack import Counters
from pystack.flow.key import directed_key
from pystack.seq import MASK
from pystack.wire.packet import PROTO_TCP, SYN, Packet

RECENT_BYTES: Final = 1 << 19
"""Of the primary's output: at least half of this is remembered, and no more than this and one read."""

_UNKNOWN: Final = -1
_NO_MORE: Final = -1


@final
class _Said:
    """One connection's SYN, if it is known, and segments with payload: (position, seq, data, payload, length) each."""

    __slots__ = ("iss", "segments")

    def __init__(self, iss: int = _UNKNOWN) -> None:
        self.iss = iss
        self.segments: list[tuple[int, int, bytes, int, int]] = []


@final
class _Stretch:
    """Some of the output, (position of data, data, where its first whole frame starts) each, and its index.

    Attributes:
        bytes: of all its chunks. walked: how many chunks are in the index as a whole; of the next one, what lies before
            ``offset``.
    """

    __slots__ = ("bytes", "chunks", "index", "offset", "walked")

    def __init__(self) -> None:
        self.bytes = 0
        self.chunks: list[tuple[int, bytes, int]] = []
        self.index: dict[bytes, _Said] = {}
        self.walked = 0
        self.offset = 0


@final
class Recent:
    """The last of what the primary has sent, two stretches of it: the older one is forgotten as a whole.

    Args:
        framing: how the frames look.
    """

    __slots__ = ("_counters", "_framing", "_old", "_ordinary", "_young")

    def __init__(self, framing: Framing) -> None:
        self._framing = framing
        self._ordinary = Ordinary(framing, framing.vnet_hdr_len)
        self._counters = Counters()  # nobody's: what cannot be parsed was counted when it came
        self._old = _Stretch()
        self._young = _Stretch()

    def add(self, position: int, data: bytes, at: int) -> None:
        """Remember what was read.

        Args:
            position: of ``data`` in all that the primary sent. at: where in it the first whole frame starts.
        """
        young = self._young
        if young.bytes >= RECENT_BYTES // 2:
            self._old = young
            self._young = young = _Stretch()
        young.bytes += len(data)
        young.chunks.append((position, data, at))

    def segments(self, key: bytes, before: int) -> Iterator[tuple[int, bytes, int, int]]:
        """What a connection has sent before position ``before``.

        Yields:
            (seq, data, payload, length): from number ``seq`` on, ``length`` bytes that are in ``data`` at ``payload``.
        """
        found: list[_Said] = []
        for stretch in (self._old, self._young):
            self._index(stretch, before)
            said = stretch.index.get(key)
            if said is not None:
                if said.iss != _UNKNOWN and found and found[0].iss != said.iss:
                    found.clear()
                found.append(said)
        for said in found:
            for position, seq, data, payload, length in said.segments:
                if position < before:
                    yield seq, data, payload, length

    def _index(self, stretch: _Stretch, before: int) -> None:
        """Put every frame that starts before ``before`` into the index."""
        chunks = stretch.chunks
        while stretch.walked < len(chunks):
            position, data, first = chunks[stretch.walked]
            stretch.offset = self._walk(stretch.index, position, data, max(first, stretch.offset), before)
            if stretch.offset == _NO_MORE:
                stretch.walked += 1
                stretch.offset = 0
            elif position + stretch.offset >= before:
                return

    def _walk(self, index: dict[bytes, _Said], position: int, data: bytes, at: int, before: int) -> int:
        """Note the frames from ``at`` on, ordinary ones in line.

        Returns:
            Where to go on: at the first frame that does not start before ``before``, or where `_ordinary` changed.
            `_NO_MORE` when ``data`` has no other whole frame; a bare frame has ``data`` to itself.
        """
        if not self._framing.framed and position < before:
            self._note_untrusted(index, position, data, 0)
            return _NO_MORE
        ordinary = self._ordinary
        unpack, overhead, scale, bias = ordinary.struct.unpack_from, ordinary.overhead, ordinary.scale, ordinary.bias
        size = len(data)
        last = size - ordinary.struct.size
        stop = min(size, before - position)
        while at < stop:
            if at <= last:
                prefix, kind, total, protocol, key, seq, tail = unpack(data, at)
                end = at + overhead + total
                if (
                    kind & IPV4_MASK == IPV4_NO_OPTIONS
                    and protocol & TCP_MASK == TCP_WHOLE
                    and tail & FLAGS_MASK == ACK_ONLY
                    and prefix == total * scale + bias
                    and end <= size
                    and tail & DATA_OFFSET >= DATA_OFFSET_MIN
                ):
                    payload = at + overhead + 20 + (tail >> 26 & 0x3C)
                    if payload < end:
                        said = index.get(key)
                        if said is None:
                            said = index[key] = _Said()
                        said.segments.append((position + at, seq, data, payload, end - payload))
                    at = end
                    continue
            end = self._note_untrusted(index, position, data, at)
            if end == _NO_MORE:
                return _NO_MORE
            at = end
            if ordinary is not self._ordinary:
                break
        return at if at < size else _NO_MORE

    def _note_untrusted(self, index: dict[bytes, _Said], position: int, data: bytes, at: int) -> int:
        """Note the frame at ``at``, whatever it is; returns where it ends, `_NO_MORE` if it is not whole."""
        framing = self._framing
        start, length, vnet_hdr_len = at + framing.prefix, len(data) - at, framing.vnet_hdr_len
        if framing.framed:
            if start > len(data):
                return _NO_MORE
            length, vnet_hdr_len = framing.lengths_untrusted(data, at)
        end = start + length
        if length < 0 or end > len(data):
            return _NO_MORE
        if vnet_hdr_len > MAX_VNET_HDR_LEN:
            return end
        if vnet_hdr_len != self._ordinary.vnet_hdr_len:
            self._ordinary = Ordinary(framing, vnet_hdr_len)
        packet = framing.parse_again(data, at, end, self._counters)[1]
        if packet is not None and packet.proto == PROTO_TCP and (key := directed_key(packet)):
            _note(index, key, packet, position + at, data, start)
        return end


def _note(index: dict[bytes, _Said], key: bytes, packet: Packet, position: int, data: bytes, start: int) -> None:
    said = index.get(key)
    seq = packet.seq
    if packet.flags & SYN:
        if said is None or said.iss != seq:  # not a SYN that is sent again: the addresses and ports are used anew
            said = index[key] = _Said(seq)
        seq = seq + 1 & MASK
    elif said is None:
        said = index[key] = _Said()
    length = packet.end - packet.payload
    if length:
        said.segments.append((position, seq, data, start + packet.payload, length))
