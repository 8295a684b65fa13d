"""ARP: who is learnt, who is asked, who is answered; and the table stays small."""

from __future__ import annotations

from ipaddress import IPv4Interface

import pytest

from pystack.clock import SECOND
from pystack.frame import LinkInfo
from pystack.net import neighbours
from pystack.stack import Stack, StackConfig
from pystack.testing.frames import PEER_MAC, Crafter, packed
from pystack.wire import arp
from pystack.wire.packet import ACK, ETHERTYPE_ARP, SYN

MAC = b"\x02\0\0\0\0\x01"
OURS = packed("10.0.0.1")
PEER = packed("10.0.0.9")
WIRE = Crafter("10.0.0.9", "10.0.0.1")
EVERYBODY = b"\xff" * 6
NOBODY = bytes(6)


def stack(*, accept_any: bool = False, limits: neighbours.Limits | None = None) -> Stack:
    config = StackConfig(
        mac=MAC,
        addresses=(IPv4Interface("10.0.0.1/24"),),
        accept_any=accept_any,
        neighbours=limits or neighbours.Limits(),
    )
    return Stack(config, LinkInfo(), seed=1)


def sent(node: Stack, now: int = 0) -> list[arp.Arp]:
    """The ARP messages that ``node`` sends now; anything else fails."""
    messages = []
    for (frame,) in node.frames(now):
        data = bytes(frame)
        assert int.from_bytes(data[12:14], "big") == ETHERTYPE_ARP
        message = arp.parse_untrusted(data, 14, len(data), node.counters)
        assert message is not None
        messages.append(message)
    return messages


def known(node: Stack) -> int:
    return node.sizes()["neighbours"]


def test_a_request_for_us_is_answered_and_its_sender_learnt() -> None:
    node = stack()
    node.receive(WIRE.arp_request(), 0)
    assert sent(node) == [arp.Arp(1, 0x0800, 6, 4, arp.REPLY, MAC, OURS, PEER_MAC, PEER)]
    assert node.counters.snapshot() == {"arp.learned": 1, "arp.replies_sent": 1}
    assert known(node) == 1


def test_a_request_for_somebody_else_is_neither_answered_nor_learnt() -> None:
    node = stack()
    node.receive(WIRE.arp_request("10.0.0.77"), 0)
    assert sent(node) == []
    assert known(node) == 0


def test_a_probe_for_our_address_is_answered_but_not_learnt() -> None:
    node = stack()
    node.receive(WIRE.but(src="0.0.0.0").arp_request(), 0)
    assert [message.op for message in sent(node)] == [arp.REPLY]
    assert known(node) == 0


