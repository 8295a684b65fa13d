"""Messages that parse and that the gateway's services must refuse all the same: one row per case.

Rows about the bytes of a header are in `tests.unit.wire.bad_input_rows`; both lists are run against a whole gateway by
`tests.unit.test_bad_input`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from pystack.testing.frames import Crafter
from pystack.wire import dhcp, dns
from pystack.wire.packet import SYN

_MAC = b"\x02\0\0\0\0\x77"
_WIRE = Crafter("10.0.2.77", "198.51.100.7", src_mac=_MAC, dst_mac=b"\x52\x55\x0a\x00\x02\x02")
_FOREIGN = _WIRE.but(src="192.0.2.1")
_TO_ALL = Crafter("0.0.0.0", "255.255.255.255", src_mac=_MAC, dst_mac=b"\xff" * 6)
_QUERY = dns.build_query(7, dns.name_from_text("www.example.com"))


class Row(NamedTuple):
    """One case: frames from the guest, and the counter that must move."""

    name: str
    frames: tuple[bytes, ...]
    counter: str


def _dhcp(kind: int | None, *, options: dict[int, bytes] | None = None, **header: Any) -> tuple[bytes, ...]:
    told = {} if kind is None else {dhcp.OPT_MESSAGE_TYPE: bytes((kind,))}
    message = dhcp.request(_MAC, 1, told | (options or {}))
    message = message._replace(header=message.header._replace(**header))
    return (_TO_ALL.udp(dhcp.CLIENT_PORT, dhcp.SERVER_PORT, dhcp.build(message)),)


def _query(message: bytes, dst: str = "10.0.2.3") -> tuple[bytes, ...]:
    return (_WIRE.but(dst=dst).udp(5000, dns.PORT, message),)


def _flags(first: int) -> bytes:
    return _QUERY[:2] + bytes((first,)) + _QUERY[3:]


ROWS: list[Row] = [
    Row("UDP from a network that is not the guest's", (_FOREIGN.udp(5000, 7, b"x"),), "slirp.foreign_source"),
    Row("UDP from there to DNS", (_FOREIGN.but(dst="10.0.2.3").udp(5000, 53, _QUERY),), "slirp.foreign_source"),
    Row("ping from there", (_FOREIGN.echo(),), "slirp.foreign_source"),
    Row("SYN from there", (_FOREIGN.tcp(sport=5, dport=80, flags=SYN),), "ipv4.no_route"),
    Row("TFTP, served by nobody", (_WIRE.but(dst="10.0.2.2").udp(5, 69, b"\0\1x\0"),), "slirp.udp_refused_by_policy"),
    Row("SYN to another guest's address", (_WIRE.but(dst="10.0.2.99").tcp(sport=5, dport=80, flags=SYN),),
        "slirp.tcp_refused_by_policy"),
    Row("ping of another guest's address", (_WIRE.but(dst="10.0.2.99").echo(),), "slirp.ping_refused_by_policy"),
    Row("UDP to the host's loopback", (_WIRE.but(dst="127.0.0.1").udp(5, 53, _QUERY),), "ipv4.not_ours"),
    Row("SYN to the host's loopback", (_WIRE.but(dst="127.0.0.1").tcp(sport=5, dport=80, flags=SYN),), "ipv4.not_ours"),
    Row("SYN to 0.0.0.0", (_WIRE.but(dst="0.0.0.0").tcp(sport=5, dport=80, flags=SYN),), "ipv4.not_ours"),
    Row("DHCP answer from a guest", _dhcp(dhcp.OFFER, op=dhcp.BOOTREPLY), "dhcp.not_a_request"),
    Row("DHCP through a relay that is not there", _dhcp(dhcp.DISCOVER, giaddr=b"\x0a\0\2\x09"), "dhcp.relayed"),
    Row("DHCP for a group address", _dhcp(dhcp.DISCOVER, chaddr=b"\xff" * 16), "dhcp.bad_hardware_address"),
    Row("DHCP over another medium", _dhcp(dhcp.DISCOVER, htype=6), "dhcp.bad_hardware_address"),
    Row("BOOTP", _dhcp(None), "dhcp.no_message_type"),
    Row("DHCP message of type 0", _dhcp(0), "dhcp.unknown_message_type"),
    Row("DHCP message of type 255", _dhcp(255), "dhcp.unknown_message_type"),
    Row("DHCP type of two bytes", _dhcp(None, options={dhcp.OPT_MESSAGE_TYPE: b"\1\1"}), "dhcp.no_message_type"),
    Row("DHCP request for an address outside", _dhcp(dhcp.REQUEST, options={dhcp.OPT_REQUESTED_ADDRESS: bytes(4)}),
        "dhcp.nak"),
    Row("DHCP request for half an address", _dhcp(dhcp.REQUEST, options={dhcp.OPT_REQUESTED_ADDRESS: b"\x0a\0"}),
        "dhcp.nak"),
    Row("DHCP inform from an address outside", _dhcp(dhcp.INFORM, ciaddr=b"\x08" * 4), "dhcp.bad_client_address"),
    Row("DNS answer as a query", _query(_flags(0x80)), "dns.not_a_query"),
    Row("DNS update", _query(_flags(5 << 3)), "dns.unknown_opcode"),
    Row("DNS without a question", _query(_QUERY[:4] + bytes(2) + _QUERY[6:]), "dns.bad_question_count"),
    Row("DNS with two questions", _query(_QUERY[:4] + b"\0\2" + _QUERY[6:]), "dns.bad_question_count"),
    Row("DNS query when there is no resolver", _query(_QUERY), "dns.no_resolver"),
]  # fmt: skip
