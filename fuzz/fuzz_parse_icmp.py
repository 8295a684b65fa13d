"""ICMP, ICMPv6 and neighbour discovery are read within their bytes or refused with one counter, and end."""

from __future__ import annotations

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.wire import icmp, icmpv6, ipv6, ndp
from pystack.wire.packet import PROTO_ICMP, PROTO_ICMPV6, parse_untrusted

_NEAR = bytes(12) + b"\x86\xdd"
_ADDRESS = ipv6.link_local(bytes(6))

SEEDS = seeds.parts(
    lambda packet: packet.frame[packet.l4 : packet.end] if packet.proto in (PROTO_ICMP, PROTO_ICMPV6) else None
)
MAX_LEN = 700


def target(data: bytes) -> None:
    """Read ``data`` as a message of ICMP, of ICMPv6, and of neighbour discovery from a neighbour."""
    counters = Counters()
    message = icmp.parse_untrusted(b"\x08" + data, 1, 1 + len(data), counters)
    assert counters.snapshot() == ({"icmp.short": 1} if message is None else {})
    if message:
        assert 9 == message.start <= message.end <= message.extensions_end == 1 + len(data)
        rest = data[message.start - 1 :]
        assert icmp.build(message.kind, message.code, message.rest, rest)[4:] == data[4:]
        quote = icmp.parse_quote_untrusted(b"\x08" + data, message.start, message.end, counters)
        assert counters.snapshot() == ({"icmp.bad_quote": 1} if quote is None else {})
    counters = Counters()
    message6 = icmpv6.parse_untrusted(data, 0, len(data), counters)
    assert counters.snapshot() == ({"icmpv6.short": 1} if message6 is None else {})
    _discover(data)


def _discover(data: bytes) -> None:
    header = ipv6.build_header(
        src=_ADDRESS, dst=_ADDRESS, next_header=PROTO_ICMPV6, payload_len=len(data), hop_limit=255
    )
    packet = parse_untrusted(_NEAR + header + data, 0, Counters())
    assert packet
    assert isinstance(icmpv6.may_report(packet), bool)
    counters = Counters()
    found = ndp.parse_untrusted(packet, counters)
    assert sum(counters.snapshot().values()) == (found is None)
    if isinstance(found, ndp.RouterAdvertisement):
        options = found.options
        assert 32 * len(options.prefixes) <= len(data)
        assert all(prefix.prefix_len <= 128 for prefix in options.prefixes)
        assert all(len(address) == 16 for _, addresses in options.rdnss for address in addresses)


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
