"""Time is always an argument: an integer number of microseconds since an origin that only the driver knows.

The core never reads a clock. Real time enters in ``drivers/``; tests and simulations move a `ManualClock`.
"""

from __future__ import annotations

from typing import Final, TypeAlias, final

Micros: TypeAlias = int
"""Microseconds; an instant when named ``now`` or ``*_at``, a length of time otherwise."""

MILLISECOND: Final = 1_000
SECOND: Final = 1_000_000


@final
class ManualClock:
    """A clock that stands still until it is moved: virtual time for tests and simulations."""

    __slots__ = ("_now",)

    def __init__(self, start: Micros = 0) -> None:
        self._now = start

    @property
    def now(self) -> Micros:
        """The current instant."""
        return self._now

    def advance(self, by: Micros) -> Micros:
        """Move forward by ``by`` microseconds and return the new instant.

        Raises:
            ValueError: if ``by`` is negative; time does not run backwards.
        """
        if by < 0:
            raise ValueError(f"a clock cannot go back by {-by} us")
        self._now += by
        return self._now

    def jump_to(self, instant: Micros) -> Micros:
        """Move forward to ``instant`` (no-op when it has passed already) and return the new instant."""
        self._now = max(self._now, instant)
        return self._now
