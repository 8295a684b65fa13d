"""ARP for IPv4 over Ethernet.

Read before editing: RFC 826 ("Packet Generation", "Packet Reception"), RFC 5227 section 2.1 (probes and announcements).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |       Hardware Type (1)       |     Protocol Type (0x0800)    |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |   HLEN (6)    |   PLEN (4)    |           Operation           |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                     Sender Hardware Address                   |
    +                               +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                               |  Sender Protocol Address ...
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
      ... (4)                       |                               |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+   Target Hardware Address (6) +
    |                                                               |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |                  Target Protocol Address                      |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

from __future__ import annotations

from typing import Final, NamedTuple

import construct as c

from pystack.counters import Counters
from pystack.wire import ethernet
from pystack.wire.layout import Layout
from pystack.wire.packet import ETHERTYPE_ARP, ETHERTYPE_IPV4

REQUEST: Final = 1
REPLY: Final = 2

_ETHERNET: Final = 1
_NOBODY: Final = bytes(6)


class Arp(NamedTuple):
    """One message; ``sha`` and ``tha`` are 6 bytes, ``spa`` and ``tpa`` 4, ``op`` may be any number."""

    htype: int
    ptype: int
    hlen: int
    plen: int
    op: int
    sha: bytes
    spa: bytes
    tha: bytes
    tpa: bytes


HEADER: Final = Layout.derive(
    c.Struct(
        "htype" / c.Int16ub,
        "ptype" / c.Int16ub,
        "hlen" / c.Int8ub,
        "plen" / c.Int8ub,
        "op" / c.Int16ub,
        "sha" / c.Bytes(6),
        "spa" / c.Bytes(4),
        "tha" / c.Bytes(6),
        "tpa" / c.Bytes(4),
    ),
    Arp,
)


def parse_untrusted(frame: bytes, start: int, end: int, counters: Counters) -> Arp | None:
    """The message in ``frame[start:end]`` (Ethernet padding may follow it).

    Returns:
        None when it is too short (`arp.short`) or not about IPv4 over Ethernet (`arp.bad_type`: any of the four fields
        that say so).
    """
    message = HEADER.unpack_untrusted(frame, start, end)
    if message is None:
        counters.bump("arp.short")
    elif message[:4] != (_ETHERNET, ETHERTYPE_IPV4, 6, 4):
        counters.bump("arp.bad_type")
    else:
        return message
    return None


def build(op: int, *, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
    """The 28 bytes of a message, without the Ethernet header."""
    return HEADER.struct.pack(_ETHERNET, ETHERTYPE_IPV4, 6, 4, op, sha, spa, tha, tpa)


def build_request(*, sha: bytes, spa: bytes, tpa: bytes, dst: bytes = ethernet.BROADCAST) -> bytes:
    """A whole frame that asks who has ``tpa``; ``dst`` may be one neighbour, to ask it alone (RFC 1122 2.3.2.1).

    With ``spa`` 0.0.0.0 it is a probe, with ``spa == tpa`` an announcement (RFC 5227 section 2.1).
    """
    return ethernet.build_header(dst, sha, ETHERTYPE_ARP) + build(REQUEST, sha=sha, spa=spa, tha=_NOBODY, tpa=tpa)


def build_reply(*, sha: bytes, spa: bytes, tha: bytes, tpa: bytes) -> bytes:
    """A whole frame that tells ``tha`` that ``spa`` is at ``sha``."""
    return ethernet.build_header(tha, sha, ETHERTYPE_ARP) + build(REPLY, sha=sha, spa=spa, tha=tha, tpa=tpa)
