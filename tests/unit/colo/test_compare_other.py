"""Datagrams, fragments, what is not IP, bounds, time and checkpoints."""

from __future__ import annotations

import pytest

from colo.compare import Comparator, CompareConfig, Mode
from pystack.testing.frames import Crafter
from pystack.wire import icmp
from tests.colo_guests import CLIENT, GUEST, Guest, framed
from tests.unit.colo.bench import SECOND, Bench

WIRE = Crafter(GUEST, CLIENT)


@pytest.fixture
def bench() -> Bench:
    return Bench()


# ------------------------------------------------------------------------------------------------------------ datagrams


def test_datagrams_are_compared_in_order_and_leave_in_order(bench: Bench) -> None:
    """QEMU's a5f038e2c5 swapped the ends of a queue: newest first since then."""
    one, two = WIRE.udp(53, 900, b"one", ident=1), WIRE.udp(53, 900, b"two", ident=2)
    assert bench.p(one, two) == 0
    assert bench.s(WIRE.udp(53, 900, b"one", ident=8)) == 1
    assert bench.s(WIRE.udp(53, 900, b"two", ident=9)) == 1
    assert bench.out == [one, two]
    assert bench.reasons == []


def test_a_datagram_that_the_secondary_has_not_sent_yet_is_waited_for(bench: Bench) -> None:
    bench.p(WIRE.udp(53, 900, b"one"), WIRE.udp(53, 900, b"two"))
    assert bench.s(WIRE.udp(53, 900, b"two")) == 0
    assert bench.reasons == []
    assert bench.s(WIRE.udp(53, 900, b"one")) == 2


def test_a_datagram_that_only_the_secondary_has_sent_does_not_stand_in_the_way(bench: Bench) -> None:
    bench.s(WIRE.udp(53, 900, b"lost"), WIRE.udp(53, 900, b"two"))
    assert bench.p(WIRE.udp(53, 900, b"two")) == 1
    assert bench.counters["compare.datagrams_reordered"] == 1
    bench.wait(4 * SECOND)
    assert bench.counters["compare.secondary_unmatched"] == 1


def test_a_different_datagram_is_a_difference_at_once(bench: Bench) -> None:
    bench.both(WIRE.udp(53, 900, b"answer 1"), WIRE.udp(53, 900, b"answer 2"))
    (found,) = bench.asked
    assert found.reason == "datagram"
    assert found.primary[found.before :] == b"1"
    assert bench.commit() == 1


@pytest.mark.parametrize("payload", [b"", b"x" * 3])
def test_lengths_count(bench: Bench, payload: bytes) -> None:
    bench.both(WIRE.udp(53, 900, payload), WIRE.udp(53, 900, payload + b"x"))
    assert bench.reasons == ["datagram"]


def test_pings_by_their_identifier(bench: Bench) -> None:
    reply = icmp.ECHO_REPLY
    assert bench.p(WIRE.echo(1, 1, kind=reply)) == 0
    assert bench.s(WIRE.echo(2, 1, kind=reply)) == 0
    assert bench.s(WIRE.echo(1, 1, kind=reply)) == 1
    assert bench.reasons == []
    bench.both(WIRE.echo(3, 1, b"a", kind=reply), WIRE.echo(3, 1, b"b", kind=reply))
    assert bench.reasons == ["datagram"]


def test_of_a_quoted_packet_only_its_name_counts(bench: Bench) -> None:
    quoted_p = Crafter(CLIENT, GUEST).udp(9, 9, b"x" * 40, ident=1)[14:]
    quoted_s = Crafter(CLIENT, GUEST).udp(9, 9, b"x" * 40, ident=2)[14:]
    assert bench.both(WIRE.icmp_error(3, 3, quoted_p), WIRE.icmp_error(3, 3, quoted_s)) == 1
    bench.both(WIRE.icmp_error(3, 3, quoted_p), WIRE.icmp_error(3, 1, quoted_s))
    assert bench.reasons == ["datagram"]


