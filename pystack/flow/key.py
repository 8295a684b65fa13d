"""Which flow a packet belongs to, as one bytes object.

Two forms. `directed_key` tells the two directions apart and costs nothing for the ordinary packet: for untagged IPv4
TCP it is the twelve bytes of the frame itself, addresses and ports. `flow_key` is the same for both directions. In
either form every other key is longer than twelve bytes, and says itself how it is to be read::

    12 bytes     source, destination, ports                                      IPv4 TCP, untagged, whole
    13 and more  protocol, IP version, length of the tags | tags | ends | rest   everything else

An end is an address, of TCP and UDP with its port in `flow_key`; ``rest`` holds the ports in `directed_key`, and the
class and the identifier of ICMP. A VLAN tag counts without its priority, which may differ from packet to packet and
between the directions (IEEE 802.1Q section 9.6).
"""

from __future__ import annotations

import struct
from typing import Final

from pystack.wire.packet import PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, Packet

PLAIN_BYTES: Final = 12
"""The length of the key of untagged IPv4 TCP, and of no other."""

# RFC 792, RFC 950: a query and its reply, which share an identifier; each pair is one class, named by the query.
_QUERIES: Final = {0: 8, 8: 8, 13: 13, 14: 13, 15: 15, 16: 15, 17: 17, 18: 17}
_QUERIES6: Final = {128: 128, 129: 128}
_ERRORS: Final = frozenset({3, 4, 5, 11, 12})  # of ICMPv6 it is every type below 128 (RFC 4443 section 2.1)
_QUOTING: Final = _ERRORS
_VID: Final = 0x0FFF

# What stands for the identifier where there is none. Long enough to keep every key longer than PLAIN_BYTES.
_ERROR: Final = b"err"
_OTHER: Final = b"any"


def directed_key(packet: Packet) -> bytes:
    """The flow and the direction. b"" for what is not IP, and for a fragment, whose datagram alone has a flow.

    TCP and UDP: addresses and ports. ICMP: the identifier of a query or its reply; the errors between two addresses are
    a flow of their own, whatever they quote (see `quoted_key_untrusted`), and the rest is another. Other protocols: one
    flow for each pair of addresses. Always with the protocol, the IP version and the VLANs.
    """
    if packet.proto == PROTO_TCP and packet.version == 4 and not packet.tags:
        return packet.key
    version, proto = packet.version, packet.proto
    if not version or packet.is_fragment:
        return b""
    rest = _rest_untrusted(packet.frame, packet.l4, packet.end, version, proto)
    return _head(proto, version, vlans(packet)) + packet.src + packet.dst + rest


def flow_key(packet: Packet) -> tuple[bytes, int]:
    """The flow, the same for both directions, and which of them this is.

    Returns:
        The key, b"" as in `directed_key`; 0 when the packet comes from the lower of the two ends, 1 when from the
        higher. It is 0 for both directions of a flow of one end with itself.
    """
    if packet.proto == PROTO_TCP and packet.version == 4 and not packet.tags:
        return _plain_both_ways(packet.key)
    version, proto = packet.version, packet.proto
    if not version or packet.is_fragment:
        return b"", 0
    rest = _rest_untrusted(packet.frame, packet.l4, packet.end, version, proto)
    return _both_ways(_head(proto, version, vlans(packet)), proto, packet.src, packet.dst, rest)


def _plain_both_ways(key: bytes) -> tuple[bytes, int]:
    """Of untagged IPv4 TCP: the twelve bytes as the lower end's packets have them. b"" stays b""."""
    if key[:4] + key[8:10] <= key[4:8] + key[10:]:
        return key, 0
    return key[4:8] + key[:4] + key[10:] + key[8:10], 1


def _both_ways(head: bytes, proto: int, src: bytes, dst: bytes, rest: bytes) -> tuple[bytes, int]:
    if proto in (PROTO_TCP, PROTO_UDP):
        src, dst = src + rest[:2], dst + rest[2:]
        rest = b""
    if src <= dst:
        return head + src + dst + rest, 0
    return head + dst + src + rest, 1


