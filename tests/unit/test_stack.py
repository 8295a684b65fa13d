"""The stack object: which frames are ours, who gets them, and what is said about the others."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest

from pystack.clock import SECOND
from pystack.errors import UsageError
from pystack.frame import LinkInfo
from pystack.net.icmp import Echo, IcmpError
from pystack.stack import Stack, StackConfig
from pystack.tcp import events
from pystack.tcp.events import TcpError
from pystack.testing.frames import PEER_MAC, Crafter, packed
from pystack.wire import checksum, icmp, vlan, vnet
from pystack.wire.packet import ACK, IP_DF, PROTO_ICMP, PROTO_TCP, PROTO_UDP, RST, SYN, Packet, parse_untrusted

MAC = b"\x02\0\0\0\0\x01"
PEER = packed("10.0.0.9")
WIRE = Crafter("10.0.0.9", "10.0.0.1")
EVERYBODY = b"\xff" * 6
OFFLOAD = LinkInfo(vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True)


def stack(link: LinkInfo | None = None, *, known_peer: bool = True, **config: Any) -> Stack:
    """A stack at 10.0.0.1/24 that knows its neighbour's Ethernet address."""
    link = link or LinkInfo()
    fields = {"mac": MAC, "addresses": (IPv4Interface("10.0.0.1/24"),), **config}
    node = Stack(StackConfig(**fields), link, seed=1)
    if known_peer:
        node.receive(WIRE.but(vnet_hdr_len=link.vnet_hdr_len).arp_request(), 0)
        node.frames(0)
    return node


def sent(node: Stack, now: int = 0) -> list[Packet]:
    """What ``node`` sends now, verified."""
    packets = []
    info = LinkInfo(vnet_hdr_len=node._vnet_hdr_len)
    while frames := node.frames(now):
        for frame in frames:
            packet = parse_untrusted(b"".join(frame), info.vnet_hdr_len, node.counters)
            assert packet is not None
            packets.append(packet)
    return packets


def moved(node: Stack, frame: bytes, now: int = 0) -> dict[str, int]:
    """What ``frame`` moves among the counters."""
    before = node.counters.snapshot()
    node.receive(frame, now)
    return node.counters.since(before)


# ------------------------------------------------------------------------------------------------------ whose it is


SYN_TO_US = WIRE.tcp(sport=1, dport=80, flags=SYN)


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (WIRE.but(dst_mac=b"\x02\0\0\0\0\x77").echo(), "ethernet.not_ours"),
        (WIRE.but(src_mac=EVERYBODY).echo(), "ethernet.bad_source"),
        (WIRE.but(src_mac=MAC).echo(), "ethernet.bad_source"),
        (WIRE.ethernet(0x88CC, bytes(46)), "ethernet.unknown_type"),
        (WIRE.ethernet(40, bytes(40)), "ethernet.unknown_type"),
        (WIRE.udp(1, 2, bytes(1600)), "ethernet.oversize"),
        (vlan.push(WIRE.echo(), 5), "vlan.not_ours"),
        (WIRE.but(dst="10.0.0.2").echo(), "ipv4.not_ours"),
        (WIRE.but(dst="10.0.0.2").tcp(sport=1, dport=80, flags=SYN), "ipv4.not_ours"),
        (WIRE.but(dst="224.0.0.251", dst_mac=b"\x01\0\x5e\0\0\xfb").udp(5353, 5353), "ipv4.multicast_ignored"),
        (WIRE.but(dst="255.255.255.255", dst_mac=EVERYBODY).echo(), "ipv4.broadcast_ignored"),
        (WIRE.but(dst="10.0.0.255", dst_mac=EVERYBODY).tcp(sport=1, dport=80, flags=SYN), "ipv4.broadcast_ignored"),
        (WIRE.but(dst_mac=EVERYBODY).tcp(sport=1, dport=80, flags=SYN), "ipv4.group_frame"),
        (WIRE.but(dst_mac=EVERYBODY).udp(1, 2), "ipv4.group_frame"),
        (WIRE.but(src="0.0.0.0").tcp(sport=1, dport=80, flags=SYN), "ipv4.bad_source"),
        (WIRE.but(src="0.1.2.3").udp(1, 2), "ipv4.bad_source"),
        (WIRE.but(src="127.0.0.1").udp(1, 2), "ipv4.bad_source"),
        (WIRE.but(src="224.0.0.1").udp(1, 2), "ipv4.bad_source"),
        (WIRE.but(src="240.0.0.1").udp(1, 2), "ipv4.bad_source"),
        (WIRE.but(src="255.255.255.255").udp(1, 2), "ipv4.bad_source"),
        (WIRE.but(src="10.0.0.255").udp(1, 2), "ipv4.bad_source"),
        (WIRE.but(src="10.0.0.1").tcp(sport=80, dport=80, flags=SYN), "ipv4.bad_source"),  # LAND
        (WIRE.but(src="192.0.2.1").tcp(sport=1, dport=80, flags=SYN), "ipv4.no_route"),
        (WIRE.ipv4(PROTO_ICMP, b"", options=b"\x83\x07\x04\x0a\0\0\x01\0"), "ipv4.source_route"),
        (WIRE.ethernet(0x86DD, b"\x60" + bytes(5) + b"\x3b" + bytes(33)), "ipv6.unsupported"),
    ],
)
def test_what_is_not_for_us_is_counted_and_not_answered(frame: bytes, counter: str) -> None:
    node = stack()
    node.listen(80)
    assert moved(node, frame) == {counter: 1}
    assert sent(node) == []
    assert node.events() == []


