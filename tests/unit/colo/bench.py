"""A comparator with two guests on it, for tests: what went in, what came out, what was asked for."""

from __future__ import annotations

from typing import Any

from colo.compare import Comparator, CompareConfig, Difference
from pystack.counters import Counters
from tests.colo_guests import Guest

SECOND = 1_000_000


class Bench:
    """Feeds frames and collects what comes of it. ``primary`` and ``secondary`` make them."""

    def __init__(self, **config: Any) -> None:
        self.comparator = Comparator(CompareConfig(**config))
        self.primary = Guest(ident=10)
        self.secondary = Guest(ident=500)
        self.now = 0
        self.out: list[bytes] = []
        self.asked: list[Difference] = []

    @property
    def counters(self) -> Counters:
        return self.comparator.counters

    def p(self, *frames: bytes) -> int:
        """Feed frames of the primary; how many frames were released by that."""
        for frame in frames:
            self.comparator.primary(frame, self.now)
        return self._collect()

    def s(self, *frames: bytes) -> int:
        """Feed frames of the secondary; how many frames were released by that."""
        for frame in frames:
            self.comparator.secondary(frame, self.now)
        return self._collect()

    def both(self, frame_p: bytes, frame_s: bytes) -> int:
        """The same of both."""
        return self.p(frame_p) + self.s(frame_s)

    def open(self) -> None:
        """Both answer the client's SYN."""
        assert self.both(self.primary.syn_ack(), self.secondary.syn_ack()) == 1
        self.out.clear()

    def wait(self, micros: int) -> int:
        self.now += micros
        self.comparator.tick(self.now)
        return self._collect()

    def commit(self) -> int:
        """A checkpoint from pause to completion."""
        self.comparator.primary_boundary()
        self.comparator.secondary_boundary()
        self.comparator.commit(self.now)
        return self._collect()

    def _collect(self) -> int:
        released = [bytes(buffer) for buffer in self.comparator.take_released()]
        self.out += released
        self.asked += self.comparator.take_requests()
        return len(released)

    @property
    def reasons(self) -> list[str]:
        """Why checkpoints were asked for so far."""
        return [difference.reason for difference in self.asked]
