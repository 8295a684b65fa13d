"""Initial sequence numbers and the choice of ports: RFC 6528 section 3, RFC 9293 section 3.4.1, RFC 6056."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pystack.clock import SECOND
from pystack.errors import UsageError
from pystack.tcp.isn import IsnGenerator
from tests.unit.tcp.pair import A_ADDR, B_ADDR, Pair

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


def test_isns_are_spread_evenly() -> None:
    generator = IsnGenerator(1)
    top_bits = [generator(key.to_bytes(12, "big"), 0)[0] >> 28 for key in range(1000)]
    assert max(top_bits.count(bits) for bits in range(16)) < 120


def test_the_seed_decides_all() -> None:
    assert IsnGenerator(-5)(KEY, 123) == IsnGenerator(-5)(KEY, 123)


def test_local_ports_are_ephemeral_and_different() -> None:
    pair = Pair()
    ports = [pair.connect(local_port=0).local_port for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(32_768 <= port < 61_000 for port in ports)


def test_no_port_left_is_an_error_that_says_so() -> None:
    pair = Pair()
    engine = pair.a.engine
    c = pair.connect()
    fixed = c.key[:8] + (80).to_bytes(2, "big")
    for port in range(32_768, 61_000):
        engine._connections[fixed + port.to_bytes(2, "big")] = c
    with pytest.raises(UsageError, match="No local port is free"):
        engine.connect((A_ADDR, 0), (B_ADDR, 80), 0)


def test_full_table_is_an_error_that_says_so() -> None:
    pair = Pair()
    pair.a.engine.max_connections = 1
    pair.connect()
    with pytest.raises(UsageError, match="connection table is full"):
        pair.connect(local_port=1)


def test_a_port_is_listened_on_once() -> None:
    pair = Pair()
    listener = pair.a.engine.listen(80)
    with pytest.raises(UsageError, match="Port 80 is being listened on already"):
        pair.a.engine.listen(80)
    pair.a.engine.listen(80, address=A_ADDR)
    listener.close()
    pair.a.engine.listen(80)
    pair.a.engine.listen_any(backlog=1)
    with pytest.raises(UsageError, match="catch-all"):
        pair.a.engine.listen_any(backlog=1)