def test_other_protocols_from_their_own_header_on(bench: Bench) -> None:
    """QEMU compares the Ethernet and IP headers too, so that another IP identification is a difference."""
    assert bench.both(WIRE.ipv4(47, b"gre", ident=1, ttl=64), WIRE.ipv4(47, b"gre", ident=2, ttl=63)) == 1
    bench.both(WIRE.ipv4(47, b"gre"), WIRE.ipv4(47, b"grE"))
    assert bench.reasons == ["datagram"]


# ---------------------------------------------------------------------------------------------- fragments, VLANs, IPv6


def test_fragments_are_compared_as_the_datagram_and_travel_on_as_they_are(bench: Bench) -> None:
    from pystack.wire import udp

    addresses = {"src": bytes(map(int, GUEST.split("."))), "dst": bytes(map(int, CLIENT.split(".")))}
    whole = udp.build(**addresses, sport=53, dport=900, payload=bytes(range(200)))
    fragments = WIRE.fragments(17, whole, 64, 64, ident=7)
    assert bench.p(*fragments) == 0
    assert bench.s(*WIRE.fragments(17, whole, 128, ident=99)) == 3
    assert bench.out == fragments
    # The other machine may send it whole.
    assert bench.p(*WIRE.fragments(17, whole, 64, ident=8)) == 0
    assert bench.s(WIRE.ipv4(17, whole)) == 2
    assert bench.reasons == []


def test_a_fragment_without_the_rest_waits_for_a_checkpoint(bench: Bench) -> None:
    first, *_ = WIRE.fragments(17, bytes(100), 64)
    assert bench.p(first) == 0
    bench.wait(4 * SECOND)
    assert bench.reasons == ["timeout"]
    assert bench.commit() == 1


def test_a_vlan_is_part_of_the_flow(bench: Bench) -> None:
    """QEMU lets what is tagged pass without looking."""

    def tagged(frame: bytes, vlan: int) -> bytes:
        return frame[:12] + b"\x81\0" + vlan.to_bytes(2, "big") + frame[12:]

    assert bench.p(tagged(WIRE.udp(53, 900, b"x"), 5)) == 0
    assert bench.s(tagged(WIRE.udp(53, 900, b"x"), 6)) == 0
    assert bench.s(tagged(WIRE.udp(53, 900, b"x"), 5)) == 1
    bench.primary.iss = bench.secondary.iss = 3000
    assert bench.both(tagged(bench.primary.syn_ack(), 5), tagged(bench.secondary.syn_ack(), 5)) == 1
    assert bench.both(tagged(bench.primary.data(0, b"a"), 5), tagged(bench.secondary.data(0, b"b"), 5)) == 0
    assert bench.reasons == ["payload"]


def test_ipv6_is_compared_and_neighbour_discovery_is_not(bench: Bench) -> None:
    from pystack.wire import icmpv6, ipv6, tcp, udp

    src, dst = bytes(15) + b"\x02", bytes(15) + b"\x01"

    def six(proto: int, body: bytes) -> bytes:
        header = ipv6.build_header(src=src, dst=dst, next_header=proto, payload_len=len(body))
        return WIRE.ethernet(0x86DD, header + body)

    def udp6(payload: bytes) -> bytes:
        return six(17, udp.build(src=src, dst=dst, sport=1, dport=2, payload=payload))

    assert bench.both(udp6(b"x"), udp6(b"x")) == 1
    assert bench.both(udp6(b"x"), udp6(b"y")) == 0
    assert bench.reasons == ["datagram"]
    segment = tcp.build(src=src, dst=dst, sport=80, dport=9, seq=5, ack=6, flags=0x10, payload=b"six")
    assert bench.both(six(6, segment), six(6, segment)) == 1
    solicitation = six(58, bytes((135, 0, 0, 0)) + bytes(20))
    assert bench.p(solicitation) == 1
    assert bench.s(solicitation) == 0
    assert icmpv6 is not None


def test_what_is_not_ip_passes_from_the_primary_alone(bench: Bench) -> None:
    assert bench.p(WIRE.arp_request(), b"runt", WIRE.ethernet(0x88CC, b"lldp")) == 3
    assert bench.s(WIRE.arp_request(), b"runt", WIRE.ethernet(0x88CC, b"lldp")) == 0
    assert bench.reasons == []


