"""What no fuzzer guesses: checksums, and numbers that a connection accepts. Targets apply it to their input."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pystack.counters import Counters
from pystack.seq import MASK
from pystack.tcp.tcb import Connection
from pystack.wire import checksum
from pystack.wire.packet import (
    ETHERTYPE_IPV4,
    PROTO_ICMP,
    PROTO_TCP,
    PROTO_UDP,
    Packet,
    parse_general_untrusted,
)

_CHECKSUM_AT = {PROTO_TCP: 16, PROTO_UDP: 6, PROTO_ICMP: 2}


def repair(frame: bytes, vnet_hdr_len: int, connections: Mapping[bytes, Connection]) -> bytes:
    """``frame`` with right checksums; what cannot be parsed is returned as it is.

    The numbers of a segment of one of ``connections`` become relative: of its sequence and acknowledgement numbers
    the lower 16 bits are a signed distance from what that connection expects next.
    """
    packet = parse_general_untrusted(frame, vnet_hdr_len, Counters())
    if packet is None or packet.ethertype != ETHERTYPE_IPV4:
        return frame
    data = bytearray(frame)
    connection = connections.get(packet.key) if packet.proto == PROTO_TCP else None
    if connection is not None:
        _renumber(data, packet, connection)
    _put_checksum(data, packet.l3, packet.l4, packet.l3 + 10, 0)
    at = packet.l4 + _CHECKSUM_AT.get(packet.proto, 0)
    if packet.proto in _CHECKSUM_AT and not packet.is_fragment and at + 2 <= packet.end:
        length = packet.end - packet.l4
        pseudo = 0 if packet.proto == PROTO_ICMP else checksum.pseudo(packet.src, packet.dst, packet.proto, length)
        _put_checksum(data, packet.l4, packet.end, at, pseudo)
    return bytes(data)


def _renumber(data: bytearray, packet: Packet, connection: Connection) -> None:
    seq = (connection.rcv_nxt + _signed(packet.seq)) & MASK
    ack = (connection.snd_max + _signed(packet.ack)) & MASK
    struct.pack_into("!II", data, packet.l4 + 4, seq, ack)


def _signed(number: int) -> int:
    return ((number & 0xFFFF) ^ 0x8000) - 0x8000


def _put_checksum(data: bytearray, start: int, end: int, at: int, pseudo: int) -> None:
    data[at : at + 2] = b"\0\0"
    data[at : at + 2] = checksum.finish(checksum.sum16(bytes(data[start:end])) + pseudo).to_bytes(2, "big")
