"""Ethernet II: who on this link, and what follows.

Read before editing: RFC 894 (IP over Ethernet), RFC 1112 section 6.4 and RFC 2464 section 7 (multicast addresses),
IEEE 802.3 clause 3.2 (a number below 0x0600 in place of the EtherType is the length of an 802.3 frame).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                       Destination Address                     |
    +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                               |                               |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+         Source Address        +
    |                                                               |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |           EtherType           |   Payload ...
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from typing import Final, NamedTuple

import construct as c

from pystack.wire.layout import Layout

BROADCAST: Final = b"\xff\xff\xff\xff\xff\xff"
MIN_ETHERTYPE: Final = 0x0600
"""Below it the field is the length of an 802.3 frame."""


class Header(NamedTuple):
    """Addresses are 6 bytes."""

    dst: bytes
    src: bytes
    ethertype: int


HEADER: Final = Layout.derive(c.Struct("dst" / c.Bytes(6), "src" / c.Bytes(6), "ethertype" / c.Int16ub), Header)


def build_header(dst: bytes, src: bytes, ethertype: int) -> bytes:
    """The 14 bytes in front of a payload. Padding to 60 bytes and the FCS are the device's business."""
    return dst + src + ethertype.to_bytes(2, "big")


def is_group(mac: bytes) -> bool:
    """Whether ``mac`` is a multicast or the broadcast address: no single host, so never a valid source."""
    return bool(mac[0] & 1)


def mac_text(mac: bytes) -> str:
    """As people write it: ``52:55:0a:00:02:02``."""
    return mac.hex(":")


def ipv4_multicast_mac(group: bytes) -> bytes:
    """The link address of the IPv4 multicast ``group`` (4 bytes): its low 23 bits (RFC 1112 section 6.4)."""
    return bytes((0x01, 0x00, 0x5E, group[1] & 0x7F, group[2], group[3]))


def ipv6_multicast_mac(group: bytes) -> bytes:
    """The link address of the IPv6 multicast ``group`` (16 bytes): its low 32 bits (RFC 2464 section 7)."""
    return b"\x33\x33" + group[12:]
