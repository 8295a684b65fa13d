"""Whatever is lost, however slowly either end reads, and whoever closes first: both streams arrive whole."""

from __future__ import annotations

from random import Random

import pytest

from pystack.frame import LinkInfo
from pystack.tcp.config import TcpConfig
from tests.unit.slirp.fake_host import FakeSocket, GuestSocket, Rig
from tests.unit.slirp.test_tcp import TSO

ROUNDS = 400


class Ends:
    """A flow's two ends, which send, read and close a little at a time."""

    def __init__(self, rig: Rig, random: Random) -> None:
        self.rig = rig
        self.random = random
        self.up = random.randbytes(random.randrange(300_000))
        self.down = random.randbytes(random.randrange(300_000))
        self.unsent_up, self.unsent_down = memoryview(self.up), memoryview(self.down)
        self.guest: GuestSocket = rig.connect()
        self.guest.reads = False
        self.host: FakeSocket | None = None

    def act(self, host: FakeSocket) -> None:
        random = self.random
        if random.random() < 0.5:
            wanted = self.unsent_up[: random.randrange(1, 60_000)]
            self.unsent_up = self.unsent_up[self.guest.conn.write(wanted) :]
        if not self.unsent_up:
            self.guest.conn.shutdown()
        if random.random() < 0.5:
            n = random.randrange(1, 60_000)
            if self.unsent_down:
                host.send(bytes(self.unsent_down[:n]))
                self.unsent_down = self.unsent_down[n:]
        if not self.unsent_down and not host.finished:
            host.finish()
        if random.random() < 0.5:
            self.guest.read(random.randrange(1, 100_000))
        if not host.ends and random.random() < 0.5:
            host.take(random.randrange(1, 100_000))


@pytest.mark.parametrize("info", [LinkInfo(), TSO], ids=["plain", "tso"])
@pytest.mark.parametrize("seed", range(25))
def test_both_streams_arrive_whole_over_a_link_that_loses(seed: int, info: LinkInfo) -> None:
    random = Random(seed)
    small = TcpConfig(receive_buffer=random.choice([8_000, 200_000]), send_buffer=random.choice([70_000, 300_000]))
    rig = Rig(info=info, tcp=small, guest_tcp=TcpConfig(receive_buffer=random.choice([8_000, 200_000])))
    rig.lost = lambda: random.random() < 0.03
    ends = Ends(rig, random)
    for _ in range(20):
        rig.run(1)
        if rig.sockets:
            break
    (host,) = rig.sockets
    host.room = 0
    for _ in range(ROUNDS):
        ends.act(host)
        rig.run(0.5)
        if host.ends and ends.guest.over:
            break
    ends.guest.read()
    assert host.got == ends.up
    assert ends.guest.got == ends.down
    assert host.ends == "closed"
    assert len(rig.gateway.tcp) == 0
