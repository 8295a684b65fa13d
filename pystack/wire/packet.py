"""One pass over a frame, from Ethernet to payload: the hot parse.

Read before editing: RFC 894 and IEEE 802.1Q (framing), RFC 791 section 3.1, RFC 8200 sections 3 and 4, RFC 9293
section 3.1, RFC 768, virtio 1.2 section 5.1.6 (the header in front).

One `Packet` per frame, no object per layer; the payload stays a pair of offsets into the frame. The ordinary frame
(no VLAN tag, IPv4 without options, whole) costs one `struct` call; every other one takes the general path below it,
which agrees with it by property test. Declared lengths are checked against the bytes that are there: a slice in Python
never overflows, it silently shortens.
"""

from __future__ import annotations

import struct
from typing import Final, final

from pystack.counters import Counters
from pystack.wire import checksum

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETHERTYPE_VLAN: Final = 0x8100
ETHERTYPE_QINQ: Final = 0x88A8
ETHERTYPE_IPV6: Final = 0x86DD

PROTO_ICMP: Final = 1
PROTO_TCP: Final = 6
PROTO_UDP: Final = 17
PROTO_ICMPV6: Final = 58

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80

IP_DF: Final = 0x4000
IP_MF: Final = 0x2000
IP_OFFSET: Final = 0x1FFF

VNET_NEEDS_CSUM: Final = 1
VNET_DATA_VALID: Final = 2

_ETHERNET_LEN: Final = 14
_MAX_TAGS: Final = 2
_MAX_EXTENSIONS: Final = 16

# Ethernet type, IPv4 (no options) and TCP's fixed part, from the EtherType on.
_FAST: Final = struct.Struct("!HBBHHHBBH4s4sHHIIBBHHH")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6: Final = struct.Struct("!IHBB16s16s")
_TCP: Final = struct.Struct("!HHIIBBHHH")
_UDP: Final = struct.Struct("!HHHH")
_U16: Final = struct.Struct("!H")
_VNET: Final = struct.Struct("<BBHHHH")


@final
class Packet:
    """What one pass found in a frame. All offsets count from the start of ``frame``, virtio_net_hdr included.

    Attributes:
        frame: the frame as the link gave it.
        eth: where the Ethernet header starts (= the length of the virtio_net_hdr).
        ethertype: of what the Ethernet header (or the last VLAN tag) carries; below 0x0600 it is an 802.3 length.
        vlan: the outermost tag's 16 bits, -1 when untagged; tags: how many there are.
        l3: where the IP header (or other L3 payload) starts. l4: where its payload starts.
        payload, end: the L4 payload is ``frame[payload:end]``; for what is neither TCP nor UDP ``payload == l4``.
            ``end`` follows from the IP header's length field, so Ethernet padding is outside.
        version: 4, 6, or 0 when the frame is not IP.
        src, dst: 4 or 16 bytes (b"" when not IP). proto: the upper-layer protocol. ttl: TTL or hop limit. tos: the
            DS field with ECN.
        frag: the fragment field of IPv4 (DF, MF, offset in units of 8 bytes); for IPv6 the same form made from the
            Fragment header (``IP_MF | offset``), -1 for an atomic IPv6 fragment. ident: the identification.
        sport, dport: ports of TCP and UDP (0 otherwise). key: src, dst, sport and dport in one bytes object, as
            in the frame: 12 bytes for IPv4 and 36 for IPv6; b"" unless the packet is an unfragmented TCP or UDP one.
        seq, ack, flags, window, urgent: TCP's fields; the options are ``frame[l4 + 20:payload]``.
        vnet_flags, gso_type, gso_size: from the virtio_net_hdr; 0 without one.
    """

    __slots__ = (
        "ack", "dport", "dst", "end", "eth", "ethertype", "flags", "frag", "frame", "gso_size", "gso_type", "ident",
        "key", "l3", "l4", "payload", "proto", "seq", "sport", "src", "tags", "tos", "ttl", "urgent", "version",
        "vlan", "vnet_flags", "window",
    )  # fmt: skip

    def __init__(self, frame: bytes, eth: int) -> None:
        self.frame = frame
        self.eth = eth
        self.ethertype = 0
        self.vlan = -1
        self.tags = 0
        self.l3 = self.l4 = self.payload = eth + _ETHERNET_LEN
        self.end = len(frame)
        self.version = 0
        self.src = self.dst = self.key = b""
        self.proto = self.ttl = self.tos = self.frag = self.ident = 0
        self.sport = self.dport = 0
        self.seq = self.ack = self.flags = self.window = self.urgent = 0
        self.vnet_flags = self.gso_type = self.gso_size = 0

    @property
    def is_fragment(self) -> bool:
        """Whether this is one piece of several (an atomic IPv6 fragment is not)."""
        return self.frag > 0 and bool(self.frag & (IP_MF | IP_OFFSET))

    @property
    def payload_len(self) -> int:
        """Bytes of L4 payload."""
        return self.end - self.payload

    def payload_bytes(self) -> bytes:
        """A copy of the L4 payload."""
        return self.frame[self.payload : self.end]

    def src_mac(self) -> bytes:
        """The Ethernet source, 6 bytes."""
        return self.frame[self.eth + 6 : self.eth + 12]

    def dst_mac(self) -> bytes:
        """The Ethernet destination, 6 bytes."""
        return self.frame[self.eth : self.eth + 6]


