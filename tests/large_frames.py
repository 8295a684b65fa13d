"""Frames that a network card is to segment, as a guest with segmentation offload hands them over."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

from pystack.wire import checksum, ethernet, ipv4, ipv6, tcp, vnet
from pystack.wire.packet import ACK, CWR, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, PSH

_ADDRESSES = {4: (b"\x0a\0\0\x02", b"\x0a\0\0\x01"), 6: (b"\xfd" + bytes(14) + b"\x02", b"\xfd" + bytes(14) + b"\x01")}


@dataclass(frozen=True, slots=True)
class Large:
    """One end of a connection, between the addresses and ports of `tests.colo_guests.Guest` where it is IPv4.

    Attributes:
        gso_size: 0 for frames that ask for nothing. partial: whether the checksum is left to the card.
    """

    iss: int = 1000
    acked: int = 7000
    window: int = 8000
    version: int = 4
    vnet_hdr_len: int = 12
    gso_size: int = 100
    partial: bool = True
    tagged: bool = False
    options: bytes = b""

    def but(self, **fields: Any) -> Large:
        """The same with some fields changed."""
        return replace(self, **fields)

    def data(self, offset: int, payload: bytes, flags: int = ACK | PSH, ident: int = 1) -> bytes:
        """Payload at ``offset`` of the stream, virtio_net_hdr included."""
        src, dst = _ADDRESSES[self.version]
        segment = bytearray(
            tcp.build(
                src=src, dst=dst, sport=80, dport=5000, seq=self.iss + 1 + offset & 0xFFFF_FFFF, ack=self.acked,
                flags=flags, window=self.window, options=self.options, payload=payload,
            )
        )  # fmt: skip
        if self.partial:
            struct.pack_into("!H", segment, 16, checksum.fold(checksum.pseudo(src, dst, 6, len(segment))))
        if self.version == 4:
            head = ipv4.build_header(src=src, dst=dst, proto=6, payload_len=len(segment), ident=ident)
        else:
            head = ipv6.build_header(src=src, dst=dst, next_header=6, payload_len=len(segment))
        ethertype = ETHERTYPE_IPV4 if self.version == 4 else ETHERTYPE_IPV6
        if self.tagged:
            ethertype, head = ETHERTYPE_VLAN, struct.pack("!HH", 7, ethertype) + head
        link = ethernet.build_header(b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x09", ethertype)
        start = len(link) + len(head)
        return self._vnet(start, start + len(segment) - len(payload), flags) + link + head + segment

    def _vnet(self, start: int, header: int, flags: int) -> bytes:
        kind = (vnet.GSO_TCPV4 if self.version == 4 else vnet.GSO_TCPV6) | (vnet.GSO_ECN if flags & CWR else 0)
        large = {"gso_type": kind, "gso_size": self.gso_size, "hdr_len": header} if self.gso_size else {}
        left = {"flags": vnet.F_NEEDS_CSUM, "csum_start": start, "csum_offset": 16} if self.partial else {}
        return vnet.build(self.vnet_hdr_len, **large, **left)


def syn_ack(guest: Large) -> bytes:
    """The answer to the client's SYN, without an option but the largest segment."""
    return guest.but(gso_size=0, options=tcp.build_options(mss=1460)).data(-1, b"", 0x12)
