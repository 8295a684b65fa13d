"""Rewriting a segment and its inverse restore the frame, and a checksum is right afterwards if it was right before."""

from __future__ import annotations

import struct

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.flow import translate
from pystack.flow.rewriter import Rewriter, RewriterConfig
from pystack.testing.frames import Crafter
from pystack.wire import icmp, tcp
from pystack.wire.packet import (
    ACK,
    PROTO_TCP,
    SYN,
    VNET_NEEDS_CSUM,
    Packet,
    parse_untrusted,
    verify_untrusted,
)

_WIRE = Crafter("10.0.0.1", "10.0.0.2")
_HEAD = struct.Struct("!BII")
_ECHOED = tcp.build_options(timestamps=(7, 9), sack=((1, 2), (3, 4)))
_ODD = b"\x01\x08\x0a\0\0\0\x07\0\0\0\x09\x05\x0a\0\0\0\x01\0\0\0\x02"

_FRAMES = [
    *seeds.whole_frames(),
    _WIRE.tcp(sport=1, dport=2, seq=5, flags=SYN, options=tcp.build_options(mss=1460, timestamps=(7, 0))),
    _WIRE.tcp(sport=1, dport=2, seq=5, ack=9, flags=ACK, options=_ECHOED, payload=b"odd"),
    _WIRE.tcp(sport=1, dport=2, seq=5, ack=9, flags=ACK, options=_ODD),
    _WIRE.icmp_error(icmp.UNREACHABLE, 1, _WIRE.tcp(sport=1, dport=2, seq=5, flags=ACK)[14:]),
    *_WIRE.fragments(PROTO_TCP, tcp.build(src=bytes(4), dst=bytes(4), sport=1, dport=2, payload=bytes(40)), 40),
]
# The first byte chooses the virtio_net_hdr and the direction, then come the offsets of the stream and of the clock.
SEEDS = [
    _HEAD.pack(index % 6, 0xFFFF_0000 + index, 0x8000_0000) + bytes((0, 10, 12)[index % 3]) + frame
    for index, frame in enumerate(_FRAMES)
]


def target(data: bytes) -> None:
    """Nine bytes of choices, and a frame."""
    if len(data) < _HEAD.size:
        return
    choice, seq, ts = _HEAD.unpack_from(data)
    vnet_hdr_len = (0, 10, 12)[choice % 3]
    packet = parse_untrusted(data[_HEAD.size :], vnet_hdr_len, Counters())
    if packet is None:
        return
    if packet.proto == PROTO_TCP:
        whole = translate.first_fragment_untrusted(packet) if packet.is_fragment else packet
        if whole is not None:
            _there_and_back(whole, seq, ts, outward=bool(choice & 4), verify=not packet.is_fragment)
    _through_a_rewriter(packet, RewriterConfig(vnet_hdr_len=vnet_hdr_len, max_flows=4), seq)


def _there_and_back(packet: Packet, seq: int, ts: int, *, outward: bool, verify: bool) -> None:
    function = translate.from_secondary if outward else translate.to_secondary
    there = function(packet, seq, ts, Counters())
    moved = parse_untrusted(there, packet.eth, Counters())
    assert moved is not None
    assert len(there) == len(packet.frame)
    assert there[packet.payload :] == packet.frame[packet.payload :]
    if verify and not packet.vnet_flags & VNET_NEEDS_CSUM:
        assert _is_right(moved) == _is_right(packet)
    if not outward and b"\0\0\0\0" in there[packet.l4 + 20 : packet.payload]:
        return  # an echo that became 0 is none any more
    whole = moved if verify else translate.first_fragment_untrusted(moved)
    assert whole is not None
    back = function(whole, -seq, -ts, Counters())
    at = packet.l4 + 16
    assert back[:at] + back[at + 2 :] == packet.frame[:at] + packet.frame[at + 2 :]
    assert back[at : at + 2] == packet.frame[at : at + 2] or {back[at : at + 2], packet.frame[at : at + 2]} == {
        b"\0\0",
        b"\xff\xff",
    }


def _is_right(packet: Packet) -> bool:
    return verify_untrusted(packet, Counters(), rx_checksum=False)


def _through_a_rewriter(packet: Packet, config: RewriterConfig, seq: int) -> None:
    """The same frame as everybody's, with a connection that has an offset if the frame belongs to one."""
    rewriter = Rewriter(config)
    for event in (None, rewriter.checkpoint, lambda: rewriter.failover(1)):
        if event is not None:
            event()
        for feed in (rewriter.observe_primary, rewriter.to_secondary, rewriter.from_secondary):
            seen = feed(packet, seq)
            assert seen is None or len(seen) == len(packet.frame)
    assert all(len(frame) == len(packet.frame) for frame in rewriter.take_waiting())
    assert len(rewriter) <= 2  # one for each way, as both ends claim to be the guest
    rewriter.tick(1 << 61)
    assert (len(rewriter), rewriter.waiting_bytes) == (0, 0)


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
