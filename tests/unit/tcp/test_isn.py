"""Initial sequence numbers: RFC 6528 section 3, RFC 9293 section 3.4.1."""

from __future__ import annotations

from itertools import pairwise

from pystack.clock import SECOND
from pystack.tcp.isn import IsnGenerator

KEY = bytes.fromhex("0a000264 0a000202 1234 0050")


def test_isn_rises_by_a_quarter_million_per_second_for_the_same_four_tuple() -> None:
    isn = IsnGenerator(1)
    first, _ = isn(KEY, 0)
    later, _ = isn(KEY, SECOND)
    assert (later - first) % 2**32 == 250_000


def test_isn_wraps_with_the_clock() -> None:
    isn = IsnGenerator(1)
    first, _ = isn(KEY, 0)
    around, _ = isn(KEY, 4 * 2**32)
    assert around == first


def test_isns_of_different_four_tuples_say_nothing_of_each_other() -> None:
    isn = IsnGenerator(1)
    ports = [isn(KEY[:8] + port.to_bytes(2, "big") + KEY[10:], 0)[0] for port in range(1, 257)]
    steps = {(b - a) % 2**32 for a, b in pairwise(ports)}
    assert len(set(ports)) == len(ports)
    assert len(steps) == len(ports) - 1


def test_isn_depends_on_a_secret_that_is_new_at_each_start() -> None:
    assert len({IsnGenerator(seed)(KEY, 0) for seed in range(100)}) == 100


def test_timestamp_offset_is_the_connections_own() -> None:
    isn = IsnGenerator(1)
    assert isn(KEY, 0)[1] != isn(KEY[:-1] + b"\x51", 0)[1]
    assert isn(KEY, 0)[1] == isn(KEY, SECOND)[1]
