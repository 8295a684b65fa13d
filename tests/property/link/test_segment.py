"""Segments of a large TCP or UDP packet, put together again, are what was cut up, and every checksum is right."""

from __future__ import annotations

import random
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from pystack.counters import Counters
from pystack.link.segment import MAX_SEGMENTS, to_wire_untrusted
from pystack.wire import checksum, vnet
from pystack.wire.packet import ACK, FIN, PROTO_TCP, PROTO_UDP, PSH, Packet, parse_untrusted, verify_untrusted


def _frame(version: int, proto: int, options: int, tags: int, payload: bytes, seq: int) -> bytes:
    """A packet as a sender with offload makes it; its checksum fields hold nothing of use."""
    if proto == PROTO_TCP:
        l4 = struct.pack("!HHIIBBHHH", 1, 2, seq, 7, (5 + options) << 4, ACK | PSH | FIN, 9, 0xABCD, 0) + bytes(
            4 * options
        )
    else:
        l4 = struct.pack("!HHHH", 1, 2, 8 + len(payload), 0xABCD)
    length = len(l4) + len(payload)
    if version == 4:
        ip = struct.pack(
            "!BBHHHBBH4s4s",
            0x45 + options,
            0,
            20 + 4 * options + length,
            65_535,
            0x4000,
            64,
            proto,
            0,
            b"\x0a\0\0\1",
            b"\x0a\0\0\2",
        )
        ip += b"\x01" * 4 * options
        ip = ip[:10] + checksum.finish(checksum.sum16(ip)).to_bytes(2, "big") + ip[12:]
        ethertype = b"\x08\0"
    else:
        ip = struct.pack(
            "!IHBB16s16s", 6 << 28, length, proto, 64, b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2"
        )
        ethertype = b"\x86\xdd"
    return bytes(12) + b"\x81\0\0\x05" * tags + ethertype + ip + l4 + payload


@given(
    version=st.sampled_from([4, 6]),
    proto=st.sampled_from([PROTO_TCP, PROTO_UDP]),
    options=st.integers(0, 10),
    tags=st.integers(0, 2),
    size=st.integers(0, 20_000),
    gso_size=st.integers(1, 9000),
    seq=st.integers(0, 0xFFFF_FFFF),
    padding=st.integers(0, 20),
)
@example(
    version=4,
    proto=PROTO_TCP,
    options=3,
    tags=0,
    size=65_535 - 20 - 12 - 20 - 12,
    gso_size=1448,
    seq=2**32 - 5,
    padding=0,
)
def test_segments_reassemble_to_the_same_bytes_with_valid_checksums(
    version: int, proto: int, options: int, tags: int, size: int, gso_size: int, seq: int, padding: int
) -> None:
    payload = random.Random(size).randbytes(size)
    tcp_type = vnet.GSO_TCPV4 if version == 4 else vnet.GSO_TCPV6
    header = vnet.build(10, gso_type=tcp_type if proto == PROTO_TCP else vnet.GSO_UDP_L4, gso_size=gso_size)
    counters = Counters()
    frames = to_wire_untrusted(
        header + _frame(version, proto, options, tags, payload, seq) + bytes(padding), 10, counters
    )
    if size > gso_size * MAX_SEGMENTS:
        assert frames == []
        return
    packets = [_parsed(frame) for frame in frames]
    assert b"".join(packet.payload_bytes() for packet in packets) == payload
    assert all(packet.payload_len == gso_size for packet in packets[:-1])
    assert all(packet.end == len(packet.frame) for packet in packets)
    if proto == PROTO_TCP:
        at = seq
        for packet in packets:
            assert packet.seq == at
            at = (at + packet.payload_len) & 0xFFFF_FFFF
    assert counters.snapshot() == {}


def _parsed(frame: bytes) -> Packet:
    counters = Counters()
    packet = parse_untrusted(frame, 0, counters)
    assert packet is not None, counters.snapshot()
    assert verify_untrusted(packet, counters, rx_checksum=False), counters.snapshot()
    return packet


@given(st.binary(max_size=200), st.sampled_from([0, 10, 12]))
def test_no_frame_raises_and_none_grows_without_bound(data: bytes, vnet_hdr_len: int) -> None:
    frames = to_wire_untrusted(data, vnet_hdr_len, Counters())
    assert len(frames) <= MAX_SEGMENTS
    assert all(len(frame) <= len(data) for frame in frames)
