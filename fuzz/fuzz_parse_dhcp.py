"""A DHCP message is read within its bytes or refused with one counter, and means the same when it is built again."""

from __future__ import annotations

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.wire import dhcp, dns

SEEDS = seeds.payloads(dhcp.SERVER_PORT, dhcp.CLIENT_PORT)
MAX_LEN = 1500


def target(data: bytes) -> None:
    """Read ``data`` as a message, and its options as lists."""
    counters = Counters()
    message = dhcp.parse_untrusted(data, counters)
    assert sum(counters.snapshot().values()) == (message is None)
    for route in dhcp.decode_routes_untrusted(data) or ():
        assert (len(route.network), len(route.router)) == (4, 4)
    for name in dhcp.decode_domain_search_untrusted(data) or ():
        assert dns.name_text(name).endswith(".")
    if message is None:
        return
    assert len(message.mac) == message.header.hlen <= dhcp.MAX_CHADDR
    assert sum(map(len, message.options.values())) <= len(data)
    assert all(len(address) == 4 for code in message.options for address in message.addresses(code))
    assert message.message_type in (None, *range(256))
    assert message.client_id
    # What option 52 announces is in fields that `build` does not fill with options.
    options = {code: value for code, value in message.options.items() if code != dhcp.OPT_OVERLOAD}
    plain = dhcp.Message(message.header._replace(sname=bytes(64), file=bytes(128)), options)
    assert dhcp.parse_untrusted(dhcp.build(plain), counters) == plain


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