def test_padding_of_a_short_frame_is_no_harm() -> None:
    node = stack()
    assert moved(node, WIRE.udp(1, 2, b"x") + bytes(17)) == {"udp.closed_port": 1, "icmp.errors_sent": 1}
    node.listen(80)
    assert moved(node, SYN_TO_US + bytes(6)) == {"tcp.passive_open": 1}


def test_a_priority_tag_without_a_vlan_is_accepted() -> None:
    node = stack()
    assert moved(node, vlan.push(WIRE.echo(), 0, pcp=5)) == {"icmp.echo_replied": 1}


def test_a_connection_is_no_way_round_the_rules() -> None:
    node = stack()
    node.listen(80)
    node.receive(WIRE.tcp(sport=1, dport=80, flags=SYN, seq=9), 0)
    (answer,) = sent(node)
    node.receive(WIRE.tcp(sport=1, dport=80, flags=ACK, seq=10, ack=answer.seq + 1), 0)
    data = WIRE.tcp(sport=1, dport=80, flags=ACK, seq=10, ack=answer.seq + 1, payload=b"data")
    routed = WIRE.ipv4(PROTO_TCP, data[34:], options=b"\x83\x07\x04\x0a\0\0\x01\0")
    assert moved(node, vlan.push(data, 5)) == {"vlan.not_ours": 1}
    assert moved(node, routed) == {"ipv4.source_route": 1}
    assert moved(node, WIRE.but(dst_mac=EVERYBODY).ethernet(0x0800, data[14:])) == {"ipv4.group_frame": 1}
    # What is merely unusual goes on: a priority tag, an option that asks for nothing.
    assert moved(node, vlan.push(data, 0)) == {}
    assert moved(node, WIRE.ipv4(PROTO_TCP, data[34:], options=b"\1\1\1\0")) == {"tcp.outside_window": 1}
    (connection,) = node._connections.values()
    assert connection.readable == 4


def test_a_large_segment_with_a_gso_size_is_not_oversize() -> None:
    node = stack(OFFLOAD)
    wire = WIRE.but(vnet_hdr_len=10)
    node.listen(80)
    node.receive(wire.tcp(sport=1, dport=80, flags=SYN, seq=9), 0)
    (answer,) = sent(node)
    node.receive(wire.tcp(sport=1, dport=80, flags=ACK, seq=10, ack=answer.seq + 1), 0)
    data = wire.tcp(sport=1, dport=80, flags=ACK, seq=10, ack=answer.seq + 1, payload=bytes(40_000))
    assert moved(node, data) == {"ethernet.oversize": 1}
    node.events()
    marked = bytes((0, 1, 54, 0, 0xB4, 5, 34, 0, 16, 0)) + data[10:]
    assert moved(node, marked) == {}
    ((connection, flags),) = node.events()
    assert flags & events.DATA
    assert connection.readable == 40_000  # type: ignore[union-attr]


def test_unknown_ip_options_are_ignored() -> None:
    node = stack()
    assert moved(node, WIRE.ipv4(PROTO_UDP, WIRE.udp(1, 2)[34:], options=b"\x94\x04\0\0")) == {
        "udp.closed_port": 1,
        "icmp.errors_sent": 1,
    }


def test_an_unknown_protocol_is_reported_to_its_sender() -> None:
    node = stack()
    assert moved(node, WIRE.ipv4(132, bytes(12))) == {"ipv4.unknown_protocol": 1, "icmp.errors_sent": 1}
    (error,) = sent(node)
    assert error.payload_bytes()[:2] == bytes((icmp.UNREACHABLE, icmp.PROTOCOL_UNREACHABLE))


