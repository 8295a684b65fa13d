"""Two engines joined by a wire that loses, repeats, delays and damages segments deliver every byte, for any seed.

(`tests/sim` does the same with whole stacks, for many more seeds.)
"""

from __future__ import annotations

import random

import pytest

from pystack.clock import Micros
from pystack.tcp.config import TcpConfig
from pystack.tcp.state import NAMES
from pystack.tcp.tcb import Connection
from pystack.wire.packet import Packet
from tests.tcp_rules import every_transition_is_allowed
from tests.unit.tcp.pair import OFFLOAD, PLAIN, Pair

SEEDS = range(200)


class Wire:
    """What becomes of each frame, decided by a seed. After ``patience`` frames the weather is fine."""

    def __init__(self, rng: random.Random, patience: int) -> None:
        self._rng = rng
        self._left = patience
        self._loss = rng.choice([0, 0.01, 0.05, 0.1])
        self._duplicate = rng.choice([0, 0.02, 0.1])
        self._reorder = rng.choice([0, 0.05, 0.3])
        self._damage = rng.choice([0, 0.02])

    def __call__(self, frame: bytes, packet: Packet) -> list[tuple[Micros, bytes]]:
        rng = self._rng
        self._left -= 1
        if self._left < 0:
            return [(0, frame)]
        if rng.random() < self._loss:
            return []
        if rng.random() < self._damage and not packet.vnet_flags:
            at = rng.randrange(packet.l3, packet.end)
            frame = frame[:at] + bytes([frame[at] ^ 1 << rng.randrange(8)]) + frame[at + 1 :]
        copies = [(rng.randrange(5000) if rng.random() < self._reorder else 0, frame)]
        if rng.random() < self._duplicate:
            copies.append((rng.randrange(10_000), frame))
        return copies


class Talker:
    """One end that writes ``data`` in pieces, reads at its own pace and closes when it is done."""

    def __init__(self, rng: random.Random, data: bytes) -> None:
        self.rng = rng
        self.data = data
        self.at = 0
        self.received = bytearray()
        self.lazy = rng.random() < 0.3
        self.closed = False

    def act(self, c: Connection) -> None:
        """One round of what an application does."""
        rng = self.rng
        while self.at < len(self.data):
            taken = c.write(self.data[self.at : self.at + rng.choice([1, 100, 1460, 30_000])])
            if not taken:
                break
            self.at += taken
        if self.at == len(self.data) and not self.closed:
            c.shutdown()
            self.closed = True
        if not self.lazy or rng.random() < 0.2:
            self.received += c.read(rng.choice([10, 1000, 100_000]))

    def done(self, c: Connection, expected: bytes) -> bool:
        """Whether everything was said and heard."""
        return self.closed and c.eof and len(self.received) == len(expected)


def _config(rng: random.Random) -> TcpConfig:
    return TcpConfig(
        sack=rng.random() < 0.7,
        timestamps=rng.random() < 0.6,
        window_scale=rng.random() < 0.7,
        nagle=rng.random() < 0.5,
        receive_buffer=rng.choice([1000, 5000, 65_536, 1 << 20]),
        send_buffer=rng.choice([3000, 1 << 20]),
        mss=rng.choice([0, 0, 100, 536]),
        delayed_ack=rng.choice([0, 5_000, 200_000]),
        keepalive=rng.choice([0, 0, 1_000_000]),
    )


@pytest.mark.parametrize("block", range(8))
def test_every_byte_arrives_in_order_for_any_seed(block: int) -> None:
    for seed in SEEDS[block::8]:
        _one_world(seed)


def _one_world(seed: int) -> None:
    rng = random.Random(seed)
    pair = Pair(
        link=rng.choice([PLAIN, PLAIN, OFFLOAD]),
        a=_config(rng),
        b=_config(rng),
        seed=seed,
        delay=rng.choice([50, 2000, 40_000]),
        mangle=Wire(rng, patience=1000),
    )
    uploads = rng.randbytes(rng.choice([0, 1, 5000, 60_000]))
    downloads = rng.randbytes(rng.choice([0, 1, 5000, 60_000]))
    a, b = Talker(rng, uploads), Talker(rng, downloads)
    listener = pair.b.engine.listen(80)
    ours = pair.connect()
    theirs: Connection | None = None
    for _ in range(20_000):
        pair.run(for_=rng.choice([100, 5000, 50_000]))
        theirs = theirs or listener.take()
        a.act(ours)
        if theirs is not None:
            b.act(theirs)
            if a.done(ours, downloads) and b.done(theirs, uploads):
                break
    else:
        raise AssertionError(f"seed {seed}: {ours} and {theirs} did not finish")
    assert bytes(b.received) == uploads, seed
    assert bytes(a.received) == downloads, seed
    pair.run(for_=200_000_000)
    assert len(pair.a.engine) == len(pair.b.engine) == 0, seed
    assert ours.error is None, seed
    assert pair.a.timers.next_timeout() is None, seed
    assert pair.b.timers.next_timeout() is None, seed


def test_the_worlds_cover_the_state_machine() -> None:
    with every_transition_is_allowed() as seen:
        for seed in range(12):
            _one_world(seed)
    names = {NAMES[new] for _, new in seen}
    assert names >= {"ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "LAST-ACK", "TIME-WAIT", "CLOSED"}
