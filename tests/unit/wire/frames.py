"""Frames for tests: a guest and the gateway with the usual addresses, and one function per layer."""

from __future__ import annotations

from pystack.wire import ethernet, icmpv6, ipv4, ipv6, tcp, udp
from pystack.wire.packet import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
)

GUEST_MAC = bytes.fromhex("020000000064")
GATEWAY_MAC = bytes.fromhex("52550a000202")
GUEST = bytes((10, 0, 2, 100))
GATEWAY = bytes((10, 0, 2, 2))
DNS_SERVER = bytes((10, 0, 2, 3))
GUEST6 = ipv6.link_local(GUEST_MAC)
GATEWAY6 = ipv6.link_local(GATEWAY_MAC)


def eth(ethertype: int, payload: bytes) -> bytes:
    """From the guest to the gateway."""
    return ethernet.build_header(GATEWAY_MAC, GUEST_MAC, ethertype) + payload


def ip4(
    proto: int,
    payload: bytes,
    *,
    src: bytes = GUEST,
    dst: bytes = GATEWAY,
    fragment: int = 0,
    ident: int = 0,
    options: bytes = b"",
) -> bytes:
    """An IPv4 packet in a frame."""
    header = ipv4.build_header(
        src=src, dst=dst, proto=proto, payload_len=len(payload), fragment=fragment, ident=ident, options=options
    )
    return eth(ETHERTYPE_IPV4, header + payload)


def ip6(next_header: int, payload: bytes, *, src: bytes = GUEST6, dst: bytes = GATEWAY6, hop_limit: int = 64) -> bytes:
    """An IPv6 packet in a frame; extension headers are part of the payload."""
    header = ipv6.build_header(src=src, dst=dst, next_header=next_header, payload_len=len(payload), hop_limit=hop_limit)
    return eth(ETHERTYPE_IPV6, header + payload)


def tcp4(payload: bytes = b"", *, sport: int = 40_000, dport: int = 80, flags: int = 2, options: bytes = b"") -> bytes:
    """A TCP segment over IPv4."""
    segment = tcp.build(
        src=GUEST, dst=GATEWAY, sport=sport, dport=dport, seq=1000, flags=flags, options=options, payload=payload
    )
    return ip4(PROTO_TCP, segment)


def udp4(payload: bytes, *, sport: int = 40_000, dport: int = 7, dst: bytes = GATEWAY) -> bytes:
    """A UDP datagram over IPv4."""
    return ip4(PROTO_UDP, udp.build(src=GUEST, dst=dst, sport=sport, dport=dport, payload=payload), dst=dst)


def ndp6(kind: int, data: bytes, *, hop_limit: int = 255, src: bytes = GUEST6, dst: bytes = GATEWAY6) -> bytes:
    """A neighbour discovery message, its checksum right."""
    message = icmpv6.build(src=src, dst=dst, kind=kind, data=data)
    return ip6(PROTO_ICMPV6, message, hop_limit=hop_limit, src=src, dst=dst)


def patch(frame: bytes, at: int, new: bytes) -> bytes:
    """``frame`` with the bytes at ``at`` overwritten."""
    assert 0 <= at <= len(frame) - len(new)
    return frame[:at] + new + frame[at + len(new) :]
