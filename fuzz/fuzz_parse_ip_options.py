"""IPv4 and IPv6 options are read within their bytes or refused with one counter, and survive being built again."""

from __future__ import annotations

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.wire import ipv4, ipv6

SEEDS = [
    *seeds.parts(lambda packet: packet.frame[packet.l3 + 20 : packet.l4] if packet.version == 4 else None),
    *seeds.parts(lambda packet: packet.frame[packet.l3 + 40 : packet.l4] if packet.version == 6 else None),
    b"\x94\x04\x00\x00" + b"\x83\x07\x04\x0a\x00\x02\x09" + b"\x00",
]
MAX_LEN = 300


def target(data: bytes) -> None:
    """Read ``data`` as the options of an IPv4 header, and as a hop-by-hop header."""
    counters = Counters()
    options = ipv4.parse_options_untrusted(b"\x07" + data + b"\x07\x04", 1, 1 + len(data), counters)
    assert counters.snapshot() == ({"ipv4.bad_option": 1} if options is None else {})
    if options is not None:
        for option in options:
            assert option.route is None or len(option.route) * 4 < len(option.data)
            assert option.router_alert is None or option.kind == ipv4.OPT_ROUTER_ALERT
        if sum(len(option.data) + 2 for option in options) <= ipv4.MAX_OPTIONS_BYTES:
            area = ipv4.build_options(options)
            assert ipv4.parse_options_untrusted(area, 0, len(area), counters) == options
    counters = Counters()
    options6 = ipv6.parse_options_untrusted(data, 0, len(data), counters)
    assert counters.snapshot() == ({"ipv6.bad_option": 1} if options6 is None else {})
    if options6 is not None:
        header = ipv6.build_options_header(59, options6)
        assert len(header) % 8 == 0
        assert ipv6.parse_options_untrusted(header, 0, len(header), counters) == options6


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
