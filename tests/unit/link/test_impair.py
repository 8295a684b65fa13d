"""The impaired link: each fault does what it says, in virtual time, bounded, and only to the wire's packets."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pystack.counters import Counters
from pystack.errors import LinkClosed, UsageError
from pystack.frame import LinkInfo
from pystack.link import memory
from pystack.link.impair import ImpairLink, Impairment
from pystack.testing.frames import Crafter
from pystack.wire import vnet
from pystack.wire.packet import ACK, parse_untrusted, verify_untrusted
from tests.unit.link.pairs import OFFLOADED

_WIRE = Crafter("10.0.0.1", "10.0.0.2")


def _datagrams(count: int) -> list[tuple[bytes]]:
    return [(_WIRE.udp(1000, 2000, n.to_bytes(4, "big") * 8),) for n in range(count)]


def _numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(frame[42:46], "big") for frame in frames]


def _through(impairment: Impairment, count: int = 2000, *, seed: int = 1) -> tuple[list[int], Counters]:
    """The numbers of the datagrams that come out when ``count`` enter 300 us after the other."""
    left, right = memory.pair(queue_frames=10**6)
    link = ImpairLink(left, impairment, seed=seed)
    for n, frame in enumerate(_datagrams(count)):
        assert link.send([frame], n * 300) == 1
    while (at := link.next_timeout()) is not None:
        link.send((), at)
    got: list[int] = []
    while frames := right.recv(0):
        got += _numbers(frames)
    return got, link.counters


def test_nothing_passes_untouched_and_without_a_copy() -> None:
    left, right = memory.pair()
    frame = bytes(100)
    ImpairLink(left, Impairment(), seed=1).send([(frame,)], 0)
    assert right.recv(0)[0] is frame


def test_loss_loses_about_the_fraction_asked_for() -> None:
    got, counters = _through(Impairment(loss=0.1))
    assert counters.snapshot() == {"impair.lost": 2000 - len(got)}
    assert 140 <= 2000 - len(got) <= 260
    assert got == sorted(got)


def test_duplicates_follow_their_original() -> None:
    got, counters = _through(Impairment(duplicate=0.1))
    extra = len(got) - 2000
    assert counters.snapshot() == {"impair.duplicated": extra}
    assert 140 <= extra <= 260
    assert got == sorted(got)


@pytest.mark.parametrize("delay", [0, 20_000])
def test_reordered_packets_are_overtaken_and_not_lost(delay: int) -> None:
    got, counters = _through(Impairment(reorder=0.1, delay=delay))
    assert sorted(got) == list(range(2000))
    overtaken = sum(1 for before, after in pairwise(got) if before > after)
    assert 140 <= counters["impair.reordered"] <= 260
    assert overtaken >= 100


def test_jitter_keeps_the_order() -> None:
    got, counters = _through(Impairment(delay=10_000, jitter=8_000))
    assert got == list(range(2000))
    assert counters.snapshot() == {}


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    impairment = Impairment(loss=0.05, reorder=0.05, duplicate=0.05, corrupt=0.05, delay=5000, jitter=2000)
    assert _through(impairment, seed=7)[0] == _through(impairment, seed=7)[0]
    assert _through(impairment, seed=7)[0] != _through(impairment, seed=8)[0]


def test_a_fault_does_not_change_the_choices_of_another() -> None:
    lost_alone = set(range(2000)) - set(_through(Impairment(loss=0.1))[0])
    lost_with_others = set(range(2000)) - set(_through(Impairment(loss=0.1, reorder=0.2, corrupt=0.0, delay=500))[0])
    assert lost_alone == lost_with_others


def test_directions_are_independent() -> None:
    left, right = memory.pair(queue_frames=10_000)
    link = ImpairLink(left, Impairment(loss=0.5), seed=3)
    link.send(_datagrams(500), 0)
    right.send(_datagrams(500), 0)
    sent = _numbers(right.recv(0, 500))
    received: list[int] = []
    while frames := link.recv(0):
        received += _numbers(frames)
    assert sent != received


def test_received_packets_may_be_left_alone() -> None:
    left, right = memory.pair(queue_frames=10_000)
    link = ImpairLink(left, Impairment(loss=1.0), inbound=Impairment(), seed=3)
    assert link.send(_datagrams(5), 0) == 5
    right.send(_datagrams(5), 0)
    assert right.recv(0) == []
    assert _numbers(link.recv(0)) == [0, 1, 2, 3, 4]


def test_delay_holds_packets_until_the_instant_that_is_announced() -> None:
    left, right = memory.pair()
    link = ImpairLink(left, Impairment(delay=10_000), seed=1)
    link.send(_datagrams(1), 500)
    assert link.next_timeout() == 10_500
    link.send((), 10_499)
    assert right.recv(0) == []
    link.recv(10_500)  # a driver that has nothing to send calls this one
    assert _numbers(right.recv(0)) == [0]
    assert link.next_timeout() is None


def test_delay_works_on_received_packets_too() -> None:
    left, right = memory.pair()
    link = ImpairLink(left, Impairment(delay=10_000), seed=1)
    right.send(_datagrams(2), 0)
    assert link.recv(100) == []
    assert link.next_timeout() == 10_100
    assert _numbers(link.recv(10_100)) == [0, 1]


def test_rate_spaces_packets_by_their_length() -> None:
    left, _ = memory.pair()
    link = ImpairLink(left, Impairment(rate=1_000_000), seed=1)
    frames = _datagrams(3)
    link.send(frames, 0)
    one = len(frames[0][0]) * 8  # microseconds at a megabit per second
    due = []
    while (at := link.next_timeout()) is not None:
        due.append(at)
        link.send((), at)
    assert due == [one, 2 * one, 3 * one]


def test_the_queue_before_a_limited_rate_is_bounded() -> None:
    left, _ = memory.pair()
    link = ImpairLink(left, Impairment(rate=1_000, queue=10), seed=1)
    link.send(_datagrams(100), 0)
    assert link.counters.snapshot() == {"impair.overflow": 90}


def test_what_is_held_is_bounded_without_a_rate_too() -> None:
    left, _ = memory.pair()
    link = ImpairLink(left, Impairment(delay=1_000_000), seed=1)
    frame = (bytes(65_000),)
    for _ in range(20):
        assert link.send([frame] * 64, 0) == 64
    assert link.counters["impair.overflow"] == 20 * 64 - (64 << 20) // 65_000


def test_a_full_inner_link_is_full_for_the_sender() -> None:
    left, right = memory.pair(queue_frames=4)
    link = ImpairLink(left, Impairment(delay=1), seed=1)
    link.send(_datagrams(10), 0)
    link.send((), 1)
    assert link.wants_write()
    assert link.next_timeout() is None, "a deadline that has passed would spin the driver"
    assert link.send(_datagrams(1), 2) == 0
    got = _numbers(right.recv(2))
    for now in (3, 4):
        link.send((), now)
        got += _numbers(right.recv(now))
    assert got == list(range(10))
    assert not link.wants_write()


# ------------------------------------------------------------------------------------------------------- corruption


def test_every_corrupted_packet_is_noticed_by_a_checksum() -> None:
    left, right = memory.pair(queue_frames=10_000)
    link = ImpairLink(left, Impairment(corrupt=1.0), seed=1)
    frames = [(_WIRE.tcp(sport=1, dport=2, flags=ACK, seq=n, payload=bytes(range(100))),) for n in range(1000)]
    link.send(frames, 0)
    counters = Counters()
    for original, frame in zip(frames, right.recv(0, 1000), strict=True):
        assert sum((a ^ b).bit_count() for a, b in zip(original[0], frame, strict=True)) == 1
        packet = parse_untrusted(frame, 0, counters)
        assert packet is None or not verify_untrusted(packet, counters, rx_checksum=True)


def test_a_corrupted_packet_is_not_vouched_for_by_the_links_header() -> None:
    left, right = memory.pair(OFFLOADED)
    link = ImpairLink(left, Impairment(corrupt=1.0), seed=1)
    frame = _WIRE.but(vnet_hdr_len=10).tcp(sport=1, dport=2, flags=ACK, payload=bytes(100))
    for flags in (vnet.F_NEEDS_CSUM, vnet.F_DATA_VALID):
        header = vnet.build(10, flags=flags, csum_start=34, csum_offset=16)
        right.send([(header + frame[10:],)], 0)
        (spoilt,) = link.recv(0)
        packet = parse_untrusted(spoilt, 10, Counters())
        assert packet is None or not verify_untrusted(packet, Counters(), rx_checksum=True)


def test_what_is_not_ip_is_not_corrupted() -> None:
    left, right = memory.pair()
    link = ImpairLink(left, Impairment(corrupt=1.0), seed=1)
    arp = bytes(12) + b"\x08\x06" + bytes(46)
    runts = [b"", b"\x00", bytes(12), bytes(12) + b"\x81\x00", bytes(12) + b"\x08\x00"]
    link.send([(arp,), *((runt,) for runt in runts)], 0)
    assert right.recv(0) == [arp, *runts]
    assert link.counters.snapshot() == {}


def test_a_tagged_ip_packet_is_corrupted_behind_its_tags() -> None:
    left, right = memory.pair()
    link = ImpairLink(left, Impairment(corrupt=1.0), seed=1)
    frame = _WIRE.udp(1, 2, b"x")
    tagged = frame[:12] + b"\x88\xa8\0\x01\x81\0\0\x02" + frame[12:]
    link.send([(tagged,)] * 50, 0)
    for got in right.recv(0):
        assert got != tagged
        assert got[:22] == tagged[:22]


# -------------------------------------------------------------------------------------------------- large segments


def _large(payload: int, gso_size: int) -> tuple[bytes, bytes]:
    header = vnet.build(
        10,
        flags=vnet.F_NEEDS_CSUM,
        gso_type=vnet.GSO_TCPV4,
        hdr_len=54,
        gso_size=gso_size,
        csum_start=34,
        csum_offset=16,
    )
    frame = _WIRE.tcp(sport=1, dport=2, flags=ACK, seq=1000, payload=bytes(payload))
    return header, frame


def test_loss_counts_packets_of_the_wire_and_not_large_segments() -> None:
    left, right = memory.pair(OFFLOADED, queue_frames=10_000)
    link = ImpairLink(left, Impairment(loss=0.03), seed=1)
    for _ in range(40):
        assert link.send([_large(50 * 1000, 1000)], 0) == 1
    got = right.recv(0, 10_000)
    assert link.counters["impair.lost"] == 2000 - len(got)
    assert 30 <= link.counters["impair.lost"] <= 100
    assert {len(frame) for frame in got} == {10 + 54 + 1000}
    assert all(frame[:10] == bytes(10) for frame in got)


def test_received_large_segments_are_cut_up_and_handed_out_by_the_limit() -> None:
    left, right = memory.pair(OFFLOADED)
    link = ImpairLink(left, Impairment(delay=1), seed=1)
    right.send([_large(50 * 1000, 1000)], 0)
    link.recv(0)
    sizes = []
    for _ in range(10):
        got = link.recv(1, 8)
        assert len(got) <= 8
        sizes += [len(frame) for frame in got]
        if not got:
            break
        assert len(sizes) == 50 or link.next_timeout() == 1
    assert sizes == [10 + 54 + 1000] * 50


def test_a_header_that_contradicts_its_frame_is_dropped_and_counted() -> None:
    left, right = memory.pair(OFFLOADED)
    link = ImpairLink(left, Impairment(delay=1), seed=1)
    _, frame = _large(100, 0)
    for header in (
        vnet.build(10, gso_type=vnet.GSO_TCPV4, gso_size=0),
        vnet.build(10, gso_type=vnet.GSO_TCPV6, gso_size=10),
        vnet.build(10, gso_type=vnet.GSO_UDP_L4, gso_size=10),
        vnet.build(10, gso_type=77, gso_size=10),
        vnet.build(10, flags=vnet.F_NEEDS_CSUM, csum_start=65_535, csum_offset=65_535),
    ):
        right.send([(header, frame)], 0)
    right.send([(b"short",)], 0)
    link.recv(0)
    assert link.recv(1) == []
    assert link.counters.snapshot() == {"segment.bad_vnet_hdr": 6}


# -------------------------------------------------------------------------------------------------------------- life


def test_held_packets_arrive_before_the_end_is_reported() -> None:
    left, right = memory.pair(wakeup=True)
    link = ImpairLink(left, Impairment(delay=1000), seed=1)
    right.send(_datagrams(2), 0)
    link.recv(0)
    right.close()
    assert link.recv(1) == []
    assert link.fileno() == -1, "an ended descriptor stays readable and would spin the driver"
    assert _numbers(link.recv(1000)) == [0, 1]
    with pytest.raises(LinkClosed):
        link.recv(1001)
    link.close()


def test_closing_drops_what_is_held() -> None:
    left, right = memory.pair()
    link = ImpairLink(left, Impairment(delay=1000), seed=1)
    link.send(_datagrams(2), 0)
    link.close()
    assert link.next_timeout() is None
    with pytest.raises(LinkClosed):
        link.send(_datagrams(1), 2000)
    with pytest.raises(LinkClosed):
        right.recv(2000)


def test_info_is_that_of_the_wrapped_link() -> None:
    left, _ = memory.pair(LinkInfo(mtu=9000))
    assert ImpairLink(left, Impairment(loss=0.5), seed=1).info == LinkInfo(mtu=9000)


# ------------------------------------------------------------------------------------------------------------ parsing


def test_parse_reads_what_a_person_writes() -> None:
    text = "loss=3%,reorder=5%, duplicate=0.01,corrupt=0.5%,delay=10ms,jitter=250us,rate=10mbit,queue=50"
    assert Impairment.parse(text) == Impairment(
        loss=0.03, reorder=0.05, duplicate=0.01, corrupt=0.005, delay=10_000, jitter=250, rate=10_000_000, queue=50
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("delay=1.5s", 1_500_000), ("delay=0us", 0), ("delay=2MS", 2000)],
)
def test_parse_reads_times(text: str, expected: int) -> None:
    assert Impairment.parse(text).delay == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "luck=1%",
            "'luck=1%' is no impairment: write KEY=VALUE with one of loss, reorder, duplicate, corrupt, delay,",
        ),
        ("loss", "'loss' is no impairment"),
        ("", "'' is no impairment"),
        ("loss=1%,", "'' is no impairment"),
        ("loss=1%,loss=2%", "loss is given twice"),
        ("loss=300%", "loss=300% is out of range: it must be between 0% and 100%."),
        ("loss=1.5", "out of range"),
        ("loss=-1%", "write per cent"),
        ("loss=1ms", "write per cent"),
        ("loss=nan", "write per cent"),
        ("delay=10", "delay=10 cannot be read: write a number with us, ms, s, as in delay=10ms."),
        ("jitter=fast", "as in jitter=10ms"),
        ("rate=10mb", "write a number with bit, kbit, mbit, gbit, as in rate=10mbit."),
        ("queue=0", "write a number of packets"),
        ("queue=1.5", "write a number of packets"),
    ],
)
def test_parse_says_in_one_sentence_what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Impairment.parse(text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"loss": 1.5}, {"corrupt": -0.1}, {"delay": -1}, {"queue": 0}])
def test_numbers_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Impairment(**values)  # type: ignore[arg-type]
