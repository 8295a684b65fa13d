"""Ephemeral ports: not to be guessed, and not taken (RFC 6056 section 3.3.1, random selection; RFC 6335 section 6)."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final, final

FIRST: Final = 32_768
LAST: Final = 60_999
_COUNT: Final = LAST - FIRST + 1


@final
class EphemeralPorts:
    """A seeded sequence of starting points. Two stacks of one seed pick the same ports in the same order."""

    __slots__ = ("_drawn", "_key")

    def __init__(self, seed: int, purpose: str) -> None:
        self._key = blake2b(purpose.encode(), key=seed.to_bytes(32, "big"), digest_size=32).digest()
        self._drawn = 0

    def draw(self, below: int) -> int:
        """The next number of the sequence, in [0, below)."""
        self._drawn += 1
        digest = blake2b(self._drawn.to_bytes(8, "big"), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") % below

    def pick(self, taken: Callable[[int], bool]) -> int | None:
        """A port that is not ``taken``, the first one from a random start; None when every one is."""
        start = self.draw(_COUNT)
        for offset in range(_COUNT):
            port = FIRST + (start + offset) % _COUNT
            if not taken(port):
                return port
        return None
