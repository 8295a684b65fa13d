"""Connections from the host into the guest."""

from __future__ import annotations

from pystack.clock import SECOND
from pystack.slirp import nat
from pystack.slirp.forwards import Publish
from tests.unit.slirp.fake_host import Rig
from tests.unit.slirp.test_plan_and_policy import ip

PUBLISH = Publish(host_port=8080, guest_port=80)
PEER = (ip("192.0.2.9"), 40_000)


def test_a_connection_reaches_the_guests_server_and_carries_both_ways() -> None:
    rig = Rig()
    rig.listen(80)
    host = rig.host.accept(PUBLISH, PEER)
    assert host is not None
    host.send(b"request")
    rig.settle()
    (server,) = rig.accepted
    assert (server.conn.remote_addr, server.conn.remote_port) == PEER
    assert server.got == b"request"
    server.conn.write(b"response")
    server.conn.shutdown()
    rig.settle()
    assert host.got == b"response"
    assert host.shutdown
    host.finish()
    rig.settle()
    assert host.ends == "closed"
    assert len(rig.gateway.tcp) == 0
    assert rig.counters["slirp.inbound_accepted"] == 1


def test_nothing_is_read_from_the_peer_before_the_guest_has_accepted() -> None:
    rig = Rig()
    rig.cut = True
    host = rig.host.accept(PUBLISH, PEER)
    assert host is not None
    host.send(b"request")
    rig.settle()
    assert host.incoming == b"request"


def test_peers_on_the_hosts_loopback_come_from_the_gateway() -> None:
    rig = Rig()
    rig.listen(80)
    for _ in range(2):  # the same endpoint twice: the second gets another port
        assert rig.host.accept(PUBLISH, (ip("127.0.0.1"), 40_000)) is not None
    rig.settle()
    seen = [(server.conn.remote_addr, server.conn.remote_port) for server in rig.accepted]
    assert [address for address, _ in seen] == [ip("10.0.2.2")] * 2
    assert seen[0][1] == 40_000 != seen[1][1]


def test_a_port_that_is_closed_in_the_guest_resets_the_peer() -> None:
    rig = Rig()
    host = rig.host.accept(PUBLISH, PEER)
    assert host is not None
    rig.settle()
    assert host.ends == "reset"
    assert len(rig.gateway.tcp) == 0
    assert rig.counters["slirp.inbound_failed"] == 1


def test_a_guest_that_is_not_there_resets_the_peer_in_the_end() -> None:
    rig = Rig()
    rig.cut = True
    host = rig.host.accept(PUBLISH, PEER)
    assert host is not None
    rig.run(nat.TCP_DIAL / SECOND + nat.SWEEP_INTERVAL / SECOND + 1)
    assert host.ends == "reset"
    assert len(rig.gateway.tcp) == 0


def test_a_peer_that_does_not_wait_is_carried_to_the_guest() -> None:
    rig = Rig()
    rig.listen(80)
    host = rig.host.accept(PUBLISH, PEER)
    assert host is not None
    host.reset()
    rig.settle()
    assert len(rig.gateway.tcp) == 0


def test_the_table_bounds_these_too() -> None:
    rig = Rig(max_tcp_flows=1)
    rig.listen(80)
    assert rig.host.accept(PUBLISH, PEER) is not None
    assert rig.host.accept(PUBLISH, (PEER[0], 40_001)) is None
    assert rig.counters["slirp.tcp_table_full"] == 1


def test_they_lead_to_the_guest_that_was_configured_or_to_the_first_of_the_pool() -> None:
    assert Rig().gateway.guest == ip("10.0.2.15")
    rig = Rig(guest="10.0.2.100", configured=True)
    rig.listen(80)
    assert rig.host.accept(PUBLISH, PEER) is not None
    rig.settle()
    assert rig.accepted[0].conn.local_addr == ip("10.0.2.100")
