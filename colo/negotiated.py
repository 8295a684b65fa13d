"""What a SYN negotiates, as far as it decides how the connection goes on."""

from __future__ import annotations

from typing import TypeAlias

from colo.held import Outbox
from pystack.wire.packet import ACK, SYN, Packet
from pystack.wire.tcp import parse_options_untrusted

Negotiated: TypeAlias = tuple[int, "int | None", "int | None", bool, bool]
"""SYN and ACK flags; MSS, window scale, SACK-permitted, whether timestamps are used."""


def negotiated(packet: Packet, out: Outbox) -> Negotiated:
    """Of a SYN or SYN-ACK."""
    options = parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, out.counters)
    return (
        packet.flags & (SYN | ACK),
        options.mss,
        options.window_scale,
        options.sack_permitted,
        options.timestamps is not None,
    )
