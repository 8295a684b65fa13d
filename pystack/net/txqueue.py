"""Frames that are ready to leave: what is not TCP, which makes its frames when they are asked for."""

from __future__ import annotations

from collections import deque
from typing import final

from pystack.counters import Counters
from pystack.frame import TxFrame


@final
class TxQueue:
    """A bounded queue of frames. At the bound the new frame is dropped and counted: nothing here is reliable anyway."""

    __slots__ = ("_counters", "_frames", "_max_frames")

    def __init__(self, counters: Counters, *, max_frames: int) -> None:
        self._counters = counters
        self._max_frames = max_frames
        self._frames: deque[TxFrame] = deque()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: TxFrame) -> bool:
        """Queue ``frame``; False (and counted) when the queue is full."""
        if len(self._frames) >= self._max_frames:
            self._counters.bump("stack.tx_queue_full")
            return False
        self._frames.append(frame)
        return True

    def drain_into(self, out: list[TxFrame], limit: int) -> None:
        """Move frames to the end of ``out``, at most ``limit`` of them."""
        frames = self._frames
        out.extend(frames.popleft() for _ in range(min(limit, len(frames))))
