"""A datagram that is larger than the MTU leaves in pieces (RFC 791 section 3.2; RFC 6864 for the identification)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pystack.frame import Buffer
from pystack.wire.packet import IP_MF


class Fragment(NamedTuple):
    """One piece: its field of flags and offset, and the buffers of its payload."""

    frag: int
    parts: tuple[Buffer, ...]


def fragments(head: bytes, payload: Buffer, room: int) -> Iterator[Fragment]:
    """Cut the L4 packet ``head + payload`` into pieces of at most ``room`` bytes; nothing is copied.

    ``head`` is the L4 header, 8 bytes for UDP and ICMP, and stays whole in the first piece. ``room`` is the MTU minus
    the IP header; every piece but the last is cut to a multiple of 8 bytes, the unit of the offset.

    Raises:
        ValueError: ``room`` leaves no place for 8 bytes and the header.
    """
    step = room & ~7
    if step < max(8, len(head)):
        raise ValueError(f"no fragment fits in {room} bytes")
    view = memoryview(payload)
    total = len(head) + len(view)
    for start in range(0, total, step):
        end = min(start + step, total)
        piece = view[max(0, start - len(head)) : end - len(head)]
        parts: tuple[Buffer, ...] = (head, piece) if not start else (piece,)
        yield Fragment((start >> 3) | (IP_MF if end < total else 0), parts)
