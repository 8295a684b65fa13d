"""Which flow a packet belongs to, as one bytes object.

Two forms. `directed_key` tells the two directions apart and costs nothing for the ordinary packet: for untagged IPv4
TCP it is the twelve bytes of the frame itself, addresses and ports, which no other kind of key is as long as.
`flow_key` is the same for both directions.

::

    12 bytes        source, destination, ports                              IPv4 TCP, untagged, whole
    more            kind, protocol, VLAN tags, addresses, what else tells flows apart
"""

from __future__ import annotations

from typing import Final

from pystack.wire.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet

PLAIN_BYTES: Final = 12
"""The length of the key of untagged IPv4 TCP, and of no other."""

_ECHO: Final = frozenset({0, 8, 13, 14, 15, 16, 17, 18})  # RFC 792, RFC 950: an identifier follows
_ECHO6: Final = frozenset({128, 129})


def directed_key(packet: Packet) -> bytes:
    """The flow and the direction. b"" for what is not IP, and for a fragment, whose datagram alone has a flow.

    TCP and UDP: addresses and ports. ICMP: the identifier of a query or its reply; errors and the rest are one flow for
    each pair of addresses. Other protocols: one flow for each pair. Always with the protocol, the IP version (by the
    addresses' length) and all VLAN tags.
    """
    if packet.proto == PROTO_TCP and packet.version == 4 and not packet.tags:
        return packet.key
    if not packet.version or packet.is_fragment:
        return b""
    return _head(packet) + packet.src + packet.dst + _rest(packet)


def flow_key(packet: Packet) -> tuple[bytes, int]:
    """The flow, the same for both directions, and which of them this is.

    Returns:
        The key, b"" as in `directed_key`; 0 when the packet comes from the lower of the two ends, 1 when from the
        higher.
    """
    if not packet.version or packet.is_fragment:
        return b"", 0
    rest = _rest(packet)
    ported = packet.proto in (PROTO_TCP, PROTO_UDP)
    one, other = packet.src, packet.dst
    if ported:
        one, other = one + rest[:2], other + rest[2:4]
        rest = b""
    if one <= other:
        return _head(packet) + one + other + rest, 0
    return _head(packet) + other + one + rest, 1


def _head(packet: Packet) -> bytes:
    tags = packet.frame[packet.eth + 12 : packet.l3 - 2] if packet.tags else b""
    return bytes((packet.proto, packet.version, len(tags))) + tags


def _rest(packet: Packet) -> bytes:
    """Ports, or what else tells flows between two addresses apart."""
    frame, l4, proto = packet.frame, packet.l4, packet.proto
    if proto in (PROTO_TCP, PROTO_UDP):
        return frame[l4 : l4 + 4]
    echo = _ECHO if packet.version == 4 and proto == PROTO_ICMP else None
    if packet.version == 6 and proto == PROTO_ICMPV6:
        echo = _ECHO6
    if echo is not None and packet.end >= l4 + 8 and frame[l4] in echo:
        return b"id" + frame[l4 + 4 : l4 + 6]
    return b""


def quoted_key_untrusted(packet: Packet) -> bytes | None:
    """The `directed_key` of the TCP or UDP packet that an ICMP error over IPv4 quotes (RFC 792), None if there is none.

    The quoted packet was sent by the destination of the error, so its direction is the opposite one.
    """
    quoted = packet.l4 + 8
    frame = packet.frame
    if (
        packet.version != 4
        or packet.proto != PROTO_ICMP
        or packet.end < quoted + 28
        or frame[packet.l4] not in (3, 4, 11, 12)
    ):
        return None
    l4 = quoted + ((frame[quoted] & 15) << 2)
    if frame[quoted] >> 4 != 4 or l4 < quoted + 20 or packet.end < l4 + 4:
        return None
    proto = frame[quoted + 9]
    if proto == PROTO_TCP and not packet.tags:
        return frame[quoted + 12 : quoted + 20] + frame[l4 : l4 + 4]
    if proto in (PROTO_TCP, PROTO_UDP):
        tags = frame[packet.eth + 12 : packet.l3 - 2] if packet.tags else b""
        return bytes((proto, 4, len(tags))) + tags + frame[quoted + 12 : quoted + 20] + frame[l4 : l4 + 4]
    return None
