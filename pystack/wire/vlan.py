"""VLAN tags: 802.1Q, and two of them (QinQ, 802.1ad).

Read before editing: IEEE 802.1Q clauses 9.3 to 9.6.

A tag stands between the Ethernet source and the EtherType that follows it; the TPID is in the EtherType's place::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |      TPID (0x8100, 0x88A8)    | PCP |D|         VID           |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |           EtherType           |   Payload ...
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from typing import Final, NamedTuple

import construct as c

from pystack.wire.layout import Layout
from pystack.wire.packet import ETHERTYPE_QINQ, ETHERTYPE_VLAN

MAX_VID: Final = 4095


class Tag(NamedTuple):
    """One tag: ``tpid``, priority ``pcp`` (0 to 7), ``dei`` (may be dropped first), and the VLAN's number ``vid``."""

    tpid: int
    pcp: int
    dei: int
    vid: int


TAG: Final = Layout.derive(
    c.Struct(
        "tpid" / c.Int16ub,
        "tci" / c.BitStruct("pcp" / c.BitsInteger(3), "dei" / c.BitsInteger(1), "vid" / c.BitsInteger(12)),
    ),
    Tag,
)


def read_tags_untrusted(frame: bytes, eth: int = 0) -> tuple[Tag, ...]:
    """The tags of the Ethernet frame that starts at ``eth``, outermost first; at most the ones that are whole."""
    tags = []
    at = eth + 12
    while int.from_bytes(frame[at : at + 2], "big") in (ETHERTYPE_VLAN, ETHERTYPE_QINQ):
        tag = TAG.unpack_untrusted(frame, at)
        if tag is None:
            break
        tags.append(tag)
        at += TAG.size
    return tuple(tags)


def push(frame: bytes, vid: int, *, pcp: int = 0, dei: int = 0, tpid: int = ETHERTYPE_VLAN, eth: int = 0) -> bytes:
    """``frame``, whose Ethernet header starts at ``eth``, with one more tag outside those that it has.

    Raises:
        ValueError: ``vid``, ``pcp`` or ``dei`` does not fit in its field.
    """
    tag = TAG.pack(tpid=tpid, pcp=pcp, dei=dei, vid=vid)
    return frame[: eth + 12] + tag + frame[eth + 12 :]


def pop(frame: bytes, *, eth: int = 0) -> bytes:
    """``frame`` without its outermost tag; unchanged when it has none."""
    if not read_tags_untrusted(frame, eth):
        return frame
    return frame[: eth + 12] + frame[eth + 12 + TAG.size :]