def parse_untrusted(frame: bytes, vnet_hdr_len: int, counters: Counters) -> Packet | None:
    """Parse one frame as a link delivered it. Checksums are not looked at: see `verify_untrusted`.

    Args:
        frame: virtio_net_hdr of ``vnet_hdr_len`` bytes, then Ethernet.
        counters: bumped by one counter that names the reason when None is returned.

    Returns:
        The packet, or None when the frame cannot be what it says it is. What is merely unknown (an EtherType, an IP
        protocol) is a packet with ``version`` or ports left 0. A fragment has no ports: only ``l4``.
    """
    # The frames that count: untagged, IPv4 without options, not a fragment, and as long as TCP's headers are.
    if len(frame) >= vnet_hdr_len + 54:
        (ethertype, ver_ihl, tos, total, ident, frag, ttl, proto, _, src, dst, sport, dport, seq, ack, offset, flags,
         window, _, urgent) = _FAST.unpack_from(frame, vnet_hdr_len + 12)  # fmt: skip
        if ethertype == ETHERTYPE_IPV4 and ver_ihl == 0x45 and not frag & (IP_MF | IP_OFFSET):
            l3 = vnet_hdr_len + 14
            l4 = payload = l3 + 20
            end = l3 + total
            key = b""
            if proto == PROTO_TCP:
                payload += (offset >> 2) & 0x3C
                fits = l4 + 20 <= payload <= end <= len(frame)
                key = frame[l3 + 12 : l3 + 24]
            elif proto == PROTO_UDP:
                payload += 8
                stop = l4 + (seq >> 16)  # UDP's length is where TCP's number starts
                fits = payload <= stop <= end <= len(frame)
                end = stop
                key = frame[l3 + 12 : l3 + 24]
                seq = ack = flags = window = urgent = 0
            else:
                fits = l4 <= end <= len(frame)
                sport = dport = seq = ack = flags = window = urgent = 0
            if fits:
                packet = Packet.__new__(Packet)
                packet.frame = frame
                packet.eth = vnet_hdr_len
                packet.ethertype = ETHERTYPE_IPV4
                packet.vlan = -1
                packet.tags = 0
                packet.l3 = l3
                packet.l4 = l4
                packet.payload = payload
                packet.end = end
                packet.version = 4
                packet.src = src
                packet.dst = dst
                packet.proto = proto
                packet.ttl = ttl
                packet.tos = tos
                packet.frag = frag
                packet.ident = ident
                packet.sport = sport
                packet.dport = dport
                packet.key = key
                packet.seq = seq
                packet.ack = ack
                packet.flags = flags
                packet.window = window
                packet.urgent = urgent
                if vnet_hdr_len:
                    packet.vnet_flags, packet.gso_type, _, packet.gso_size, _, _ = _VNET.unpack_from(frame)
                else:
                    packet.vnet_flags = packet.gso_type = packet.gso_size = 0
                return packet
    return parse_general_untrusted(frame, vnet_hdr_len, counters)


