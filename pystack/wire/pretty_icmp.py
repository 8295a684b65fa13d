"""What a line says about ICMP, ICMPv6 and neighbour discovery: part of `pystack.wire.pretty`."""

from __future__ import annotations

from typing import Final

from pystack.counters import Counters
from pystack.wire import icmp, icmpv6, ipv4, ipv6, ndp
from pystack.wire.packet import PROTO_TCP, PROTO_UDP, Packet

_UNREACHABLE: Final = {
    icmp.NET_UNREACHABLE: "net {dst} unreachable",
    icmp.HOST_UNREACHABLE: "host {dst} unreachable",
    icmp.PROTOCOL_UNREACHABLE: "{dst} protocol {proto} unreachable",
    icmp.PORT_UNREACHABLE: "{dst} {transport} port {port} unreachable",
    icmp.FRAGMENTATION_NEEDED: "{dst} unreachable - need to frag (mtu {mtu})",
    icmp.SOURCE_ROUTE_FAILED: "{dst} unreachable - source route failed",
    9: "net {dst} unreachable - admin prohibited",
    10: "host {dst} unreachable - admin prohibited",
    icmp.ADMIN_PROHIBITED: "host {dst} unreachable - admin prohibited filter",
}
_REDIRECT: Final = ("net", "host", "net-tos", "host-tos")
_TRANSPORT: Final = {PROTO_TCP: "tcp", PROTO_UDP: "udp"}
_UNREACHABLE6: Final = {
    icmpv6.NO_ROUTE: "unreachable route {dst}",
    icmpv6.ADMIN_PROHIBITED: "unreachable prohibited {dst}",
    icmpv6.ADDRESS_UNREACHABLE: "unreachable address {dst}",
    icmpv6.PORT_UNREACHABLE: "unreachable port, {dst}{port}",
}
_PARAMETER6: Final = ("erroneous", "next header", "option")
_LISTENER: Final = {
    130: "multicast listener query",
    131: "multicast listener report",
    132: "multicast listener done",
}
_LISTENER_REPORT_V2: Final = 143
_NDP_TYPES: Final = {
    ndp.ROUTER_SOLICITATION: "router solicitation",
    ndp.ROUTER_ADVERTISEMENT: "router advertisement",
    ndp.NEIGHBOUR_SOLICITATION: "neighbor solicitation",
    ndp.NEIGHBOUR_ADVERTISEMENT: "neighbor advertisement",
    ndp.REDIRECT: "redirect",
}


def describe(packet: Packet) -> str:
    """The rest of the line after ``ICMP``."""
    counters = Counters()
    length = packet.end - packet.l4
    message = icmp.parse_untrusted(packet.frame, packet.l4, packet.end, counters)
    if message is None:
        (reason,) = counters.snapshot()
        return f"length {length} [{reason}]"
    return f"{_message(message, packet.frame, counters)}, length {length}"


def _message(message: icmp.Message, frame: bytes, counters: Counters) -> str:
    kind, code = message.kind, message.code
    if kind in (icmp.ECHO_REQUEST, icmp.ECHO_REPLY):
        name = "request" if kind == icmp.ECHO_REQUEST else "reply"
        return f"echo {name}, id {message.ident}, seq {message.sequence}"
    if kind in icmp.ERRORS:
        quote = icmp.parse_quote_untrusted(frame, message.start, message.end, counters)
        return f"type-#{kind} [icmp.bad_quote]" if quote is None else _error(message, quote)
    if kind in (icmp.TIMESTAMP_REQUEST, icmp.TIMESTAMP_REPLY):
        name = "query" if kind == icmp.TIMESTAMP_REQUEST else "reply"
        return f"time stamp {name} id {message.ident} seq {message.sequence}"
    if kind in (icmp.ROUTER_ADVERTISEMENT, icmp.ROUTER_SOLICITATION):
        return f"router {'advertisement' if kind == icmp.ROUTER_ADVERTISEMENT else 'solicitation'}"
    return f"type-#{kind}" + (f", code {code}" if code else "")


