"""The shortcut of the one pass equals its general path, every offset stays in the frame, and the line never fails."""

from __future__ import annotations

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.wire import ipv6, pretty
from pystack.wire.packet import Packet, parse_general_untrusted, parse_untrusted, verify_untrusted

_VNET = bytes.fromhex("0101360060052200100000000000")[:12]

# The first byte chooses the virtio_net_hdr: none, 10 or 12 bytes.
SEEDS = [
    bytes((index % 3,)) + (b"", _VNET[:10], _VNET)[index % 3] + frame
    for index, frame in enumerate(seeds.whole_frames())
]


def target(data: bytes) -> None:
    """Parse one frame both ways, verify it, print it."""
    vnet_hdr_len = (0, 10, 12)[data[0] % 3] if data else 0
    frame = data[1:]
    fast, general = Counters(), Counters()
    packet = parse_untrusted(frame, vnet_hdr_len, fast)
    same = parse_general_untrusted(frame, vnet_hdr_len, general)
    assert _state(packet) == _state(same)
    assert fast.snapshot() == general.snapshot()
    assert sum(fast.snapshot().values()) == (packet is None)
    if packet:
        assert vnet_hdr_len == packet.eth < packet.l3 <= packet.l4 <= packet.payload <= packet.end <= len(frame)
        assert len(packet.key) in (0, {4: 12, 6: 36, 0: 0}[packet.version])
        extensions = ipv6.walk_untrusted(packet)
        assert not extensions or extensions[-1].end == packet.l4
        believed = verify_untrusted(packet, fast, rx_checksum=bool(data[0] & 0x80))
        assert sum(fast.snapshot().values()) == (not believed)
    text = pretty.line(frame, vnet_hdr_len, checksums=True)
    assert text
    assert text.isascii()
    assert text.isprintable()


def _state(packet: Packet | None) -> list[object] | None:
    return packet and [getattr(packet, name) for name in Packet.__slots__]


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