def test_what_claims_to_be_ip_and_is_not_is_compared_as_it_is(bench: Bench) -> None:
    broken = WIRE.ethernet(0x0800, b"\x41" + bytes(30))
    assert bench.p(broken) == 0
    assert bench.s(broken) == 1
    bench.both(broken, WIRE.ethernet(0x0800, b"\x42" + bytes(30)))
    assert bench.reasons == ["datagram"]


# ----------------------------------------------------------------------------------------------------- bounds and time


def test_a_frame_that_waits_for_too_long_asks_for_a_checkpoint_and_says_for_what(bench: Bench) -> None:
    bench.open()
    bench.p(bench.primary.data(0, b"lonely"))
    bench.wait(2 * SECOND)
    assert bench.reasons == []
    bench.wait(SECOND + 1)
    (found,) = bench.asked
    assert (found.reason, found.primary) == ("timeout", b"bytes of the secondary")
    assert bench.commit() == 1


def test_what_only_the_secondary_has_left_over_asks_for_nothing(bench: Bench) -> None:
    """QEMU's 17475df2c1 made old packets of either side count, also those that had been matched."""
    bench.open()
    bench.both(bench.primary.data(0, b"x"), bench.secondary.data(0, b"x"))
    bench.s(bench.secondary.ack(1), bench.secondary.data(1, b"ahead"))
    bench.wait(10 * SECOND)
    bench.wait(10 * SECOND)
    assert bench.reasons == []


def test_a_full_queue_asks_for_a_checkpoint_and_drops_nothing() -> None:
    """QEMU drops silently."""
    bench = Bench(max_queue_size=8)
    bench.open()
    for index in range(20):
        bench.p(bench.primary.data(index, b"x"))
    assert bench.reasons == ["queue_full"]
    assert bench.comparator.held_frames == 20
    assert bench.commit() == 20


def test_a_full_queue_and_a_late_datagram_say_where_they_are() -> None:
    comparator = Comparator(CompareConfig(max_queue_size=1))
    for frame in (WIRE.udp(53, 900, b"agreed"), WIRE.udp(53, 900, b"alone"), WIRE.udp(53, 900, b"too many")):
        comparator.primary(frame, 0)
        if frame.endswith(b"agreed"):
            comparator.secondary(frame, 0)
    comparator.tick(10 * SECOND)
    found = comparator.take_requests()
    assert [(one.reason, one.offset, one.primary) for one in found] == [
        ("queue_full", 1, b"a datagram"), ("timeout", 1, b"a datagram"),
    ]  # fmt: skip


def test_a_secondary_that_is_too_far_ahead_asks_for_a_checkpoint_and_is_bounded() -> None:
    bench = Bench(max_queue_size=8)
    bench.open()
    for index in range(100):
        bench.s(bench.secondary.data(index, b"x"))
    assert bench.reasons == ["secondary_queue_full"]
    assert bench.commit() == 0
    assert bench.both(bench.primary.data(0, b"x"), bench.secondary.data(0, b"x")) == 1


def test_more_flows_than_the_table_holds_wait_for_a_checkpoint_and_none_is_forgotten() -> None:
    """QEMU's a18d436954: at its bound the whole table is wiped, with every frame that is held."""
    bench = Bench(max_flows=10)
    frames = [WIRE.udp(53, 1000 + port, b"x") for port in range(30)]
    assert bench.p(*frames) == 0
    assert bench.reasons == ["table_full"]
    assert bench.comparator.flows == 10
    assert bench.commit() == 30
    assert bench.out == frames
    assert bench.both(WIRE.udp(53, 5000, b"x"), WIRE.udp(53, 5000, b"x")) == 1
    assert bench.comparator.flows <= 10


def test_connections_that_have_ended_make_room() -> None:
    bench = Bench(max_flows=4)
    for port in range(20):
        for guest in (bench.primary, bench.secondary):
            guest.dport = 6000 + port
        bench.open()
        assert bench.both(bench.primary.fin(0, b"x"), bench.secondary.fin(0, b"x")) == 1
    assert bench.reasons == []
    assert bench.counters["compare.evicted"] == 16


