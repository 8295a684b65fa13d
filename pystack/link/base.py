"""What every link is: a way for Ethernet frames to come in and go out, and a statement of what it can do.

The forms of a frame are stated in `pystack.frame`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from pystack.clock import Micros
from pystack.frame import Buffer, LinkInfo, TxFrame

__all__ = ["Buffer", "Link", "LinkInfo", "TxFrame"]


@runtime_checkable
class Link(Protocol):
    """A way for frames to come in and go out. Nothing here blocks; only the driver waits."""

    @property
    def info(self) -> LinkInfo:
        """What this link can do."""

    def fileno(self) -> int:
        """The descriptor to wait on, -1 if there is none; the same until the link is at its end.

        Wait for reading, and for writing too while frames were refused or `wants_write`. One that stands for several
        things (an epoll) tells of room by being readable: offer refused frames again whenever it wakes up.
        """

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        """Up to ``limit`` frames that have arrived by ``now``; an empty list when there are none.

        Also the occasion for a link that holds frames to let go, in both directions, what is due.

        Raises:
            LinkClosed: the other end is gone and everything that it sent has been returned.
            LinkError: the system refused.
        """

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        """Send ``frames`` in order and return how many were accepted, counted from the front.

        Fewer than all means that the link is full: offer the rest again when it is writable. An empty sequence gives a
        link that holds frames the chance to let them go.

        Raises:
            LinkClosed: the other end is gone.
            LinkError: the system refused.
        """

    def wants_write(self) -> bool:
        """Whether the link has something to flush once its descriptor is writable."""

    def next_timeout(self) -> Micros | None:
        """The next instant at which the link has something to do without its descriptor waking up, None if never."""

    def close(self) -> None:
        """Release what the link holds. Idempotent."""
