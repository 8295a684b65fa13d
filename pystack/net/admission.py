"""Which IPv4 packets are let in at all, by their addresses and options.

Read before editing: RFC 1122 section 3.2.1.3 (addresses), section 3.2.1.8 (options), section 3.3.6 (broadcasts);
RFC 7126 sections 4.3 and 4.4 (source routes).
"""

from __future__ import annotations

from typing import Final

from pystack.counters import Counters
from pystack.net.addressing import UNSPECIFIED, Addressing, is_multicast
from pystack.wire import ipv4
from pystack.wire.packet import PROTO_UDP, Packet

_PLAIN_HEADER: Final = 20


def refusal_untrusted(packet: Packet, addressing: Addressing, *, to_one: bool, any_destination: bool) -> str:
    """Why ``packet``, an IPv4 one, is dropped without a word for its addresses; "" when it is not.

    Args:
        to_one: whether the frame was sent to our Ethernet address and not to a group.
        any_destination: whether every unicast address is ours.
    """
    src, dst = packet.src, packet.dst
    to_all = addressing.is_broadcast(dst)
    # Who has no address yet may ask everybody for one (DHCP).
    asks_for_one = src == UNSPECIFIED and to_all and packet.proto == PROTO_UDP
    if (not addressing.is_valid_peer(src) or src in addressing.own) and not asks_for_one:
        return "ipv4.bad_source"
    if to_all:
        return "" if packet.proto == PROTO_UDP else "ipv4.broadcast_ignored"
    if is_multicast(dst):
        return "ipv4.multicast_ignored"
    if dst not in addressing.own and not (any_destination and addressing.is_valid_peer(dst)):
        return "ipv4.not_ours"
    # RFC 1122 section 3.3.6: a broadcast on the link that is none of IP's.
    return "" if to_one else "ipv4.group_frame"


def options_allow_untrusted(packet: Packet, counters: Counters) -> bool:
    """Whether the IPv4 options of ``packet`` are well-formed and ask for nothing that we refuse; counted if not.

    What is not understood is ignored. A source route is refused: it exists to get round what addresses are trusted for.
    """
    if packet.l4 - packet.l3 == _PLAIN_HEADER:
        return True
    options = ipv4.parse_options_untrusted(packet.frame, packet.l3 + _PLAIN_HEADER, packet.l4, counters)
    if options is None:
        return False
    if any(option.kind in (ipv4.OPT_LOOSE_ROUTE, ipv4.OPT_STRICT_ROUTE) for option in options):
        counters.bump("ipv4.source_route")
        return False
    return True
