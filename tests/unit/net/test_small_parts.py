"""Addresses, buckets, ports, path MTUs, queues: the parts without a protocol."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

import pytest

from pystack.clock import SECOND
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.net import endpoint
from pystack.net.addressing import Addressing, is_multicast, is_unicast
from pystack.net.endpoint import Endpoint, Inbox, Signals
from pystack.net.fragmentation import fragments
from pystack.net.limits import TokenBucket
from pystack.net.pmtu import EXPIRY, FLOOR, PathMtus, next_mtu
from pystack.net.ports import FIRST, LAST, EphemeralPorts
from pystack.net.txqueue import TxQueue
from pystack.tcp import events
from pystack.testing.frames import packed


def addressing(*interfaces: str, gateway: str | None = None) -> Addressing:
    return Addressing([IPv4Interface(text) for text in interfaces], IPv4Address(gateway) if gateway else None)


@pytest.mark.parametrize(
    ("address", "unicast", "multicast"),
    [
        ("0.0.0.0", False, False),
        ("0.255.255.255", False, False),
        ("1.0.0.0", True, False),
        ("126.255.255.255", True, False),
        ("127.0.0.1", False, False),
        ("128.0.0.0", True, False),
        ("223.255.255.255", True, False),
        ("224.0.0.0", False, True),
        ("239.255.255.255", False, True),
        ("240.0.0.0", False, False),
        ("255.255.255.255", False, False),
    ],
)
def test_which_addresses_one_host_may_have(address: str, unicast: bool, multicast: bool) -> None:
    assert is_unicast(packed(address)) is unicast
    assert is_multicast(packed(address)) is multicast


def test_the_way_to_a_neighbour_a_stranger_and_nobody() -> None:
    here = addressing("10.0.0.1/24", "10.0.0.129/25", "192.0.2.6/30", gateway="10.0.0.9")
    assert here.next_hop(packed("10.0.0.5")) == packed("10.0.0.5")
    assert here.next_hop(packed("198.51.100.1")) == packed("10.0.0.9")
    assert here.source_address(packed("10.0.0.5")) == packed("10.0.0.1")
    assert here.source_address(packed("10.0.0.130")) == packed("10.0.0.129"), "the longest prefix counts"
    assert here.source_address(packed("198.51.100.1")) == packed("10.0.0.1")
    alone = addressing("10.0.0.1/24")
    assert alone.next_hop(packed("198.51.100.1")) is None
    assert alone.source_address(packed("198.51.100.1")) is None


def test_broadcasts_are_those_of_our_networks() -> None:
    here = addressing("10.0.0.1/24", "192.0.2.1/31", "198.51.100.1/32")
    assert here.is_broadcast(packed("255.255.255.255"))
    assert here.is_broadcast(packed("10.0.0.255"))
    assert not here.is_broadcast(packed("10.0.1.255"))
    # RFC 3021: both addresses of a /31 are hosts'.
    assert not here.is_broadcast(packed("192.0.2.1"))
    assert here.is_valid_peer(packed("192.0.2.0"))
    assert not here.is_valid_peer(packed("10.0.0.255"))


@pytest.mark.parametrize("wrong", ["0.0.0.1/8", "127.0.0.1/8", "224.0.0.1/4", "10.0.0.255/24", "255.255.255.255/32"])
def test_no_host_has_such_an_address(wrong: str) -> None:
    with pytest.raises(UsageError, match="cannot be a host's address"):
        addressing(wrong)


def test_the_gateway_is_a_neighbour() -> None:
    with pytest.raises(UsageError, match="on none of this stack's networks"):
        addressing("10.0.0.1/24", gateway="10.0.1.1")


def test_a_bucket_gives_a_burst_and_then_a_rate() -> None:
    bucket = TokenBucket(per_second=10, burst=3)
    assert [bucket.take(0) for _ in range(5)] == [True, True, True, False, False]
    assert not bucket.take(SECOND // 10 - 1)
    assert bucket.take(SECOND // 10)
    assert not bucket.take(SECOND // 10)
    assert sum(bucket.take(100 * SECOND) for _ in range(10)) == 3
    assert sum(bucket.take(100 * SECOND + at) for at in range(0, SECOND, 1000)) == 9


def test_time_that_stands_still_fills_no_bucket() -> None:
    bucket = TokenBucket(per_second=1, burst=1)
    assert bucket.take(5 * SECOND)
    assert not bucket.take(4 * SECOND)


def test_ephemeral_ports_are_free_ones_from_a_start_that_the_seed_decides() -> None:
    first, second = EphemeralPorts(1, "udp"), EphemeralPorts(1, "udp")
    picked = [first.pick(lambda _port: False) for _ in range(20)]
    assert picked == [second.pick(lambda _port: False) for _ in range(20)]
    assert len(set(picked)) > 15
    assert picked != [EphemeralPorts(2, "udp").pick(lambda _port: False) for _ in range(20)]
    assert first.pick(lambda port: port != LAST) == LAST
    assert first.pick(lambda port: port != FIRST) == FIRST
    assert first.pick(lambda _port: True) is None


def test_a_path_mtu_falls_and_is_forgotten() -> None:
    mtus = PathMtus(2)
    mtus.lower(b"a", 1400, 0)
    mtus.lower(b"a", 1450, 1)
    assert mtus.get(b"a", 2) == 1400
    mtus.lower(b"a", 100, 3)
    assert mtus.get(b"a", 4) == FLOOR
    assert mtus.get(b"a", 3 + EXPIRY) is None
    for number in range(10):
        mtus.lower(bytes((number,)), 1000, 0)
    assert len(mtus) == 2


@pytest.mark.parametrize(
    ("reported", "length", "expected"),
    [(1400, 1500, 1400), (0, 1500, 1492), (0, 1492, 1006), (0, 65_535, 32_000), (0, 60, 68)],
)
def test_a_router_that_does_not_say_makes_us_guess(reported: int, length: int, expected: int) -> None:
    assert next_mtu(reported, length) == expected


def test_a_link_too_small_for_any_fragment_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="no fragment fits in 7 bytes"):
        list(fragments(b"", b"x" * 100, 7))


def test_an_inbox_is_bounded_in_items_and_in_bytes() -> None:
    inbox: Inbox[bytes] = Inbox(len, max_items=3, max_bytes=10)
    assert [inbox.put(item) for item in (b"1234", b"5678", b"abc", b"x")] == [True, True, False, True]
    assert not inbox.put(b"")
    assert (len(inbox), inbox.held) == (3, 9)
    assert [inbox.take() for _ in range(4)] == [b"1234", b"5678", b"x", None]
    assert inbox.held == 0


def test_signals_come_once_each_with_all_their_flags() -> None:
    signals = Signals()
    one, two = Endpoint(), Endpoint()
    signals.signal(one, 1)
    signals.signal(two, 1)
    signals.signal(one, 4)
    assert signals.drain() == [(one, 5), (two, 1)]
    assert signals.drain() == []
    signals.signal(one, 2)
    assert signals.drain() == [(one, 2)]


def test_the_flag_of_datagrams_is_none_of_tcps() -> None:
    # The network layer does not import TCP, whose module lists all flags.
    assert endpoint.DATAGRAM == events.DATAGRAM


def test_a_full_queue_drops_the_new_frame_and_counts_it() -> None:
    counters = Counters()
    queue = TxQueue(counters, max_frames=2)
    assert [queue.put((bytes((number,)),)) for number in range(3)] == [True, True, False]
    out: list[tuple[bytes | bytearray | memoryview, ...]] = []
    queue.drain_into(out, 1)
    assert out == [(b"\0",)]
    queue.drain_into(out, 5)
    assert out == [(b"\0",), (b"\1",)]
    assert counters.snapshot() == {"stack.tx_queue_full": 1}
