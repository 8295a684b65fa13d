"""Options of IPv4 and IPv6, and the addresses that are made of others."""

from __future__ import annotations

import pytest

from pystack.counters import Counters
from pystack.wire import ethernet, ipv4, ipv6
from pystack.wire.ipv4 import Option


def test_a_record_route_gives_the_addresses_filled_so_far() -> None:
    filled = Option(ipv4.OPT_RECORD_ROUTE, b"\x0c" + bytes((10, 0, 0, 1, 10, 0, 0, 2, 0, 0, 0, 0)))
    assert filled.route == (bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    assert Option(ipv4.OPT_RECORD_ROUTE, b"\x04" + bytes(8)).route == ()
    assert Option(ipv4.OPT_LOOSE_ROUTE, b"\xff" + bytes(8)).route == (bytes(4), bytes(4))
    assert Option(ipv4.OPT_STRICT_ROUTE, b"\x03" + bytes(8)).route is None
    assert Option(ipv4.OPT_STRICT_ROUTE, b"").route is None
    assert Option(ipv4.OPT_TIMESTAMP, b"\x05" + bytes(8)).route is None


def test_a_router_alert_has_its_value() -> None:
    assert Option(ipv4.OPT_ROUTER_ALERT, b"\0\0").router_alert == 0
    assert Option(ipv4.OPT_ROUTER_ALERT, b"\0").router_alert is None
    assert Option(ipv4.OPT_RECORD_ROUTE, b"\0\0").router_alert is None


def test_only_copied_options_are_in_later_fragments() -> None:
    options = (Option(ipv4.OPT_RECORD_ROUTE, b"\x04" + bytes(4)), Option(ipv4.OPT_ROUTER_ALERT, b"\0\0"))
    assert ipv4.build_options(options, fragment=True) == b"\x94\x04\0\0"
    assert len(ipv4.build_options(options)) == 12


def test_more_than_forty_bytes_of_options_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit in 40"):
        ipv4.build_options((Option(7, bytes(39)),))


def test_an_ipv6_option_says_what_to_do_when_it_is_unknown() -> None:
    assert [ipv6.Option(kind, b"").if_unknown for kind in (0x05, 0x45, 0x85, 0xC2)] == [0, 1, 2, 3]


def test_an_ipv6_option_past_its_header_is_counted() -> None:
    counters = Counters()
    assert ipv6.parse_options_untrusted(b"\x3b\x00\x05\x05\x00\x00\x00\x00", 0, 8, counters) is None
    assert counters.snapshot() == {"ipv6.bad_option": 1}


def test_addresses_made_of_others() -> None:
    mac = bytes.fromhex("52550a000202")
    assert ipv6.text(ipv6.link_local(mac)) == "fe80::5055:aff:fe00:202"
    group = ipv6.solicited_node(ipv6.link_local(mac))
    assert ipv6.text(group) == "ff02::1:ff00:202"
    assert ipv6.is_multicast(group)
    assert ethernet.ipv6_multicast_mac(group).hex(":") == "33:33:ff:00:02:02"
    assert ethernet.ipv4_multicast_mac(bytes((239, 255, 0, 1))).hex(":") == "01:00:5e:7f:00:01"
    assert ethernet.is_group(ethernet.BROADCAST)
    assert not ethernet.is_group(mac)
    assert ipv6.is_link_local(ipv6.link_local(mac))
    assert not ipv6.is_link_local(ipv6.LOOPBACK)