@pytest.mark.parametrize(
    "sender", ["0.0.0.9", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.0.255", "10.0.0.1", "240.0.0.1"]
)
def test_no_entry_for_an_address_that_no_neighbour_may_have(sender: str) -> None:
    node = stack(accept_any=True)
    node.receive(WIRE.but(src=sender).arp_request(), 0)
    node.receive(WIRE.but(src=sender).arp_reply(), 0)
    node.receive(WIRE.but(src=sender).udp(1, 2), 0)
    assert known(node) == 0
    assert sent(node) == []


@pytest.mark.parametrize("mac", [EVERYBODY, NOBODY, MAC, b"\x01\0\x5e\0\0\x01"])
def test_no_entry_with_an_ethernet_address_that_no_host_has(mac: bytes) -> None:
    node = stack()
    node.receive(WIRE.arp_request(sha=mac), 0)
    assert known(node) == 0
    assert sent(node) == []


def test_a_reply_that_nobody_asked_for_is_not_learnt() -> None:
    node = stack()
    node.receive(WIRE.arp_reply(), 0)
    assert node.counters.snapshot() == {"arp.unsolicited": 1}
    assert known(node) == 0


def test_an_announcement_changes_an_entry_but_makes_none() -> None:
    node = stack()
    other = b"\x02\0\0\0\0\x0a"
    node.receive(WIRE.arp_request("10.0.0.9"), 0)
    assert known(node) == 0
    node.receive(WIRE.arp_request(), 0)
    node.receive(WIRE.but(src_mac=other).arp_request("10.0.0.9"), 0)
    assert node.counters["arp.changed"] == 1
    assert len(sent(node)) == 1
    node.receive(WIRE.but(src_mac=other).echo(), 0)
    (frame,) = node.frames(0)
    assert bytes(frame[0])[:6] == other


def test_somebody_with_our_address_is_counted_and_not_answered() -> None:
    node = stack()
    node.receive(WIRE.but(src="10.0.0.1").arp_request("10.0.0.1"), 0)
    assert node.counters.snapshot() == {"arp.address_conflict": 1}
    assert sent(node) == []


def test_a_packet_waits_for_the_answer() -> None:
    node = stack()
    node.ping_open().send_echo(PEER, 1, b"", 0)
    assert [(message.op, message.tpa, message.tha) for message in sent(node)] == [(arp.REQUEST, PEER, NOBODY)]
    node.receive(WIRE.arp_reply(), 10)
    (frame,) = node.frames(10)
    assert bytes(frame[0])[:6] == PEER_MAC
    assert node.sizes()["packets_waiting_for_neighbours"] == 0


def test_a_neighbour_that_is_silent_is_asked_three_times_and_then_forgotten() -> None:
    node = stack()
    node.ping_open().send_echo(PEER, 1, b"", 0)
    times = []
    now = 0
    for _ in range(10):
        times += [now] * len(sent(node, now))
        instant = node.next_timeout()
        if instant is None:
            break
        now = instant
        node.tick(now)
    assert times == [0, SECOND, 2 * SECOND]
    assert known(node) == 0
    assert node.next_timeout() is None
    assert node.counters.snapshot() == {"arp.requests_sent": 3, "arp.waiting_dropped": 1, "arp.unresolved": 1}


def test_a_packet_that_waited_for_a_second_is_dropped_even_if_the_answer_comes() -> None:
    node = stack()
    node.ping_open().send_echo(PEER, 1, b"", 0)
    sent(node)
    node.receive(WIRE.arp_reply(), SECOND)
    assert node.frames(SECOND) == []
    assert node.counters["arp.waiting_dropped"] == 1


def test_the_latest_packets_are_the_ones_that_wait() -> None:
    node = stack(limits=neighbours.Limits(waiting=3))
    ping = node.ping_open()
    for number in range(10):
        ping.send_echo(PEER, number, b"", 0)
    sent(node)
    node.receive(WIRE.arp_reply(), 1)
    assert [bytes(frame[0])[40:42] for frame in node.frames(1)] == [b"\0\x07", b"\0\x08", b"\0\x09"]
    assert node.counters["arp.waiting_dropped"] == 7


def test_one_request_a_second_however_many_packets_there_are() -> None:
    node = stack()
    ping = node.ping_open()
    for number in range(100):
        ping.send_echo(PEER, number, b"", 9_000 * number)
    assert len(sent(node, 900_000)) == 1


def test_a_scan_of_the_network_fills_the_table_no_further_than_its_bound() -> None:
    node = stack(limits=neighbours.Limits(neighbours=8))
    ping = node.ping_open()
    for number in range(10, 200):
        ping.send_echo(packed(f"10.0.0.{number}"), 1, b"", 0)
    assert known(node) == 8
    assert node.counters["arp.evicted"] == 182


def test_entries_that_connections_use_are_not_evicted() -> None:
    node = stack(limits=neighbours.Limits(neighbours=1))
    connection = node.connect((PEER, 80), 0)
    assert not node.ping_open().send_echo(packed("10.0.0.10"), 1, b"", 0)
    assert node.counters["arp.table_full"] == 1
    connection.abort()


def test_an_entry_nobody_uses_goes_after_its_time_without_a_word() -> None:
    node = stack()
    node.receive(WIRE.arp_request(), 0)
    sent(node)
    assert node.next_timeout() == 60 * SECOND
    node.tick(60 * SECOND)
    assert sent(node, 60 * SECOND) == []
    assert known(node) == 0
    assert node.next_timeout() is None


def test_an_entry_in_use_is_confirmed_by_asking_the_neighbour_alone() -> None:
    node = stack()
    node.receive(WIRE.arp_request(), 0)
    node.ping_open().send_echo(PEER, 1, b"", 0)
    node.frames(0)
    node.tick(60 * SECOND)
    ((frame,),) = node.frames(60 * SECOND)
    assert bytes(frame)[:6] == PEER_MAC
    node.receive(WIRE.arp_reply(), 60 * SECOND + 10)
    assert known(node) == 1
    node.tick(120 * SECOND + 10)
    assert known(node) == 0


def test_a_connection_learns_the_address_that_its_neighbour_moves_to() -> None:
    node = stack()
    connection = node.connect((PEER, 80), 0)
    assert not connection.path.ready
    sent(node)
    node.receive(WIRE.arp_reply(), 10)
    assert connection.path.dst_mac == PEER_MAC
    assert len(node.frames(10)) == 1  # its SYN
    moved = b"\x02\0\0\0\0\x0b"
    node.receive(WIRE.but(src_mac=moved).arp_request("10.0.0.9"), 20)
    assert connection.path.dst_mac == moved


def test_a_silent_neighbour_is_asked_ever_more_rarely_while_a_connection_waits() -> None:
    node = stack()
    connection = node.connect((PEER, 80), 0)
    times = []
    now = 0
    while now < 100 * SECOND:
        times += [now // SECOND] * len(sent(node, now))
        instant = node.next_timeout()
        assert instant is not None
        assert instant > now
        now = instant
        node.tick(now)
    assert times[:5] == [0, 1, 2, 3, 5]
    assert len(times) < 12
    connection.abort()


def test_a_promiscuous_stack_answers_for_all_but_the_asker_and_its_known_neighbours() -> None:
    node = stack(accept_any=True)
    for target in ("10.0.0.77", "192.0.2.1"):
        node.receive(WIRE.arp_request(target), 0)
        assert [message.spa for message in sent(node)] == [packed(target)]
    second = WIRE.but(src="10.0.0.10", src_mac=b"\x02\0\0\0\0\x0a")
    second.arp_request()
    for target in ("10.0.0.9", "0.0.0.9", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.0.255"):
        node.receive(second.arp_request(target), 0)
        assert sent(node) == [], target
    # A probe asks whether an address is free: it is.
    node.receive(WIRE.but(src="0.0.0.0").arp_request("10.0.0.15"), 0)
    assert sent(node) == []


def test_a_promiscuous_stack_learns_its_guest_from_a_packet() -> None:
    node = stack(accept_any=True)
    node.receive(WIRE.echo(), 0)
    (frame,) = node.frames(0)
    assert bytes(frame[0])[:6] == PEER_MAC
    assert node.counters.snapshot() == {"arp.learned": 1, "icmp.echo_replied": 1}


@pytest.mark.parametrize(
    "frame",
    [
        WIRE.arp_request()[:-1],
        WIRE.arp_request()[:14],
        WIRE.arp_request().replace(b"\x08\x00\x06\x04", b"\x08\x00\x06\x10"),
        WIRE.arp_request().replace(b"\x08\x00\x06\x04", b"\x86\xdd\x06\x04"),
    ],
)
def test_malformed_arp_is_counted_and_dropped(frame: bytes) -> None:
    node = stack()
    node.receive(frame, 0)
    assert sum(node.counters.snapshot().values()) == 1
    assert known(node) == 0
    assert sent(node) == []


def test_padding_behind_the_message_is_allowed() -> None:
    node = stack()
    node.receive(WIRE.arp_request() + bytes(18), 0)
    assert len(sent(node)) == 1


def test_a_silent_neighbour_that_only_an_idle_connection_uses_is_left_alone() -> None:
    node = stack()
    node.receive(WIRE.arp_request(), 0)
    connection = node.connect((PEER, 80), 0)
    (_reply,), (_syn,) = node.frames(0)
    node.receive(WIRE.tcp(sport=80, dport=connection.local_port, flags=SYN | ACK, seq=9, ack=connection.iss + 1), 0)
    node.frames(0)
    instants = []
    while (instant := node.next_timeout()) is not None:
        instants.append(instant)
        node.tick(instant)
        node.frames(instant)
        if instant > 10_000 * SECOND:
            break
    # Three questions in 60 to 62; then it is only looked whether the connection still is there.
    assert [instant // SECOND for instant in instants[:8]] == [60, 61, 62, 63, 123, 243, 483, 963]
    assert node.counters["arp.requests_sent"] == 3
    assert node.counters["arp.unresolved"] == 1
    assert connection.path.dst_mac == PEER_MAC
    # Whoever has something for it asks anew, and the connection learns the answer too.
    now = instants[-1]
    node.ping_open().send_echo(PEER, 1, b"", now)
    assert [message.op for message in sent(node, now)] == [arp.REQUEST]
    moved = b"\x02\0\0\0\0\x0c"
    node.receive(WIRE.but(src_mac=moved).arp_reply(), now)
    assert connection.path.dst_mac == moved


def test_the_entry_of_a_silent_neighbour_goes_after_its_last_connection() -> None:
    node = stack()
    connection = node.connect((PEER, 80), 0)
    node.receive(WIRE.arp_reply(), 0)
    connection.abort()  # and yet somebody still holds it
    for _ in range(20):
        instant = node.next_timeout()
        if instant is None:
            break
        node.tick(instant)
        node.frames(instant)
    assert known(node) == 0
    assert node.next_timeout() is None


def test_an_answer_meant_for_somebody_else_changes_nothing() -> None:
    node = stack()
    node.receive(WIRE.arp_request(), 0)
    sent(node)
    other = WIRE.but(src_mac=b"\x02\0\0\0\0\x0a")
    node.receive(other.arp_reply(tpa=packed("10.0.0.77")), 0)
    message = arp.build(3, sha=PEER_MAC, spa=PEER, tha=MAC, tpa=OURS)  # RARP's request, by its number
    node.receive(WIRE.ethernet(ETHERTYPE_ARP, message), 0)
    assert node.counters["arp.ignored"] == 2
    assert node.counters["arp.changed"] == 0


def test_two_hosts_that_quarrel_about_an_address_are_believed_once_a_second() -> None:
    node = stack(accept_any=True)
    one, two = WIRE, WIRE.but(src_mac=b"\x02\0\0\0\0\x0a")
    for number in range(100):
        node.receive((one, two)[number % 2].echo(), 10_000 * number)
    assert node.counters["arp.changed"] == 1
    assert node.counters["arp.contested"] > 40
    node.receive(one.echo(), 2 * SECOND)
    assert node.counters["arp.changed"] == 2
