"""The writer of segments: a header template per connection, filled by one ``struct`` call (RFC 9293 section 3.1).

What does not change between two segments of a connection (virtio_net_hdr, Ethernet, most of IP, the ports) is made
once. Checksums are left to the link where it offers that, and computed over the gathered pieces where not.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Final, final

from pystack.frame import Buffer, TxFrame
from pystack.net.path import Path
from pystack.wire import checksum
from pystack.wire.packet import (
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    IP_DF,
    PROTO_TCP,
    VNET_DATA_VALID,
    VNET_NEEDS_CSUM,
)

_VNET: Final = struct.Struct("<BBHHHH")
_GSO_TCPV4: Final = 1
_GSO_TCPV6: Final = 4
_CSUM_OFFSET: Final = 16
_MAX_IP_PACKET: Final = 65_535
_MAX_TRAINS: Final = 16
_PORTS: Final = struct.Struct("!HH")
_MIDDLE: Final = struct.Struct("!HHBB")


@cache
def _layout(vnet_hdr_len: int, version: int) -> struct.Struct:
    """Front, what varies in IP, and TCP's fixed header; shared by all connections."""
    if version == 4:
        return struct.Struct(f"!{vnet_hdr_len + 16}sH6sH12sIIHHHH")
    return struct.Struct(f"!{vnet_hdr_len + 18}sH38sIIHHHH")


@final
class SegmentWriter:
    """Writes the segments of one connection onto one path.

    Attributes:
        gso: whether a segment may exceed the MTU, to be cut by the link.
    """

    __slots__ = (
        "_const_sum", "_ip_sum", "_l2l3", "_middle", "_pack", "_path", "_plain", "_seen_mac", "_tail", "_trains",
        "_version", "gso",
    )  # fmt: skip

    def __init__(self, path: Path, sport: int, dport: int) -> None:
        self._path = path
        self._version = path.version
        link = path.link
        self.gso = bool(link.vnet_hdr_len) and link.tx_checksum and (link.tso4 if self._version == 4 else link.tso6)
        self._pack = _layout(link.vnet_hdr_len, self._version).pack
        addresses = path.src + path.dst
        ports = _PORTS.pack(sport, dport)
        self._const_sum = checksum.sum16(addresses) + PROTO_TCP
        if self._version == 4:
            self._middle = _MIDDLE.pack(0, IP_DF, path.ttl, PROTO_TCP)
            self._tail = addresses + ports
            self._ip_sum = (0x4500 | path.tos) + checksum.sum16(self._middle + addresses)
        else:
            self._middle = b""
            self._tail = bytes((PROTO_TCP, path.ttl)) + addresses + ports
            self._ip_sum = 0
        self._fronts()

    def _fronts(self) -> None:
        """(Re)make what stands in front: it depends on the neighbour's address, which may become known later."""
        path = self._path
        self._seen_mac = path.dst_mac
        ethernet = (path.dst_mac or bytes(6)) + path.src_mac
        if self._version == 4:
            self._l2l3 = ethernet + struct.pack("!HBB", ETHERTYPE_IPV4, 0x45, path.tos)
        else:
            self._l2l3 = ethernet + struct.pack("!HI", ETHERTYPE_IPV6, 6 << 28 | path.tos << 20)
        self._plain = self._vnet(0, 0) + self._l2l3
        self._trains: dict[int, bytes] = {}

    def _vnet(self, header: int, gso_size: int) -> bytes:
        """A virtio_net_hdr: for one segment, or with ``gso_size`` for a train whose headers take ``header`` bytes."""
        link = self._path.link
        if not link.vnet_hdr_len:
            return b""
        start = 34 if self._version == 4 else 54
        gso_type = (_GSO_TCPV4 if self._version == 4 else _GSO_TCPV6) if gso_size else 0
        if link.tx_checksum:
            body = _VNET.pack(VNET_NEEDS_CSUM, gso_type, header, gso_size, start, _CSUM_OFFSET)
        else:
            body = _VNET.pack(VNET_DATA_VALID if link.rx_checksum else 0, 0, 0, 0, 0, 0)
        return body + bytes(link.vnet_hdr_len - len(body))

    def _train(self, header: int, gso_size: int) -> bytes:
        """The front of a frame that the link is to cut into segments of ``gso_size``."""
        key = header << 16 | gso_size
        front = self._trains.get(key)
        if front is None:
            if len(self._trains) > _MAX_TRAINS:
                self._trains.clear()
            front = self._trains[key] = self._vnet(header, gso_size) + self._l2l3
        return front

    def write(
        self,
        seq: int,
        ack: int,
        flags: int,
        window: int,
        options: bytes = b"",
        payload: Sequence[Buffer] = (),
        payload_len: int = 0,
        gso_size: int = 0,
        urgent: int = 0,
    ) -> TxFrame:
        """One frame.

        ``seq`` and ``ack`` are 32-bit, ``window`` is the field as sent; ``gso_size`` only if payload_len exceeds it.
        """
        path = self._path
        if path.dst_mac is not self._seen_mac:
            self._fronts()
        tcp_header = 20 + len(options)
        tcp_len = tcp_header + payload_len
        offset_flags = tcp_header << 10 | flags
        partial = path.link.tx_checksum
        if partial:
            check = (self._const_sum + tcp_len) % 0xFFFF
        else:
            total = (
                self._const_sum
                + tcp_len
                + checksum.sum16(self._tail[-4:])
                + seq
                + ack
                + offset_flags
                + window
                + urgent
                + checksum.sum16(options)
            )
            check = -(total + checksum.sum_buffers(payload)) % 0xFFFF
        if self._version == 4:
            front = self._train(34 + tcp_header, gso_size) if gso_size else self._plain
            ip_len = 20 + tcp_len
            ip_check = -(self._ip_sum + ip_len) % 0xFFFF
            header = self._pack(
                front, ip_len, self._middle, ip_check, self._tail, seq, ack, offset_flags, window, check, urgent
            )
        else:
            front = self._train(54 + tcp_header, gso_size) if gso_size else self._plain
            header = self._pack(front, tcp_len, self._tail, seq, ack, offset_flags, window, check, urgent)
        if options:
            header += options
        if payload_len:
            return (header, *payload)
        return (header,)

    def segment_limit(self, mss: int, options_len: int) -> int:
        """The largest payload of one frame: ``mss`` (which excludes options), or with GSO as many of them as fit."""
        if not self.gso:
            return mss
        room = (
            min(self._path.link.gso_max_bytes, _MAX_IP_PACKET) - (20 if self._version == 4 else 40) - 20 - options_len
        )
        return max(room // mss, 1) * mss