def _error(message: icmp.Message, quote: icmp.Quote) -> str:
    kind, code = message.kind, message.code
    dst = ipv4.text(quote.dst)
    if kind == icmp.UNREACHABLE:
        transport = _TRANSPORT.get(quote.proto, f"ip-proto-{quote.proto}")
        port = int.from_bytes(quote.key[10:12], "big")
        text = _UNREACHABLE.get(code, "{dst} unreachable - #{code}")
        return text.format(dst=dst, proto=quote.proto, transport=transport, port=port, mtu=message.mtu, code=code)
    if kind == icmp.TIME_EXCEEDED:
        if code == icmp.TTL_EXCEEDED:
            return "time exceeded in-transit"
        return "ip reassembly time exceeded" if code == icmp.REASSEMBLY_TIMEOUT else f"time exceeded-#{code}"
    if kind == icmp.REDIRECT:
        what = _REDIRECT[code] if code < len(_REDIRECT) else f"#{code}"
        return f"redirect {dst} to {what} {ipv4.text(message.gateway)}"
    if kind == icmp.PARAMETER_PROBLEM:
        return f"parameter problem - octet {message.pointer}" if not code else f"parameter problem - code {code}"
    return "source quench"


def describe6(packet: Packet) -> str:
    """The rest of the line after ``ICMP6,``."""
    counters = Counters()
    length = packet.end - packet.l4
    message = icmpv6.parse_untrusted(packet.frame, packet.l4, packet.end, counters)
    if message is None:
        (reason,) = counters.snapshot()
        return f"length {length} [{reason}]"
    if message.kind in _NDP_TYPES:
        return f"{_ndp(message.kind, packet, counters)}, length {length}"
    return f"{_message6(message, packet.frame)}, length {length}"


def _message6(message: icmpv6.Message, frame: bytes) -> str:
    kind, code = message.kind, message.code
    if kind in (icmpv6.ECHO_REQUEST, icmpv6.ECHO_REPLY):
        name = "request" if kind == icmpv6.ECHO_REQUEST else "reply"
        return f"echo {name}, id {message.ident}, seq {message.sequence}"
    if kind == icmpv6.UNREACHABLE:
        dst, port = _quoted6(frame[message.start : message.end])
        text = _UNREACHABLE6.get(code, "unreachable code-#{code} {dst}").format(dst=dst, port=port, code=code)
        return f"destination unreachable, {text}"
    if kind == icmpv6.PACKET_TOO_BIG:
        return f"packet too big, mtu {message.rest}"
    if kind == icmpv6.TIME_EXCEEDED:
        what = "time exceeded in-transit" if not code else "ip reassembly time exceeded"
        return f"{what} for {_quoted6(frame[message.start : message.end])[0]}"
    if kind == icmpv6.PARAMETER_PROBLEM:
        what = _PARAMETER6[code] if code < len(_PARAMETER6) else f"code-#{code}"
        return f"parameter problem, {what} - octet {message.rest}"
    if kind == _LISTENER_REPORT_V2:
        return f"multicast listener report v2, {message.rest & 0xFFFF} group record(s)"
    return _LISTENER.get(kind, f"type-#{kind}, code {code}")


def _quoted6(quote: bytes) -> tuple[str, str]:
    """Where the packet that an error is about went: the address, and the port for TCP and UDP."""
    header = ipv6.HEADER.unpack_untrusted(quote)
    if header is None:
        return "[icmpv6.bad_quote]", ""
    transport = _TRANSPORT.get(header.next_header)
    port = quote[42:44]
    known = transport and len(port) == 2
    return ipv6.text(header.dst), f" {transport} port {int.from_bytes(port, 'big')}" if known else ""


def _ndp(kind: int, packet: Packet, counters: Counters) -> str:
    message = ndp.parse_untrusted(packet, counters)
    name = _NDP_TYPES[kind]
    match message:
        case None:
            (reason,) = counters.snapshot()
            return f"{name} [{reason}]"
        case ndp.NeighbourSolicitation(target, _):
            return f"{name}, who has {ipv6.text(target)}"
        case ndp.NeighbourAdvertisement(_, target, _):
            return f"{name}, tgt is {ipv6.text(target)}"
        case ndp.Redirect(target, destination, _):
            return f"{name}, {ipv6.text(destination)} to {ipv6.text(target)}"
        case _:
            return name
