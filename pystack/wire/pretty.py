"""One line for any frame, in tcpdump's style, however broken the frame is.

What is printed follows ``tcpdump -n -S`` (numbers, not names; absolute sequence numbers), with additions where a reader
of this project's traces needs them: VLAN tags, the virtio_net_hdr's offloads, the message type of DHCP, fragments, and
the counter that says why a frame cannot be parsed. Nothing a peer sends reaches a terminal unescaped.
"""

from __future__ import annotations

from typing import Final

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.wire import arp, ethernet, ipv4, ipv6, pretty_icmp, pretty_udp, tcp, vlan, vnet
from pystack.wire.packet import (
    ACK,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    FIN,
    IP_MF,
    IP_OFFSET,
    PROTO_ICMP,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
    RST,
    SYN,
    URG,
    Packet,
    parse_untrusted,
    verify_untrusted,
)

_FLAGS: Final = "FSRP.UEW"
_ETHERTYPES: Final = {ETHERTYPE_IPV4: "IPv4", ETHERTYPE_IPV6: "IPv6", ETHERTYPE_ARP: "ARP"}
_PROTOCOLS: Final = {PROTO_ICMP: "icmp", 2: "igmp", PROTO_TCP: "tcp", PROTO_UDP: "udp", 41: "ip6", 47: "gre", 50: "esp",
                     PROTO_ICMPV6: "icmp6", ipv6.NO_NEXT_HEADER: "no next header", 132: "sctp"}  # fmt: skip
_GSO: Final = {vnet.GSO_TCPV4: "tcp4", vnet.GSO_UDP: "ufo", vnet.GSO_TCPV6: "tcp6", vnet.GSO_UDP_L4: "udp"}


def line(frame: bytes, vnet_hdr_len: int = 0, *, at: Micros | None = None, checksums: bool = False) -> str:
    """The frame in one line of printable ASCII. Never raises.

    Args:
        vnet_hdr_len: bytes of virtio_net_hdr in front of the Ethernet header.
        at: when given, the line starts with it as hh:mm:ss.micros (of the day, when it counts from the epoch).
        checksums: verify them (but for those that the virtio_net_hdr vouches for) and say when one is wrong.
    """
    counters = Counters()
    packet = parse_untrusted(frame, vnet_hdr_len, counters)
    if packet is None:
        (reason,) = counters.snapshot()
        text = _malformed(frame, vnet_hdr_len, reason)
    else:
        tags = _tags(vlan.read_tags_untrusted(frame, packet.eth)) if packet.tags else ""
        text = tags + _body(packet) + _offload(packet)
        if checksums and not verify_untrusted(packet, counters, rx_checksum=True):
            (reason,) = counters.snapshot()
            text += f" [{reason}]"
    return text if at is None else f"{clock(at)} {text}"


def clock(at: Micros) -> str:
    """``hh:mm:ss.micros`` of the day that ``at`` is in."""
    seconds, micros = divmod(at, SECOND)
    minutes, second = divmod(seconds % 86_400, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02}:{minute:02}:{second:02}.{micros:06}"


def flags_text(flags: int) -> str:
    """TCP's flags in tcpdump's letters: ``S.`` for SYN and ACK; ``none`` when none is set."""
    return "".join([letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1]) or "none"


def _malformed(frame: bytes, eth: int, reason: str) -> str:
    """As much as can be told: the tags, and the addresses of the innermost layer whose header is there."""
    length = max(0, len(frame) - eth)
    header = ethernet.HEADER.unpack_untrusted(frame, eth)
    if header is None:
        return f"[{reason}] length {length}"
    tags = vlan.read_tags_untrusted(frame, eth)
    at = eth + 12 + len(tags) * vlan.TAG.size
    ethertype = int.from_bytes(frame[at : at + 2], "big")
    ip4, ip6 = ipv4.HEADER.unpack_untrusted(frame, at + 2), ipv6.HEADER.unpack_untrusted(frame, at + 2)
    if ethertype == ETHERTYPE_IPV4 and ip4:
        text = f"IP {ipv4.text(ip4.src)} > {ipv4.text(ip4.dst)}"
    elif ethertype == ETHERTYPE_IPV6 and ip6:
        text = f"IP6 {ipv6.text(ip6.src)} > {ipv6.text(ip6.dst)}"
    else:
        text = _ethernet(header.src, header.dst, ethertype)
    return f"{_tags(tags)}{text}, length {length} [{reason}]"


def _ethernet(src: bytes, dst: bytes, ethertype: int) -> str:
    if ethertype < ethernet.MIN_ETHERTYPE:
        kind = "802.3"
    else:
        kind = f"ethertype {_ETHERTYPES.get(ethertype, 'Unknown')} (0x{ethertype:04x})"
    return f"{ethernet.mac_text(src)} > {ethernet.mac_text(dst)}, {kind}"


def _tags(tags: tuple[vlan.Tag, ...]) -> str:
    return "".join([f"vlan {tag.vid}, p {tag.pcp}{', DEI' * tag.dei}, " for tag in tags])


