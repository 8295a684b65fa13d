"""Frames of the primary with a smaller window: what both machines can take.

Read before editing: RFC 9293 sections 3.8.6 and 3.10.7.4 (window updates), RFC 7323 section 2.3 (the field is scaled).

The window of the primary may reach further than that of the secondary. What the client sends beyond the latter is
lost for the secondary, so the field of a frame on its way out is lowered; and as the secondary's own update, later, is
dropped as all its frames are, one is made then from the primary's last frame.
"""

from __future__ import annotations

import struct

from colo.held import ACKNOWLEDGES, LOW, MORE, POSITION, SINCE, Outbox, Record
from pystack.wire import checksum
from pystack.wire.packet import ACK, VNET_NEEDS_CSUM, Packet

_WINDOW_AT = 14
_CHECKSUM_AT = 16


def clamped(record: Record, right: int, shift: int, out: Outbox) -> Record:
    """``record`` with a window that ends at ``right`` at most, ``shift`` being its scale."""
    prefix, packet = out.frame_of(record)
    if packet is None or record[MORE] is not None:  # what came in fragments goes out as it is
        return record
    size = max(right - record[ACKNOWLEDGES], 0) >> shift
    frame = bytearray(packet.frame)
    at = packet.l4
    struct.pack_into("!H", frame, at + _WINDOW_AT, size)
    if not packet.vnet_flags & VNET_NEEDS_CSUM:
        (field,) = struct.unpack_from("!H", frame, at + _CHECKSUM_AT)
        struct.pack_into("!H", frame, at + _CHECKSUM_AT, checksum.update(field, packet.window, size))
    data = prefix + bytes(frame)
    return (
        *record[:2],
        data,
        len(prefix) + packet.payload,
        *record[4:7],
        0,
        len(data),
        record[SINCE],
        record[POSITION] + record[LOW],
        None,
    )


def update(record: Record, seq: int, right: int, shift: int, out: Outbox) -> Record | None:
    """A bare acknowledgement like ``record`` that opens the window up to ``right``; None when it says nothing new."""
    prefix, packet = out.frame_of(record)
    if packet is None or record[MORE] is not None:
        return None
    size = min(max(right - record[ACKNOWLEDGES], 0) >> shift, 0xFFFF)
    data = out.framing.wrap(bare_ack(packet, seq, size), prefix)
    return (seq, seq, data, len(data), *record[4:7], 0, len(data), record[SINCE], record[POSITION] + record[LOW], None)


def bare_ack(packet: Packet, seq: int, window: int) -> bytes:
    """The headers of ``packet`` as a pure ACK with another sequence number and window, checksums complete."""
    head = bytearray(packet.frame[: packet.payload])
    if packet.eth:
        head[: packet.eth] = bytes(packet.eth)  # no offload: nothing is left to be completed
    l3, l4 = packet.l3, packet.l4
    length = packet.payload - l4
    struct.pack_into("!I", head, l4 + 4, seq & 0xFFFF_FFFF)
    head[l4 + 13] = ACK
    struct.pack_into("!HHH", head, l4 + _WINDOW_AT, window, 0, 0)
    if packet.version == 4:
        struct.pack_into("!H", head, l3 + 2, packet.payload - l3)
        struct.pack_into("!H", head, l3 + 10, 0)
        struct.pack_into("!H", head, l3 + 10, checksum.finish(checksum.sum16(head[l3:l4])))
    else:
        struct.pack_into("!H", head, l3 + 4, packet.payload - l3 - 40)
    total = checksum.pseudo(packet.src, packet.dst, packet.proto, length) + checksum.sum16(head[l4:])
    struct.pack_into("!H", head, l4 + _CHECKSUM_AT, checksum.finish(total))
    return bytes(head)
