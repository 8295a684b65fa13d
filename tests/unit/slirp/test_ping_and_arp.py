"""Echo requests through the gateway, and whom it answers for on the link."""

from __future__ import annotations

import errno

import pytest

from pystack.clock import SECOND
from pystack.net.icmp import Echo, IcmpError, PingEndpoint
from pystack.slirp import nat
from pystack.slirp import requests as op
from pystack.testing.frames import Crafter
from tests.unit.slirp.fake_host import GUEST, GUEST_MAC, REMOTE, Rig
from tests.unit.slirp.test_plan_and_policy import ip
from tests.unit.slirp.test_tcp import GATEWAY_MAC

GATEWAY = ip("10.0.2.2")


def taken(ping: PingEndpoint) -> list[Echo | IcmpError]:
    items = []
    while (item := ping.take()) is not None:
        items.append(item)
    return items


@pytest.mark.parametrize("address", ["10.0.2.2", "10.0.2.3"])
def test_our_own_addresses_answer_by_themselves(address: str) -> None:
    rig = Rig()
    ping = rig.stack.ping_open()
    ping.send_echo(ip(address), 1, b"hello", rig.now)
    rig.settle()
    (reply,) = taken(ping)
    assert isinstance(reply, Echo)
    assert (reply.source, reply.seq, reply.payload) == (ip(address), 1, b"hello")
    assert rig.host.pings == []


def test_others_are_asked_by_a_ping_socket_and_answer_under_the_guests_identifier() -> None:
    rig = Rig()
    ping = rig.stack.ping_open()
    for seq in (1, 2):
        ping.send_echo(REMOTE, seq, b"hello", rig.now)
    rig.settle()
    (flow, address, seq, ttl, payload), (again, *_) = rig.host.pings
    assert flow is again
    assert (address, seq, ttl, payload) == (REMOTE, 1, 64, b"hello")
    rig.gateway.ping.reply(flow, REMOTE, 1, b"hello", rig.now)
    rig.settle()
    (reply,) = taken(ping)
    assert isinstance(reply, Echo)
    assert (reply.source, reply.ident, reply.seq, reply.payload) == (REMOTE, ping.ident, 1, b"hello")


def test_the_hosts_loopback_is_pinged_at_the_gateways_address_by_nobody_but_us() -> None:
    rig = Rig(allow_host_loopback=True)
    ping = rig.stack.ping_open()
    ping.send_echo(GATEWAY, 1, b"", rig.now)
    rig.settle()
    assert len(taken(ping)) == 1
    assert rig.host.pings == []


def test_an_icmp_error_about_a_ping_reaches_the_guest() -> None:
    rig = Rig()
    ping = rig.stack.ping_open()
    ping.send_echo(REMOTE, 9, b"hello", rig.now)
    rig.settle()
    flow = rig.host.pings[0][0]
    rig.gateway.ping.icmp_error(flow, REMOTE, 9, (11, 0, 0), ip("203.0.113.1"), b"hello", rig.now)
    rig.gateway.ping.send_failed(flow, REMOTE, 9, errno.ENETUNREACH, b"hello", rig.now)
    rig.gateway.ping.send_failed(flow, REMOTE, 9, errno.EINVAL, b"hello", rig.now)
    rig.settle()
    errors = [item for item in taken(ping) if isinstance(item, IcmpError)]
    assert [(error.kind, error.code, error.offender) for error in errors] == [
        (11, 0, ip("203.0.113.1")), (3, 0, GATEWAY),
    ]  # fmt: skip
    assert rig.counters["slirp.ping_not_sent"] == 1


def test_a_host_without_ping_sockets_says_so_once_a_second() -> None:
    rig = Rig()
    ping = rig.stack.ping_open()
    for seq in range(5):
        ping.send_echo(REMOTE, seq, b"", rig.now)
    rig.settle()
    for flow, address, seq, _, payload in rig.host.pings:
        rig.gateway.ping.unavailable(flow, address, seq, payload, rig.now)
    rig.settle()
    (error,) = taken(ping)
    assert isinstance(error, IcmpError)
    assert (error.kind, error.code) == (3, 13)
    assert rig.counters["slirp.ping_unavailable"] == 5
    assert len(rig.gateway.ping) == 0


def test_identifiers_expire_and_are_bounded() -> None:
    rig = Rig(max_ping_flows=2)
    wire = Crafter(GUEST, "198.51.100.7", src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC)
    for ident in range(5):
        rig.inject(wire.echo(ident=ident))
    rig.settle()
    closed = [flow.ident for operation, flow in rig.host.done if operation == op.PING_CLOSE]
    assert closed == [0, 1, 2]
    rig.run(nat.PING_IDLE / SECOND + 1)
    assert len(rig.gateway.ping) == 0
    rig.gateway.ping.reply(rig.host.pings[-1][0], REMOTE, 1, b"", rig.now)
    assert rig.counters["slirp.ping_unwanted_reply"] == 1


@pytest.mark.parametrize(
    ("target", "answered"),
    [("10.0.2.2", True), ("10.0.2.3", True), ("10.0.2.1", False), ("10.0.2.15", False), ("10.0.2.77", False),
     ("10.0.2.255", False), ("8.8.8.8", False)],
)  # fmt: skip
def test_arp_is_answered_for_our_two_addresses_only(target: str, answered: bool) -> None:
    rig = Rig()
    wire = Crafter(GUEST, target, src_mac=GUEST_MAC, dst_mac=b"\xff" * 6)
    rig.gateway.receive(wire.arp_request(), rig.now)
    frames = [b"".join(frame) for frame in rig.gateway.frames(rig.now)]
    replies = [frame for frame in frames if frame[20:22] == b"\0\x02"]
    assert bool(replies) == answered
    if answered:
        assert replies[0][22:32] == GATEWAY_MAC + ip(target)


def test_an_address_probe_of_the_guest_finds_its_address_free() -> None:
    rig = Rig()
    wire = Crafter("0.0.0.0", GUEST, src_mac=GUEST_MAC, dst_mac=b"\xff" * 6)
    rig.gateway.receive(wire.arp_request(), rig.now)
    assert rig.gateway.frames(rig.now) == []
