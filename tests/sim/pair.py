"""One simulated pair: a client, two replicas, the proxy and checkpoints, all from one seed.

    scenario = PairScenario.of(seed)
    run(scenario)                           # raises Violation if a promise is broken

The promises: output commit, checked on every frame that leaves by an `Auditor` that knows nothing of how the comparator
works; and the service that the client sees: every connection is answered exactly, is never reset, and does not stand
still, whoever dies, and when.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from ipaddress import IPv4Interface
from random import Random
from typing import Final

from colo.checkpoint import CheckpointConfig
from colo.clients import InProcessClient
from colo.compare import CompareConfig
from colo.proxy import Proxy, ProxyConfig, Role
from colo.replica import Replica
from colo.service import ECHO_PORT, FLAT, FLAWED, HTTP_PORT, WebService, body_bytes
from pystack.clock import MILLISECOND, SECOND, Micros
from pystack.frame import LinkInfo, TxFrame
from pystack.link import memory
from pystack.link.impair import ImpairLink, Impairment
from pystack.link.memory import MemoryLink
from pystack.stack import Stack, StackConfig
from pystack.tcp.config import TcpConfig
from pystack.testing.world import Talker, World
from tests.sim.auditor import Auditor
from tests.sim.scenario import Violation

_GUEST: Final = "10.0.0.2/24"
_GUEST_MAC: Final = bytes.fromhex("525400123456")
_SECONDS: Final = 240
_MAX_STEPS: Final = 60_000
_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class PairScenario:
    """What happens. Times in microseconds, probabilities in [0, 1]; instants of 0 mean never."""

    seed: int
    mtu: int
    loss: tuple[float, float, float]  # client, primary, secondary link
    reorder: tuple[float, float, float]
    duplicate: tuple[float, float, float]
    delay: tuple[Micros, Micros, Micros]
    nagle: tuple[bool, bool]
    delayed_ack: tuple[Micros, Micros]
    send_buffer: tuple[int, int]
    receive_buffer: int
    timestamps: bool
    sack: bool
    secondary_mss: int
    sizes: tuple[tuple[int, ...], ...]  # answers, by connection
    kinds: tuple[str, ...]  # what is asked for, see `colo.service.WebService`; "echo" is sent and comes back
    close: tuple[bool, ...]  # whether the client closes at the end, by connection
    pause: Micros  # until both stand still
    duration: Micros
    failing: float
    standstill: tuple[int, Micros, Micros]  # of a machine (0 or 1), at, for
    dies: int  # 0 the primary, 1 the secondary, 2 nobody
    dies_at: Micros
    noticed_after: Micros
    flip: Micros  # when the primary starts to repeat other bytes than it had sent: a broken machine
    reset: Micros  # when one machine resets a connection by itself
    reset_by: int

    @classmethod
    def of(cls, seed: int) -> PairScenario:
        """The scenario of ``seed``."""
        random = Random(seed)

        def three(probability: float, most: float) -> tuple[float, float, float]:
            values = [random.random() * most if random.random() < probability else 0.0 for _ in range(3)]
            return values[0], values[1], values[2]

        count = random.choice((1, 1, 2, 3))
        bad = random.random() < 0.1
        loss = three(0.4, 0.05)
        if random.random() < 0.1:
            loss = (loss[0], loss[1], 0.2)  # gaps in what the secondary says
        return cls(
            seed=seed,
            mtu=random.choice((576, 1500)),
            loss=loss,
            reorder=three(0.3, 0.05),
            duplicate=three(0.2, 0.05),
            delay=(random.randrange(3000), random.randrange(2000), random.randrange(2000)),
            nagle=(random.random() < 0.5, random.random() < 0.5),
            delayed_ack=(random.choice((0, 5000, 40_000)), random.choice((0, 5000, 40_000))),
            send_buffer=(random.choice((2048, 8192, 1 << 20)), random.choice((2048, 8192, 1 << 20))),
            receive_buffer=random.choice((4096, 65_535)),
            timestamps=random.random() < 0.7,
            sack=random.random() < 0.7,
            secondary_mss=random.choice((0,) * 12 + (400,)),
            sizes=tuple(
                tuple(
                    random.choice((0, 1, random.randrange(3000), random.randrange(30_000), random.randrange(90_000)))
                    for _ in range(random.choice((1, 2)))
                )
                for _ in range(count)
            ),
            kinds=tuple(random.choice(("same", "same", "own", "flat", "part", "echo")) for _ in range(count)),
            close=tuple(random.random() < 0.5 for _ in range(count)),
            pause=random.choice((0, 0, random.randrange(3000))),
            duration=random.choice((0, 1000, random.randrange(20_000))),
            failing=random.choice((0.0, 0.0, 0.5)),
            standstill=(
                random.randrange(2),
                random.choice((0, random.randrange(1, 200_000))),
                random.randrange(100_000),
            ),
            dies=random.choice((0, 0, 1, 2)),
            dies_at=random.randrange(1, random.choice((5_000, 25_000, 100_000, 400_000))),
            noticed_after=random.choice((0, random.randrange(30_000))),
            flip=random.randrange(1, 50_000) if bad and random.random() < 0.5 else 0,
            reset=random.randrange(1, 50_000) if bad else 0,
            reset_by=random.randrange(2),
        )

    def __str__(self) -> str:
        return ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))


class _Machine:
    """A replica and its end of a link."""

    def __init__(self, replica: Replica, link: MemoryLink) -> None:
        self.replica = replica
        self.link = link
        self.unsent: list[TxFrame] = []
        self.alive = True

    def step(self, now: Micros, sent: Auditor | None, number: int) -> bool:
        replica = self.replica
        if not self.alive or replica.standing:
            return False
        received = self.link.recv(now, _BATCH)
        for frame in received:
            replica.receive(frame, now)
        due = replica.next_timeout()
        if due is not None and due <= now:
            replica.tick(now)
        replica.service.step(replica.stack, replica.identity, now)
        self.unsent += replica.frames(now, _BATCH)
        frames = [(b"".join(frame),) for frame in self.unsent]
        accepted = self.link.send(frames, now)
        if sent is not None:
            for (frame,) in frames[:accepted]:
                sent.said(number, bytes(frame))
        del self.unsent[:accepted]
        return bool(received or accepted)

    def next_timeout(self) -> Micros | None:
        return self.replica.next_timeout() if self.alive else None


class Pair:
    """The whole world of one scenario."""

    def __init__(self, scenario: PairScenario) -> None:
        self.scenario = scenario
        self.random = Random(scenario.seed ^ 0x5EED)
        self.info = LinkInfo(mtu=scenario.mtu)
        self.world = World(scenario.seed)
        tcp = TcpConfig(timestamps=scenario.timestamps, sack=scenario.sack, rto_max=2 * SECOND)
        self.client = self.world.host("10.0.0.1/24", info=self.info, tcp=tcp)
        near, self.client.link = memory.pair(self.info)
        self.client_link = self._impaired(near, 0)
        self.machines = [self._machine(0), self._machine(1)]
        self.auditor = Auditor()
        self.checkpoint_client = InProcessClient(
            self._copy, pause=self._pause, resume=self._resume, pause_after=scenario.pause, duration=scenario.duration
        )
        compare = CompareConfig(compare_timeout=300 * MILLISECOND, scan_cycle=100 * MILLISECOND)
        checkpoint = CheckpointConfig(retry_after=5 * MILLISECOND, retry_max=50 * MILLISECOND)
        self.proxy = Proxy(ProxyConfig(compare=compare, checkpoint=checkpoint), self.checkpoint_client)
        self.proxy.drain = self._drain
        self.unsent: list[list[TxFrame]] = [[], [], []]
        self.talkers = [self._talk(index) for index in range(len(scenario.sizes))]
        self._plan()

    # ------------------------------------------------------------------------------------------------------ building

    def _impaired(self, link: MemoryLink, index: int) -> ImpairLink:
        scenario = self.scenario
        impairment = Impairment(
            loss=scenario.loss[index],
            reorder=scenario.reorder[index],
            duplicate=scenario.duplicate[index],
            delay=scenario.delay[index],
        )
        return ImpairLink(link, impairment, seed=self.random.getrandbits(64))

    def _machine(self, number: int) -> _Machine:
        scenario = self.scenario
        tcp = TcpConfig(
            timestamps=scenario.timestamps,
            sack=scenario.sack,
            nagle=scenario.nagle[number],
            delayed_ack=scenario.delayed_ack[number],
            send_buffer=scenario.send_buffer[number],
            receive_buffer=scenario.receive_buffer,
            mss=scenario.secondary_mss if number else 0,
            rto_max=2 * SECOND,
        )
        stack = Stack(
            StackConfig(mac=_GUEST_MAC, addresses=(IPv4Interface(_GUEST),), tcp=tcp),
            self.info,
            seed=self.random.getrandbits(128),
        )
        far, near = memory.pair(self.info)
        machine = _Machine(Replica(stack, WebService(stack), identity=number + 1), near)
        setattr(self, "primary_link" if not number else "secondary_link", self._impaired(far, number + 1))
        return machine

    primary_link: ImpairLink
    secondary_link: ImpairLink

    def _talk(self, index: int) -> Talker:
        kind = self.scenario.kinds[index]
        port = ECHO_PORT if kind == "echo" else HTTP_PORT
        request = b"".join(b"GET /%s/%d HTTP/1.1\r\n\r\n" % (kind.encode(), size) for size in self._asked(index))
        if kind == "echo":
            request = expected(kind, self.scenario.sizes[index])[0]
        shut = "sent" if self.scenario.close[index] else "never"
        connection = self.client.stack.connect((IPv4Interface(_GUEST).ip.packed, port), self.world.now)
        return Talker(self.world, connection, request, shut=shut)

    def _asked(self, index: int) -> tuple[int, ...]:
        return asked(self.scenario.kinds[index], self.scenario.sizes[index])

    def _plan(self) -> None:
        scenario = self.scenario
        number, at, how_long = scenario.standstill
        if at:
            self.world.at(at, lambda: self._stand(number, how_long))
        if scenario.dies < 2:
            self.world.at(scenario.dies_at, self._die)
        if scenario.flip:
            self.world.at(scenario.flip, lambda: setattr(self, "flipping", True))
        if scenario.reset:
            self.world.at(scenario.reset, self._reset)

    flipping = False

    # ------------------------------------------------------------------------------------------------------ happenings

    def _stand(self, number: int, how_long: Micros) -> None:
        replica = self.machines[number].replica
        if not replica.standing:
            replica.standing = True
            self.world.after(how_long, lambda: setattr(replica, "standing", self._paused))

    _paused = False

    def _pause(self, _now: Micros) -> None:
        self._paused = True
        for machine in self.machines:
            machine.replica.standing = True

    def _resume(self, _now: Micros) -> None:
        self._paused = False
        for machine in self.machines:
            machine.replica.standing = False

    def _copy(self, _now: Micros) -> bool:
        primary, secondary = self.machines
        if not primary.alive or not secondary.alive or self.random.random() < self.scenario.failing:
            return False
        secondary.replica.restore(primary.replica.snapshot())
        secondary.unsent = list(primary.unsent)
        self.auditor.copied()
        return True

    def _die(self) -> None:
        self.machines[self.scenario.dies].alive = False
        self.world.after(self.scenario.noticed_after, self._notice)

    def _notice(self) -> None:
        now = self.world.now
        if self.scenario.dies == 0:
            self.proxy.primary_failed(now)
        else:
            self.proxy.secondary_failed(now)
        self._resume(now)

    def _reset(self) -> None:
        """One machine resets a connection by itself: the other does not."""
        machine = self.machines[self.scenario.reset_by]
        for connection in machine.replica.stack._connections.values():  # a fault of the machine, from inside
            connection.abort()
            return

    # ------------------------------------------------------------------------------------------------------ the loop

    def _feed(self, link: ImpairLink, number: int, now: Micros, until: Micros | None = None) -> bool:
        feed = (self.proxy.from_client, self.proxy.from_primary, self.proxy.from_secondary)[number]
        frames = link.recv(now if until is None else until, _BATCH)
        for frame in frames:
            if number == 1 and self.flipping:
                frame = self.auditor.flipped(frame)
            feed(frame, now)
        return bool(frames)

    def _drain(self, now: Micros) -> None:
        """Everything that was sent before the pause, what is under way included: as a marker behind it would tell."""
        for number, link in ((1, self.primary_link), (2, self.secondary_link)):
            while self._feed(link, number, now, now + SECOND):
                pass

    def _proxy_step(self, now: Micros) -> bool:
        proxy = self.proxy
        links = (self.client_link, self.primary_link, self.secondary_link)
        dues = [link.next_timeout() for link in links]
        moved = any(due is not None and due <= now for due in dues)  # what a link lets go is somebody's to take
        for number, link in enumerate(links):
            moved |= self._feed(link, number, now)
        proxy.tick(now)
        alone = proxy.role is Role.PRIMARY_ALONE
        to_client = proxy.to_client()
        for frame in to_client:
            if not alone:
                # What a broken machine repeats is noticed as long as what it repeats is remembered, and counted after
                # that.
                forgotten = self.flipping and proxy.counters["compare.retransmission_unverified"] > 0
                self.auditor.check(frame, payload=not forgotten)
        for queue, frames in zip(self.unsent, (to_client, proxy.to_primary(), proxy.to_secondary()), strict=True):
            queue += [(frame,) for frame in frames]
        for number, (queue, link) in enumerate(zip(self.unsent, links, strict=True)):
            if number and not self.machines[number - 1].alive:
                queue.clear()
            accepted = link.send(queue, now)
            del queue[:accepted]
            moved |= bool(accepted)
        return moved

    def step(self) -> bool:
        """Everything that can happen now, once."""
        now = self.world.now
        moved = self.world.step()
        for number, machine in enumerate(self.machines):
            moved |= machine.step(now, self.auditor, number)
        return self._proxy_step(now) or moved

    def next_instant(self) -> Micros | None:
        """When something happens by itself."""
        instants = [self.world.next_instant(), self.proxy.next_timeout()]
        instants += [machine.next_timeout() for machine in self.machines]
        instants += [link.next_timeout() for link in (self.client_link, self.primary_link, self.secondary_link)]
        return min((instant for instant in instants if instant is not None), default=None)

    @property
    def done(self) -> bool:
        """Whether every connection has got its whole answer, and has closed if it was to."""
        return all(self._is_done(index) for index in range(len(self.talkers)))

    def _is_done(self, index: int) -> bool:
        talker = self.talkers[index]
        whole = len(talker.received) >= len(expected(self.scenario.kinds[index], self.scenario.sizes[index])[0])
        return talker.closed or (whole and (talker.eof or not self.scenario.close[index]))

    def run(self) -> None:
        """Until all is done.

        Raises:
            Violation: it does not come to an end.
        """
        end = self.world.now + _SECONDS * SECOND
        for _ in range(_MAX_STEPS):
            if self.step():
                if self.done:
                    return
                continue
            if self.done:
                return
            instant = self.next_instant()
            if instant is None or instant > end:
                break
            self.world.clock.jump_to(instant)
            self.client.stack.tick(self.world.now)
        if self.scenario.flip or self.scenario.reset:
            return  # what a broken machine owes its client cannot be told
        stuck = [index for index in range(len(self.talkers)) if not self._is_done(index)]
        raise Violation(
            f"connections {stuck} stand still at {self.world.now} us: {self.proxy.role}, {self.proxy.differences}"
        )


def asked(kind: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes that are asked for: nothing comes after an answer that ends the connection."""
    return sizes[:1] if kind == "part" else sizes


