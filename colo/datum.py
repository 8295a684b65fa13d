"""What of a datagram is compared: not what a second machine may well choose differently.

UDP: the payload. ICMP and ICMPv6: all but the checksum, and of an error's quotation only what names the packet: its
addresses, protocol and first eight bytes (RFC 792), for what follows may carry numbers that were rewritten for one of
the machines. Other protocols: everything above the IP header. IP identification, TTL, checksums and padding are not
looked at.
"""

from __future__ import annotations

from typing import Final

from pystack.wire.packet import PROTO_ICMP, PROTO_ICMPV6, Packet

_ERRORS: Final = frozenset({3, 4, 5, 11, 12})  # RFC 792, RFC 1122 section 3.2.2
_ERRORS6: Final = range(1, 128)  # RFC 4443 section 2.1
_NEIGHBOURS: Final = frozenset((*range(130, 138), 143, *range(151, 154)))  # RFC 2710, RFC 4861, RFC 3810, RFC 4286


def datum_of(packet: Packet) -> bytes:
    """The bytes of ``packet``, neither TCP nor a fragment, that both machines must agree on."""
    frame, l4, end = packet.frame, packet.l4, packet.end
    if packet.proto == PROTO_ICMP and packet.version == 4:
        head = frame[l4 : l4 + 2] + frame[l4 + 4 : l4 + 8]
        if head[:1] and head[0] in _ERRORS:
            quoted = l4 + 8
            length = (frame[quoted] & 15) << 2 if quoted < end else 0
            return head + frame[quoted + 9 : quoted + 10] + frame[quoted + 12 : min(quoted + length + 8, end)]
        return head + frame[l4 + 8 : end]
    if packet.proto == PROTO_ICMPV6 and packet.version == 6:
        head = frame[l4 : l4 + 2] + frame[l4 + 4 : l4 + 8]
        if head[:1] and head[0] in _ERRORS6:
            quoted = l4 + 8
            return head + frame[quoted + 6 : quoted + 7] + frame[quoted + 8 : min(quoted + 48, end)]
        return head + frame[l4 + 8 : end]
    return frame[packet.payload : end]


def is_link_local_talk(packet: Packet) -> bool:
    """Whether this is to IPv6 what ARP is to IPv4: neighbour discovery, or listeners of a group (ICMPv6)."""
    return (
        packet.version == 6
        and packet.proto == PROTO_ICMPV6
        and not packet.is_fragment
        and packet.l4 < packet.end
        and packet.frame[packet.l4] in _NEIGHBOURS
    )