def parse_general_untrusted(frame: bytes, vnet_hdr_len: int, counters: Counters) -> Packet | None:
    """`parse_untrusted` without its shortcut: every frame, one layer after the other."""
    if len(frame) < vnet_hdr_len + _ETHERNET_LEN:
        counters.bump("ethernet.short")
        return None
    packet = Packet(frame, vnet_hdr_len)
    if vnet_hdr_len:
        packet.vnet_flags, packet.gso_type, _, packet.gso_size, _, _ = _VNET.unpack_from(frame)
    offset = vnet_hdr_len + 12
    (ethertype,) = _U16.unpack_from(frame, offset)
    while ethertype in (ETHERTYPE_VLAN, ETHERTYPE_QINQ):
        if len(frame) < offset + 6:
            counters.bump("vlan.short")
            return None
        if packet.tags == _MAX_TAGS:
            counters.bump("vlan.too_many_tags")
            return None
        tci, ethertype = struct.unpack_from("!HH", frame, offset + 2)
        if not packet.tags:
            packet.vlan = tci
        packet.tags += 1
        offset += 4
    packet.ethertype = ethertype
    packet.l3 = packet.l4 = packet.payload = offset + 2
    reason = ""
    if ethertype == ETHERTYPE_IPV4:
        reason = _parse_ipv4(packet) or _parse_l4(packet)
    elif ethertype == ETHERTYPE_IPV6:
        reason = _parse_ipv6(packet) or _parse_l4(packet)
    if reason:
        counters.bump(reason)
        return None
    return packet


def _parse_ipv4(packet: Packet) -> str:
    """RFC 791 section 3.1. Returns the reason why not, "" when all is well."""
    frame, l3 = packet.frame, packet.l3
    if len(frame) < l3 + 20:
        return "ipv4.short"
    ver_ihl, packet.tos, total, packet.ident, packet.frag, packet.ttl, packet.proto, _, src, dst = _IPV4.unpack_from(
        frame, l3
    )
    if ver_ihl >> 4 != 4:
        return "ipv4.bad_version"
    header = (ver_ihl & 15) << 2
    if header < 20:
        return "ipv4.bad_header_length"
    if total < header or l3 + total > len(frame):
        return "ipv4.bad_total_length"
    packet.version = 4
    packet.src, packet.dst = src, dst
    packet.l4 = packet.payload = l3 + header
    packet.end = l3 + total
    return ""


def _parse_ipv6(packet: Packet) -> str:
    """RFC 8200 sections 3 and 4, the extension headers walked to the upper layer or to the Fragment header."""
    frame, l3 = packet.frame, packet.l3
    if len(frame) < l3 + 40:
        return "ipv6.short"
    first, length, next_header, packet.ttl, packet.src, packet.dst = _IPV6.unpack_from(frame, l3)
    if first >> 28 != 6:
        return "ipv6.bad_version"
    end = l3 + 40 + length
    if end > len(frame):
        return "ipv6.bad_payload_length"
    packet.version = 6
    packet.tos = first >> 20 & 0xFF
    packet.end = end
    at = l3 + 40
    for _ in range(_MAX_EXTENSIONS):
        if next_header in (0, 43, 60, 135):  # hop-by-hop, routing, destination options, mobility: 8 + 8n bytes
            if end < at + 8:
                return "ipv6.short_extension"
            step = 8 + 8 * frame[at + 1]
        elif next_header == 51:  # authentication header: 4-byte units minus 2 (RFC 4302 section 2.2)
            if end < at + 8:
                return "ipv6.short_extension"
            step = 8 + 4 * frame[at + 1]
        elif next_header == 44:
            if end < at + 8:
                return "ipv6.short_extension"
            field, packet.ident = struct.unpack_from("!HI", frame, at + 2)
            packet.frag = (IP_MF if field & 1 else 0) | field >> 3 or -1
            step = 8
        else:
            packet.proto = next_header
            packet.l4 = packet.payload = at
            return ""
        next_header = frame[at]
        at += step
        if at > end:
            return "ipv6.short_extension"
        if packet.frag > 0:
            # What follows the Fragment header belongs to the datagram, which only reassembly can read.
            packet.proto = next_header
            packet.l4 = packet.payload = at
            return ""
    return "ipv6.too_many_extensions"


