"""The tracker's flows: of every protocol, with a lifetime by state, and returned when they end.

What it makes of a TCP connection is in test_tcp_track.py, its bounds in test_tracker_bounds.py.
"""

from __future__ import annotations

import pytest

from pystack.clock import SECOND
from pystack.flow.tracker import State, Timeouts, Tracker
from pystack.wire import udp
from pystack.wire.packet import ACK, FIN, RST, SYN
from tests.unit.flow.rewriting import CLIENT6, GUEST6, Lane
from tests.unit.flow.test_key_and_table import six, six_echo, six_error, six_tcp, tagged
from tests.unit.flow.tracking import CLIENT, SERVER, Watch, opened, parse

DAY = 86_400 * SECOND


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (CLIENT.udp(5000, 53), SERVER.udp(53, 5000)),
        (CLIENT.echo(7), SERVER.echo(7, kind=0)),
        (CLIENT.ipv4(47, b"x"), SERVER.ipv4(47, b"y")),
        (tagged(CLIENT.udp(1, 2), 5), tagged(SERVER.udp(2, 1), 5, priority=3)),
        (six_echo(1), six_echo(1, reply=True)),
        (six(50, bytes(8)), six(50, bytes(8), back=True)),
        (
            six(17, udp.build(src=GUEST6, dst=CLIENT6, sport=1, dport=2, payload=b"")),
            six(17, udp.build(src=CLIENT6, dst=GUEST6, sport=2, dport=1, payload=b""), back=True),
        ),
    ],
)
def test_what_is_not_tcp_is_established_when_both_ends_were_heard(there: bytes, back: bytes) -> None:
    tracker = Tracker()
    flow = tracker.observe(parse(there), 5)
    assert flow is not None
    assert (flow.state, flow.tcp, flow.since, tracker.live) == (State.NEW, None, 5, 1)
    assert tracker.observe(parse(back), 9) is flow
    assert (flow.state, flow.seen, flow.packets) == (State.ESTABLISHED, 9, [1, 1])
    assert flow.proto == parse(there).proto
    assert flow.version == parse(there).version
    assert (len(tracker), tracker.live) == (1, 1)
    assert tracker.get(parse(there)) is flow
    tracker._check()


def test_what_is_not_ip_has_no_flow() -> None:
    tracker = Tracker()
    assert tracker.observe(parse(CLIENT.arp_request()), 0) is None
    assert tracker.get(parse(CLIENT.arp_request())) is None
    assert (len(tracker), tracker.counters.snapshot()) == (0, {})


def test_packets_are_counted_by_direction() -> None:
    watch = opened()
    watch.server(1, ACK, 1, b"x")
    packets, opener = watch.tracked.packets, watch.tracked.opener
    assert (packets[opener], packets[1 - opener]) == (2, 2)


def test_a_virtio_net_hdr_may_stand_in_front() -> None:
    tracker = Tracker()
    frame = Lane(vnet_hdr=bytes(12)).segment(outward=False, flags=SYN)
    flow = tracker.observe(parse(frame, 12), 0)
    assert flow is not None
    assert tracker.get(parse(frame[12:])) is flow


# --------------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize(
    ("frame", "lifetime"),
    [
        (CLIENT.udp(1, 2), Timeouts().udp),
        (CLIENT.echo(1), Timeouts().icmp),
        (six_echo(1), Timeouts().icmp),
        (CLIENT.ipv4(47, b"x"), Timeouts().other),
        (CLIENT.tcp(flags=SYN, sport=1, dport=2), Timeouts().half_open),
        (six_tcp(), Timeouts().half_open),
    ],
)
def test_each_kind_is_forgotten_after_its_time(frame: bytes, lifetime: int) -> None:
    tracker = Tracker()
    flow = tracker.observe(parse(frame), 0)
    tracker.observe(parse(frame), 5)  # which moves its deadline
    assert tracker.next_timeout() == lifetime + 5
    tracker.tick(lifetime + 4)
    assert len(tracker) == 1
    tracker.tick(lifetime + 5)
    assert (len(tracker), tracker.live, tracker.next_timeout()) == (0, 0, None)
    assert tracker.take_ended() == [flow]
    assert tracker.take_ended() == []
    assert tracker.counters["flow.expired"] == 1


def test_each_state_has_its_lifetime() -> None:
    """As the states come, each longer or shorter than the one before."""
    timeouts = Timeouts(
        half_open=10, established=50, half_closed=40, closing=30, time_wait=20, closed=5, udp=1, icmp=1, other=1
    )
    watch = Watch(tracker=Tracker(timeouts=timeouts))
    expected = []

    def say(call: object, lifetime: int, *arguments: object) -> None:
        watch.now += 1
        call(*arguments)  # type: ignore[operator]
        expected.append((watch.tracker.next_timeout(), watch.now + lifetime))

    say(watch.client, 10, 0, SYN)
    say(watch.server, 10, 0, SYN | ACK, 1)
    say(watch.client, 50, 1, ACK, 1)
    say(watch.client, 40, 1, FIN | ACK, 1)
    say(watch.server, 40, 1, ACK, 2)
    say(watch.server, 30, 1, FIN | ACK, 2)
    say(watch.client, 20, 2, ACK, 2)
    watch.client_iss, watch.server_iss = 5_000_000, 6_000_000
    say(watch.client, 10, 0, SYN)
    say(watch.server, 5, 0, RST | ACK, 1)
    assert [due for due, _ in expected] == [right for _, right in expected]
    watch.tracker.tick(watch.now + 5)
    assert len(watch.tracker) == 0


