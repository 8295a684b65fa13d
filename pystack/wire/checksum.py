"""The Internet checksum: RFC 1071 (definition), RFC 1624 (update in place), and the pseudo-headers.

The sum of 16-bit words in one's complement arithmetic is the number that the bytes form, modulo 65,535: because
2**16 = 1 (mod 65,535) every word counts with weight 1. Python's long integers therefore do the work: 1,448 bytes take
about 2 us, where a loop over words takes 50.

A *sum* here is a plain integer in which values congruent modulo 65,535 are the same; sums of parts that start at even
offsets are added with ``+``. `finish` turns a sum into the field of a header.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pystack.frame import Buffer

_MODULUS: Final = 0xFFFF
_QUARTERED: Final = 1024
"""Bytes from which on cutting pays."""


def sum16(data: Buffer) -> int:
    """The one's complement sum of ``data`` as big-endian 16-bit words, in [0, 65,535); an odd byte is padded."""
    length = len(data)
    total = 0
    if length >= _QUARTERED:
        # Four numbers added cost less than one that is four times as long, for it is the division that takes the time.
        # Measured in CPU time against one number: 1,448 bytes 2.3 -> 2.0 us, 65,000 bytes 81 -> 48 us.
        part = length >> 3 << 1
        total = int.from_bytes(data[:part], "big")
        total += int.from_bytes(data[part : 2 * part], "big")
        total += int.from_bytes(data[2 * part : 3 * part], "big")
        data = data[3 * part :]
    last = int.from_bytes(data, "big")
    return (total + (last << 8 if length & 1 else last)) % _MODULUS


def sum_buffers(buffers: Iterable[Buffer]) -> int:
    """The sum of ``buffers`` as if they were joined; lengths may be odd anywhere."""
    total = 0
    odd = False
    for data in buffers:
        part = sum16(data)
        # A part that starts at an odd offset counts with its bytes swapped (RFC 1071 section 2(B)).
        total += (part << 8) if odd else part
        odd ^= bool(len(data) & 1)
    return total % _MODULUS


def finish(total: int) -> int:
    """The field that makes a header whose other bytes sum to ``total`` sum to zero, in [0, 65,534].

    A total of zero gives 0 and not its other form 0xffff, as every implementation that adds words does, because no
    header is all zero.
    """
    return -total % _MODULUS


def finish_udp(total: int) -> int:
    """As `finish`, with 0 sent as 0xffff: in UDP a zero field means that there is no checksum (RFC 768)."""
    return finish(total) or _MODULUS


def fold(total: int) -> int:
    """A sum as the 16-bit partial checksum that a device is to complete (VIRTIO_NET_HDR_F_NEEDS_CSUM): not inverted."""
    return total % _MODULUS


def valid(data: Buffer, initial: int = 0) -> bool:
    """Whether ``data``, its checksum field included, sums to zero together with ``initial`` (a pseudo-header's sum)."""
    return (sum16(data) + initial) % _MODULUS == 0


def pseudo(src: Buffer, dst: Buffer, protocol: int, length: int) -> int:
    """The sum of a pseudo-header: RFC 9293 section 3.1 for IPv4, RFC 8200 section 8.1 for IPv6.

    The two differ in the lengths of their fields alone, which a sum ignores. ``src`` and ``dst`` are 4 or 16 bytes;
    ``length`` counts the L4 header and its payload.
    """
    return int.from_bytes(src, "big") + int.from_bytes(dst, "big") + protocol + length


def update(checksum: int, old: int, new: int) -> int:
    """The checksum field after 16-bit words that summed to ``old`` became words that sum to ``new``.

    RFC 1624 equation 3: HC' = ~(~HC + ~m + m'). ``old`` and ``new`` may be sums of any number of aligned words, such
    as a 32-bit sequence number or an address.
    """
    return (checksum + old - new) % _MODULUS