def _parse_l4(packet: Packet) -> str:
    """Ports and, for TCP, the fixed header (RFC 9293 section 3.1; RFC 768). A fragment is left alone."""
    if packet.is_fragment:
        return ""
    frame, l4, end = packet.frame, packet.l4, packet.end
    if packet.proto == PROTO_TCP:
        if end < l4 + 20:
            return "tcp.short"
        (packet.sport, packet.dport, packet.seq, packet.ack, offset, packet.flags, packet.window, _,
         packet.urgent) = _TCP.unpack_from(frame, l4)  # fmt: skip
        packet.payload = l4 + ((offset >> 2) & 0x3C)
        if not l4 + 20 <= packet.payload <= end:
            return "tcp.bad_data_offset"
    elif packet.proto == PROTO_UDP:
        if end < l4 + 8:
            return "udp.short"
        packet.sport, packet.dport, length, _ = _UDP.unpack_from(frame, l4)
        if length < 8 or l4 + length > end:
            return "udp.bad_length"
        packet.payload = l4 + 8
        packet.end = l4 + length
    else:
        return ""
    packet.key = packet.src + packet.dst + frame[l4 : l4 + 4]
    return ""


def verify_untrusted(packet: Packet, counters: Counters, *, rx_checksum: bool) -> bool:
    """Verify the IPv4 header's checksum and the one of TCP, UDP, ICMP or ICMPv6 above it.

    Args:
        rx_checksum: whether the link may vouch for TCP and UDP (`LinkInfo.rx_checksum`): then a frame marked NEEDS_CSUM
            or DATA_VALID is believed. The IPv4 header is always verified, as every sender fills it.

    Returns:
        Whether the packet may be believed; if not, one counter was bumped. Of a fragment only the header is verified.
    """
    frame, l3, l4 = packet.frame, packet.l3, packet.l4
    if packet.version == 4 and int.from_bytes(frame[l3:l4], "big") % 0xFFFF:
        counters.bump("ipv4.bad_checksum")
        return False
    if (rx_checksum and packet.vnet_flags & (VNET_NEEDS_CSUM | VNET_DATA_VALID)) or packet.is_fragment:
        return True
    return _verify_l4(packet, counters)


def _verify_l4(packet: Packet, counters: Counters) -> bool:
    frame, l4, end, proto = packet.frame, packet.l4, packet.end, packet.proto
    if proto == PROTO_TCP:
        name = "tcp.bad_checksum"
    elif proto == PROTO_UDP:
        name = "udp.bad_checksum"
        if frame[l4 + 6 : l4 + 8] == b"\0\0":
            # No checksum (RFC 768): fine over IPv4, not over IPv6 (RFC 8200 section 8.1).
            if packet.version == 4:
                return True
            counters.bump("udp.zero_checksum")
            return False
    elif proto == PROTO_ICMP and packet.version == 4:
        if checksum.valid(memoryview(frame)[l4:end]):
            return True
        counters.bump("icmp.bad_checksum")
        return False
    elif proto == PROTO_ICMPV6 and packet.version == 6:
        name = "icmpv6.bad_checksum"
    else:
        return True
    if checksum.valid(memoryview(frame)[l4:end], checksum.pseudo(packet.src, packet.dst, proto, end - l4)):
        return True
    counters.bump(name)
    return False
