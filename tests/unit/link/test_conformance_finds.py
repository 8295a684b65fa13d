"""The conformance test finds a link that breaks a promise: each of these breaks one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pystack.clock import Micros
from pystack.errors import LinkClosed
from pystack.frame import LinkInfo, TxFrame
from pystack.link import memory
from pystack.link.base import Link
from pystack.testing.conformance import Pair, check_link


class _Wrapped:
    """A link that does everything right, for one that does not to inherit."""

    def __init__(self, inner: Link) -> None:
        self.inner = inner

    @property
    def info(self) -> LinkInfo:
        return self.inner.info

    def fileno(self) -> int:
        return self.inner.fileno()

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        return self.inner.recv(now, limit)

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        return self.inner.send(frames, now)

    def wants_write(self) -> bool:
        return self.inner.wants_write()

    def next_timeout(self) -> Micros | None:
        return self.inner.next_timeout()

    def close(self) -> None:
        self.inner.close()


class _ClaimsOffloadWithoutHeader(_Wrapped):
    @property
    def info(self) -> LinkInfo:
        return replace(self.inner.info, tso4=True, tx_checksum=True)


class _IgnoresLimit(_Wrapped):
    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        return self.inner.recv(now, 64)


class _LosesBeyondLimit(_Wrapped):
    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        return self.inner.recv(now, 64)[:limit]


class _ReusesItsBuffer(_Wrapped):
    def __init__(self, inner: Link) -> None:
        super().__init__(inner)
        self.buffer = bytearray(70_000)

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        views = []
        for frame in self.inner.recv(now, limit):
            self.buffer[: len(frame)] = frame
            views.append(memoryview(self.buffer)[: len(frame)])
        return views  # type: ignore[return-value]


class _SendsOnlyTheFirstPiece(_Wrapped):
    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        return self.inner.send([frame[:1] for frame in frames], now)


class _AcceptsAndLoses(_Wrapped):
    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        self.inner.send(frames[:50], now)
        return len(frames)


class _TurnsAround(_Wrapped):
    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        return self.inner.recv(now, limit)[::-1]


class _PadsEveryFrame(_Wrapped):
    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        return self.inner.send([(*frame, b"\0") for frame in frames], now)


class _KeepsQuietAboutTheEnd(_Wrapped):
    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        try:
            return self.inner.recv(now, limit)
        except LinkClosed:
            return []


class _ClosesOnce(_Wrapped):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise AssertionError("closed twice")
        self.closed = True
        self.inner.close()


@contextmanager
def _pair(wrap: Callable[[Link], Link]) -> Iterator[Pair]:
    left, right = memory.pair()
    yield wrap(left), wrap(right)


def test_a_wrapper_that_forwards_everything_conforms() -> None:
    check_link(lambda: _pair(_Wrapped))


@pytest.mark.parametrize(
    "broken",
    [
        _ClaimsOffloadWithoutHeader,
        _IgnoresLimit,
        _LosesBeyondLimit,
        _ReusesItsBuffer,
        _SendsOnlyTheFirstPiece,
        _AcceptsAndLoses,
        _TurnsAround,
        _PadsEveryFrame,
        _KeepsQuietAboutTheEnd,
        _ClosesOnce,
    ],
)
def test_a_broken_promise_is_found(broken: Callable[[Link], Link]) -> None:
    with pytest.raises(AssertionError):
        check_link(lambda: _pair(broken))
