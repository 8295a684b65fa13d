"""A machine that was copied continues every connection exactly."""

from __future__ import annotations

import pytest

from colo.replica import Replica
from colo.service import WebService, body_bytes
from pystack.testing.world import World


def _machine(world: World, identity: int) -> Replica:
    host = world.host("10.0.0.2/24")
    return Replica(host.stack, WebService(host.stack), identity=identity)


@pytest.mark.parametrize("moment", [1, 5, 9, 14, 20, 31, 47])
def test_a_copy_made_at_any_moment_continues_the_download(moment: int) -> None:
    world = World(seed=moment)
    client = world.host("10.0.0.1/24")
    original = _machine(world, 1)
    copy = _machine(world, 2)
    copy.stack = original.stack  # replaced below; the host of the world is the original's
    server = world.hosts[1]
    world.hosts.pop()
    world.link(client, server)
    machine = original
    steps = 0

    def serve() -> None:
        nonlocal machine, steps
        steps += 1
        if steps == moment:
            copy.restore(original.snapshot())
            assert copy.stack is not original.stack
            machine = copy
            server.stack = copy.stack
        machine.service.step(machine.stack, machine.identity, world.now)
        world.after(100, serve)

    serve()
    talker = world.connect(client, server, 80, send=b"GET /same/200000 HTTP/1.1\r\n\r\n", shut="never")
    expected = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + body_bytes(b"200000", 0, 200_000)
    assert world.run(until=lambda: len(talker.received) >= len(expected), seconds=60)
    assert bytes(talker.received) == expected
    assert steps > moment
    assert machine is copy


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
