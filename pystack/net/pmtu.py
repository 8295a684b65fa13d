"""What routers said of the largest packet on the way to a host (RFC 1191), for datagrams; TCP keeps its own."""

from __future__ import annotations

from typing import Final, final

from pystack.clock import SECOND, Micros

EXPIRY: Final[Micros] = 600 * SECOND
"""How long a lowered estimate stands before the link's MTU is tried again (RFC 1191 section 6.3: 10 minutes)."""

FLOOR: Final = 552
"""Below this an estimate is not believed: a forged error must not make us send a datagram in a thousand pieces.

RFC 1191 section 3 forbids only values below 68, but every host must take 576 bytes (RFC 1122 section 3.3.2).
"""

_PLATEAUS: Final = (32_000, 17_914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68)
"""Sizes that links were built with (RFC 1191 section 7.1)."""


def next_mtu(reported: int, total_length: int) -> int:
    """The MTU that a "fragmentation needed" means: the one it reports, or without that a guess (RFC 1191 section 5).

    Args:
        reported: 0 from a router that does not say. total_length: of the packet that was too big.
    """
    return reported or next((plateau for plateau in _PLATEAUS if plateau < total_length), _PLATEAUS[-1])


@final
class PathMtus:
    """A bounded table of destination -> MTU. At the bound the oldest estimate goes: the next error brings it back."""

    __slots__ = ("_entries", "_max_entries")

    def __init__(self, max_entries: int) -> None:
        self._entries: dict[bytes, tuple[int, Micros]] = {}
        self._max_entries = max_entries

    def __len__(self) -> int:
        return len(self._entries)

    def lower(self, destination: bytes, mtu: int, now: Micros) -> None:
        """A router reports that ``mtu`` bytes is what fits. An estimate is never raised by an error (RFC 1191 3)."""
        mtu = max(mtu, FLOOR)
        known = self.get(destination, now)
        if known is not None and known <= mtu:
            return
        self._entries.pop(destination, None)
        if len(self._entries) >= self._max_entries:
            del self._entries[next(iter(self._entries))]
        self._entries[destination] = (mtu, now + EXPIRY)

    def get(self, destination: bytes, now: Micros) -> int | None:
        """The estimate for ``destination``, None when there is none that still stands."""
        entry = self._entries.get(destination)
        if entry is None:
            return None
        if entry[1] <= now:
            del self._entries[destination]
            return None
        return entry[0]
