"""Whatever its virtio_net_hdr says, a frame becomes packets with valid checksums and the same payload, or nothing."""

from __future__ import annotations

from fuzz import harness
from pystack.counters import Counters
from pystack.link.segment import MAX_SEGMENTS, complete_untrusted, to_wire_untrusted
from pystack.testing.frames import Crafter
from pystack.wire import vnet
from pystack.wire.packet import ACK, parse_untrusted, verify_untrusted

_WIRE = Crafter("10.0.0.1", "10.0.0.2")
_HEADER = 10

SEEDS = [
    vnet.build(_HEADER, flags=vnet.F_NEEDS_CSUM, gso_type=vnet.GSO_TCPV4, gso_size=100, csum_start=34, csum_offset=16)
    + _WIRE.tcp(sport=1, dport=2, flags=ACK, payload=bytes(250)),
    vnet.build(_HEADER, flags=vnet.F_NEEDS_CSUM, gso_type=vnet.GSO_UDP_L4, gso_size=100, csum_start=34, csum_offset=6)
    + _WIRE.udp(1, 2, bytes(250)),
    vnet.build(_HEADER, flags=vnet.F_NEEDS_CSUM, csum_start=34, csum_offset=6) + _WIRE.udp(1, 2, b"x"),
    bytes(_HEADER) + _WIRE.echo(),
]


def target(data: bytes) -> None:
    """The input is a frame with a virtio_net_hdr of 10 bytes in front."""
    counters = Counters()
    frames = to_wire_untrusted(data, _HEADER, counters)
    assert len(frames) <= MAX_SEGMENTS
    assert bool(frames) != bool(counters["segment.bad_vnet_hdr"])
    assert len(complete_untrusted(data, _HEADER)) == max(len(data) - _HEADER, 0)
    header = vnet.parse_untrusted(data, _HEADER)
    if not frames or header is None or header.gso_type & ~vnet.GSO_ECN == vnet.GSO_NONE:
        return
    whole = parse_untrusted(data, _HEADER, counters)
    assert whole is not None
    payload = b""
    for frame in frames:
        packet = parse_untrusted(frame, 0, counters)
        assert packet is not None
        assert verify_untrusted(packet, counters, rx_checksum=False)
        assert packet.payload_len <= header.gso_size
        payload += packet.payload_bytes()
    assert payload == whole.payload_bytes()


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
