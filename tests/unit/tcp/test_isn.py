"""Initial sequence numbers and port choice: RFC 6528, RFC 6056."""

from __future__ import annotations

import pytest

from pystack.errors import UsageError
from pystack.tcp.isn import IsnGenerator
from tests.unit.tcp.pair import A_ADDR, B_ADDR, Pair

KEY = bytes(range(12))


def test_isn_of_one_four_tuple_rises_by_250_000_a_second() -> None:
    # MUST-8: a clock of 4 microseconds.
    generator = IsnGenerator(1)
    first, _ = generator(KEY, 0)
    for now in (4, 1_000_000, 3_600_000_000):
        assert (generator(KEY, now)[0] - first) & 0xFFFF_FFFF == (now // 4) & 0xFFFF_FFFF


def test_isns_of_two_four_tuples_and_of_two_seeds_have_nothing_to_do_with_each_other() -> None:
    # SHLD-1, MUST-9: a keyed hash of the four-tuple.
    generator = IsnGenerator(1)
    isns = {generator(key.to_bytes(12, "big"), 0)[0] for key in range(1000)}
    assert len(isns) == 1000
    top_bits = [isn >> 28 for isn in isns]
    assert max(top_bits.count(bits) for bits in range(16)) < 120
    assert len({IsnGenerator(seed)(KEY, 0) for seed in range(-50, 50)}) == 100


def test_timestamp_offset_is_the_connections_own_and_does_not_move() -> None:
    generator = IsnGenerator(1)
    assert generator(KEY, 0)[1] == generator(KEY, 10_000_000)[1]
    assert generator(KEY, 0)[1] != generator(KEY[::-1], 0)[1]


def test_the_seed_decides_all() -> None:
    assert IsnGenerator(5)(KEY, 123) == IsnGenerator(5)(KEY, 123)


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
