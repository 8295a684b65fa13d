"""A link that says what passes, one line for each frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import final

from pystack.clock import Micros
from pystack.frame import LinkInfo, TxFrame
from pystack.link.base import Link
from pystack.wire import pretty


@final
class TraceLink:
    """``inner``, with a line like tcpdump's for every frame of both directions.

    A line is the time, ``<`` for a frame that was received or ``>`` for one that was sent, and the frame as
    `pystack.wire.pretty.line` prints it, without a line end.

    Args:
        inner: the link to wrap; closed with this one.
        sink: called with each line, such as ``print``.
        origin: added to ``now`` for the time that is printed, see `pystack.link.capture.origin_of`.
    """

    def __init__(self, inner: Link, sink: Callable[[str], object], *, origin: Micros = 0) -> None:
        self._inner = inner
        self._sink = sink
        self._origin = origin

    @property
    def info(self) -> LinkInfo:
        """What the inner link declares."""
        return self._inner.info

    def fileno(self) -> int:
        """The inner link's."""
        return self._inner.fileno()

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        """What the inner link received; see `pystack.link.base.Link.recv`."""
        frames = self._inner.recv(now, limit)
        self._print(frames, now, "<")
        return frames

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        """Send through the inner link, and print what it accepted; see `pystack.link.base.Link.send`."""
        accepted = self._inner.send(frames, now)
        self._print((b"".join(frame) for frame in frames[:accepted]), now, ">")
        return accepted

    def _print(self, frames: Iterable[bytes], now: Micros, mark: str) -> None:
        header = self._inner.info.vnet_hdr_len
        for frame in frames:
            self._sink(f"{pretty.clock(self._origin + now)} {mark} {pretty.line(frame, header)}")

    def wants_write(self) -> bool:
        """Whether the inner link does."""
        return self._inner.wants_write()

    def next_timeout(self) -> Micros | None:
        """The inner link's."""
        return self._inner.next_timeout()

    def close(self) -> None:
        """Close the inner link."""
        self._inner.close()
