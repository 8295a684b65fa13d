"""An asyncio loop in which frames do not queue behind everything else.

Read before editing: epoll(7), `asyncio.SelectorEventLoop`, `selectors.BaseSelector`.

A frame that wakes asyncio up costs a handle, a context, a look at all timers and a second poll, each time: a third of
what a proxy needs for a frame of one ping. `HotLoop` is asyncio's own loop on a selector that serves *hot* descriptors
itself, inside of its wait, and goes back to waiting. All others, and timers, are asyncio's as ever: the wait ends when
one of those is ready, which is looked at each time, and when something hot has asked anything of the loop.

A driver takes whatever loop it runs in: `watcher` finds out. `run` is `asyncio.run` with a `HotLoop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
import time
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from typing import Any, Final, Protocol, TypeAlias, TypeVar, TypeVarTuple, final

_ROUNDS: Final = 16
_MOST_EVENTS: Final = 64

Events: TypeAlias = list[tuple[int, int]]
"""Descriptors, each with its EPOLLIN, EPOLLOUT, EPOLLHUP and so on."""

Owner: TypeAlias = Callable[[Events], None]
"""Told what has happened to descriptors of its own. Raises nothing, blocks on nothing."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class Watcher(Protocol):
    """One owner's descriptors."""

    def watch(self, fd: int, events: int) -> None:
        """Tell of ``events`` of ``fd`` from now on; replaces what was said of it before.

        Also of a number that somebody else has watched, has closed, and has not forgotten yet.
        """

    def forget(self, fd: int) -> None:
        """Do not tell of ``fd`` any more, which may be closed already."""

    def close(self) -> None:
        """Forget all."""


@final
class HotSelector(selectors.BaseSelector):
    """The selector of a `HotLoop`.

    Attributes:
        disturbed: set when the loop has been asked for anything, so that it must not wait on.
        later: the loop's ``call_soon``.
    """

    later: Callable[..., object]

    def __init__(self) -> None:
        self._cold = selectors.EpollSelector()
        self._epoll = select.epoll()
        self._epoll.register(self._cold.fileno(), select.EPOLLIN)
        self._owners: dict[int, Owner] = {}
        self.disturbed = False

    def watch(self, fd: int, events: int, owner: Owner) -> None:
        """Tell ``owner`` of ``events`` of ``fd``, inside of `select`."""
        _register(self._epoll, fd, events, known=fd in self._owners)
        self._owners[fd] = owner

    def forget(self, fd: int, owner: Owner | None = None) -> None:
        """See `Watcher.forget`. With an ``owner``, only if the descriptor is still its own."""
        if fd in self._owners and (owner is None or self._owners[fd] == owner):
            del self._owners[fd]
            _unregister(self._epoll, fd)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What asyncio is to deal with, once there is something or ``timeout`` seconds have passed."""
        if timeout is not None and timeout <= 0:
            return self._look_only()
        self.disturbed = False
        end = None if timeout is None else time.monotonic() + timeout
        while not self.disturbed:
            happened = self._epoll.poll(timeout, _MOST_EVENTS)
            if self._serve(happened):
                return self._cold.select(0)
            if end is not None:
                timeout = end - time.monotonic()
                if timeout <= 0:
                    break
        return []

    def _look_only(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Asyncio has something to do: what is hot comes after that, as what is ready later always does."""
        happened = self._epoll.poll(0, _MOST_EVENTS)
        hot = [event for event in happened if event[0] in self._owners]
        if hot:
            self.later(self._serve, hot)
        return self._cold.select(0) if len(hot) < len(happened) else []

    def _serve(self, happened: Events) -> bool:
        """Tell the owners; whether anything is left for asyncio."""
        owners = self._owners
        if len(happened) == 1:
            owner = owners.get(happened[0][0])
            if owner is not None:
                owner(happened)
            return owner is None
        cold = False
        told: dict[Owner, Events] = {}
        for event in happened:
            owner = owners.get(event[0])
            if owner is None:
                cold = True
            else:
                told.setdefault(owner, []).append(event)
        for owner, events in told.items():
            owner(events)
        return cold

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Asyncio's, as all below."""
        return self._cold.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """See `selectors.BaseSelector`."""
        return self._cold.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See `selectors.BaseSelector`."""
        return self._cold.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """See `selectors.BaseSelector`."""
        return self._cold.get_map()

    def close(self) -> None:
        """See `selectors.BaseSelector`."""
        self._owners.clear()
        self._epoll.close()
        self._cold.close()


@final
class HotLoop(asyncio.SelectorEventLoop):
    """Asyncio's loop, with hot descriptors.

    Attributes:
        hot: where they are watched.
    """

    def __init__(self) -> None:
        self.hot = HotSelector()
        super().__init__(self.hot)
        self.hot.later = self.call_soon

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """See `asyncio.loop.call_soon`."""
        self.hot.disturbed = True
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.loop.call_at`."""
        self.hot.disturbed = True
        return super().call_at(when, callback, *args, context=context)


