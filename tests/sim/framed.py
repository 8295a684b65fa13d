"""A comparator that is fed QEMU's framed stream, many frames at once and cut anywhere, but looks like one for frames.

What `colo compare` does with sockets, and what takes the fast lanes (`colo.lane`), so that a simulated pair goes that
way too. Frames wait here until something else is done with the comparator, as they would in a socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from colo.compare import Comparator, CompareConfig
from colo.framing import PLAIN, VNET, Framing
from pystack import Counters, Micros


class FramedComparator:
    """Stands in for a `Comparator` in a `Proxy`."""

    def __init__(self, config: CompareConfig, counters: Counters, random: Random) -> None:
        self.config = config
        self._framing = Framing(framed=True, vnet=config.vnet_hdr_len > 0, vnet_hdr_len=config.vnet_hdr_len)
        self.inner = Comparator(replace(config, framed=True, vnet_framing=self._framing.vnet), counters)
        self._random = random
        self._waiting: tuple[list[bytes], list[bytes]] = ([], [])
        self._now: Micros = 0

    def primary(self, frame: bytes, now: Micros, _packet: object = None) -> None:
        self._wait(0, frame, now)

    def secondary(self, frame: bytes, now: Micros, _packet: object = None) -> None:
        self._wait(1, frame, now)

    def _wait(self, side: int, frame: bytes, now: Micros) -> None:
        if self._waiting[not side] or now != self._now:
            self._feed()
        self._now = now
        self._waiting[side].append(self._prefix(len(frame)) + frame)

    def _prefix(self, size: int) -> bytes:
        return VNET.pack(size, self._framing.vnet_hdr_len) if self._framing.vnet else PLAIN.pack(size)

    def _feed(self) -> None:
        for waiting, feed in zip(self._waiting, (self.inner.primary_bytes, self.inner.secondary_bytes), strict=True):
            if waiting:
                data = b"".join(waiting)
                waiting.clear()
                cut = self._random.choice((len(data), self._random.randrange(len(data))))
                for part in (data[:cut], data[cut:]):
                    if part:
                        feed(part, self._now)

    def take_released(self) -> list[bytes]:
        self._feed()
        return list(_frames(b"".join(self.inner.take_released()), self._framing.prefix))

    def drop_held(self) -> list[bytes]:
        self._feed()
        # Segments are as they came, datagrams are without their prefix.
        prefix = self._framing.prefix
        return [
            piece[prefix:] if piece[:prefix] == self._prefix(len(piece) - prefix) else piece
            for piece in self.inner.drop_held()
        ]

    def __getattr__(self, name: str) -> Any:
        """Everything else is done by the comparator, after what was sent before."""
        self._feed()
        return getattr(self.inner, name)


def _frames(stream: bytes, prefix: int) -> Iterator[bytes]:
    at = 0
    while at < len(stream):
        (size,) = PLAIN.unpack_from(stream, at)
        yield stream[at + prefix : at + prefix + size]
        at += prefix + size
