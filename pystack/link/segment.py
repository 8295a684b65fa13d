"""What a network card does for a sender, in software: segmentation of TCP and UDP, and checksums that were left undone.

Read before editing: virtio 1.2 section 5.1.6.2 (what the header in front asks for), RFC 1071, RFC 9293 section 3.1.

For links that show packets as they would be on a wire: impairment, capture, and peers without offload. The header is
believed as little as the packet: a guest may have written it.
"""

from __future__ import annotations

import struct
from typing import Final

from pystack.counters import Counters
from pystack.wire import checksum, vnet
from pystack.wire.packet import (
    CWR,
    FIN,
    PROTO_TCP,
    PROTO_UDP,
    PSH,
    Packet,
    parse_untrusted,
)

MAX_SEGMENTS: Final = 8192
"""More than 64 KiB at Linux' smallest MSS: a frame that asks for more is an amplifier."""

_U16: Final = struct.Struct("!H")
_U32: Final = struct.Struct("!I")


def to_wire_untrusted(frame: bytes, vnet_hdr_len: int, counters: Counters) -> list[bytes]:
    """The Ethernet frames that ``frame`` stands for, without virtio_net_hdr, each complete.

    Args:
        frame: as a link gives it: a virtio_net_hdr of ``vnet_hdr_len`` bytes (0: none), then Ethernet.
        counters: ``segment.bad_vnet_hdr`` is bumped for a header that contradicts its frame.

    Returns:
        One frame, or as many as its gso_size makes of it; an empty list when the header cannot be followed.
    """
    if not vnet_hdr_len:
        return [frame]
    header = vnet.parse_untrusted(frame, vnet_hdr_len)
    frames: list[bytes] | None
    if header is None:
        frames = None
    elif header.gso_type & ~vnet.GSO_ECN != vnet.GSO_NONE:
        frames = _segment(frame, vnet_hdr_len, header.gso_type & ~vnet.GSO_ECN, header.gso_size)
    elif header.flags & vnet.F_NEEDS_CSUM:
        whole = _complete(frame[vnet_hdr_len:], header)
        frames = None if whole is None else [whole]
    else:
        frames = [frame[vnet_hdr_len:]]
    if frames is None:
        counters.bump("segment.bad_vnet_hdr")
        return []
    return frames


def complete_untrusted(frame: bytes, vnet_hdr_len: int) -> bytes:
    """``frame`` in one piece, however large, without its virtio_net_hdr and with its checksum filled.

    A header that contradicts the frame is ignored: this is for showing a frame, not for passing it on.
    """
    ethernet = frame[vnet_hdr_len:]
    header = vnet.parse_untrusted(frame, vnet_hdr_len)
    if header is not None and header.flags & vnet.F_NEEDS_CSUM:
        return _complete(ethernet, header) or ethernet
    return ethernet


def _complete(ethernet: bytes, header: vnet.Header) -> bytes | None:
    """Fill a checksum: the sum from ``start`` to the end, in which the field itself holds the pseudo-header's sum."""
    start = header.csum_start
    at = start + header.csum_offset
    if at + 2 > len(ethernet):
        return None
    # What lies behind the IP packet is padding of Ethernet and outside of the sum.
    packet = parse_untrusted(ethernet, 0, Counters())
    end = packet.end if packet is not None and packet.l4 == start else len(ethernet)
    total = checksum.sum16(memoryview(ethernet)[start:end])
    # Zero would say "no checksum" in UDP; elsewhere both forms of zero are right.
    return ethernet[:at] + _U16.pack(checksum.finish_udp(total)) + ethernet[at + 2 :]


def _segment(frame: bytes, vnet_hdr_len: int, gso_type: int, gso_size: int) -> list[bytes] | None:
    """Cut a large TCP or UDP packet into ones of ``gso_size`` bytes of payload; None if it is not such a packet."""
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    if packet is None or packet.is_fragment or not gso_size:
        return None
    proto = PROTO_UDP if gso_type == vnet.GSO_UDP_L4 else PROTO_TCP
    version = {vnet.GSO_TCPV4: 4, vnet.GSO_TCPV6: 6}.get(gso_type, packet.version)
    if (
        gso_type not in {vnet.GSO_TCPV4, vnet.GSO_TCPV6, vnet.GSO_UDP_L4}
        or packet.proto != proto
        or packet.version != version
    ):
        return None
    if packet.payload_len > gso_size * MAX_SEGMENTS:
        return None
    header = frame[vnet_hdr_len : packet.payload]
    payload = memoryview(frame)[packet.payload : packet.end]
    make = _tcp_segment if proto == PROTO_TCP else _udp_segment
    starts = range(0, max(len(payload), 1), gso_size)
    return [make(packet, header, payload[at : at + gso_size], at, n) for n, at in enumerate(starts)]


def _tcp_segment(packet: Packet, header: bytes, payload: memoryview, at: int, index: int) -> bytes:
    """One TCP segment of several: its sequence number moves, FIN and PSH go with the last, CWR with the first."""
    out = bytearray(header)
    l4 = packet.l4 - packet.eth
    _ip_header(out, packet, len(payload), index)
    _U32.pack_into(out, l4 + 4, (packet.seq + at) & 0xFFFF_FFFF)
    flags = packet.flags
    if at + len(payload) < packet.payload_len:
        flags &= ~(FIN | PSH)
    if index:
        flags &= ~CWR
    out[l4 + 13] = flags
    out[l4 + 16 : l4 + 18] = b"\0\0"
    length = len(out) - l4 + len(payload)
    total = checksum.pseudo(packet.src, packet.dst, PROTO_TCP, length)
    total += checksum.sum_buffers((memoryview(out)[l4:], payload))
    _U16.pack_into(out, l4 + 16, checksum.finish(total))
    return bytes(out) + payload


def _udp_segment(packet: Packet, header: bytes, payload: memoryview, _at: int, index: int) -> bytes:
    """One UDP datagram of several."""
    out = bytearray(header)
    l4 = packet.l4 - packet.eth
    _ip_header(out, packet, len(payload), index)
    length = 8 + len(payload)
    struct.pack_into("!HH", out, l4 + 4, length, 0)
    total = checksum.pseudo(packet.src, packet.dst, PROTO_UDP, length)
    total += checksum.sum_buffers((memoryview(out)[l4:], payload))
    _U16.pack_into(out, l4 + 6, checksum.finish_udp(total))
    return bytes(out) + payload


def _ip_header(out: bytearray, packet: Packet, payload_len: int, index: int) -> None:
    """The lengths, the identification and the header checksum of segment ``index``."""
    l3 = packet.l3 - packet.eth
    total = len(out) - l3 + payload_len
    if packet.version == 6:
        _U16.pack_into(out, l3 + 4, total - 40)
        return
    _U16.pack_into(out, l3 + 2, total)
    _U16.pack_into(out, l3 + 4, (packet.ident + index) & 0xFFFF)
    out[l3 + 10 : l3 + 12] = b"\0\0"
    _U16.pack_into(out, l3 + 10, checksum.finish(checksum.sum16(memoryview(out)[l3 : packet.l4 - packet.eth])))
