"""A machine that was copied continues every connection exactly."""

from __future__ import annotations

import pytest

from colo.replica import Replica
from colo.service import WebService, body_bytes
from pystack import Stack
from pystack.testing.world import World


def _machine(world: World, identity: int) -> Replica:
    host = world.host("10.0.0.2/24")
    return Replica(host.stack, WebService(host.stack), identity=identity)


def _other() -> tuple[Stack, WebService]:
    """A machine that has lived otherwise."""
    host = World(seed=99).host("10.0.0.2/24")
    return host.stack, WebService(host.stack)


@pytest.mark.parametrize("moment", [1, 5, 9, 14, 20, 31, 47])
def test_a_copy_made_at_any_moment_continues_the_download(moment: int) -> None:
    world = World(seed=moment)
    client, server = world.host("10.0.0.1/24"), world.host("10.0.0.2/24")
    world.link(client, server)
    world.hosts.remove(server)  # the test steps it
    link = server.link
    assert link is not None
    machine = Replica(server.stack, WebService(server.stack), identity=1)
    talker = world.connect(client, server, 80, send=b"GET /same/200000 HTTP/1.1\r\n\r\n", shut="never")
    expected = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + body_bytes(b"200000", 0, 200_000)
    for step in range(2000):
        if step == moment:
            copy = Replica(*_other(), identity=2)
            copy.restore(machine.snapshot())
            assert copy.stack is not machine.stack
            machine = copy
        for frame in link.recv(world.now):
            machine.receive(frame, world.now)
        machine.tick(world.now)
        link.send(machine.frames(world.now), world.now)
        world.step()
        world.clock.advance(200)
        client.stack.tick(world.now)
    assert bytes(talker.received) == expected
    assert machine.identity == 2


def test_a_body_is_the_same_however_it_is_cut() -> None:
    whole = body_bytes(b"seed", 0, 1000)
    assert b"".join(body_bytes(b"seed", at, 7) for at in range(0, 994, 7)) == whole[:994]
    assert body_bytes(b"other", 0, 100) != whole[:100]


def test_a_machine_that_stands_still_neither_takes_nor_gives_a_frame() -> None:
    world = World(seed=1)
    machine = _machine(world, 1)
    machine.standing = True
    before = machine.stack.counters.snapshot()
    machine.receive(b"x" * 60, 0)
    assert machine.stack.counters.snapshot() == before
    assert machine.frames(0) == []
    assert machine.next_timeout() is None
