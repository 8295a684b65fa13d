"""One simulated transfer: everything about it follows from its seed.

    scenario = Scenario.of(seed)        # what will happen, printable
    run(scenario)                       # raises Violation if a promise is broken

The promises: every byte arrives once and in order, in both directions; both ends close without an error; afterwards
every table is empty, no timer runs, and no counter speaks of a mistake of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

from pystack.clock import MILLISECOND, SECOND, Micros
from pystack.frame import LinkInfo
from pystack.link.impair import Impairment
from pystack.seq import MASK
from pystack.tcp.config import TcpConfig
from pystack.tcp.isn import IsnGenerator
from pystack.testing.world import Host, Server, Talker, World

PORT = 80

# What must not move: our own mistakes. What the link does (corruption, loss) moves others.
OUR_MISTAKES = ("stack.tx_queue_full", "arp.table_full", "tcp.table_full", "tcp.listen_overflow", "ipv4.not_ours")

_MAX_STEPS = 400_000


class Violation(AssertionError):
    """A promise was broken."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """What happens in one run. Sizes in bytes, times in microseconds, probabilities in [0, 1]."""

    seed: int
    mtu: int
    offload: bool
    loss: float
    duplicate: float
    reorder: float
    corrupt: float
    delay: Micros
    jitter: Micros
    rate: int
    queue_frames: int
    up: int
    down: int
    client_buffer: int
    server_buffer: int
    sack: bool
    timestamps: bool
    window_scale: bool
    nagle: bool
    client_shut: str
    server_shut: str
    slow_reader: int
    pause: Micros
    connections: int
    near_wrap: bool

    @classmethod
    def of(cls, seed: int) -> Scenario:
        """The scenario of ``seed``."""
        random = Random(seed)

        def some(probability: float, value: float) -> float:
            """``value`` at most, often nothing."""
            return round(random.random() * value, 4) if random.random() < probability else 0.0

        def size() -> int:
            return random.choice((0, 1, random.randrange(2000), *(random.randrange(200_000) for _ in range(3))))

        def buffer() -> int:
            return random.choice((2048, 4096, 16_384, 65_535, 1 << 20))

        mtu = random.choice((296, 576, 1006, 1500, 1500, 1500, 9000))
        up, down = size(), size()
        client_shut, server_shut = random.choice((("sent", "sent"), ("sent", "eof"), ("eof", "sent")))
        return cls(
            seed=seed,
            mtu=mtu,
            offload=random.random() < 0.4,
            loss=some(0.6, 0.2),
            duplicate=some(0.3, 0.1),
            reorder=some(0.4, 0.2),
            corrupt=some(0.3, 0.05),
            delay=random.choice((0, 100, 5 * MILLISECOND, 80 * MILLISECOND)),
            jitter=random.choice((0, 0, 1 * MILLISECOND, 20 * MILLISECOND)),
            rate=random.choice((0, 0, 0, 1_000_000, 50_000_000)),
            queue_frames=random.choice((8, 64, 1000)),
            up=up,
            down=down,
            client_buffer=buffer(),
            server_buffer=buffer(),
            sack=random.random() < 0.8,
            timestamps=random.random() < 0.8,
            window_scale=random.random() < 0.8,
            nagle=random.random() < 0.8,
            client_shut=client_shut,
            server_shut=server_shut,
            slow_reader=random.choice((0, 0, 0, 700, 5000)),
            pause=random.choice((1, 50)) * MILLISECOND,
            connections=random.choice((1, 1, 1, 4)),
            near_wrap=random.random() < 0.5,
        )

    def __str__(self) -> str:
        return ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))


def run(scenario: Scenario) -> World:
    """Run ``scenario`` to its end; returns the world as it is then.

    Raises:
        Violation: a promise was broken; it says which one.
    """
    world = World(scenario.seed)
    client, server = _hosts(world, scenario)
    world.clock.jump_to(_start(scenario, client, server))
    random = Random(scenario.seed ^ 0x5EED)
    up = [random.randbytes(scenario.up) for _ in range(scenario.connections)]
    down = random.randbytes(scenario.down)
    slow: dict[str, Any] = {"limit": scenario.slow_reader or None, "pause": scenario.pause}
    service = world.serve(server, PORT, send=down, shut=scenario.server_shut, **slow)
    talkers = [
        world.connect(client, server, PORT, send=data, local_port=40_000 + number, shut=scenario.client_shut, **slow)
        for number, data in enumerate(up)
    ]

    def over() -> bool:
        ends = [*talkers, *service.talkers]
        return len(ends) == 2 * len(talkers) and all(talker.closed for talker in ends)

    if not world.run(until=over, seconds=1_000_000, max_steps=_MAX_STEPS):
        raise Violation(f"it does not end: {_states(talkers, service)} after {world.now / SECOND:.0f} s")
    _check_bytes(talkers, service, down)
    # TIME-WAIT, then the neighbours' entries: after that there is nothing left to do.
    if not world.run(seconds=1000, max_steps=_MAX_STEPS):
        raise Violation("a timer runs for ever")
    for host in (client, server):
        _check_empty(host)
    return world


def _hosts(world: World, scenario: Scenario) -> tuple[Host, Host]:
    info = LinkInfo(mtu=scenario.mtu)
    if scenario.offload:
        info = LinkInfo(
            mtu=scenario.mtu, vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True, gso_max_bytes=65_535
        )
    # "Any seed" includes those that lose every copy of a segment for minutes: nobody gives up here, and TIME-WAIT
    # outlives a few dozen retransmissions of the peer's last segment.
    common = TcpConfig(
        sack=scenario.sack,
        timestamps=scenario.timestamps,
        window_scale=scenario.window_scale,
        nagle=scenario.nagle,
        syn_timeout=10_000 * SECOND,
        data_timeout=10_000 * SECOND,
        rto_max=10 * SECOND,
        time_wait=240 * SECOND,
    )
    hosts = [
        world.host(address, info=info, tcp=replace(common, receive_buffer=size, send_buffer=max(size, 4096)))
        for address, size in (("10.0.0.1/24", scenario.client_buffer), ("10.0.0.2/24", scenario.server_buffer))
    ]
    impairment = Impairment(
        loss=scenario.loss,
        duplicate=scenario.duplicate,
        reorder=scenario.reorder,
        corrupt=scenario.corrupt,
        delay=scenario.delay,
        jitter=scenario.jitter,
        rate=scenario.rate,
        queue=scenario.queue_frames,
    )
    world.link(hosts[0], hosts[1], impairment, queue_frames=scenario.queue_frames)
    return hosts[0], hosts[1]


def _start(scenario: Scenario, client: Host, server: Host) -> Micros:
    """When to begin so that, if asked for, an initial sequence number is so close to 2**32 that the stream wraps."""
    if not scenario.near_wrap:
        return 0
    host, other, ports = client, server, (PORT, 40_000)
    room = scenario.up
    if scenario.seed & 1:
        host, other, ports, room = server, client, (40_000, PORT), scenario.down
    key = other.address + host.address + ports[0].to_bytes(2, "big") + ports[1].to_bytes(2, "big")
    at_zero, _ = IsnGenerator(host.seed)(key, 0)
    wanted = -(room // 2 + 1)
    return 4 * ((wanted - at_zero) & MASK)


def _states(talkers: list[Talker], service: Server) -> str:
    return ", ".join(
        f"{talker.connection.state_name} {len(talker.received)} in {talker.connection.unsent_or_unacked} out"
        for talker in [*talkers, *service.talkers]
    )


def _check_bytes(talkers: list[Talker], service: Server, down: bytes) -> None:
    by_port = {talker.connection.remote_port: talker for talker in service.talkers}
    for talker in talkers:
        peer = by_port[talker.connection.local_port]
        for end, sent in ((peer, talker.sent), (talker, down)):
            if end.received != sent:
                raise Violation(f"{len(sent)} bytes were sent, {len(end.received)} arrived: {_difference(sent, end)}")
            if end.connection.error is not None:
                raise Violation(f"a connection ended with {end.connection.error}")
            if not end.eof:
                raise Violation("a connection ended without the peer's FIN")


def _difference(sent: bytes, end: Talker) -> str:
    at = next((at for at, (a, b) in enumerate(zip(sent, end.received, strict=False)) if a != b), None)
    return "the rest is missing" if at is None else f"they differ from byte {at} on"


def _check_empty(host: Host) -> None:
    sizes = {name: size for name, size in host.stack.sizes().items() if size}
    if sizes:
        raise Violation(f"{host.name} still holds {sizes}")
    for name in OUR_MISTAKES:
        if host.stack.counters[name]:
            raise Violation(f"{host.name} counts {name} = {host.stack.counters[name]}")
