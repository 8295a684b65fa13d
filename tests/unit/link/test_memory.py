"""Links joined in memory: back-pressure, and the descriptor that tells of it."""

from __future__ import annotations

import select
from contextlib import closing

import pytest

from pystack.errors import LinkClosed
from pystack.link import memory

_FRAME = (bytes(60),)


def _ready(link: memory.MemoryLink) -> int:
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN | select.POLLOUT)
    return sum(events for _, events in poll.poll(0))


def test_a_full_queue_accepts_fewer_and_loses_nothing() -> None:
    left, right = memory.pair(queue_frames=3)
    assert left.send([_FRAME] * 5, 0) == 3
    assert left.send([_FRAME], 0) == 0
    assert len(right.recv(0, 2)) == 2
    assert left.send([_FRAME] * 5, 0) == 2
    assert len(right.recv(0)) == 3


def test_without_wakeup_there_is_no_descriptor() -> None:
    left, right = memory.pair()
    assert (left.fileno(), right.fileno()) == (-1, -1)


def test_descriptor_is_readable_exactly_while_frames_wait() -> None:
    left, right = memory.pair(wakeup=True)
    with closing(left), closing(right):
        assert _ready(right) == select.POLLOUT
        left.send([_FRAME] * 3, 0)
        assert _ready(right) == select.POLLIN | select.POLLOUT
        right.recv(0, 2)
        assert _ready(right) == select.POLLIN | select.POLLOUT
        right.recv(0, 2)
        assert _ready(right) == select.POLLOUT


def test_descriptor_is_not_writable_while_the_far_queue_is_full() -> None:
    left, right = memory.pair(queue_frames=2, wakeup=True)
    with closing(left), closing(right):
        assert left.send([_FRAME] * 3, 0) == 2
        assert _ready(left) == 0
        right.recv(0)
        assert _ready(left) == select.POLLOUT
        assert _ready(right) == select.POLLOUT


def test_closing_wakes_the_far_end() -> None:
    left, right = memory.pair(wakeup=True)
    with closing(right):
        left.close()
        assert _ready(right) & select.POLLIN
        with pytest.raises(LinkClosed):
            right.recv(0)
        with pytest.raises(LinkClosed):
            right.send([_FRAME], 0)


def test_a_frame_in_one_piece_is_handed_over_without_a_copy() -> None:
    left, right = memory.pair()
    data = bytes(1000)
    left.send([(data,)], 0)
    assert right.recv(0)[0] is data