def test_the_defaults_are_no_shorter_than_what_translators_owe() -> None:
    """RFC 5382 REQ-5, RFC 4787 REQ-5, RFC 5508 REQ-1, RFC 9293 section 3.4.2."""
    timeouts = Timeouts()
    assert timeouts.established >= 7440 * SECOND
    assert min(timeouts.closing, timeouts.half_closed, timeouts.time_wait) >= 240 * SECOND
    assert timeouts.half_open > 64 * SECOND  # the longest silence between two SYNs of one connection
    assert timeouts.udp >= 120 * SECOND
    assert timeouts.icmp >= 60 * SECOND


def test_an_open_connection_that_is_used_lives_on() -> None:
    watch = opened()
    for _ in range(20):
        watch.now += Timeouts().established - 1
        watch.tracker.tick(watch.now)
        assert watch.client(1, ACK, 1) is State.ESTABLISHED
    watch.tracker.tick(watch.now + DAY)
    assert (len(watch.tracker), watch.tracker.live) == (0, 0)


def test_live_counts_what_has_not_ended() -> None:
    watch = opened()
    watch.tracker.observe(parse(CLIENT.udp(1, 2)), 0)
    assert watch.tracker.live == 2
    watch.close()
    assert (watch.tracker.live, watch.counters["flow.ended"]) == (1, 1)
    watch.client_iss, watch.server_iss = 5_000_000, 6_000_000
    watch.open()
    assert (watch.tracker.live, watch.counters["flow.reused"]) == (2, 1)
    assert watch.client(1, RST, 0) is State.CLOSED
    assert (watch.tracker.live, watch.counters["flow.ended"]) == (1, 2)
    watch.tracker.tick(DAY)
    assert (watch.tracker.live, len(watch.tracker.take_ended())) == (0, 2)


# ------------------------------------------------------------------------------------------------------- ICMP errors


def test_an_error_is_related_to_the_flow_that_it_quotes_and_has_one_of_its_own() -> None:
    tracker = Tracker()
    inner = SERVER.tcp(sport=80, dport=5000)
    flow = tracker.observe(parse(inner), 0)
    error = parse(CLIENT.icmp_error(3, 1, inner[14:]))
    assert flow is not None
    assert tracker.quoted(error) is flow
    own = tracker.observe(error, 0)
    assert own is not None
    assert own is not flow
    assert (own.tcp, own.errors, flow.errors, flow.state) == (None, 0, 1, State.NEW)
    assert tracker.counters["flow.icmp_related"] == 1
    assert tracker.quoted(parse(CLIENT.icmp_error(3, 1, SERVER.udp(80, 5000)[14:]))) is None


def test_an_error_over_ipv6_too() -> None:
    tracker = Tracker()
    flow = tracker.observe(parse(six_tcp(back=True)), 0)
    tracker.observe(parse(six_error(six_tcp(back=True))), 0)
    assert flow is not None
    assert (flow.errors, len(tracker)) == (1, 2)


# ------------------------------------------------------------------------------------------------------------ fragments


def test_fragments_belong_to_the_flow_of_their_datagram() -> None:
    tracker = Tracker()
    whole = udp.build(src=bytes((10, 0, 0, 9)), dst=bytes((10, 0, 0, 2)), sport=1, dport=2, payload=bytes(200))
    flows = [tracker.observe(parse(frame), 0) for frame in reversed(CLIENT.fragments(17, whole, 64, 64))]
    assert flows[:-1] == [None, None]
    assert flows[-1] is not None
    assert flows[-1] is tracker.get(parse(CLIENT.udp(1, 2)))
    assert sum(flows[-1].packets) == 1


def test_a_connection_whose_data_comes_in_fragments() -> None:
    watch = opened()
    frame = watch.lane.segment(
        outward=True, seq=watch.server_iss + 1, ack=watch.client_iss + 1, flags=ACK, payload=bytes(1000)
    )
    for piece in SERVER.but(src="10.0.0.2", dst="10.0.0.9").fragments(6, frame[34:], 512, 256):
        watch.tracker.observe(parse(piece), 0)
    assert watch.servers.nxt - watch.servers.iss == 1001


def test_missing_pieces_are_given_up_in_time() -> None:
    tracker = Tracker()
    tracker.observe(parse(CLIENT.fragments(17, bytes(100), 64)[0]), 7)
    due = tracker.next_timeout()
    assert due == 60 * SECOND + 7
    tracker.tick(due)
    assert tracker.next_timeout() is None
    assert tracker.counters.snapshot() == {"ipv4.fragments": 1, "ipv4.reassembly_timeout": 1}
