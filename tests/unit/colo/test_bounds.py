"""Whatever is sent, memory stays within its bound, the mode follows policy, nothing is lost, and all returns to normal.

In full size: the tables are the default ones, and a million means a million.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colo.checkpoint import State
from colo.clients import InProcessClient
from colo.compare import CompareConfig, Mode
from colo.policy import PolicyConfig
from colo.proxy import Proxy, ProxyConfig
from pystack.flow.rewriter import Rewriter
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, SYN
from tests.colo_guests import CLIENT, GUEST, Guest
from tests.sim.pair import Pair, PairScenario

SECOND = 1_000_000
MILLISECOND = 1000
SYNS = 1_000_000
HALF_OPEN = 100_000
TABLE = 65_536
FROM_CLIENT = Crafter(CLIENT, GUEST)
MEMORY = 320 << 20
"""Of a proxy all of whose tables are full: 2,900 bytes for each of 65,536 half-open connections in the tracker, the
rewriter and the comparator, and what stale timers and the allocator add to it."""
_SOURCE, _DESTINATION = 26, 30  # of an address in an untagged frame


def resident() -> int:
    """Bytes of memory that this process uses."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def addresses(count: int) -> Iterator[bytes]:
    return ((0x0B00_0000 + number).to_bytes(4, "big") for number in range(count))


def at(frame: bytes, place: int, address: bytes) -> bytes:
    """A frame with another address, and checksums that do not know of it; nobody here verifies them."""
    return frame[:place] + address + frame[place + 4 :]