def test_memory_is_bounded_by_dropping_the_newest() -> None:
    bench = Bench(max_held_bytes=4000)
    for index in range(100):
        bench.p(WIRE.udp(53, 900, bytes([index]) * 58))  # 100 bytes each
    assert bench.reasons == ["queue_full"]
    assert bench.comparator.held_bytes <= 4100
    assert bench.counters["compare.primary_dropped"] == 59
    assert bench.commit() == 41
    assert bench.comparator.held_bytes == 0
    assert bench.both(WIRE.udp(1, 2, b"x"), WIRE.udp(1, 2, b"x")) == 1


# --------------------------------------------------------------------------------------------------------- checkpoints


def test_a_commit_releases_in_the_primarys_order_across_flows(bench: Bench) -> None:
    """QEMU goes through its connections one after the other."""
    frames = [WIRE.udp(53, 900 + index % 3, bytes([index])) for index in range(9)]
    bench.p(*frames)
    assert bench.commit() == 9
    assert bench.out == frames


def test_what_comes_after_the_boundary_is_not_judged_against_what_came_before(bench: Bench) -> None:
    bench.open()
    bench.p(bench.primary.data(0, b"old"))
    bench.comparator.primary_boundary()
    bench.comparator.secondary_boundary()
    # Both run again before the completion is known: this is of the new epoch, and neither leaves nor differs yet.
    assert bench.p(bench.primary.data(3, b"new")) == 0
    assert bench.s(bench.secondary.data(3, b"new")) == 0
    bench.comparator.commit(bench.now)
    assert bench.p() == 2
    assert bench.reasons == []


def test_a_checkpoint_that_fails_changes_nothing(bench: Bench) -> None:
    bench.open()
    bench.p(bench.primary.data(0, b"abc"))
    bench.comparator.primary_boundary()
    bench.comparator.secondary_boundary()
    bench.s(bench.secondary.data(0, b"abc"))
    bench.comparator.abort(bench.now)
    assert bench.p() == 1
    assert bench.reasons == []


def test_after_a_commit_retransmissions_of_what_it_released_pass(bench: Bench) -> None:
    bench.open()
    bench.both(bench.primary.data(0, b"abc"), bench.secondary.data(0, b"abX"))
    assert bench.commit() == 1
    assert bench.p(bench.primary.data(0, b"abc")) == 1
    assert bench.s(bench.secondary.data(0, b"abc")) == 0
    assert bench.reasons == ["payload"]


def test_a_half_open_connection_across_a_commit(bench: Bench) -> None:
    bench.p(bench.primary.syn_ack())
    assert bench.commit() == 1
    assert bench.both(bench.primary.data(0, b"hi"), bench.secondary.data(0, b"hi")) == 1
    assert bench.reasons == []


def test_periodic_mode_buffers_everything_until_the_commit_and_comparing_begins_with_one(bench: Bench) -> None:
    bench.open()
    bench.p(bench.primary.data(0, b"held"))
    bench.comparator.set_mode(Mode.PERIODIC)
    assert bench.both(bench.primary.data(4, b"same"), bench.secondary.data(4, b"same")) == 0
    assert bench.commit() == 2
    assert bench.p(bench.primary.data(8, b"more")) == 0
    bench.comparator.set_mode(Mode.COMPARE)
    assert bench.both(bench.primary.data(12, b"text"), bench.secondary.data(12, b"text")) == 0
    assert bench.commit() == 2
    assert bench.both(bench.primary.data(16, b"same"), bench.secondary.data(16, b"same")) == 1
    assert bench.reasons == []


def test_without_a_secondary_everything_leaves(bench: Bench) -> None:
    bench.open()
    bench.p(bench.primary.data(0, b"held"))
    bench.comparator.pass_through(bench.now)
    assert bench.p(bench.primary.data(4, b"more")) == 2
    assert bench.s(bench.secondary.data(0, b"late")) == 0


def test_without_a_primary_nothing_that_was_held_leaves_and_the_secondarys_own_is_handed_over(bench: Bench) -> None:
    bench.open()
    bench.p(WIRE.udp(53, 900, b"only the primary"))
    ahead = bench.secondary.data(0, b"ahead")
    datagram = WIRE.udp(53, 901, b"only the secondary")
    bench.s(ahead, datagram)
    assert bench.comparator.drop_held() == [ahead, datagram]
    assert bench.p() == 0
    assert bench.comparator.held_bytes == 0
    assert bench.comparator.held_frames == 0


