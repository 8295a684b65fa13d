"""Asyncio's loop with hot descriptors: who is told of what, and that nothing of asyncio's waits for it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import pytest

from pystack.drivers import hot
from pystack.drivers.hot import Events, HotLoop, Watcher

_PATIENCE = 10.0


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a stream, which do not block."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.setblocking(False)
    with near, far:
        yield near, far


def in_each_loop(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """In a hot loop, and in asyncio's own."""
    for run in (hot.run, asyncio.run):
        run(asyncio.wait_for(scene(), _PATIENCE))


class Reader:
    """Owns one end: reads what is there, and says so."""

    def __init__(self, end: socket.socket, after: Callable[[], None] = lambda: None) -> None:
        self.end = end
        self.got: list[bytes] = []
        self.seen: list[int] = []
        self._after = after

    def __call__(self, happened: Events) -> None:
        for fd, events in happened:
            assert fd == self.end.fileno()
            self.seen.append(events)
            if events & select.EPOLLIN:
                self.got.append(self.end.recv(100))
        self._after()


def test_an_owner_is_told_and_what_it_asks_of_the_loop_is_done_at_once(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    """Also while the loop has nothing else to wait for: a future that an owner sets, a callback, a timer."""
    near, far = ends

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        for ask in ("future", "call_soon", "call_later"):
            done: asyncio.Future[None] = loop.create_future()

            def after(ask: str = ask, done: asyncio.Future[None] = done) -> None:
                if ask == "future":
                    done.set_result(None)
                elif ask == "call_soon":
                    loop.call_soon(done.set_result, None)
                else:
                    loop.call_later(0.001, done.set_result, None)

            reader = Reader(near, after)
            watcher = hot.watcher(reader)
            watcher.watch(near.fileno(), select.EPOLLIN)
            far.send(ask.encode())
            await done
            assert reader.got == [ask.encode()]
            watcher.close()

    in_each_loop(scene)


def test_what_is_not_hot_and_what_has_its_time_is_not_kept_waiting(ends: tuple[socket.socket, socket.socket]) -> None:
    """A descriptor that is always ready, and beside it a timer, a reader of asyncio's, a thread and a signal."""
    near, _ = ends

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        turns = 0

        def busy(_happened: Events) -> None:
            nonlocal turns
            turns += 1

        watcher = hot.watcher(busy)
        watcher.watch(near.fileno(), select.EPOLLOUT)  # always writable
        await asyncio.sleep(0.01)
        assert turns > 0
        cold, other = socket.socketpair()
        with cold, other:
            ready = asyncio.Event()
            loop.add_reader(cold.fileno(), ready.set)
            other.send(b"x")
            await ready.wait()
            loop.remove_reader(cold.fileno())
        assert await asyncio.to_thread(lambda: "from a thread") == "from a thread"
        signalled = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR2, signalled.set)
        os.kill(os.getpid(), signal.SIGUSR2)
        await signalled.wait()
        loop.remove_signal_handler(signal.SIGUSR2)
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0
        watcher.close()
        before = turns
        await asyncio.sleep(0.01)
        assert turns == before

    in_each_loop(scene)


def test_watching_changes_and_ends(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends

    async def scene() -> None:
        reader = Reader(near)
        watcher = hot.watcher(reader)
        watcher.watch(near.fileno(), select.EPOLLIN)
        watcher.watch(near.fileno(), 0)
        far.send(b"unheard")
        await asyncio.sleep(0.005)
        assert not reader.seen
        watcher.watch(near.fileno(), select.EPOLLIN)
        await asyncio.sleep(0.005)
        assert reader.got == [b"unheard"]
        watcher.forget(near.fileno())
        watcher.forget(near.fileno())
        far.send(b"unheard again")
        await asyncio.sleep(0.005)
        assert reader.got == [b"unheard"]
        assert near.recv(100) == b"unheard again"
        watcher.close()
        watcher.close()

    in_each_loop(scene)


def test_a_descriptor_that_was_closed_can_be_forgotten() -> None:
    async def scene() -> None:
        told: list[Events] = []
        watcher: Watcher = hot.watcher(told.append)
        end, other = socket.socketpair()
        fd = end.fileno()
        watcher.watch(fd, select.EPOLLIN)
        end.close()
        other.close()
        watcher.forget(fd)
        await asyncio.sleep(0.002)
        assert not told
        watcher.close()

    in_each_loop(scene)


@pytest.mark.parametrize("same", [True, False])
def test_a_number_that_comes_back_is_watched_by_who_has_it_now(same: bool) -> None:
    """One closes what it has watched, and forgets it only after somebody else has been given its number."""

    async def scene() -> None:
        told: list[str] = []
        old = hot.watcher(lambda _: told.append("old"))
        new = old if same else hot.watcher(lambda _: told.append("new"))
        end, other = socket.socketpair()
        fd = end.fileno()
        old.watch(fd, select.EPOLLIN)
        end.close()
        near, far = socket.socketpair()
        assert near.fileno() == fd
        new.watch(fd, select.EPOLLIN | select.EPOLLET)
        if not same:
            old.forget(fd)
            old.close()
        far.send(b"x")
        await asyncio.sleep(0.005)
        assert told == ["old" if same else "new"]
        new.close()
        for each in (other, near, far):
            each.close()

    in_each_loop(scene)


def test_several_owners_are_told_of_their_own_together() -> None:
    async def scene() -> None:
        pairs = [socket.socketpair() for _ in range(4)]
        told: dict[str, list[list[int]]] = {"one": [], "two": []}
        watchers = {name: hot.watcher(partial(_note, calls, pairs)) for name, calls in told.items()}
        for index, (near, _) in enumerate(pairs):
            watchers["one" if index < 3 else "two"].watch(near.fileno(), select.EPOLLIN)
        for _, far in pairs:
            far.send(b"x")
        await asyncio.sleep(0.005)
        fds = [near.fileno() for near, _ in pairs]
        assert [sorted(fd for call in calls for fd in call) for calls in told.values()] == [fds[:3], fds[3:]]
        for watcher in watchers.values():
            watcher.close()
        for pair in pairs:
            for end in pair:
                end.close()

    in_each_loop(scene)


def _note(calls: list[list[int]], pairs: list[tuple[socket.socket, socket.socket]], happened: Events) -> None:
    calls.append([fd for fd, _ in happened])
    for near, _ in pairs:
        if near.fileno() in calls[-1]:
            near.recv(1)


def test_a_reader_of_one_descriptor(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        got: asyncio.Future[bytes] = loop.create_future()
        hot.add_reader(loop, near.fileno(), lambda: got.set_result(near.recv(10)))
        far.send(b"hello")
        assert await got == b"hello"
        hot.remove_reader(loop, near.fileno())
        far.send(b"unheard")
        await asyncio.sleep(0.002)
        assert near.recv(10) == b"unheard"

    in_each_loop(scene)


def test_run_is_in_a_hot_loop_and_returns_what_the_coroutine_does() -> None:
    async def main() -> bool:
        return isinstance(asyncio.get_running_loop(), HotLoop)

    assert hot.run(main())


def test_what_fails_in_the_coroutine_comes_out_of_run() -> None:
    async def main() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        hot.run(main())
