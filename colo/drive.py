"""The loop around a proxy: three links, frames moved in batches.

What a turn does first is what somebody waits for: frames in, frames out. Timeouts, checkpoints and the mode are looked
after when that is done, and no more often than every `_LOOK` unless the proxy has a reason to ask for a checkpoint.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final, Protocol, final, runtime_checkable

from colo.proxy import Proxy, Role
from pystack import Link, LinkClosed, Micros, TxFrame
from pystack.drivers.aio import monotonic
from pystack.drivers.hot import Events, Watcher, watcher
from pystack.timers import NEVER

_BATCH: Final = 64
_ROUNDS: Final = 16
_MAX_UNSENT: Final = 8192
_DRAIN_ROUNDS: Final = 1024
_NOT_AT_ALL: Final = -1
_QUIET_SECONDS: Final = 0.001
_QUIET_LOOKS: Final = 12
_TIMER_GRAIN: Final[Micros] = 500
_LOOK: Final[Micros] = 10_000
_HOLD: Final[Micros] = 500_000


@runtime_checkable
class _Marked(Protocol):
    """A link that knows what it holds: see `pystack.QemuLink`."""

    def peer_fileno(self) -> int:
        """Of its connection, -1 if there is none."""

    def mark(self) -> None:
        """Draw a line behind what has arrived."""

    def recv_to_mark(self, *, drop_cut: bool) -> list[bytes]:
        """What is before the line."""


@final
class _Port:
    """One link: what could not be sent yet, and how it is watched."""

    __slots__ = ("fd", "feed", "link", "lost", "more", "peer_fileno", "take", "unsent", "watched")

    def __init__(
        self,
        link: Link | None,
        feed: Callable[[bytes, Micros], None],
        take: Callable[[], list[bytes]],
        lost: Callable[[Micros], None],
    ) -> None:
        self.attach(link)
        self.feed = feed
        self.take = take
        self.lost = lost
        self.unsent: list[TxFrame] = []
        self.more = False  # the last batch was a full one: the descriptor need not tell of the rest

    def attach(self, link: Link | None) -> None:
        """Be the port of ``link``, which is not watched yet."""
        self.link: Link | None = link
        other: object = link
        self.peer_fileno = other.peer_fileno if isinstance(other, _Marked) else None
        self.fd = -1
        self.watched = _NOT_AT_ALL

    def fileno(self) -> int:
        """What is to be watched, which may change when something was received."""
        assert self.link is not None
        fd = -1 if self.peer_fileno is None else self.peer_fileno()
        return self.link.fileno() if fd < 0 else fd


@final
class ProxyDriver:
    """Drives ``proxy`` between three links while `run` runs.

    A link that ends is the end of what is behind it: of the primary or of the secondary the proxy is told, and the end
    of the client's link ends the driving. What is behind a link can also be ended by `lose_primary` and
    `lose_secondary`. A secondary may come later, and be another one after each checkpoint: `attach_secondary`.

    Attributes:
        undecided: set by the owner: whether the secondary may or may not be a copy already. The loss of the primary is
            told to the proxy when that is known, by `lose_primary` at the latest.
        heard: frames of both machines so far.
    """

    def __init__(self, proxy: Proxy, client: Link, primary: Link, secondary: Link | None = None) -> None:
        self.proxy = proxy
        self._client = _Port(client, proxy.from_client, proxy.to_client, self._end)
        self._primary = _Port(primary, proxy.from_primary, proxy.to_primary, proxy.primary_failed)
        self._secondary = _Port(secondary, proxy.from_secondary, proxy.to_secondary, proxy.secondary_failed)
        self._ports = (self._primary, self._secondary, self._client)
        self._outlets = (self._secondary, self._primary, self._client)  # who answers last gets it first
        self._by_fd: dict[int, _Port] = {}
        proxy.drain = self._drain
        self.undecided: Callable[[], bool] = lambda: False
        self._primary_ended = False
        self.heard = 0
        self._frozen = False  # both machines stand still, and what they have sent is not read
        self._held_until: Micros | None = None  # they are about to
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Future[None] | None = None
        self._watcher: Watcher | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: Micros = NEVER
        self._look_at: Micros = 0
        self._more = False  # of any port

    async def run(self) -> None:
        """Drive until cancelled, until the client's link ends, or until something fails.

        Raises:
            LinkError: the system refused.
            Exception: whatever went wrong in the proxy.
        """
        loop = self._loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._watcher = watcher(self._turn)
        try:
            for port in self._ports:
                self._watch(port)
            self._look_at_all()
            await self._ended
        finally:
            self._watcher.close()
            self._watcher = None
            if self._timer is not None:
                self._timer.cancel()

    def lose_primary(self) -> None:
        """The primary is gone: let the secondary carry on."""
        self._primary_ended = False
        self._held_until = None
        if self.proxy.role is Role.PAIR:
            self._drop(self._primary)
            self._primary.lost(monotonic())
            self._look_at_all()

    def lose_secondary(self) -> None:
        """The secondary is gone: let the primary carry on."""
        self._held_until = None
        self._lose(self._secondary)

    def attach_secondary(self, link: Link) -> None:
        """Let ``link`` take the place of the secondary's, whose frames are of no interest any more."""
        port = self._secondary
        if port.link is not None:
            self._drop(port)
        port.attach(link)
        self._watch(port)

    def freeze(self) -> None:
        """From now on, do not read from machines that stand still: for links of QEMU, which know what they hold."""
        self.proxy.mark = self._mark

    def hold(self) -> None:
        """The machines are about to stand still: do not read from them, as with `freeze`, until it is known what comes.

        The primary saves its devices, and then its memory. A link that gets room in between is written to, and the copy
        has devices that do not know what its memory says of them. It begins as soon as it has heard that the secondary
        stands still, and we may hear of it late. What does not come to pass within half a second is not waited for.
        """
        if self.proxy.mark is not None and self.proxy.role is Role.PAIR:
            self._held_until = monotonic() + _HOLD
            for port in (self._primary, self._secondary):
                self._watch(port)
            if self._watcher is not None:
                self._arm(monotonic())

    async def quiesce(self) -> None:
        """Let both machines come to rest, within a bound: see `Proxy.quiesce`."""
        self.proxy.quiesce()
        for _ in range(_QUIET_LOOKS):
            heard = self.heard
            await asyncio.sleep(_QUIET_SECONDS)
            if self.heard == heard:
                break

    def wake(self) -> None:
        """Have a turn: something has happened beside the links."""
        if self._watcher is not None:
            self._look_at_all()

    def _lose(self, port: _Port) -> None:
        if port.link is None:
            return
        self._drop(port)
        port.lost(monotonic())
        self._look_at_all()

    def _drop(self, port: _Port) -> None:
        self._forget(port)
        port.link = None
        port.unsent.clear()

    def _forget(self, port: _Port) -> None:
        if self._watcher is not None and self._by_fd.get(port.fd) is port:  # else it was closed, and is another's now
            self._watcher.forget(port.fd)
            del self._by_fd[port.fd]
        port.watched = _NOT_AT_ALL

    def _end(self, _now: Micros) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _turn(self, happened: Events) -> None:
        """Links have something, or room."""
        try:
            now = monotonic()
            for fd, events in happened:
                port = self._by_fd.get(fd)
                if port is None:
                    continue
                if events & ~select.EPOLLOUT:
                    self._receive_from(port, now)
                if events & select.EPOLLOUT and port.link is not None:
                    self._send(port, now)
            self._send_all(now)
            if now >= self._look_at or self._more or self.proxy.asks:
                self._look(now)
            elif self._timer_at > self._look_at:
                self._arm_at(self._look_at)
        except Exception as error:  # noqa: BLE001 - asyncio would only log it
            self._fail(error)

    def _look_at_all(self) -> None:
        """It is time for something, or something has happened elsewhere: the links' descriptors need not tell."""
        try:
            now = monotonic()
            for port in self._ports:
                self._receive_from(port, now)
            self._look(now)
        except Exception as error:  # noqa: BLE001
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)

    def _look(self, now: Micros) -> None:
        """Look after everything, with what is left of full batches."""
        if self._held_until is not None and now >= self._held_until:
            self._held_until = None
        self._finish(now)
        for _ in range(_ROUNDS):
            if not self._more:
                break
            self._more = False
            now = monotonic()
            for port in self._ports:
                if port.more:
                    self._receive_from(port, now)
            self._finish(now)
        now = monotonic()
        self._look_at = now + _LOOK
        self._arm(now)

    def _receive_from(self, port: _Port, now: Micros) -> bool:
        link = port.link
        port.more = False
        if link is None or self._stands_still(port):
            return False
        try:
            frames = link.recv(now, _BATCH)
        except LinkClosed:
            self._drop(port)
            if port is self._primary and self.undecided():
                self._primary_ended = True
            else:
                port.lost(now)
            return False
        feed = port.feed
        for frame in frames:
            feed(frame, now)
        if len(frames) == _BATCH:
            port.more = self._more = True
        if port is not self._client:
            self.heard += len(frames)
            if port.peer_fileno is not None and port.peer_fileno() != port.fd:
                self._watch(port)
        return bool(frames)

    def _stands_still(self, port: _Port) -> bool:
        return (self._frozen or self._held_until is not None) and port is not self._client

    def _mark(self) -> None:
        """Both machines stand still: leave what they have sent where it is, and remember how much that is."""
        self._frozen, self._held_until = True, None
        for port in (self._primary, self._secondary):
            link: object = port.link
            if isinstance(link, _Marked):
                link.mark()
            self._watch(port)

    def _drain_to_mark(self, now: Micros) -> None:
        """Feed what they had sent by then. What is cut by the line is the next epoch's, where it is the primary's."""
        self._frozen = False
        for port in (self._primary, self._secondary):
            link: object = port.link
            if isinstance(link, _Marked):
                for frame in link.recv_to_mark(drop_cut=port is self._secondary):
                    port.feed(frame, now)
            self._watch(port)

    def _drain(self, now: Micros) -> None:
        """Feed everything that both machines have sent, within a bound."""
        if self._frozen:
            self._drain_to_mark(now)
            return
        for port in (self._primary, self._secondary):
            for _ in range(_DRAIN_ROUNDS):
                if not self._receive_from(port, now):
                    break

    def _finish(self, now: Micros) -> None:
        """Once the links have nothing more: checkpoints and timeouts, and everything out."""
        self.proxy.tick(now)
        if self._primary_ended and not self.undecided():
            self._primary_ended = False
            self._primary.lost(now)
        self._send_all(now)

    def _send_all(self, now: Micros) -> None:
        for port in self._outlets:
            frames = port.take()
            if frames and port.link is not None:
                room = _MAX_UNSENT - len(port.unsent)
                if len(frames) > room:
                    self.proxy.counters.bump("proxy.link_full", len(frames) - room)
                    del frames[max(room, 0) :]
                port.unsent += zip(frames)  # each a tuple of one buffer
            if port.unsent:
                self._send(port, now)
            elif port.watched != select.EPOLLIN:
                self._watch(port)

    def _send(self, port: _Port, now: Micros) -> None:
        assert port.link is not None
        try:
            del port.unsent[: port.link.send(port.unsent, now)]
        except LinkClosed:
            port.unsent.clear()  # receiving meets the end
        self._watch(port)

    def _watch(self, port: _Port) -> None:
        if port.link is None or self._watcher is None:
            return
        events = 0 if self._stands_still(port) else select.EPOLLIN
        events |= select.EPOLLOUT if port.unsent or port.link.wants_write() else 0
        fd = port.fileno()
        if fd != port.fd:
            self._forget(port)
            port.fd = fd
        if fd < 0:  # whoever owns the link has closed it: receiving meets the end
            port.more = self._more = True
            return
        if events != port.watched:
            self._watcher.watch(fd, events)
            self._by_fd[fd] = port
            port.watched = events

    def _arm(self, now: Micros) -> None:
        """Have a turn when there is something to do. One that comes too early costs less than moving the timer."""
        instants = [self.proxy.next_timeout(), self._held_until]
        instants += [port.link.next_timeout() for port in self._ports if port.link is not None]
        at = min((instant for instant in instants if instant is not None), default=NEVER)
        at = max(at, now + _TIMER_GRAIN)
        if at < self._timer_at:
            self._arm_at(at)

    def _arm_at(self, at: Micros) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at / 1e6, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, NEVER
        self._look_at_all()

    @property
    def alone(self) -> bool:
        """Whether one machine is gone."""
        return self.proxy.role is not Role.PAIR
