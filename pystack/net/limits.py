"""A token bucket in whole microseconds: so many at once, and then so many per second."""

from __future__ import annotations

from typing import final

from pystack.clock import SECOND, Micros


@final
class TokenBucket:
    """Allows ``burst`` events at once and ``per_second`` in the long run.

    Invariant: 0 <= credit <= burst * SECOND, in units of one millionth of an event, so that no division loses time.
    """

    __slots__ = ("_at", "_capacity", "_credit", "_per_second")

    def __init__(self, per_second: int, burst: int) -> None:
        self._per_second = per_second
        self._capacity = burst * SECOND
        self._credit = self._capacity
        self._at: Micros = 0

    def take(self, now: Micros) -> bool:
        """Whether one more event is allowed at ``now``; if so, it is counted."""
        if now > self._at:
            self._credit = min(self._capacity, self._credit + (now - self._at) * self._per_second)
            self._at = now
        if self._credit < SECOND:
            return False
        self._credit -= SECOND
        return True