@cache
def expected(kind: str, sizes: tuple[int, ...]) -> tuple[bytes, ...]:
    """Everything that a client may receive on one connection: one of these, whole.

    For answers that differ only their form is given, with a body of zeros.
    """
    if kind == "echo":
        return (body_bytes(b"echo", 0, sum(sizes)),)
    bodies = {"same": (b"",), "part": (b"",), "flat": (FLAT, FLAWED), "own": (b"",)}[kind]
    choices = [b""]
    for size in asked(kind, sizes):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        own = [bytes(size)] if kind == "own" else [body_bytes(seed or b"%d" % size, 0, size, size) for seed in bodies]
        choices = [before + head + body for before in choices for body in own]
    return tuple(choices)


def wrong_answer(kind: str, sizes: tuple[int, ...], received: bytes) -> str:
    """What is wrong with what a client received, "" if nothing is."""
    if kind != "own":
        return "" if received in expected(kind, sizes) else f"{len(received)} bytes that nobody would have sent"
    at = 0
    for size in sizes:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        if received[at : at + len(head)] != head:
            return f"no answer at {at}: {received[at : at + 60]!r}"
        at += len(head)
        body = received[at : at + size]
        at += size
        seeds = [b"%d of %d" % (n, who) for n in range(1, 40) for who in (1, 2)]
        alike = [seed for seed in seeds if body[:32] == body_bytes(seed, 0, min(size, 32))]
        if not any(body == body_bytes(seed, 0, size) for seed in alike):
            return f"the body of {size} bytes at {at - size} is of neither machine, or of both"
    return "" if at == len(received) else f"{len(received) - at} bytes too many"


def run(scenario: PairScenario) -> Pair:
    """Run one scenario.

    Raises:
        Violation: a promise was broken.
    """
    pair = Pair(scenario)
    pair.run()
    broken = bool(scenario.flip or scenario.reset)  # what a broken machine says is not what was asked for
    for index, talker in enumerate(pair.talkers):
        if broken:
            continue
        if talker.connection.error is not None:
            raise Violation(f"connection {index} ended with {talker.connection.error}")
        wrong = wrong_answer(scenario.kinds[index], scenario.sizes[index], bytes(talker.received))
        if wrong:
            raise Violation(f"connection {index}: {wrong}")
    return pair
