"""A client's connection to two real stacks, which goes on at the secondary when the primary dies, wherever that is.

Between them stands the least of a proxy: the primary's frame leaves once the secondary has sent as much and
acknowledged as much; the secondary's leave only after the primary's death.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from random import Random

import pytest

from pystack.clock import MILLISECOND, Micros
from pystack.counters import Counters
from pystack.flow import translate
from pystack.flow.offsets import Offsets
from pystack.flow.rewriter import Rewriter
from pystack.frame import LinkInfo, TxFrame
from pystack.link import memory
from pystack.seq import le
from pystack.stack import Stack, StackConfig
from pystack.testing.world import Host, Talker, World
from pystack.wire.packet import ACK, FIN, PROTO_TCP, RST, SYN, Packet, parse_untrusted, verify_untrusted

PORT = 80
DOWN = bytes(range(256)) * 600
UP = bytes(reversed(range(256))) * 200


class Port:
    """A host's end of the proxy: what it sends is handed over, what it gets arrives after ``delay``."""

    def __init__(self, on_frame: Callable[[bytes], None]) -> None:
        self.info: LinkInfo = memory.ETHERNET
        self.delay: Micros = 0
        self.loss = 0.0
        self.random = Random(7)
        self.inbox: deque[tuple[Micros, bytes]] = deque()
        self.on_frame = on_frame

    def arrive(self, frame: bytes, now: Micros) -> None:
        if self.random.random() >= self.loss:
            self.inbox.append((now + self.delay, frame))

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        frames: list[bytes] = []
        while self.inbox and self.inbox[0][0] <= now and len(frames) < limit:
            frames.append(self.inbox.popleft()[1])
        return frames

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        for frame in frames:
            self.on_frame(b"".join(frame))
        return len(frames)

    def next_timeout(self) -> Micros | None:
        return self.inbox[0][0] if self.inbox else None

    def fileno(self) -> int:
        return -1

    def wants_write(self) -> bool:
        return False

    def close(self) -> None:
        self.inbox.clear()


@dataclass
class Pair:
    """A client, two machines with one address, and what stands between them.

    Args:
        lag: how much later the secondary gets what the client sent, with ``lag_at_first`` only until the handshake is
            over. loss: on the way to and from the client. alone: whether the rewriter does not see the primary.
    """

    seed: int
    lag: Micros = 0
    lag_at_first: bool = False
    loss: float = 0.0
    alone: bool = False
    rewriter: Rewriter = field(default_factory=Rewriter)

    def __post_init__(self) -> None:
        self.world = World(self.seed)
        self.ports = [Port(self.from_client), Port(self.from_primary), Port(self.from_secondary)]
        self.client, self.primary, self.secondary = (self.host(number, port) for number, port in enumerate(self.ports))
        self.ports[2].delay = self.lag
        self.held: deque[Packet] = deque()
        self.sent: int | None = None  # by the secondary, in the primary's numbers
        self.acked: int | None = None
        self.released = 0
        self.failed = False

    def host(self, number: int, port: Port) -> Host:
        mac, address = (b"\x02\0\0\0\0\x09", "10.0.0.9/24") if not number else (b"\x02\0\0\0\0\x01", "10.0.0.2/24")
        seed = self.world.random.getrandbits(128)
        stack = Stack(StackConfig(mac=mac, addresses=(IPv4Interface(address),)), port.info, seed=seed)
        host = Host(f"host {number}", stack, port.info, seed)
        host.link = port
        self.world.hosts.append(host)
        return host

    def from_client(self, frame: bytes) -> None:
        if self.ports[0].random.random() < self.loss:
            return
        now = self.world.now
        if not self.failed:
            self.ports[1].arrive(frame, now)
        packet = self.parsed(frame)
        translated = self.rewriter.to_secondary(packet, now)
        if translated is not None:
            self.ports[2].arrive(translated, now)
        self.drain()

    def from_primary(self, frame: bytes) -> None:
        if self.failed:
            return
        packet = self.parsed(frame)
        if not self.alone:
            self.rewriter.observe_primary(packet, self.world.now)
            self.drain()
        self.held.append(packet)
        self.release()

    def from_secondary(self, frame: bytes) -> None:
        packet = self.parsed(frame)
        seen = self.rewriter.from_secondary(packet, self.world.now)
        self.drain()
        packet = self.parsed(seen)
        if self.failed:
            self.ports[0].arrive(seen, self.world.now)
            return
        if packet.proto == PROTO_TCP and not packet.flags & RST:
            end = (packet.seq + packet.payload_len + bool(packet.flags & SYN) + bool(packet.flags & FIN)) & 0xFFFF_FFFF
            if self.alone and packet.flags & SYN:
                end = -1  # its number is not the primary's yet, and nothing but a SYN has been sent
            if self.sent is None or self.sent < 0 or le(self.sent, end):
                self.sent = end
            if self.acked is None or le(self.acked, packet.ack):
                self.acked = packet.ack
        self.release()

    def release(self) -> None:
        while self.held and self.covered(self.held[0]):
            self.ports[0].arrive(self.held.popleft().frame, self.world.now)
            self.released += 1
            if self.lag_at_first and self.released == 3:  # ARP, SYN-ACK, data
                self.ports[2].delay = 0

    def covered(self, packet: Packet) -> bool:
        if packet.proto != PROTO_TCP:
            return True
        if self.sent is None or self.acked is None:
            return False
        if self.sent < 0:
            return bool(packet.flags & SYN)
        end = (packet.seq + packet.payload_len + bool(packet.flags & SYN) + bool(packet.flags & FIN)) & 0xFFFF_FFFF
        return le(end, self.sent) and (not packet.flags & ACK or le(packet.ack, self.acked))

    def drain(self) -> None:
        for frame in self.rewriter.take_waiting():
            self.ports[2].arrive(frame, self.world.now)

    def kill_primary(self) -> None:
        self.failed = True
        self.held.clear()
        self.world.hosts.remove(self.primary)
        self.rewriter.failover(self.world.now)

    @staticmethod
    def parsed(frame: bytes) -> Packet:
        packet = parse_untrusted(frame, 0, Counters())
        assert packet is not None
        assert verify_untrusted(packet, Counters(), rx_checksum=False)
        return packet