def _offload(packet: Packet) -> str:
    if packet.gso_type:
        ecn = "+ecn" if packet.gso_type & vnet.GSO_ECN else ""
        kind = packet.gso_type & ~vnet.GSO_ECN
        return f" [gso {_GSO.get(kind, kind)}{ecn} {packet.gso_size}]"
    return " [csum partial]" if packet.vnet_flags & vnet.F_NEEDS_CSUM else ""


def _body(packet: Packet) -> str:
    if packet.version == 4:
        return "IP " + _ip(packet, ipv4.text(packet.src), ipv4.text(packet.dst))
    if packet.version == 6:
        return "IP6 " + _ip(packet, ipv6.text(packet.src), ipv6.text(packet.dst))
    if packet.ethertype == ETHERTYPE_ARP:
        return _arp(packet)
    return f"{_ethernet(packet.src_mac(), packet.dst_mac(), packet.ethertype)}, length {packet.end - packet.eth}"


def _ip(packet: Packet, src: str, dst: str) -> str:
    proto = packet.proto
    if packet.is_fragment:
        more = "+" * bool(packet.frag & IP_MF)
        where = f"{packet.ident}:{packet.end - packet.l4}@{(packet.frag & IP_OFFSET) * 8}{more}"
        return f"{src} > {dst}: frag {where} {_PROTOCOLS.get(proto, f'ip-proto-{proto}')}"
    if proto == PROTO_TCP:
        return f"{src}.{packet.sport} > {dst}.{packet.dport}: {_tcp(packet)}"
    if proto == PROTO_UDP:
        return f"{src}.{packet.sport} > {dst}.{packet.dport}: {pretty_udp.describe(packet)}"
    if proto == PROTO_ICMP and packet.version == 4:
        return f"{src} > {dst}: ICMP {pretty_icmp.describe(packet)}"
    if proto == PROTO_ICMPV6 and packet.version == 6:
        return f"{src} > {dst}: ICMP6, {pretty_icmp.describe6(packet)}"
    return f"{src} > {dst}: {_PROTOCOLS.get(proto, f'ip-proto-{proto}')} {packet.end - packet.l4}"


def _arp(packet: Packet) -> str:
    counters = Counters()
    message = arp.parse_untrusted(packet.frame, packet.l3, packet.end, counters)
    length = packet.end - packet.l3
    if message is None:
        (reason,) = counters.snapshot()
        return f"ARP, length {length} [{reason}]"
    spa, tpa = ipv4.text(message.spa), ipv4.text(message.tpa)
    if message.op == arp.REQUEST:
        known = f" ({ethernet.mac_text(message.tha)})" if any(message.tha) else ""
        return f"ARP, Request who-has {tpa}{known} tell {spa}, length {length}"
    if message.op == arp.REPLY:
        return f"ARP, Reply {spa} is-at {ethernet.mac_text(message.sha)}, length {length}"
    return f"ARP, op {message.op} {spa} ({ethernet.mac_text(message.sha)}) to {tpa}, length {length}"


def _tcp(packet: Packet) -> str:
    length, flags = packet.payload_len, packet.flags
    parts = [f"Flags [{flags_text(flags)}]"]
    if length or flags & (SYN | FIN | RST):
        end = f":{(packet.seq + length) & 0xFFFFFFFF}" if length else ""
        parts.append(f"seq {packet.seq}{end}")
    if flags & ACK:
        parts.append(f"ack {packet.ack}")
    parts.append(f"win {packet.window}")
    if flags & URG:
        parts.append(f"urg {packet.urgent}")
    if options := _tcp_options(packet.frame[packet.l4 + tcp.HEADER.size : packet.payload]):
        parts.append(f"options [{options}]")
    parts.append(f"length {length}")
    return ", ".join(parts)


def _tcp_options(area: bytes) -> str:
    """Every option in its place, as a trace needs them: the reader for the receive path keeps values alone."""
    parts = []
    at = 0
    while at < len(area):
        kind = area[at]
        if kind == tcp.OPT_END:
            parts.append("eol")
            break
        if kind == tcp.OPT_NOP:
            parts.append("nop")
            at += 1
            continue
        length = area[at + 1] if at + 1 < len(area) else 0
        if length < 2 or at + length > len(area):
            parts.append(f"[bad opt {kind}]")
            break
        parts.append(_tcp_option(kind, area[at + 2 : at + length]))
        at += length
    return ",".join(parts)


def _tcp_option(kind: int, data: bytes) -> str:
    numbers = [int.from_bytes(data[at : at + 4], "big") for at in range(0, len(data), 4)]
    if kind == tcp.OPT_MSS and len(data) == 2:
        return f"mss {numbers[0]}"
    if kind == tcp.OPT_WINDOW_SCALE and len(data) == 1:
        return f"wscale {data[0]}"
    if kind == tcp.OPT_SACK_PERMITTED and not data:
        return "sackOK"
    if kind == tcp.OPT_SACK and data and not len(data) % 8:
        blocks = [f"{{{left}:{right}}}" for left, right in zip(numbers[::2], numbers[1::2], strict=True)]
        return f"sack {len(blocks)} {''.join(blocks)}"
    if kind == tcp.OPT_TIMESTAMPS and len(data) == 8:
        return f"TS val {numbers[0]} ecr {numbers[1]}"
    return f"unknown-{kind} 0x{data.hex()}" if data else f"unknown-{kind}"