def test_a_datagram_with_ttl_1_is_delivered() -> None:
    # RFC 1122 section 3.2.1.7: what is addressed to us has arrived.
    node = stack()
    endpoint = node.udp_bind(7)
    node.receive(WIRE.ipv4(PROTO_UDP, WIRE.udp(1, 7)[34:], ttl=1), 0)
    assert len(endpoint) == 1


# --------------------------------------------------------------------------------------------------------------- UDP


def test_a_datagram_reaches_the_endpoint_of_its_address_before_that_of_its_port() -> None:
    node = stack(addresses=(IPv4Interface("10.0.0.1/24"), IPv4Interface("10.0.0.2/24")))
    exact, wide = node.udp_bind(7, packed("10.0.0.2")), node.udp_bind(7)
    node.receive(WIRE.udp(5, 7, b"one"), 0)
    node.receive(WIRE.but(dst="10.0.0.2").udp(5, 7, b"two"), 0)
    assert dict(node.events()) == {exact: events.DATAGRAM, wide: events.DATAGRAM}
    for endpoint, payload, address in ((wide, b"one", "10.0.0.1"), (exact, b"two", "10.0.0.2")):
        datagram = endpoint.take()
        assert datagram is not None
        assert datagram.payload == payload
        assert datagram.source == (PEER, 5)
        assert datagram.destination == (packed(address), 7)
        assert endpoint.take() is None


def test_an_empty_datagram_is_delivered_once_and_sent_as_one() -> None:
    node = stack()
    endpoint = node.udp_bind(7)
    node.receive(WIRE.udp(5, 7, b""), 0)
    datagram = endpoint.take()
    assert datagram is not None
    assert datagram.payload == b""
    assert endpoint.take() is None
    assert endpoint.send(b"", 0, to=datagram.source)
    (answer,) = sent(node)
    assert (answer.sport, answer.dport, answer.payload_len) == (7, 5, 0)


def test_a_closed_port_is_answered_by_port_unreachable() -> None:
    node = stack()
    frame = WIRE.udp(5, 7, b"anybody?")
    assert moved(node, frame) == {"udp.closed_port": 1, "icmp.errors_sent": 1}
    (error,) = sent(node)
    payload = error.payload_bytes()
    assert payload[:2] == bytes((icmp.UNREACHABLE, icmp.PORT_UNREACHABLE))
    assert payload[8:] == frame[14:]


def train(payload: bytes, size: int, gso_type: int = vnet.GSO_UDP_L4) -> bytes:
    """One frame that stands for datagrams of ``size`` bytes."""
    header = vnet.build(
        10, flags=vnet.F_NEEDS_CSUM, gso_type=gso_type, hdr_len=42, gso_size=size, csum_start=34, csum_offset=6
    )
    return header + WIRE.udp(5, 7, payload)


