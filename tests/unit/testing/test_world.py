"""The virtual world: time jumps, runs are bounded and repeatable, and what a test sees is what was on the wire."""

from __future__ import annotations

import pytest

from pystack.clock import SECOND
from pystack.link.impair import Impairment
from pystack.tcp.config import TcpConfig
from pystack.tcp.events import TcpError
from pystack.testing.world import Host, World
from pystack.wire.packet import SYN, parse_untrusted


def pair(world: World, impairment: Impairment | None = None) -> tuple[Host, Host]:
    alice, bob = world.host("10.0.0.1/24"), world.host("10.0.0.2/24")
    world.link(alice, bob, impairment)
    return alice, bob


def test_both_ends_get_what_the_other_sent() -> None:
    world = World(1)
    alice, bob = pair(world)
    server = world.serve(bob, 80, send=b"from the server" * 5000)
    client = world.connect(alice, bob, 80, send=b"from the client" * 7000)
    assert world.run(until=lambda: client.closed)
    (end,) = server.talkers
    assert end.received == client.sent
    assert client.received == end.sent
    assert client.connection.error is None


def test_a_delay_costs_virtual_time_only() -> None:
    world = World(1)
    alice, bob = pair(world, Impairment(delay=10 * SECOND))
    world.serve(bob, 80)
    client = world.connect(alice, bob, 80, config=TcpConfig(rto_initial=60 * SECOND))
    world.run(until=lambda: client.opened)
    # ARP there and back, SYN there, and the answer back.
    assert world.now == 40 * SECOND


def test_calls_happen_at_their_time_in_order() -> None:
    world = World(1)
    pair(world)
    happened: list[tuple[int, str]] = []
    world.after(5, lambda: happened.append((world.now, "later")))
    world.after(3, lambda: happened.append((world.now, "sooner")))
    world.after(5, lambda: happened.append((world.now, "last")))
    assert world.run()
    assert happened == [(3, "sooner"), (5, "later"), (5, "last")]
    assert world.quiet


def test_a_run_ends_at_its_bounds() -> None:
    world = World(1)
    alice, _bob = pair(world)

    def again() -> None:
        world.after(SECOND, again)

    again()
    assert not world.run(until=lambda: False, seconds=10)
    assert world.now == 10 * SECOND
    assert not world.run(seconds=1e9, max_steps=50)
    assert alice.stack.sizes()["connections"] == 0


def test_a_link_that_loses_everything_ends_in_a_timeout() -> None:
    world = World(1)
    alice, bob = pair(world, Impairment(loss=1.0))
    world.serve(bob, 80)
    client = world.connect(alice, bob, 80)
    assert world.run(until=lambda: client.closed)
    assert client.connection.error is TcpError.TIMED_OUT
    assert world.run()


def test_a_slow_reader_closes_the_window_and_gets_everything() -> None:
    world = World(1)
    alice, bob = pair(world)
    server = world.serve(bob, 80, limit=500, pause=50_000, config=TcpConfig(receive_buffer=4096))
    client = world.connect(alice, bob, 80, send=bytes(range(256)) * 200)
    assert world.run(until=lambda: bool(server.talkers) and server.talkers[0].closed)
    assert server.talkers[0].received == client.sent


def test_an_observer_sees_the_frames_that_arrive() -> None:
    world = World(1)
    alice, bob = pair(world)
    seen: list[int] = []

    def look(host: Host, frame: bytes) -> None:
        packet = parse_untrusted(frame, 0, host.stack.counters)
        assert packet is not None
        seen.append(packet.flags)

    bob.observer = look
    world.serve(bob, 80)
    client = world.connect(alice, bob, 80)
    world.run(until=lambda: client.opened)
    assert SYN in seen


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same_world(seed: int) -> None:
    def run() -> tuple[int, int, dict[str, int]]:
        world = World(seed)
        alice, bob = pair(world, Impairment(loss=0.1, delay=1000, jitter=500, reorder=0.1))
        world.serve(bob, 80)
        client = world.connect(alice, bob, 80, send=bytes(50_000))
        world.run(until=lambda: client.closed)
        return world.now, world.steps, alice.stack.counters.snapshot()

    assert run() == run()
