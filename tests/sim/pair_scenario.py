"""What happens to a simulated pair: all of it from one seed. See `tests.sim.pair`."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

from pystack.clock import Micros

KINDS = ("same", "same", "own", "flat", "flat", "part", "echo", "dial", "sink", "sink")


@dataclass(frozen=True, slots=True)
class PairScenario:
    """What happens. Times in microseconds, probabilities in [0, 1]; instants of 0 mean never."""

    seed: int
    framed: bool  # whether the comparator is fed the framed stream, by which frames take the fast lanes
    mtu: int
    loss: tuple[float, float, float]  # client, primary, secondary link
    reorder: tuple[float, float, float]
    duplicate: tuple[float, float, float]
    delay: tuple[Micros, Micros, Micros]
    nagle: tuple[bool, bool]
    delayed_ack: tuple[Micros, Micros]
    send_buffer: tuple[int, int]
    receive_buffer: tuple[int, int]
    timestamps: bool
    sack: bool
    secondary_mss: int
    sizes: tuple[tuple[int, ...], ...]  # answers, by connection
    kinds: tuple[str, ...]  # what is asked for, see `colo.service.WebService`; "echo" and "sink" are sent
    opens: tuple[Micros, ...]  # when, by connection
    close: tuple[bool, ...]  # whether the client closes when it has all, by connection, or in the end
    again: tuple[bool, ...]  # whether the same four-tuple is used once more when the server has closed
    datagrams: tuple[int, ...]  # sizes of what is sent to the UDP echo
    pings: int
    pause: Micros  # until both stand still
    duration: Micros
    told_after: Micros  # from the copy, when both run again, until the proxy hears of it
    patience: Micros  # for a completion, until it is asked for again
    failing: float
    unasked: tuple[Micros, ...]  # checkpoints that nobody has asked for, as a hypervisor may take them
    standstill: tuple[int, Micros, Micros]  # of a machine (0 or 1), at, for
    dies: int  # 0 the primary, 1 the secondary, 2 nobody
    dies_at: Micros
    noticed_after: Micros
    flip: Micros  # when the primary starts to repeat other bytes than it had sent: a broken machine
    reset: Micros  # when one machine resets a connection by itself
    reset_by: int
    offload: bool  # whether the machines leave segmentation and checksums to their links, as virtio lets them

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
        if random.random() < 0.2:
            loss = (loss[0], loss[1], 0.2)  # gaps in what the secondary says
        receive_buffer = random.choice((4096, 65_535))
        kinds = tuple(random.choice(KINDS) for _ in range(count))
        scenario = cls(
            seed=seed,
            framed=random.random() < 0.5,
            mtu=random.choice((576, 1500)),
            loss=loss,
            reorder=three(0.3, 0.05),
            duplicate=three(0.2, 0.05),
            delay=(random.randrange(3000), random.randrange(2000), random.randrange(random.choice((2000, 8000)))),
            nagle=(random.random() < 0.5, random.random() < 0.5),
            delayed_ack=(random.choice((0, 5000, 40_000)), random.choice((0, 5000, 40_000))),
            send_buffer=(random.choice((2048, 8192, 1 << 20)), random.choice((2048, 8192, 1 << 20))),
            # Another window behind the same scale, which is what is negotiated.
            receive_buffer=random.choice(
                (
                    (receive_buffer, receive_buffer),
                    (receive_buffer, receive_buffer // 2),
                    (receive_buffer // 2, receive_buffer),
                )
            ),
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
            kinds=kinds,
            opens=tuple(random.choice((0, 0, random.randrange(60_000))) for _ in range(count)),
            close=tuple(random.random() < 0.5 for _ in range(count)),
            again=tuple(kind == "part" and random.random() < 0.5 for kind in kinds),
            datagrams=tuple(random.randrange(2000) for _ in range(random.choice((0, 0, 3)))),
            pings=random.choice((0, 0, 3)),
            pause=random.choice((0, 0, random.randrange(3000))),
            duration=random.choice((0, 1000, random.randrange(20_000))),
            told_after=random.choice((0, 0, 0, 0, 0, 0, *[random.randrange(5_000)] * 3, random.randrange(60_000))),
            patience=random.choice((10_000_000, 10_000_000, 10_000)),
            failing=random.choice((0.0, 0.0, 0.5)),
            unasked=tuple(random.randrange(100_000) for _ in range(random.choice((0, 0, 1, 3)))),
            standstill=(
                random.randrange(2),
                random.choice((0, random.randrange(1, 200_000))),
                random.randrange(100_000),
            ),
            dies=random.choice((0, 0, 1, 2)),
            dies_at=random.randrange(1, random.choice((5_000, 25_000, 100_000, 400_000))),
            noticed_after=random.choice((0, random.randrange(30_000))),
            flip=random.randrange(1, 50_000) if random.random() < 0.12 else 0,
            reset=random.randrange(1, 50_000) if bad else 0,
            reset_by=random.randrange(2),
            offload=random.random() < 0.3,
        )
        # What happens to packets happens to segments: a large frame comes through only where nothing does.
        return scenario.without_impairment(1) if scenario.offload else scenario

    def without_impairment(self, link: int) -> PairScenario:
        """The same with nothing that happens to packets on one link (0 the client's, 1, 2)."""

        def cleared(values: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            first, second, third = (0 if index == link else value for index, value in enumerate(values))
            return first, second, third

        return replace(
            self,
            loss=cleared(self.loss),
            reorder=cleared(self.reorder),
            duplicate=cleared(self.duplicate),
            delay=cleared(self.delay),
        )

    @property
    def broken(self) -> bool:
        """Whether a machine misbehaves, so that what its client is owed cannot be told; output commit still can."""
        return bool(self.flip or self.reset)

    def __str__(self) -> str:
        return ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
