"""The one loop that feeds a node: frames in, host side, frames out, timers, all of it in one asyncio callback.

A node is sans-I/O (`pystack.stack.Stack`, `pystack.slirp.gateway.Gateway`). The driver gives it time and frames,
carries its frames to a link, and either carries out its requests on host sockets or hands its events to an application.
What wakes it up, link and host sockets alike, stands in one epoll whose descriptor is the only one that asyncio knows:
one callback per wake-up, however much there is to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import Callable
from typing import Final, Protocol, final

from pystack.clock import Micros
from pystack.drivers import hot
from pystack.frame import TxFrame
from pystack.link.base import Link
from pystack.timers import NEVER

_BATCH: Final = 64
"""Frames per call to the link or the node: enough to make a call's cost small, few enough to take turns."""

_TURN: Final[Micros] = 4_000
"""A turn ends when it took this long, so that other tasks of the loop are not kept waiting."""

_TIMER_GRAIN: Final[Micros] = 500
"""A timer sleeps at least this long: nothing in TCP is due sooner, and a deadline that stands still cannot spin."""


class Node(Protocol):
    """What a driver drives."""

    def receive(self, frame: bytes, now: Micros) -> None:
        """Take one frame."""

    def tick(self, now: Micros) -> None:
        """Do what is due."""

    def frames(self, now: Micros, limit: int = 64) -> list[TxFrame]:
        """Up to ``limit`` frames to send; an empty list when there are none."""

    def next_timeout(self) -> Micros | None:
        """When `tick` is due next."""


class HostSide(Protocol):
    """The host sockets of a gateway (`pystack.drivers.hostio.HostIO`). Nothing here blocks."""

    def fileno(self) -> int:
        """A descriptor that is readable when `serve` has something to do."""

    def serve(self, now: Micros) -> None:
        """Carry out what the gateway requests, and tell it what the host's sockets have to say."""


def monotonic() -> Micros:
    """The clock of a driver: microseconds since an arbitrary origin, the same as of ``loop.time()``."""
    return time.monotonic_ns() // 1000


@final
class Driver:
    """Drives ``node`` over ``link`` while `run` runs.

    Args:
        hostio: the host sockets of a gateway; None for a stack that an application uses.
        dispatch: called in every round after frames were received; hands the node's events to an application, and
            says whether there were any.
        clock: microseconds; must agree with ``loop.time()``.

    Attributes:
        frames_moved: frames that were received and sent so far.
    """

    def __init__(
        self,
        node: Node,
        link: Link,
        hostio: HostSide | None = None,
        *,
        dispatch: Callable[[], bool] | None = None,
        clock: Callable[[], Micros] = monotonic,
    ) -> None:
        self._node = node
        self._link = link
        self._hostio = hostio
        self._dispatch = dispatch
        self._clock = clock
        self.frames_moved = 0
        self._unsent: list[TxFrame] = []  # pulled from the node, refused by the link; nothing is pulled meanwhile
        self._tick_at: Micros = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self._epoll: select.epoll | None = None
        self._watched: tuple[int, int] = (-1, 0)  # the link's descriptor in the epoll, and for what
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Micros = NEVER
        self._wake_handle: asyncio.Handle | None = None

    async def run(self) -> None:
        """Drive until cancelled or until something fails.

        Raises:
            LinkClosed: the link's other end is gone.
            LinkError: the system refused.
            Exception: whatever else went wrong in the node, the link or the host side, which ends the driving.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._epoll = select.epoll()
        try:
            if self._hostio is not None:
                self._epoll.register(self._hostio.fileno(), select.EPOLLIN)
            hot.add_reader(loop, self._epoll.fileno(), self._turn)
            self.wake()
            await self._ended
        finally:
            self._stop(loop)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._epoll is not None
        hot.remove_reader(loop, self._epoll.fileno())
        self._epoll.close()
        self._epoll = self._ended = self._loop = None
        self._watched = (-1, 0)
        for handle in (self._timer, self._wake_handle):
            if handle is not None:
                handle.cancel()
        self._timer, self._timer_at, self._wake_handle = None, NEVER, None

    def wake(self) -> None:
        """Have a turn soon: something was asked of the node outside of `run`, so that it may have frames to send."""
        if self._wake_handle is None and self._loop is not None:
            self._wake_handle = self._loop.call_soon(self._turn)

    # ------------------------------------------------------------------------------------------------------ one turn

    def _turn(self) -> None:
        if self._wake_handle is not None:
            self._wake_handle.cancel()
            self._wake_handle = None
        if self._ended is None or self._ended.done():
            return
        try:
            self._rounds()
            self._watch_link()
            self._arm_timer()
        except Exception as error:  # noqa: BLE001 - whatever it is ends run(), which raises it
            self._ended.set_exception(error)

    def _rounds(self) -> None:
        """Serve link and host in turn until neither has anything to do, or the turn has taken its time."""
        node, link, hostio, dispatch, clock = self._node, self._link, self._hostio, self._dispatch, self._clock
        receive = node.receive
        now = clock()
        until = now + _TURN
        while True:
            if now >= self._tick_at:
                node.tick(now)
                self._tick_at = _or_never(node.next_timeout())
            received = link.recv(now, _BATCH)
            for frame in received:
                receive(frame, now)
            busy = len(received)
            self.frames_moved += busy
            if hostio is not None:
                hostio.serve(now)
            if dispatch is not None:
                busy += dispatch()
            if not (self._send(now) or busy):
                return
            now = clock()
            if now >= until:
                self.wake()
                return

    def _send(self, now: Micros) -> bool:
        """Move frames from the node to the link; whether any were. What the link refuses is kept for later."""
        frames = self._unsent or self._node.frames(now, _BATCH)
        if not frames:
            return False
        accepted = self._link.send(frames, now)
        self._unsent = frames[accepted:]
        self.frames_moved += accepted
        return accepted > 0

    def _watch_link(self) -> None:
        """Wait for the link's descriptor, which a link may change, and for its being writable while it is full."""
        link = self._link
        fd = link.fileno()
        events = select.EPOLLIN
        if self._unsent or link.wants_write():
            events |= select.EPOLLOUT
        if self._watched == (fd, events):
            return
        assert self._epoll is not None
        old_fd, _ = self._watched
        if old_fd == fd:
            self._epoll.modify(fd, events)
        else:
            if old_fd >= 0:
                _forget(self._epoll, old_fd)
            if fd >= 0:
                self._epoll.register(fd, events)
        self._watched = (fd, events)

    def _arm_timer(self) -> None:
        """Have a turn at the next deadline. A timer that is too early stays: moving one costs more than a vain turn."""
        assert self._loop is not None
        self._tick_at = _or_never(self._node.next_timeout())
        at = min(self._tick_at, _or_never(self._link.next_timeout()))
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at = max(at, self._clock() + _TIMER_GRAIN)
        self._timer = self._loop.call_at(at / 1e6, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, NEVER
        self._turn()


def _or_never(instant: Micros | None) -> Micros:
    return NEVER if instant is None else instant


def _forget(epoll: select.epoll, fd: int) -> None:
    with contextlib.suppress(OSError):  # closed, so that the kernel has forgotten it already
        epoll.unregister(fd)
