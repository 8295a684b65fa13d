"""UDP through the gateway: mapping, expiry, errors, published ports."""

from __future__ import annotations

import errno

import pytest

from pystack.clock import SECOND
from pystack.slirp import nat
from pystack.slirp import requests as op
from pystack.slirp.forwards import Publish
from pystack.testing.frames import Crafter
from tests.unit.slirp.fake_host import GUEST_MAC, REMOTE, Rig
from tests.unit.slirp.test_plan_and_policy import FORBIDDEN, ip
from tests.unit.slirp.test_tcp import GATEWAY_MAC

OTHER = ip("203.0.113.9")
GATEWAY = ip("10.0.2.2")


def closed(rig: Rig) -> list[object]:
    return [flow for operation, flow in rig.host.done if operation == op.UDP_CLOSE]


def test_a_datagram_and_its_answer_pass() -> None:
    rig = Rig()
    endpoint = rig.stack.udp_bind(5000)
    endpoint.send(b"ping", rig.now, to=(REMOTE, 7))
    rig.settle()
    ((flow, address, port, ttl, payload),) = rig.host.udp
    assert (address, port, ttl, payload) == (REMOTE, 7, 64, b"ping")
    rig.gateway.udp.received(flow, b"pong", (REMOTE, 7), rig.now)
    rig.settle()
    assert rig.datagrams(endpoint) == [((REMOTE, 7), b"pong")]


def test_an_empty_datagram_is_a_datagram() -> None:
    rig = Rig()
    endpoint = rig.stack.udp_bind(5000)
    endpoint.send(b"", rig.now, to=(REMOTE, 7))
    rig.settle()
    flow = rig.host.udp[0][0]
    assert rig.host.udp[0][4] == b""
    rig.gateway.udp.received(flow, b"", (REMOTE, 7), rig.now)
    rig.settle()
    assert rig.datagrams(endpoint) == [((REMOTE, 7), b"")]


def test_all_remotes_of_a_guests_endpoint_share_one_socket() -> None:
    rig = Rig()
    first, second = rig.stack.udp_bind(5000), rig.stack.udp_bind(5001)
    for to in ((REMOTE, 7), (REMOTE, 8), (OTHER, 7)):
        first.send(b"x", rig.now, to=to)
    second.send(b"x", rig.now, to=(REMOTE, 7))
    rig.settle()
    flows = [sent[0] for sent in rig.host.udp]
    assert flows[0] is flows[1] is flows[2]
    assert flows[3] is not flows[0]
    assert rig.counters["slirp.udp_flows"] == 2


def test_anybody_may_answer_but_the_hosts_loopback() -> None:
    rig = Rig()
    endpoint = rig.stack.udp_bind(5000)
    endpoint.send(b"x", rig.now, to=(REMOTE, 7))
    rig.settle()
    flow = rig.host.udp[0][0]
    for source in (OTHER, ip("127.0.0.1"), ip("10.0.2.15")):
        rig.gateway.udp.received(flow, b"y", (source, 9), rig.now)
    rig.settle()
    assert rig.datagrams(endpoint) == [((OTHER, 9), b"y")]
    assert rig.counters["slirp.udp_unwanted_source"] == 2


def test_the_hosts_loopback_answers_under_the_gateways_address_if_allowed() -> None:
    rig = Rig(allow_host_loopback=True)
    endpoint = rig.stack.udp_bind(5000)
    endpoint.send(b"x", rig.now, to=(GATEWAY, 7))
    rig.settle()
    flow, address, *_ = rig.host.udp[0]
    assert address == ip("127.0.0.1")
    rig.gateway.udp.received(flow, b"y", (ip("127.0.0.1"), 7), rig.now)
    rig.settle()
    assert rig.datagrams(endpoint) == [((GATEWAY, 7), b"y")]


def test_without_it_the_gateways_port_is_closed() -> None:
    rig = Rig()
    endpoint = rig.stack.udp_bind(5000)
    endpoint.send(b"x", rig.now, to=(GATEWAY, 69))
    rig.settle()
    assert rig.host.udp == []
    (error,) = rig.errors(endpoint)
    assert (error.kind, error.code, error.offender) == (3, 3, GATEWAY)
    assert rig.counters["slirp.udp_refused_by_policy"] == 1


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("address", FORBIDDEN)
def test_no_datagram_leaves_for_a_forbidden_address(address: str, allow: bool) -> None:
    rig = Rig(allow_host_loopback=allow)
    wire = Crafter("10.0.2.15", address, src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC)
    rig.inject(wire.udp(5000, 53 if address != "10.0.2.3" else 54, b"x"))
    rig.inject(wire.tcp(sport=5000, dport=80, seq=1, flags=2))
    rig.inject(wire.echo())
    rig.settle()
    assert not (rig.host.udp or rig.host.dialled or rig.host.pings)
    assert not rig.host.done


@pytest.mark.parametrize(
    "source", ["10.0.2.2", "10.0.2.3", "127.0.0.1", "0.0.0.0", "10.0.2.255", "8.8.8.8", "224.0.0.1"]
)
def test_nobody_but_a_guest_can_use_the_gateway(source: str) -> None:
    rig = Rig()
    wire = Crafter(source, "198.51.100.7", src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC)
    rig.inject(wire.udp(5000, 53, b"x"))
    rig.inject(wire.tcp(sport=5000, dport=80, seq=1, flags=2))
    rig.inject(wire.echo())
    rig.settle()
    assert not (rig.host.udp or rig.host.dialled or rig.host.pings)