class World:
    """A proxy, two guests with one connection that is open, and checkpoints that work unless ``stuck``."""

    def __init__(self, **config: Any) -> None:
        self.stuck = False
        self.now = 0
        self.out: list[bytes] = []
        self.p, self.s = Guest(iss=1000), Guest(iss=77_000, ident=99)
        self.client = InProcessClient(self._copy, duration=3 * MILLISECOND)
        self.proxy = Proxy(ProxyConfig(**config), self.client)
        self.sent = 0  # bytes of the open connection's stream
        self.proxy.from_client(FROM_CLIENT.tcp(sport=5000, dport=80, seq=6999, flags=SYN), 0)
        self.primary(self.p.syn_ack())
        self.secondary(self.s.syn_ack())
        self.proxy.from_client(FROM_CLIENT.tcp(sport=5000, dport=80, seq=7000, ack=1001, flags=ACK), 0)
        assert len(self.step()) == 1

    def _copy(self, _now: int) -> bool:
        if self.stuck:
            return False
        self.s.iss = self.p.iss
        return True

    def primary(self, *frames: bytes) -> None:
        for frame in frames:
            self.proxy.from_primary(frame, self.now)

    def secondary(self, *frames: bytes) -> None:
        for frame in frames:
            self.proxy.from_secondary(frame, self.now)

    def step(self, micros: int = 0) -> list[bytes]:
        """Let time go by, and take what comes out for the client."""
        self.now += micros
        self.proxy.tick(self.now)
        self.proxy.to_primary()
        self.proxy.to_secondary()
        out = self.proxy.to_client()
        self.out += out
        return out

    def data(self, length: int = 100, *, secondary: bool = True) -> bytes:
        """Both machines say the next bytes of the open connection, or the primary alone; returns the primary's."""
        payload = self.sent.to_bytes(4, "big") * (length // 4)
        frame = self.p.data(self.sent, payload)
        self.primary(frame)
        if secondary:
            self.secondary(self.s.data(self.sent, payload))
        self.sent += length
        return frame

    @property
    def mode(self) -> Mode:
        return self.proxy.comparator.mode

    def until(self, mode: Mode, seconds: int) -> None:
        for _ in range(seconds * 50):
            if self.mode is mode:
                return
            self.step(20 * MILLISECOND)
        raise AssertionError(f"{mode} not within {seconds} s: {self.proxy.counters.snapshot()}")

    def assert_normal(self) -> None:
        """Frames are compared, equal ones leave at once, and nothing is left of what was."""
        self.until(Mode.COMPARE, 400)
        while self.proxy.checkpoints.under_way or self.proxy.checkpoints.waiting:
            self.step(20 * MILLISECOND)
        self.step(20 * MILLISECOND)
        checkpoints = self.proxy.counters["checkpoint.begun"]
        for _ in range(20):
            frame = self.data()
            assert self.step(MILLISECOND) == [frame]
        self.step(10 * SECOND)
        assert self.proxy.counters["checkpoint.begun"] == checkpoints
        assert (self.proxy.comparator.held_bytes, self.proxy.comparator.held_frames) == (0, 0)
        assert self.proxy.checkpoints.state is State.RUNNING


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_million_spoofed_syns() -> None:
    """They fill the tables, so output is buffered; the open connection lives on, and memory is that of full tables."""
    world = World()
    syn = FROM_CLIENT.tcp(flags=SYN, sport=1, dport=80, options=tcp.build_options(mss=1460, window_scale=7))
    before = resident()
    grown: list[int] = []
    expected: list[bytes] = []
    for number, address in enumerate(addresses(SYNS)):
        world.proxy.from_client(at(syn, _SOURCE, address), world.now)
        if not number % 1000:
            expected.append(world.data())
            world.step(10 * MILLISECOND)
        if not number % 200_000:
            grown.append(resident() - before)
    proxy, rewriter = world.proxy, world.proxy.rewriter
    assert isinstance(rewriter, Rewriter)
    assert (len(proxy.tracker), len(rewriter)) == (TABLE, TABLE)
    assert rewriter.waiting_bytes <= rewriter.config.max_waiting_bytes
    assert resident() - before < MEMORY, grown
    assert resident() - before - grown[1] < MEMORY // 4, "it does not grow with what has come, but for noise"
    assert world.mode is Mode.PERIODIC
    assert proxy.counters["policy.to_periodic.table"] == 1
    world.step(SECOND)
    world.step(SECOND)
    assert world.out[1:] == expected, "every byte of the open connection, in order"
    world.step(500 * SECOND)  # they were half-open
    world.assert_normal()
    assert proxy.tracker.live == 1
    assert proxy.counters["policy.to_compare"] == 1


@pytest.mark.timeout(600)
def test_a_hundred_thousand_half_open_connections() -> None:
    """Both machines answer all of them: more than the comparator can follow, and every answer leaves, once."""
    world = World()
    syn = FROM_CLIENT.tcp(flags=SYN, sport=5000, dport=80, options=tcp.build_options(mss=1460, window_scale=7))
    one, other = world.p.syn_ack(), world.s.syn_ack()
    before = resident()
    for number, address in enumerate(addresses(HALF_OPEN)):
        world.proxy.from_client(at(syn, _SOURCE, address), world.now)
        world.primary(at(one, _DESTINATION, address))
        world.secondary(at(other, _DESTINATION, address))
        if not number % 100:
            world.step(5 * MILLISECOND)
    assert resident() - before < MEMORY
    assert world.proxy.comparator.flows <= TABLE
    assert isinstance(world.proxy.rewriter, Rewriter)
    assert (len(world.proxy.tracker), len(world.proxy.rewriter)) == (TABLE, TABLE)
    assert world.mode is Mode.PERIODIC
    assert world.proxy.counters["policy.to_periodic.table"] == 1
    world.step(SECOND)
    world.step(SECOND)
    answered = [frame[_DESTINATION : _DESTINATION + 4] for frame in world.out[1:]]
    assert len(answered) == HALF_OPEN
    assert set(answered) == set(addresses(HALF_OPEN))
    world.step(500 * SECOND)
    world.assert_normal()
    assert world.proxy.counters["policy.to_compare"] == 1


def test_a_secondary_that_never_answers() -> None:
    """Its silence is a difference that takes `compare_timeout` to see; what waits is bounded and leaves in order."""
    world = World(compare=CompareConfig(max_held_bytes=8 << 20))
    expected = []
    for _ in range(5000):
        expected.append(world.data(1000, secondary=False))
        world.step(2 * MILLISECOND)
        assert world.proxy.comparator.held_bytes <= 8 << 20
    world.step(5 * SECOND)
    world.step(SECOND)
    assert world.out[1:] == expected
    counters = world.proxy.counters
    assert counters["compare.difference.timeout"] + counters["compare.difference.queue_full"] > 0
    assert counters["compare.primary_dropped"] == 0
    assert (world.mode, counters["policy.to_periodic.differences"]) == (Mode.COMPARE, 0), "these are few checkpoints"
    world.assert_normal()


def test_a_secondary_that_never_answers_with_a_checkpoint_for_nearly_every_frame() -> None:
    """When a checkpoint is wanted all the time, output is buffered and leaves with periodic ones."""
    world = World(compare=CompareConfig(compare_timeout=20 * MILLISECOND, scan_cycle=10 * MILLISECOND))
    expected = []
    for _ in range(500):
        expected.append(world.data(secondary=False))
        world.step(10 * MILLISECOND)
    assert world.mode is Mode.PERIODIC
    assert world.proxy.counters["policy.to_periodic.differences"] == 1
    world.step(SECOND)
    world.step(SECOND)
    assert world.out[1:] == expected
    world.assert_normal()


def test_a_secondary_that_answers_first() -> None:
    """As much of it is kept as a queue holds; then only a checkpoint can tell, and nothing of the primary is lost."""
    world = World(compare=CompareConfig(max_queue_size=100))
    stream = [number.to_bytes(4, "big") * 250 for number in range(5000)]
    kept = 0
    for number, payload in enumerate(stream):
        world.secondary(world.s.data(number * 1000, payload))
        flow = next(iter(world.proxy.comparator._flows.active.values()))
        kept = max(kept, len(getattr(flow, "ahead", ())))
    assert kept == 101
    frames = [world.p.data(number * 1000, payload) for number, payload in enumerate(stream)]
    for frame in frames:
        world.primary(frame)
        world.step(MILLISECOND)
    world.step(5 * SECOND)
    world.step(SECOND)
    assert world.out[1:] == frames
    assert world.proxy.counters["compare.difference.secondary_queue_full"] == 1
    world.sent = len(stream) * 1000
    world.assert_normal()


def test_a_secondary_that_floods() -> None:
    """Other people's flows, bytes far from anywhere, datagrams and rubbish: half a million frames of it."""
    world = World()
    flood = Crafter(GUEST, CLIENT)
    datagram = flood.udp(53, 1000, bytes(100))
    segment = flood.tcp(sport=80, dport=1, seq=1, ack=1, flags=ACK, payload=b"x")
    before = resident()
    expected = []
    for number, address in enumerate(addresses(125_000)):
        world.secondary(
            at(datagram, _DESTINATION, address),
            at(segment, _DESTINATION, address),
            world.s.data(5 + 7 * number & 0xFFFF_FFFF, b"y"),
            segment[: number % 60],
        )
        if not number % 250:
            expected.append(world.data())
            world.step(5 * MILLISECOND)
            assert world.proxy.comparator.flows <= TABLE
    assert resident() - before < MEMORY
    assert world.mode is Mode.PERIODIC
    counters = world.proxy.counters
    assert counters["policy.to_periodic.table"] + counters["policy.to_periodic.differences"] >= 1
    world.step(SECOND)
    world.step(SECOND)
    assert world.out[1:] == expected, "every byte of the primary, in order, and not one of the flood"
    world.assert_normal()


@pytest.mark.parametrize("stands", [False, True])
def test_a_checkpoint_that_never_completes(stands: bool) -> None:
    """What is held is bounded, it is tried again and again, and when it works everything is as it was."""
    world = World(compare=CompareConfig(max_held_bytes=1 << 20), policy=PolicyConfig(hold=SECOND))
    world.stuck = True
    if stands:
        world.client.duration = 10_000 * SECOND  # it begins, and that is the last that is heard of it
    frames = [world.data(1000, secondary=False)]
    world.secondary(world.s.data(0, b"z" * 1000))
    for _ in range(30_000):
        frames.append(world.data(1000, secondary=False))
        assert world.step(2 * MILLISECOND) == []
        assert world.proxy.comparator.held_bytes <= (1 << 20) + 2000
    counters = world.proxy.counters
    assert counters["checkpoint.completed"] == 0
    if stands:  # nobody can tell what the secondary is now, so the boundary stands, and it is asked for again
        assert (counters["checkpoint.failed"], counters["checkpoint.timed_out"]) == (0, 5)
    else:
        assert counters["checkpoint.failed"] >= 10
    assert counters["compare.primary_dropped"] + counters["proxy.dropped"] > 20_000
    world.stuck = False
    world.client.duration = 3 * MILLISECOND
    world.client._at = None if stands else world.client._at  # whoever was stuck is restarted
    world.client._standing = False
    for _ in range(1000):
        world.step(20 * MILLISECOND)
    first = len(world.out) - 1
    assert first > 900, "what was held has left"
    assert world.out[1:] == frames[:first], "in order, from the beginning"
    # The client has acknowledged no more, so a TCP sends the rest again.
    for frame in frames[first:]:
        world.primary(frame)
        world.secondary(frame)
        world.step(MILLISECOND)
    world.step(5 * SECOND)
    world.step(SECOND)
    assert world.out[1:] == frames
    world.assert_normal()


@pytest.mark.parametrize("seed", range(4))
def test_a_client_loses_nothing_to_a_checkpoint_that_fails_for_long(seed: int) -> None:
    """With real TCPs: an answer that the two machines give differently waits for as long as it takes, and is whole."""
    scenario = replace(
        PairScenario.of(seed), kinds=("own",), sizes=((150_000,),), opens=(0,), close=(True,), again=(False,),
        dies=2, flip=0, reset=0, secondary_mss=0, unasked=(), failing=0.0, standstill=(0, 0, 0),
    )  # fmt: skip
    pair = Pair(scenario)
    copy = pair.checkpoint_client._inner._copy
    pair.checkpoint_client._inner._copy = lambda now: now > 20 * SECOND and copy(now)
    pair.run()
    pair.judge()
    assert pair.world.now > 20 * SECOND
    assert pair.proxy.counters["checkpoint.failed"] > 20
    assert not pair.left_over()