# -------------------------------------------------------------------------------------------------------- framed input


def test_a_prefix_that_cannot_be_right_ends_the_stream_until_it_is_reset() -> None:
    comparator = Comparator(CompareConfig(framed=True))
    comparator.primary_bytes(b"\xff\xff\xff\xff" + bytes(100), 0)
    assert comparator.primary_error == "compare.too_long"
    comparator.primary_bytes(framed(WIRE.arp_request()), 0)
    assert comparator.take_released() == []
    comparator.reset_primary()
    comparator.primary_bytes(framed(WIRE.arp_request()), 0)
    assert b"".join(comparator.take_released()) == framed(WIRE.arp_request())


def test_a_vnet_header_longer_than_its_frame_ends_the_stream() -> None:
    comparator = Comparator(CompareConfig(framed=True, vnet_framing=True, vnet_hdr_len=12))
    comparator.secondary_bytes(b"\0\0\0\x10\0\0\0\x11" + bytes(16), 0)
    assert comparator.secondary_error == "compare.bad_vnet_hdr_len"


def test_an_empty_frame_is_counted_and_is_nothing() -> None:
    """QEMU ends itself on one."""
    comparator = Comparator(CompareConfig(framed=True))
    comparator.primary_bytes(bytes(8) + framed(WIRE.arp_request()), 0)
    assert b"".join(comparator.take_released()) == framed(WIRE.arp_request())
    assert comparator.counters["compare.empty"] == 2
    assert comparator.held_bytes == 0


def test_a_partial_frame_of_a_peer_that_went_does_not_spoil_the_next_ones_stream() -> None:
    """QEMU's colo-compare goes on in the middle."""
    comparator = Comparator(CompareConfig(framed=True))
    comparator.primary_bytes(framed(WIRE.arp_request())[:20], 0)
    comparator.reset_primary()
    comparator.primary_bytes(framed(WIRE.arp_request()), 0)
    assert b"".join(comparator.take_released()) == framed(WIRE.arp_request())


@pytest.mark.parametrize("lengths", [(12, 0), (0, 12), (10, 12), (20, 12)])
def test_one_side_with_a_vnet_header_and_the_other_without(lengths: tuple[int, int]) -> None:
    """QEMU's 8bdab83b34, 3772cf0d1b and 0656fbc7dd: a crash."""
    comparator = Comparator(CompareConfig(framed=True, vnet_framing=True, vnet_hdr_len=12))
    guests = [Guest(vnet_hdr_len=0), Guest(vnet_hdr_len=0, ident=9)]
    released = b""
    for round_ in range(5):
        for guest, length, feed in zip(
            guests, lengths, (comparator.primary_bytes, comparator.secondary_bytes), strict=True
        ):
            frame = guest.data((round_ - 1) * 3, b"abc") if round_ else guest.syn_ack()
            feed(framed(bytes(length) + frame, length), 0)
        released += b"".join(comparator.take_released())
    assert comparator.take_requests() == []
    assert comparator.held_bytes == 0
    assert len(released) == comparator.released_frames * (8 + lengths[0] + 54) + 12 + 4 * 3


def test_small_frames_that_stay_do_not_keep_what_was_read_with_them() -> None:
    comparator = Comparator(CompareConfig(framed=True))
    guest = Guest()
    chunk = framed(guest.syn_ack())
    noise = framed(WIRE.ethernet(0x88CC, bytes(60_000)))
    for index in range(1000):
        comparator.primary_bytes(framed(guest.data(index, b"x")) + noise, index)
        comparator.take_released()
    kept = {id(record[2]): len(record[2]) for _, _, flow in comparator._flows._watched for record in flow.held}
    assert sum(kept.values()) < 40 << 20
    assert comparator.held_frames == 1000
    assert chunk


def test_after_a_difference_no_frame_of_the_primary_is_taken_for_one_of_the_survivor(bench: Bench) -> None:
    bench.open()
    bench.p(bench.primary.data(0, b"hello"))
    bench.s(bench.secondary.data(0, b"hallo, and more than the primary"))
    assert bench.reasons == ["payload"]
    assert bench.comparator.drop_held() == []