def _head(proto: int, version: int, tags: bytes) -> bytes:
    return bytes((proto, version, len(tags))) + tags


def vlans(packet: Packet) -> bytes:
    """The VLAN tags of ``packet`` as they stand in its key: of each the type and the VLAN's number, 4 bytes."""
    if not packet.tags:
        return b""
    words = struct.unpack_from(f"!{2 * packet.tags}H", packet.frame, packet.eth + 12)
    return b"".join(struct.pack("!HH", words[at], words[at + 1] & _VID) for at in range(0, len(words), 2))


def _rest_untrusted(frame: bytes, l4: int, end: int, version: int, proto: int) -> bytes:
    """Ports, or what else tells flows between two addresses apart. Of TCP and UDP the ports must be there."""
    if proto in (PROTO_TCP, PROTO_UDP):
        return frame[l4 : l4 + 4]
    if proto == PROTO_ICMP and version == 4:
        queries = _QUERIES
    elif proto == PROTO_ICMPV6 and version == 6:
        queries = _QUERIES6
    else:
        return _OTHER
    if end <= l4:
        return _OTHER
    kind = frame[l4]
    if kind in queries:
        return bytes((queries[kind],)) + frame[l4 + 4 : l4 + 6] if end >= l4 + 8 else _OTHER
    return _ERROR if (kind in _ERRORS if version == 4 else kind < 128) else _OTHER


def quoted_key_untrusted(packet: Packet) -> bytes | None:
    """The `directed_key` of the packet that an ICMP or ICMPv6 error quotes (RFC 792, RFC 4443 section 2.4).

    The quoted packet was sent by the destination of the error, so that its direction is the opposite one.

    Returns:
        None when this is no error, when what it quotes is not the beginning of a datagram of TCP, UDP or an ICMP query,
        or when too little of that is there. Its addresses need not be the error's: compare them if it matters.
    """
    quote = _quote_untrusted(packet)
    if quote is None:
        return None
    version, proto, tags, src, dst, rest = quote
    if proto == PROTO_TCP and version == 4 and not tags:
        return src + dst + rest
    return _head(proto, version, tags) + src + dst + rest


def quoted_flow_key_untrusted(packet: Packet) -> tuple[bytes, int] | None:
    """`quoted_key_untrusted` in the form of `flow_key`: the quoted packet's flow, and its direction in it."""
    quote = _quote_untrusted(packet)
    if quote is None:
        return None
    version, proto, tags, src, dst, rest = quote
    if proto == PROTO_TCP and version == 4 and not tags:
        return _plain_both_ways(src + dst + rest)
    return _both_ways(_head(proto, version, tags), proto, src, dst, rest)


def _quote_untrusted(packet: Packet) -> tuple[int, int, bytes, bytes, bytes, bytes] | None:
    """Version, protocol, VLANs, source, destination and rest of the key of the quoted packet."""
    frame, at, end = packet.frame, packet.l4 + 8, packet.end
    if packet.is_fragment:
        return None
    if packet.version == 4 and packet.proto == PROTO_ICMP:
        if end < at + 24 or frame[packet.l4] not in _QUOTING:
            return None
        l4 = at + ((frame[at] & 15) << 2)
        later_fragment = frame[at + 6] & 0x1F or frame[at + 7]
        if frame[at] >> 4 != 4 or l4 < at + 20 or later_fragment:
            return None
        version, proto, src, dst = 4, frame[at + 9], frame[at + 12 : at + 16], frame[at + 16 : at + 20]
    elif packet.version == 6 and packet.proto == PROTO_ICMPV6:
        if end < at + 44 or frame[packet.l4] >= 128 or frame[at] >> 4 != 6:
            return None
        l4 = at + 40
        version, proto, src, dst = 6, frame[at + 6], frame[at + 8 : at + 24], frame[at + 24 : at + 40]
    else:
        return None
    if end < l4 + 4:
        return None
    rest = _rest_untrusted(frame, l4, end, version, proto)
    if rest in (_OTHER, _ERROR):
        return None
    return version, proto, vlans(packet), src, dst, rest