@pytest.mark.parametrize("length", [1199, 1200, 1201, 2400, 60_001])
def test_a_train_of_datagrams_arrives_as_what_it_stands_for(length: int) -> None:
    node = stack(LinkInfo(vnet_hdr_len=10, rx_checksum=True, uso=True))
    endpoint = node.udp_bind(7)
    payload = bytes(range(250)) * 250
    node.receive(train(payload[:length], 1200), 0)
    taken = []
    while (datagram := endpoint.take()) is not None:
        assert datagram.source == (PEER, 5)
        assert checksum.valid(datagram.packet.frame[datagram.packet.l3 : datagram.packet.l4])
        taken.append(datagram.payload)
    assert b"".join(taken) == payload[:length]
    assert [len(piece) for piece in taken[:-1]] == [1200] * ((length - 1) // 1200)
    assert node.events() == [(endpoint, events.DATAGRAM)]


def test_one_datagram_that_is_to_be_fragmented_is_no_train() -> None:
    node = stack(LinkInfo(vnet_hdr_len=10, rx_checksum=True))
    endpoint = node.udp_bind(7)
    node.receive(train(bytes(5000), 1480, vnet.GSO_UDP), 0)
    datagram = endpoint.take()
    assert datagram is not None
    assert len(datagram.payload) == 5000


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_train_of_too_many_datagrams_is_dropped(size: int) -> None:
    node = stack(LinkInfo(vnet_hdr_len=10, rx_checksum=True, uso=True))
    node.udp_bind(7)
    assert moved(node, train(bytes(60_000), size)) == {"udp.bad_segment_size": 1}


def test_a_connected_endpoint_hears_its_peer_only() -> None:
    node = stack()
    endpoint = node.udp_bind(7)
    endpoint.connect((PEER, 5))
    assert moved(node, WIRE.udp(6, 7)) == {"udp.closed_port": 1, "icmp.errors_sent": 1}
    assert moved(node, WIRE.udp(5, 7)) == {"udp.delivered": 1}
    assert endpoint.send(b"hello", 0)
    assert [packet.dport for packet in sent(node) if packet.proto == PROTO_UDP] == [5]


@pytest.mark.parametrize(("sport", "dport"), [(0, 7), (5, 0), (0, 0)])
def test_port_0_is_nobody(sport: int, dport: int) -> None:
    node = stack()
    node.udp_any()
    assert moved(node, WIRE.udp(sport, dport)) == {"udp.zero_port": 1}
    assert sent(node) == []


def test_the_queue_of_an_endpoint_is_bounded() -> None:
    node = stack()
    endpoint = node.udp_bind(7)
    for _ in range(2000):
        node.receive(WIRE.udp(5, 7, bytes(1400)), 0)
    assert len(endpoint) == 512
    assert endpoint.dropped == node.counters["udp.queue_full"] == 2000 - 512
    assert len(node.events()) == 1


def test_who_has_no_address_yet_reaches_a_bound_port_by_broadcast() -> None:
    node = stack(accept_any=True)
    server, everything = node.udp_bind(67), node.udp_any()
    client = WIRE.but(src="0.0.0.0", dst="255.255.255.255", dst_mac=EVERYBODY)
    node.receive(client.udp(68, 67, b"discover"), 0)
    assert len(server) == 1
    assert moved(node, client.udp(68, 69, b"what?")) == {"udp.closed_port": 1, "icmp.error_suppressed": 1}
    assert len(everything) == 0
    # Its answer goes to an address that nobody can be asked for.
    assert server.send(b"offer", 0, to=(packed("10.0.0.50"), 68), dst_mac=PEER_MAC)
    assert server.send(b"offer", 0, to=(b"\xff" * 4, 68))
    assert [packet.dst_mac() for packet in sent(node)] == [PEER_MAC, EVERYBODY]


def test_a_catch_all_endpoint_takes_what_goes_anywhere_and_answers_in_its_name() -> None:
    node = stack(accept_any=True)
    endpoint = node.udp_any()
    node.receive(WIRE.but(dst="192.0.2.53").udp(5, 53, b"?"), 0)
    datagram = endpoint.take()
    assert datagram is not None
    assert endpoint.send(b"!", 0, to=datagram.source, source=datagram.destination)
    (answer,) = sent(node)
    assert (answer.src, answer.dst, answer.sport, answer.dport) == (packed("192.0.2.53"), PEER, 53, 5)


@pytest.mark.parametrize("link", [LinkInfo(mtu=576), OFFLOAD])
@pytest.mark.parametrize("size", [0, 1, 548, 549, 1471, 1472, 1473, 5000, 65_507])
def test_a_datagram_of_any_size_arrives_at_another_stack(link: LinkInfo, size: int) -> None:
    here, there = stack(link), stack(link, known_peer=False, addresses=(IPv4Interface("10.0.0.9/24"),), mac=PEER_MAC)
    payload = bytes(range(256)) * 256
    inbox = there.udp_bind(7)
    assert here.udp_bind(5).send(payload[:size], 0, to=(PEER, 7))
    count = 0
    while frames := here.frames(0):
        for frame in frames:
            count += 1
            assert sum(map(len, frame)) <= link.vnet_hdr_len + 14 + link.mtu
            there.receive(b"".join(frame), 0)
    datagram = inbox.take()
    assert datagram is not None
    assert datagram.payload == payload[:size]
    assert (count > 1) == (size + 28 > link.mtu)


def test_a_datagram_that_is_too_large_is_refused() -> None:
    node = stack()
    assert not node.udp_bind(5).send(bytes(65_508), 0, to=(PEER, 7))
    assert node.counters["udp.not_sent"] == 1


def test_an_error_about_a_datagram_reaches_the_endpoint_that_sent_it() -> None:
    node = stack()
    endpoint = node.udp_bind(5)
    endpoint.send(b"hello?", 0, to=(PEER, 7))
    (packet,) = sent(node)
    node.receive(WIRE.icmp_error(icmp.UNREACHABLE, icmp.PORT_UNREACHABLE, packet.frame[14:]), 0)
    assert dict(node.events()) == {endpoint: events.DATAGRAM}
    error = endpoint.take_error()
    assert error is not None
    assert error.is_hard
    assert error.quote.dst == PEER
    assert endpoint.take_error() is None


def test_a_closed_endpoint_sends_and_receives_nothing_and_its_port_is_free() -> None:
    node = stack()
    endpoint = node.udp_bind(7)
    with pytest.raises(UsageError, match="7 is in use"):
        node.udp_bind(7)
    endpoint.close()
    endpoint.close()
    assert endpoint.closed
    assert not endpoint.send(b"", 0, to=(PEER, 5))
    assert node.udp_bind(7) is not endpoint


def test_ephemeral_ports_differ_and_are_bounded_in_number() -> None:
    node = stack(max_udp_endpoints=50)
    ports = {node.udp_bind().local_port for _ in range(50)}
    assert len(ports) == 50
    assert all(32_768 <= port <= 60_999 for port in ports)
    with pytest.raises(UsageError):
        node.udp_bind()


# -------------------------------------------------------------------------------------------------------------- ICMP


@pytest.mark.parametrize("size", [0, 1, 56, 1472, 8000])
def test_an_echo_request_is_answered_with_its_own_data(size: int) -> None:
    node = stack()
    data = bytes(range(256)) * 32
    request = icmp.build_echo(icmp.ECHO_REQUEST, 7, 9, data[:size])
    for frame in WIRE.fragments(PROTO_ICMP, request, *[1480] * 6):
        node.receive(frame, 0)
    there = stack(known_peer=False, addresses=(IPv4Interface("10.0.0.9/24"),), mac=PEER_MAC)
    ping = there.ping_open()
    ping.ident, there._icmp._pings[7] = 7, ping
    for packet in sent(node):
        assert packet.src == packed("10.0.0.1")
        there.receive(packet.frame, 0)
    reply = ping.take()
    assert isinstance(reply, Echo)
    assert (reply.ident, reply.seq, reply.payload) == (7, 9, data[:size])


def test_ping_and_what_comes_back() -> None:
    node = stack()
    ping, other = node.ping_open(), node.ping_open()
    assert ping.ident != other.ident
    assert ping.send_echo(PEER, 3, b"data", 0)
    (request,) = sent(node)
    assert moved(node, WIRE.echo(ping.ident, 3, b"data", icmp.ECHO_REPLY)) == {}
    assert moved(node, WIRE.icmp_error(icmp.TIME_EXCEEDED, 0, request.frame[14:])) == {"icmp.errors_received": 1}
    assert dict(node.events()) == {ping: events.DATAGRAM}
    reply, error = ping.take(), ping.take()
    assert isinstance(reply, Echo)
    assert (reply.source, reply.seq, reply.payload) == (PEER, 3, b"data")
    assert isinstance(error, IcmpError)
    assert error.kind == icmp.TIME_EXCEEDED
    ping.close()
    assert moved(node, WIRE.echo(ping.ident, 3, b"", icmp.ECHO_REPLY)) == {"icmp.reply_unexpected": 1}
    assert not ping.send_echo(PEER, 4, b"", 0)


def test_a_gateway_takes_echo_requests_for_others_and_answers_in_their_name() -> None:
    node = stack(accept_any=True)
    assert moved(node, WIRE.but(dst="192.0.2.1").echo()) == {"icmp.echo_ignored": 1}
    endpoint = node.icmp_any()
    node.receive(WIRE.but(dst="192.0.2.1").echo(5, 6, b"far"), 0)
    assert dict(node.events()) == {endpoint: events.DATAGRAM}
    request = endpoint.take()
    assert request is not None
    assert endpoint.send_reply(request.destination, request.source, request.ident, request.seq, request.payload, 0)
    (answer,) = sent(node)
    assert (answer.src, answer.payload_bytes()[4:]) == (packed("192.0.2.1"), b"\0\5\0\6far")


def test_ping_endpoints_are_bounded_in_number_and_each_in_what_it_keeps() -> None:
    node = stack(max_pings=2)
    ping = node.ping_open()
    node.ping_open()
    with pytest.raises(UsageError, match="Too many"):
        node.ping_open()
    for number in range(300):
        node.receive(WIRE.echo(ping.ident, number, b"", icmp.ECHO_REPLY), 0)
    assert ping.dropped == node.counters["icmp.queue_full"] == 44
    assert len(node.events()) == 1
    ping.send_echo(PEER, 1, b"", 0)
    (request,) = sent(node)
    assert moved(node, WIRE.icmp_error(icmp.TIME_EXCEEDED, 0, request.frame[14:])) == {
        "icmp.errors_received": 1,
        "icmp.queue_full": 1,
    }
    ping.close()
    ping.close()
    node.ping_open()


def test_there_is_one_catch_all_endpoint_of_each_kind_and_it_is_bounded() -> None:
    node = stack(accept_any=True)
    requests, datagrams = node.icmp_any(), node.udp_any()
    node.listen_any()
    for make in (node.icmp_any, node.udp_any, node.listen_any):
        with pytest.raises(UsageError, match="already"):
            make()
    for number in range(300):
        node.receive(WIRE.but(dst="192.0.2.1").echo(1, number), 0)
    assert requests.dropped == node.counters["icmp.queue_full"] == 44
    requests.close()
    requests.close()
    datagrams.close()
    assert not requests.send_reply(packed("192.0.2.1"), PEER, 1, 1, b"", 0)
    node.icmp_any()
    node.udp_any()


def test_an_error_that_quotes_nothing_of_ours_reaches_nobody() -> None:
    node = stack()
    ours = Crafter("10.0.0.1", "10.0.0.9")
    for quoted in (ours.udp(5, 6), ours.echo(99), ours.echo(99, kind=icmp.ECHO_REPLY), ours.ipv4(132, bytes(8))):
        assert moved(node, WIRE.icmp_error(icmp.UNREACHABLE, 1, quoted[14:])) == {
            "icmp.errors_received": 1,
            "icmp.error_unmatched": 1,
        }
    connected = node.udp_bind(5)
    connected.connect((PEER, 7))
    assert moved(node, WIRE.icmp_error(icmp.UNREACHABLE, 1, ours.udp(5, 6)[14:]))["icmp.error_unmatched"] == 1
    assert connected.take_error() is None


def test_there_is_no_way_to_a_stranger_without_a_gateway() -> None:
    node = stack()
    stranger = packed("192.0.2.1")
    assert not node.ping_open().send_echo(stranger, 1, b"", 0)
    assert not node.udp_bind(5).send(b"", 0, to=(stranger, 7))
    assert not node.udp_bind(6).send(b"", 0, to=(packed("10.0.0.1"), 7))
    assert not node.udp_bind(7).send(b"", 0)
    assert node.counters.snapshot()["ipv4.no_route"] == 3
    assert not node.ping_open().send_echo(PEER, 1, bytes(65_508), 0)
    assert node.counters["ipv4.tx_too_big"] == 1


@pytest.mark.parametrize("port", [-1, 65_536])
def test_what_is_no_port_is_refused_with_a_sentence(port: int) -> None:
    node = stack()
    for call in (
        lambda: node.udp_bind(port),
        lambda: node.listen(port),
        lambda: node.connect((PEER, 80), 0, local_port=port),
    ):
        with pytest.raises(UsageError, match="is no port"):
            call()
    with pytest.raises(UsageError, match="port 0"):
        node.listen(0)


@pytest.mark.parametrize(
    ("kind", "counter"),
    [
        (4, "source_quench_ignored"),
        (5, "redirect_ignored"),
        (13, "unknown_type"),
        (17, "unknown_type"),
        (42, "unknown_type"),
        (255, "unknown_type"),
    ],
)
def test_icmp_that_asks_for_nothing_we_do_is_silently_dropped(kind: int, counter: str) -> None:
    node = stack()
    frame = WIRE.ipv4(PROTO_ICMP, icmp.build(kind, 0, 0, SYN_TO_US[14:]))
    assert moved(node, frame) == {f"icmp.{counter}": 1}
    assert sent(node) == []


@pytest.mark.parametrize(
    "frame",
    [
        WIRE.icmp_error(icmp.UNREACHABLE, 3, WIRE.udp(1, 2)[14:]),
        WIRE.but(dst="10.0.0.255", dst_mac=EVERYBODY).udp(1, 2),
        WIRE.but(dst="255.255.255.255", dst_mac=EVERYBODY).udp(1, 2),
        WIRE.but(dst_mac=EVERYBODY).udp(1, 2),
        WIRE.but(src="10.0.0.255").udp(1, 2),
        WIRE.ipv4(132, bytes(8), fragment=5),
        WIRE.but(dst="255.255.255.255", dst_mac=EVERYBODY).ipv4(132, bytes(8)),
    ],
)
def test_no_error_about_an_error_a_group_a_later_fragment_or_no_single_host(frame: bytes) -> None:
    node = stack()
    node.receive(frame, 0)
    assert sent(node) == []


def test_errors_are_limited_in_rate() -> None:
    node = stack(icmp_errors_per_second=10, icmp_error_burst=5)
    for _ in range(1000):
        node.receive(WIRE.udp(1, 2), 0)
    assert len(sent(node)) == 5
    for _ in range(1000):
        node.receive(WIRE.udp(1, 2), SECOND)
    assert len(sent(node, SECOND)) == 5
    assert node.counters["icmp.error_rate_limited"] == 1990


def test_a_gateway_reports_an_error_about_bytes_it_kept() -> None:
    node = stack(accept_any=True)
    original = WIRE.but(dst="192.0.2.1").udp(5, 53, b"question")[14:]
    assert node.send_icmp_error(original, icmp.UNREACHABLE, 1, source=packed("10.0.0.1"), now=0)
    (error,) = sent(node)
    assert (error.src, error.dst) == (packed("10.0.0.1"), PEER)
    assert error.payload_bytes()[8:] == original
    for wrong in (b"", original[:19], b"\x60" + original[1:], WIRE.but(src="0.0.0.0").udp(1, 2)[14:]):
        assert not node.send_icmp_error(wrong, icmp.UNREACHABLE, 1, source=packed("10.0.0.1"), now=0)


def test_a_datagram_that_stays_incomplete_is_reported_if_its_start_is_there() -> None:
    node = stack()
    frames = WIRE.fragments(PROTO_UDP, bytes(3000), 1480, 1480)
    node.receive(frames[0], 0)
    node.receive(frames[1].replace(b"\0\1", b"\0\2", 1), 0)
    node.receive(WIRE.arp_request(), SECOND)
    assert len(sent(node, SECOND)) == 1
    assert node.next_timeout() == 60 * SECOND
    node.tick(60 * SECOND)
    (error,) = sent(node, 60 * SECOND)
    assert error.payload_bytes()[:2] == bytes((icmp.TIME_EXCEEDED, icmp.REASSEMBLY_TIMEOUT))
    assert node.sizes()["bytes_in_reassembly"] == 0


def test_a_router_that_has_no_room_makes_datagrams_smaller() -> None:
    node = stack()
    endpoint = node.udp_bind(5)
    endpoint.send(bytes(1400), 0, to=(PEER, 7))
    (packet,) = sent(node)
    assert packet.frag == IP_DF
    too_big = (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, packet.frame[14:])
    node.receive(WIRE.icmp_error(*too_big, 1000), 0)
    endpoint.send(bytes(1400), 0, to=(PEER, 7))
    assert [fragment.end - fragment.l3 for fragment in sent(node)] == [996, 452]
    # One that is forged or mad does not make it absurdly small; and nothing makes it larger again but time.
    node.receive(WIRE.icmp_error(*too_big, 68), 0)
    node.receive(WIRE.icmp_error(*too_big, 1400), 0)
    endpoint.send(bytes(1400), 0, to=(PEER, 7))
    assert len(sent(node)) == 3
    assert node.sizes()["path_mtus"] == 1
    endpoint.send(bytes(1400), 600 * SECOND, to=(PEER, 7))
    assert len(sent(node, 600 * SECOND)) == 1


# --------------------------------------------------------------------------------------------------------------- TCP


def test_a_syn_to_a_closed_port_is_reset() -> None:
    node = stack()
    node.receive(WIRE.tcp(sport=9, dport=80, flags=SYN, seq=5), 0)
    (answer,) = sent(node)
    assert (answer.flags, answer.ack, answer.dst) == (RST | ACK, 6, PEER)


def test_a_promiscuous_stack_hands_over_every_syn_before_it_is_answered() -> None:
    node = stack(accept_any=True)
    listener = node.listen_any()
    for number in (1, 2):
        node.receive(WIRE.but(dst="192.0.2.80").tcp(sport=number, dport=443, flags=SYN, seq=5), 0)
    assert dict(node.events()) == {listener: events.ACCEPT}
    first, second = listener.take(), listener.take()
    assert first is not None
    assert second is not None
    assert (first.local_addr, first.local_port, first.remote_port) == (packed("192.0.2.80"), 443, 1)
    assert sent(node) == []
    first.accept()
    second.refuse()
    answers = {packet.dport: packet.flags for packet in sent(node)}
    assert answers == {1: SYN | ACK, 2: RST | ACK}


def test_connecting_waits_for_the_neighbour() -> None:
    node = stack(known_peer=False)
    connection = node.connect((PEER, 80), 0)
    assert [packet.ethertype for packet in sent(node)] == [0x0806]
    node.receive(WIRE.arp_reply(), 5)
    (syn,) = sent(node, 5)
    assert (syn.flags, syn.dst_mac()) == (SYN, PEER_MAC)
    answer = WIRE.tcp(sport=80, dport=syn.sport, flags=SYN | ACK, seq=100, ack=syn.seq + 1)
    node.receive(answer, 10)
    assert dict(node.events())[connection] & events.OPEN


def test_an_icmp_error_ends_a_connection_attempt_but_not_a_connection() -> None:
    node = stack()
    attempt = node.connect((PEER, 80), 0)
    (syn,) = sent(node)
    node.receive(WIRE.icmp_error(icmp.UNREACHABLE, icmp.PORT_UNREACHABLE, syn.frame[14:]), 0)
    assert attempt.error is TcpError.UNREACHABLE
    second = node.connect((PEER, 80), 0)
    (syn,) = sent(node)
    node.receive(WIRE.tcp(sport=80, dport=syn.sport, flags=SYN | ACK, seq=100, ack=syn.seq + 1), 0)
    second.write(b"hello")
    (_ack_or_data, *_more) = segments = sent(node)
    node.receive(WIRE.icmp_error(icmp.UNREACHABLE, icmp.PORT_UNREACHABLE, segments[-1].frame[14:]), 0)
    assert second.error is None
    assert "code 3" in second.soft_error
    assert dict(node.events())[second] & events.SOFT_ERROR


@pytest.mark.parametrize("remote", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.0.255", "10.0.0.1"])
def test_no_connection_to_what_is_no_other_host(remote: str) -> None:
    with pytest.raises(UsageError, match="no connection to"):
        stack().connect((packed(remote), 80), 0)


def test_connections_that_cannot_be_are_refused_with_a_sentence() -> None:
    node = stack(max_connections=2)
    with pytest.raises(UsageError, match=r"no way to 192\.0\.2\.1:80"):
        node.connect((packed("192.0.2.1"), 80), 0)
    with pytest.raises(UsageError, match=r"no connection to 10\.0\.0\.9:0"):
        node.connect((PEER, 0), 0)
    with pytest.raises(UsageError, match="no address of this stack"):
        node.connect((PEER, 80), 0, local_address=packed("10.0.0.2"))
    node.connect((PEER, 80), 0, local_port=5)
    with pytest.raises(UsageError):
        node.connect((PEER, 80), 0, local_port=5)
    node.connect((PEER, 80), 0)
    with pytest.raises(UsageError):
        node.connect((PEER, 80), 0)


def test_a_gateway_leads_to_other_networks() -> None:
    node = stack(gateway=IPv4Address("10.0.0.9"))
    node.connect((packed("192.0.2.1"), 80), 0)
    (syn,) = sent(node)
    assert (syn.dst, syn.dst_mac()) == (packed("192.0.2.1"), PEER_MAC)


@pytest.mark.parametrize(
    "config",
    [
        {"mac": b"\x01\0\0\0\0\1"},
        {"mac": b"\x02"},
        {"addresses": ()},
        {"addresses": (IPv4Interface("10.0.0.255/24"),)},
        {"addresses": (IPv4Interface("127.0.0.1/8"),)},
        {"gateway": IPv4Address("10.0.1.1")},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        stack(known_peer=False, **config)


# ----------------------------------------------------------------------------------------------------------- the rest


def test_events_of_one_endpoint_come_as_one() -> None:
    node = stack()
    endpoint = node.udp_bind(7)
    for _ in range(3):
        node.receive(WIRE.udp(5, 7), 0)
    assert node.events() == [(endpoint, events.DATAGRAM)]
    assert node.events() == []


def test_frames_are_handed_out_in_batches_and_neither_kind_starves_the_other() -> None:
    node = stack()
    node.listen(80)
    for number in range(100):
        node.receive(WIRE.echo(1, number), 0)
        node.receive(WIRE.tcp(sport=1000 + number, dport=80, flags=SYN), 0)
    for _ in range(4):
        batch = [parse_untrusted(b"".join(frame), 0, node.counters) for frame in node.frames(0, 16)]
        kinds = [packet.proto for packet in batch if packet is not None]
        assert len(kinds) == 16
        assert {PROTO_ICMP, PROTO_TCP} <= set(kinds)


def test_what_waits_to_be_sent_is_bounded() -> None:
    node = stack(max_queued_frames=20)
    for number in range(100):
        node.receive(WIRE.echo(1, number), 0)
    assert node.sizes()["queued_frames"] == 20
    assert node.counters["stack.tx_queue_full"] == 80


def test_two_stacks_of_one_seed_send_the_same_frames() -> None:
    def frames() -> list[bytes]:
        node = stack()
        node.connect((PEER, 80), 0)
        node.udp_bind().send(b"x", 0, to=(PEER, 7))
        node.ping_open().send_echo(PEER, 1, b"", 0)
        return [packet.frame for packet in sent(node)]

    assert frames() == frames()
