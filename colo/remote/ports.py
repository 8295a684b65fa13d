"""One link of the agent in asyncio's loop: frames in, frames out, and a time in which it is not read."""

from __future__ import annotations

import asyncio  # noqa: TID251
import select  # noqa: TID251
from collections.abc import Callable
from typing import Final, final

from pystack import Counters, Link, LinkClosed, PystackError, QemuLink, TxFrame
from pystack.drivers import hot
from pystack.drivers.aio import monotonic

_BATCH: Final = 64
_ROUNDS: Final = 16
_MAX_UNSENT: Final = 8192


@final
class Port:
    """Reads ``link`` as long as it is not frozen.

    Args:
        received: called with what has come. failed: called when the link has ended or the system refuses.
    """

    def __init__(
        self,
        link: Link,
        received: Callable[[list[bytes]], None],
        failed: Callable[[Exception], None],
        counters: Counters,
    ) -> None:
        self.link = link
        self._received = received
        self._failed = failed
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._unsent: list[TxFrame] = []
        self._frozen = self._closed = False
        # An epoll of its own: it tells of both directions by one descriptor, and can be told what to look for.
        self._epoll = select.epoll()
        self._events = select.EPOLLIN
        self._epoll.register(link.fileno(), self._events)
        hot.add_reader(self._loop, self._epoll.fileno(), self._ready)

    def _ready(self) -> None:
        try:
            for _ in range(_ROUNDS):
                frames = [] if self._frozen or self._closed else self.link.recv(monotonic(), _BATCH)
                if not frames:
                    break
                self._received(frames)
            else:
                self._loop.call_soon(self._ready)
            self._flush()
        except LinkClosed as error:
            self.close()
            self._failed(PystackError(str(error)))
        except Exception as error:  # noqa: BLE001 - asyncio would only log it
            self._failed(error)

    def send(self, frames: list[bytes]) -> None:
        """Send them; what finds no room goes later, and is dropped when too much waits already."""
        room = max(_MAX_UNSENT - len(self._unsent), 0)
        if len(frames) > room:
            self._counters.bump("remote.link_full", len(frames) - room)
        self._unsent += [(frame,) for frame in frames[:room]]
        if self._unsent:
            self._flush()

    def _flush(self) -> None:
        if self._closed:
            return
        if self._unsent:
            try:
                del self._unsent[: self.link.send(self._unsent, monotonic())]
            except LinkClosed:
                self._unsent.clear()  # receiving meets the end
        self._watch()

    def _watch(self) -> None:
        events = 0 if self._frozen else select.EPOLLIN
        events |= select.EPOLLOUT if self._unsent or self.link.wants_write() else 0
        if events != self._events and not self._closed:
            self._events = events
            self._epoll.modify(self.link.fileno(), events)

    def freeze(self) -> None:
        """Whoever is behind it stands still: leave what it has sent where it is, and remember how much that is."""
        if isinstance(self.link, QemuLink):
            self.link.mark()
        self._frozen = True
        self._watch()

    def thaw(self, *, drop_cut: bool) -> None:
        """Take what it had sent by then, and read again; nothing unless it is frozen. See `pystack.QemuLink`."""
        if not self._frozen:
            return
        self._frozen = False
        if isinstance(self.link, QemuLink):
            frames = self.link.recv_to_mark(drop_cut=drop_cut)
            if frames:
                self._received(frames)
        self._watch()

    def close(self) -> None:
        """Look at the link no more; may be repeated."""
        if not self._closed:
            self._closed = True
            hot.remove_reader(self._loop, self._epoll.fileno())
            self._epoll.close()
