"""Seeds from our own captures (tests/vectors): whole frames, and what one protocol has in them."""

from __future__ import annotations

from collections.abc import Callable

from pystack.counters import Counters
from pystack.wire.packet import Packet, parse_untrusted
from tests.vectors import HERE, frames

_MAX_BYTES = 700
"""Longer frames teach a fuzzer nothing that shorter ones do not."""


def whole_frames() -> list[bytes]:
    """Every different short frame of the captures."""
    found = [frame for name in ("crafted.pcap", "linux.pcap") for frame in frames(HERE / name)]
    return [frame for frame in dict.fromkeys(found) if len(frame) <= _MAX_BYTES]


def parts(cut: Callable[[Packet], bytes | None]) -> list[bytes]:
    """What ``cut`` takes out of the frames that parse, the different ones; None leaves a frame out."""
    packets = (parse_untrusted(frame, 0, Counters()) for frame in whole_frames())
    return list(dict.fromkeys(part for packet in packets if packet and (part := cut(packet)) is not None))


def payloads(*ports: int) -> list[bytes]:
    """UDP payloads from or to one of ``ports``."""
    wanted = set(ports)
    return parts(lambda packet: packet.payload_bytes() if {packet.sport, packet.dport} & wanted else None)