def test_a_flow_expires_when_it_was_silent() -> None:
    rig = Rig()
    endpoint = rig.stack.udp_bind(5000)
    endpoint.send(b"x", rig.now, to=(REMOTE, 7))
    rig.run(nat.UDP_IDLE / SECOND - 1)
    endpoint.send(b"x", rig.now, to=(REMOTE, 7))
    rig.run(nat.UDP_IDLE / SECOND - 1)
    rig.gateway.udp.received(rig.host.udp[0][0], b"y", (REMOTE, 7), rig.now)
    rig.run(nat.UDP_IDLE / SECOND - 1)
    assert len(rig.gateway.udp) == 1
    rig.run(2)
    assert len(rig.gateway.udp) == 0
    assert closed(rig) == [rig.host.udp[0][0]]
    assert rig.counters["slirp.udp_expired"] == 1
    stats = rig.gateway.stats()
    assert (stats.udp_flows, stats.udp_active, stats.datagrams_to_host, stats.datagrams_to_guest) == (1, 0, 2, 1)


def test_a_flow_that_asks_a_resolver_only_expires_soon() -> None:
    rig = Rig()
    asks, talks = rig.stack.udp_bind(5000), rig.stack.udp_bind(5001)
    asks.send(b"x", rig.now, to=(REMOTE, 53))
    talks.send(b"x", rig.now, to=(REMOTE, 53))
    talks.send(b"x", rig.now, to=(REMOTE, 54))
    rig.run(nat.DNS_IDLE / SECOND + 1)
    assert closed(rig) == [rig.host.udp[0][0]]
    assert rig.host.udp[1][0] is rig.host.udp[2][0]
    assert len(rig.gateway.udp) == 1


def test_at_the_bound_the_flow_that_was_silent_for_longest_gives_way() -> None:
    rig = Rig(max_udp_flows=2)
    for port in (5000, 5001, 5000, 5002):
        rig.run(1)
        rig.inject(Crafter("10.0.2.15", "198.51.100.7", src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC).udp(port, 7, b"x"))
        rig.settle()
    assert [flow.guest_port for flow in closed(rig)] == [5001]  # type: ignore[attr-defined]
    assert rig.counters["slirp.udp_evicted"] == 1


def test_an_icmp_error_of_the_host_reaches_the_guests_socket() -> None:
    rig = Rig()
    endpoint = rig.stack.udp_bind(5000)
    endpoint.send(b"x", rig.now, to=(REMOTE, 7))
    rig.settle()
    flow = rig.host.udp[0][0]
    rig.gateway.udp.icmp_error(flow, (REMOTE, 7), (3, 3, 0), REMOTE, b"", rig.now)
    rig.gateway.udp.icmp_error(flow, (REMOTE, 7), (11, 0, 0), OTHER, b"x", rig.now)
    rig.settle()
    errors = [(error.kind, error.code, error.offender) for error in rig.errors(endpoint)]
    assert errors == [(3, 3, REMOTE), (11, 0, OTHER)]


def test_a_host_without_a_route_is_an_icmp_error_of_the_gateway() -> None:
    rig = Rig()
    endpoint = rig.stack.udp_bind(5000)
    endpoint.send(b"x", rig.now, to=(REMOTE, 7))
    rig.settle()
    flow = rig.host.udp[0][0]
    rig.gateway.udp.send_failed(flow, (REMOTE, 7), errno.ENETUNREACH, b"x", rig.now)
    rig.gateway.udp.send_failed(flow, (REMOTE, 7), errno.EMSGSIZE, b"x", rig.now)
    rig.settle()
    errors = [(error.kind, error.code, error.offender) for error in rig.errors(endpoint)]
    assert errors == [(3, 0, GATEWAY)]
    assert rig.counters["slirp.udp_not_sent"] == 1


# ----------------------------------------------------------------------------------------------------- published ports

PUBLISH = Publish(host_port=5353, guest_port=53, udp=True)


def test_a_published_port_shows_the_guest_its_peers_and_carries_the_answers() -> None:
    rig = Rig()
    server = rig.stack.udp_bind(53)
    rig.gateway.inbound_datagram(PUBLISH, (OTHER, 4000), b"who?", rig.now)
    rig.settle()
    assert rig.datagrams(server) == [((OTHER, 4000), b"who?")]
    server.send(b"me", rig.now, to=(OTHER, 4000))
    rig.settle()
    ((peer, payload),) = rig.host.inbound
    assert (peer.host_address, peer.host_port, payload) == (OTHER, 4000, b"me")
    assert rig.host.udp == []


def test_peers_on_the_hosts_loopback_are_told_apart_by_port() -> None:
    rig = Rig()
    server = rig.stack.udp_bind(53)
    peers = [(ip("127.0.0.1"), 4000), (ip("127.0.0.2"), 4000), (ip("127.0.0.1"), 4000)]
    for peer in peers:
        rig.gateway.inbound_datagram(PUBLISH, peer, b"who?", rig.now)
    rig.settle()
    seen = [source for source, _ in rig.datagrams(server)]
    assert seen[0] == seen[2] == (GATEWAY, 4000)
    assert seen[1][0] == GATEWAY
    assert seen[1][1] != 4000
    for source in seen[:2]:
        server.send(b"me", rig.now, to=source)
    rig.settle()
    assert [(peer.host_address, peer.host_port) for peer, _ in rig.host.inbound] == peers[:2]


def test_a_published_peer_is_forgotten_when_it_was_silent() -> None:
    rig = Rig()
    server = rig.stack.udp_bind(53)
    rig.gateway.inbound_datagram(PUBLISH, (ip("127.0.0.1"), 4000), b"who?", rig.now)
    rig.run(nat.UDP_IDLE / SECOND + 1)
    server.send(b"me", rig.now, to=(GATEWAY, 4000))
    rig.settle()
    assert rig.host.inbound == []
    assert rig.counters["slirp.udp_refused_by_policy"] == 1
