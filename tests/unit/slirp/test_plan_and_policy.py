"""The address plan, published ports, and who may be reached."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from pystack.errors import UsageError
from pystack.slirp.forwards import Publish
from pystack.slirp.plan import AddressPlan, dotted, packed
from pystack.slirp.policy import Policy

PLAN = AddressPlan.from_cidr()


def ip(text: str) -> bytes:
    return IPv4Address(text).packed


# ---------------------------------------------------------------------------------------------------------------- plan


def test_the_default_plan_is_the_one_that_slirp_users_know() -> None:
    assert dotted(PLAN.gateway) == "10.0.2.2"
    assert dotted(PLAN.dns) == "10.0.2.3"
    assert (dotted(PLAN.pool[0]), dotted(PLAN.pool[-1]), len(PLAN.pool)) == ("10.0.2.15", "10.0.2.30", 16)
    assert dotted(PLAN.configured) == "10.0.2.100"
    assert PLAN.configured not in PLAN.pool


def test_a_cidr_moves_the_plan_and_keeps_the_offsets() -> None:
    plan = AddressPlan.from_cidr("192.168.64.0/20")
    assert [dotted(address) for address in (*plan.own, plan.pool[0], plan.configured)] == [
        "192.168.64.2", "192.168.64.3", "192.168.64.15", "192.168.64.100",
    ]  # fmt: skip
    assert dotted(plan.netmask) == "255.255.240.0"
    assert dotted(plan.broadcast) == "192.168.79.255"


@pytest.mark.parametrize(
    "cidr",
    ["", "x", "10.0.2.0", "10.0.2.5/24", "10.0.2.0/26", "10.0.2.0/33", "10.0.2.0/-1", "0.0.0.0/0", "0.0.0.0/8",
     "127.0.0.0/8", "224.0.0.0/8", "240.0.0.0/8", "fd00::/64", "10.0.2.0/24/24", "10.0.2.256/24", "10.0.2.0/24 "],
)  # fmt: skip
def test_a_cidr_that_no_guest_can_be_in_is_refused_in_one_sentence(cidr: str) -> None:
    with pytest.raises(UsageError) as caught:
        AddressPlan.from_cidr(cidr)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert repr(cidr) in str(caught.value)


def test_only_the_networks_other_addresses_may_be_a_guests() -> None:
    may = [last for last in range(256) if PLAN.may_be_guest(ip(f"10.0.2.{last}"))]
    assert may == [1, *range(4, 255)]
    assert not PLAN.may_be_guest(ip("10.0.3.15"))
    assert not PLAN.may_be_guest(ip("127.0.0.1"))


def test_addresses_are_written_and_read_as_sockets_do() -> None:
    assert dotted(b"\x0a\x00\x02\xff") == "10.0.2.255"
    assert packed("10.0.2.255") == b"\x0a\x00\x02\xff"


# -------------------------------------------------------------------------------------------------------------- policy

FORBIDDEN = [
    "127.0.0.1", "127.0.0.53", "127.1.2.3", "127.255.255.255",  # the host's loopback under its own names
    "0.0.0.0", "0.1.2.3",  # Linux connects to itself there
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.254", "255.255.255.255",  # not one host
    "10.0.2.0", "10.0.2.1", "10.0.2.3", "10.0.2.15", "10.0.2.100", "10.0.2.254", "10.0.2.255",  # the guest's network
]  # fmt: skip


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("address", FORBIDDEN)
def test_forbidden_addresses_are_never_dialled(address: str, allow: bool) -> None:
    assert Policy(PLAN, allow_host_loopback=allow).host_address(ip(address)) is None


@pytest.mark.parametrize("address", ["93.184.216.34", "192.168.1.1", "10.0.3.2", "169.254.169.254", "126.255.255.255"])
def test_other_addresses_are_dialled_as_they_are(address: str) -> None:
    assert Policy(PLAN, allow_host_loopback=False).host_address(ip(address)) == ip(address)


def test_the_hosts_loopback_has_one_name_and_that_only_on_request() -> None:
    assert Policy(PLAN, allow_host_loopback=False).host_address(PLAN.gateway) is None
    assert Policy(PLAN, allow_host_loopback=True).host_address(PLAN.gateway) == ip("127.0.0.1")


def test_a_datagram_from_the_hosts_loopback_is_for_nobody_unless_allowed() -> None:
    for address in ("127.0.0.1", "127.0.0.53"):
        assert Policy(PLAN, allow_host_loopback=False).guest_address(ip(address)) is None
        assert Policy(PLAN, allow_host_loopback=True).guest_address(ip(address)) == PLAN.gateway


def test_a_peer_of_a_published_port_keeps_its_address_where_the_guest_can_tell_it_apart() -> None:
    policy = Policy(PLAN, allow_host_loopback=False)
    assert policy.published_address(ip("192.0.2.9")) == ip("192.0.2.9")
    assert policy.published_address(ip("127.0.0.1")) == PLAN.gateway
    assert policy.published_address(ip("10.0.2.77")) == PLAN.gateway


# ------------------------------------------------------------------------------------------------------------- publish


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", Publish(host_port=8080, guest_port=80)),
        ("8080:80/tcp", Publish(host_port=8080, guest_port=80)),
        ("5353:53/udp", Publish(host_port=5353, guest_port=53, udp=True)),
        ("127.0.0.1:1:65535", Publish(address=ip("127.0.0.1"), host_port=1, guest_port=65535)),
        ("0.0.0.0:1:2", Publish(host_port=1, guest_port=2)),
    ],
)
def test_published_ports_are_read(text: str, expected: Publish) -> None:
    assert Publish.parse(text) == expected
    assert Publish.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "80", ":", "a:b", "0:80", "80:0", "65536:80", "80:65536", "80:80/sctp", "80:80/", "1:2:3:4", "::1:80:80",
     "host:80:80", "300.1.1.1:80:80", "-1:80", "8080:80 ", "８０:80", "1e3:80"],
)  # fmt: skip
def test_what_is_no_published_port_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Publish.parse(text)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
