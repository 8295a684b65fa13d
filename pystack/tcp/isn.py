"""Initial sequence numbers: RFC 6528, and RFC 9293 section 3.4.1 (MUST-8, MUST-9, SHLD-1)."""

from __future__ import annotations

from hashlib import blake2s
from typing import final

from pystack.clock import Micros


@final
class IsnGenerator:
    """ISN = M + F(four-tuple, secret): a 4-microsecond clock plus a keyed hash that outsiders cannot compute."""

    __slots__ = ("_secret",)

    def __init__(self, seed: int) -> None:
        self._secret = blake2s(seed.to_bytes(64, "big", signed=True), person=b"pystkISN").digest()

    def __call__(self, key: bytes, now: Micros) -> tuple[int, int]:
        """For the four-tuple ``key``: the ISN, and an offset for the timestamp clock (RFC 7323 section 7.1)."""
        digest = blake2s(key, key=self._secret, digest_size=8).digest()
        isn = (int.from_bytes(digest[:4], "big") + (now >> 2)) & 0xFFFF_FFFF
        return isn, int.from_bytes(digest[4:], "big")
