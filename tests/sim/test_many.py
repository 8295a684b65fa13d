"""Many connections at once and one after the other: all of them served, none left over."""

from __future__ import annotations

from typing import Any

import pytest

from pystack.link.impair import Impairment
from pystack.tcp.config import TcpConfig
from pystack.testing.world import Host, World

ANSWER = b"0123456789abcdef" * 64


def hosts(impairment: Impairment | None = None, **config: Any) -> tuple[World, Host, Host]:
    world = World(seed=7)
    client, server = world.host("10.0.0.1/24"), world.host("10.0.0.2/24", **config)
    world.link(client, server, impairment)
    return world, client, server


@pytest.mark.parametrize(
    ("impairment", "backlog"),
    [
        (None, 128),  # the SYNs beyond it are dropped, and sent again
        (Impairment(loss=0.05, delay=2_000, reorder=0.05), 1000),
    ],
)
def test_a_thousand_connections_at_once_leave_nothing_behind(impairment: Impairment | None, backlog: int) -> None:
    world, client, server = hosts(impairment)
    service = world.serve(server, 80, send=ANSWER, shut="eof", backlog=backlog)
    talkers = [world.connect(client, server, 80, send=b"?" * number) for number in range(1000)]
    assert world.run(until=lambda: all(talker.closed for talker in talkers), max_steps=200_000)
    assert all(talker.received == ANSWER for talker in talkers)
    assert sorted(len(talker.received) for talker in service.talkers) == list(range(1000))
    assert world.run(seconds=1000)
    for host in (client, server):
        assert not any(host.stack.sizes().values()), host.stack.sizes()


def test_more_connections_than_the_table_holds_reuse_those_in_time_wait() -> None:
    world, client, server = hosts(max_connections=50)
    world.serve(server, 80, send=ANSWER)  # closes first, so that the server's end is the one that waits
    for _ in range(300):
        talker = world.connect(client, server, 80, shut="eof")
        assert world.run(until=lambda talker=talker: talker.closed)  # type: ignore[misc]
        assert talker.received == ANSWER
        assert server.stack.sizes()["connections"] <= 50
    assert server.stack.counters["tcp.time_wait_evicted"] > 0


def test_a_full_table_refuses_by_silence_and_serves_when_there_is_room() -> None:
    world, client, server = hosts(max_connections=10)
    service = world.serve(server, 80, send=ANSWER, shut="eof")
    waiting = [world.connect(client, server, 80, shut="never") for _ in range(10)]
    assert world.run(until=lambda: len(service.talkers) == 10)
    late = world.connect(client, server, 80, config=TcpConfig(rto_initial=100_000))
    world.run(until=lambda: late.opened, seconds=3)
    assert not late.opened
    assert server.stack.counters["tcp.table_full"] > 0
    waiting[0].connection.abort()
    assert world.run(until=lambda: late.closed)
    assert late.received == ANSWER
