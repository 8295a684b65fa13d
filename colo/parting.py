"""A frame of the primary in two: what the secondary has sent of it, which may leave, and the rest, which waits.

Read before editing: virtio 1.2 section 5.1.6.2 (gso_size, NEEDS_CSUM), RFC 1624, docs/explanation/output-commit.md.

A frame that a network card is to segment carries up to 64 KiB. The secondary may not be able to send as much before
the client has acknowledged the beginning, which it does not have: the primary's frame would wait for the secondary, the
secondary for the client, and the client for the frame. So the beginning leaves, as a frame that the card would have
made of the whole: lengths, IP identification, sequence number, flags, checksums and virtio_net_hdr are those of a part.
"""

from __future__ import annotations

import struct
from typing import Final

from colo.held import FLAGS, LOW, MORE, POSITION, SINCE, START, STOP, UNCOVERED, Outbox, Record
from pystack import Counters
from pystack.wire import checksum, vnet
from pystack.wire.packet import CWR, FIN, PSH, RST, SYN, URG, VNET_NEEDS_CSUM, Packet, verify_untrusted

WHOLE: Final = SYN | RST | URG | UNCOVERED
"""Flags of a record that is never cut."""

_TCP_KINDS: Final = {vnet.GSO_TCPV4: 4, vnet.GSO_TCPV6: 6}
_CHECKSUM_AT: Final = 16


def cut(record: Record, covered: int, out: Outbox, *, anywhere: bool) -> tuple[Record, Record] | None:
    """The first ``covered`` bytes of payload as a record of its own, and the rest; None if it is better left whole.

    Args:
        covered: how many bytes may leave; if that is all of them, the end of the stream has to wait, with the last.
        anywhere: whether an ordinary frame is cut too, and at any byte. Otherwise only one that is to be segmented is,
            and only if a whole segment may leave.
    """
    if record[FLAGS] & WHOLE or record[MORE] is not None:
        return None
    if not anywhere and not out.framing.vnet and not out.framing.vnet_hdr_len:
        return None
    prefix, packet = out.frame_of(record)
    if packet is None or not _can_be_cut(packet):
        return None
    length = record[STOP] - record[START]
    segment = packet.gso_size if packet.gso_type & ~vnet.GSO_ECN in _TCP_KINDS else 0
    if covered >= length:
        covered = (length - 1) // segment * segment if segment else 0
    if covered < (1 if anywhere else segment or length):
        return None
    index = -(-covered // segment) if segment else 1
    first = out.framing.wrap(_part(packet, 0, covered, 0), prefix)
    second = out.framing.wrap(_part(packet, covered, length, index), prefix)
    position = record[POSITION] + record[LOW]
    head = len(prefix) + packet.payload
    middle = record[START] + covered
    ack, right, flags = record[4:7]
    since = record[SINCE]
    later = max(since, out.heard)  # a slow client is no reason for a checkpoint: what is left has only begun to wait
    return (
        (record[START], middle, first, head, ack, right, flags & ~(FIN | PSH), 0, len(first), since, position, None),
        (middle, record[STOP], second, head, ack, right, flags & ~CWR, 0, len(second), later, position, None),
    )


def _can_be_cut(packet: Packet) -> bool:
    """Whether the frame's headers say the same of it, so that those of a part can be told from them."""
    kind = packet.gso_type & ~vnet.GSO_ECN
    if 0 < packet.eth < vnet.HEADER.size:
        return False
    if kind and (_TCP_KINDS.get(kind) != packet.version or not packet.gso_size):
        return False
    if packet.vnet_flags & VNET_NEEDS_CSUM:
        header = vnet.parse_untrusted(packet.frame, packet.eth)
        return header is not None and (header.csum_start, header.csum_offset) == (packet.l4 - packet.eth, _CHECKSUM_AT)
    # Where the checksum is complete it is made anew, and what was damaged must not become good by that. One that is to
    # be segmented has none of its own.
    return bool(kind) or verify_untrusted(packet, Counters(), rx_checksum=False)


def _part(packet: Packet, start: int, stop: int, index: int) -> bytes:
    """The frame with payload from ``start`` to ``stop`` only, being the segment ``index`` of the whole."""
    head = bytearray(packet.frame[: packet.payload])
    body = memoryview(packet.frame)[packet.payload + start : packet.payload + stop]
    l4, size = packet.l4, packet.payload + stop - start
    if packet.eth:
        _vnet_header(head, packet, stop - start, first=not start)
    _ip_header(head, packet, size - packet.l3, index)
    flags = packet.flags
    if stop < packet.payload_len:
        flags &= ~(FIN | PSH)
    if start:
        flags &= ~CWR
    struct.pack_into("!I", head, l4 + 4, (packet.seq + start) & 0xFFFF_FFFF)
    head[l4 + 13] = flags
    at = l4 + _CHECKSUM_AT
    if packet.vnet_flags & VNET_NEEDS_CSUM:
        (field,) = struct.unpack_from("!H", head, at)  # the pseudo-header's sum, of which the length is a part
        struct.pack_into("!H", head, at, checksum.fold(field + size - packet.end))
    else:
        struct.pack_into("!H", head, at, 0)
        total = checksum.pseudo(packet.src, packet.dst, packet.proto, size - l4)
        total += checksum.sum_buffers((memoryview(head)[l4:], body))
        struct.pack_into("!H", head, at, checksum.finish(total))
    return bytes(head) + body


def _vnet_header(head: bytearray, packet: Packet, payload_len: int, *, first: bool) -> None:
    """What is left for the card to do: nothing but a checksum where one segment is left."""
    if not packet.gso_type:
        return
    if payload_len <= packet.gso_size:
        struct.pack_into("<BHH", head, 1, vnet.GSO_NONE, 0, 0)
    elif not first:
        head[1] = packet.gso_type & ~vnet.GSO_ECN  # which says that there is CWR


def _ip_header(head: bytearray, packet: Packet, size: int, index: int) -> None:
    """The lengths, and for IPv4 the identification and the checksum, of the packet of ``size`` bytes."""
    l3 = packet.l3
    if packet.version == 6:
        struct.pack_into("!H", head, l3 + 4, size - 40)
        return
    length, ident = size, (packet.ident + index) & 0xFFFF
    (field,) = struct.unpack_from("!H", head, l3 + 10)
    struct.pack_into("!HH", head, l3 + 2, length, ident)
    field = checksum.update(field, packet.end - l3 + packet.ident, length + ident)
    struct.pack_into("!H", head, l3 + 10, field)