@final
class _HotWatcher:
    """In a `HotLoop`."""

    def __init__(self, hot: HotSelector, owner: Owner) -> None:
        self._hot = hot
        self._owner = owner
        self._fds: set[int] = set()

    def watch(self, fd: int, events: int) -> None:
        self._hot.watch(fd, events, self._owner)
        self._fds.add(fd)

    def forget(self, fd: int) -> None:
        self._hot.forget(fd, self._owner)
        self._fds.discard(fd)

    def close(self) -> None:
        for fd in self._fds:
            self._hot.forget(fd, self._owner)
        self._fds.clear()


@final
class _EpollWatcher:
    """In any other loop: one descriptor stands for all, and asyncio knows it alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner) -> None:
        self._loop = loop
        self._owner = owner
        self._epoll = select.epoll()
        self._fds: set[int] = set()
        loop.add_reader(self._epoll.fileno(), self._turn)

    def _turn(self) -> None:
        for _ in range(_ROUNDS):
            if self._epoll.closed or not (happened := self._epoll.poll(0, _MOST_EVENTS)):
                return
            self._owner(happened)

    def watch(self, fd: int, events: int) -> None:
        _register(self._epoll, fd, events, known=fd in self._fds)
        self._fds.add(fd)

    def forget(self, fd: int) -> None:
        if fd in self._fds:
            self._fds.discard(fd)
            _unregister(self._epoll, fd)

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()


def add_reader(loop: asyncio.AbstractEventLoop, fd: int, ready: Callable[[], None]) -> None:
    """As `asyncio.loop.add_reader`, hot where that is possible."""
    if isinstance(loop, HotLoop):
        loop.hot.watch(fd, select.EPOLLIN, lambda _: ready())
    else:
        loop.add_reader(fd, ready)


def remove_reader(loop: asyncio.AbstractEventLoop, fd: int) -> None:
    """The opposite of `add_reader`, before ``fd`` is closed."""
    if isinstance(loop, HotLoop):
        loop.hot.forget(fd)
    else:
        loop.remove_reader(fd)


def watcher(owner: Owner) -> Watcher:
    """Descriptors of ``owner`` in the loop that is running."""
    loop = asyncio.get_running_loop()
    return _HotWatcher(loop.hot, owner) if isinstance(loop, HotLoop) else _EpollWatcher(loop, owner)


def run(main: Coroutine[Any, Any, _T]) -> _T:
    """As `asyncio.run`, in a `HotLoop`."""
    with asyncio.Runner(loop_factory=HotLoop) as runner:
        return runner.run(main)


def _register(epoll: select.epoll, fd: int, events: int, *, known: bool) -> None:
    try:
        (epoll.modify if known else epoll.register)(fd, events)
    except FileNotFoundError:  # closed since, and the number is that of another file
        epoll.register(fd, events)


def _unregister(epoll: select.epoll, fd: int) -> None:
    with contextlib.suppress(OSError):  # closed, so that the kernel has forgotten it already
        epoll.unregister(fd)