def run(pair: Pair, *, by_guest: bool, kill_after: int, seconds: float = 60) -> tuple[Talker, Talker]:
    """A transfer both ways; the primary dies after ``kill_after`` frames. Returns the client's and secondary's ends."""
    world = pair.world
    if by_guest:
        server = world.serve(pair.client, PORT, send=UP)
        guests = [
            world.connect(host, pair.client, PORT, send=DOWN, local_port=40_000)
            for host in (pair.primary, pair.secondary)
        ]
        ends: Callable[[], list[Talker]] = lambda: [*server.talkers, guests[1]]  # noqa: E731
    else:
        servers = [world.serve(host, PORT, send=DOWN) for host in (pair.primary, pair.secondary)]
        talker = world.connect(pair.client, pair.primary, PORT, send=UP)
        ends = lambda: [talker, *servers[1].talkers]  # noqa: E731

    def done() -> bool:
        return len(ends()) == 2 and all(end.eof for end in ends())

    pair.ports[0].loss = pair.loss
    assert world.run(until=lambda: pair.released >= kill_after or done())
    pair.kill_primary()
    world.run(until=done, seconds=seconds)
    client_end, secondary_end = ends()
    return client_end, secondary_end


@pytest.mark.parametrize("by_guest", [False, True])
@pytest.mark.parametrize("lag", [0, 30 * MILLISECOND])
@pytest.mark.parametrize("kill_after", [3, 4, 5, 8, 20, 60, 100])
def test_a_connection_survives_the_primary_wherever_it_dies(kill_after: int, lag: Micros, by_guest: bool) -> None:
    pair = Pair(seed=kill_after, lag=lag)
    client, secondary = run(pair, by_guest=by_guest, kill_after=kill_after)
    assert client.received == DOWN
    assert secondary.received == UP
    assert client.connection.ts_ok
    assert pair.rewriter.counters["rewriter.learnt"] == 1
    assert pair.client.stack.counters["tcp.paws"] == 0
    assert pair.secondary.stack.counters["tcp.paws"] == 0


@pytest.mark.parametrize("seed", range(6))
def test_with_losses_that_make_the_client_send_sack_blocks(seed: int) -> None:
    pair = Pair(seed=seed, lag=MILLISECOND, loss=0.04)
    blocks = 0

    def look(_host: Host, frame: bytes) -> None:
        nonlocal blocks
        packet = Pair.parsed(frame)
        blocks += packet.proto == PROTO_TCP and packet.payload - packet.l4 > 32 and not packet.flags & SYN

    pair.secondary.observer = look
    client, secondary = run(pair, by_guest=bool(seed & 1), kill_after=10 + 15 * seed, seconds=300)
    assert client.received == DOWN
    assert secondary.received == UP
    assert blocks, "the secondary had a scoreboard to keep"


@pytest.mark.parametrize("kill_after", [4, 30, 90])
def test_as_a_drop_in_that_does_not_see_the_primary(kill_after: int) -> None:
    pair = Pair(seed=1, alone=True, lag=5 * MILLISECOND)
    client, secondary = run(pair, by_guest=False, kill_after=kill_after)
    assert client.received == DOWN
    assert secondary.received == UP


def test_without_its_timestamps_translated_the_survivor_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above are known to be about PAWS. The secondary's clock is behind by the luck of this seed."""
    original = translate.from_secondary

    def seq_only(packet: Packet, seq_offset: int, _ts_offset: int, counters: Counters) -> bytes:
        return original(packet, seq_offset, 0, counters)

    monkeypatch.setattr(translate, "from_secondary", seq_only)
    dropped = 0
    for seed in range(6):
        pair = Pair(seed=seed)
        client, _secondary = run(pair, by_guest=False, kill_after=40, seconds=5)
        dropped += pair.client.stack.counters["tcp.paws"] > 0
        assert (pair.client.stack.counters["tcp.paws"] > 0) == (client.received != DOWN)
    assert 0 < dropped < 6


def test_a_lagging_secondary_would_be_behind_if_its_clock_were_not_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*, lift: bool) -> Pair:
        pair = Pair(seed=2, lag=200 * MILLISECOND, lag_at_first=True)
        with monkeypatch.context() as patched:
            if not lift:
                patched.setattr(Offsets, "lift", lambda _flow, _tsval: False)
            client, _secondary = run(pair, by_guest=False, kill_after=20)
        assert client.received == DOWN
        return pair

    assert late(lift=False).client.stack.counters["tcp.paws"] > 0
    lifted = late(lift=True)
    assert lifted.client.stack.counters["tcp.paws"] == 0
    assert lifted.rewriter.counters["rewriter.clock_lifted"] == 1
