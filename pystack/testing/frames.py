"""Frames for tests, as one host would send them to another: valid unless the test says otherwise.

wire = Crafter("10.0.0.9", "10.0.0.1")
stack.receive(wire.tcp(sport=1000, dport=80, flags=SYN, seq=7), now)
stack.receive(wire.ipv4(17, b"short", total_length=99), now)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Any, Final

from pystack.wire import arp, checksum, ethernet, icmp, ipv4, tcp, udp
from pystack.wire.packet import ETHERTYPE_IPV4, IP_MF, PROTO_ICMP, PROTO_TCP, PROTO_UDP

PEER_MAC: Final = b"\x02\0\0\0\0\x09"
"""The Ethernet address that frames come from unless stated otherwise."""


def packed(address: str) -> bytes:
    """The 4 bytes of ``address``."""
    return IPv4Address(address).packed


@dataclass(frozen=True, slots=True)
class Crafter:
    """Makes frames from ``src`` to ``dst`` (dotted addresses)."""

    src: str
    dst: str
    src_mac: bytes = PEER_MAC
    dst_mac: bytes = b"\x02\0\0\0\0\x01"
    vnet_hdr_len: int = 0

    def but(self, **fields: Any) -> Crafter:
        """The same with some fields changed."""
        return replace(self, **fields)

    def ethernet(self, ethertype: int, payload: bytes) -> bytes:
        """A frame of any type."""
        header = ethernet.build_header(self.dst_mac, self.src_mac, ethertype)
        return bytes(self.vnet_hdr_len) + header + payload

    def ipv4(self, proto: int, payload: bytes, *, total_length: int | None = None, **fields: Any) -> bytes:
        """An IPv4 packet; ``fields`` are those of `pystack.wire.ipv4.build_header`.

        Args:
            total_length: what the header shall say in place of the truth, its checksum being right all the same.
        """
        header = ipv4.build_header(
            src=packed(self.src), dst=packed(self.dst), proto=proto, payload_len=len(payload), **fields
        )
        if total_length is not None:
            header = header[:2] + total_length.to_bytes(2, "big") + header[4:]
            header = header[:10] + b"\0\0" + header[12:]
            header = header[:10] + checksum.finish(checksum.sum16(header)).to_bytes(2, "big") + header[12:]
        return self.ethernet(ETHERTYPE_IPV4, header + payload)

    def udp(self, sport: int, dport: int, payload: bytes = b"", **fields: Any) -> bytes:
        """A UDP datagram."""
        addresses = {"src": packed(self.src), "dst": packed(self.dst)}
        return self.ipv4(PROTO_UDP, udp.build(**addresses, sport=sport, dport=dport, payload=payload), **fields)

    def tcp(self, **fields: Any) -> bytes:
        """A TCP segment; ``fields`` are those of `pystack.wire.tcp.build`."""
        return self.ipv4(PROTO_TCP, tcp.build(src=packed(self.src), dst=packed(self.dst), **fields))

    def echo(self, ident: int = 1, sequence: int = 1, data: bytes = b"ping", kind: int = icmp.ECHO_REQUEST) -> bytes:
        """An ICMP echo request (or reply)."""
        return self.ipv4(PROTO_ICMP, icmp.build_echo(kind, ident, sequence, data))

    def icmp_error(self, kind: int, code: int, original: bytes, extra: int = 0) -> bytes:
        """An ICMP error about the packet whose IP header starts ``original``."""
        return self.ipv4(PROTO_ICMP, icmp.build_error(kind, code, original, extra))

    def arp_request(self, target: str | None = None, **fields: bytes) -> bytes:
        """Who has ``target`` (our destination if None)? As a broadcast unless ``dst`` is given."""
        fields = {"sha": self.src_mac, "spa": packed(self.src), "tpa": packed(target or self.dst), **fields}
        return bytes(self.vnet_hdr_len) + arp.build_request(**fields)

    def arp_reply(self, **fields: bytes) -> bytes:
        """We are at our Ethernet address."""
        return bytes(self.vnet_hdr_len) + arp.build_reply(
            **{
                "sha": self.src_mac,
                "spa": packed(self.src),
                "tha": self.dst_mac,
                "tpa": packed(self.dst),
                **fields,
            }
        )

    def fragments(self, proto: int, payload: bytes, *sizes: int, ident: int = 1) -> list[bytes]:
        """``payload`` as IPv4 fragments of ``sizes`` bytes each, the rest in a last one."""
        frames = []
        start = 0
        for size in (*sizes, len(payload)):
            piece = payload[start : start + size]
            more = IP_MF if start + len(piece) < len(payload) else 0
            frames.append(self.ipv4(proto, piece, fragment=start >> 3 | more, ident=ident))
            start += len(piece)
            if start >= len(payload):
                break
        return frames
