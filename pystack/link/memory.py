"""Two links joined in memory: what tests, simulations and demonstrations without a device run on."""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final, final

from pystack.clock import Micros
from pystack.errors import LinkClosed
from pystack.frame import LinkInfo, TxFrame

ETHERNET: Final = LinkInfo()
"""An ordinary Ethernet: MTU 1500, no virtio_net_hdr, every checksum filled and verified."""

_TOKEN: Final = b"\0"
_FILLER: Final = bytes(4096)
_DRAIN_BYTES: Final = 1 << 20


def pair(info: LinkInfo = ETHERNET, *, queue_frames: int = 1000, wakeup: bool = False) -> tuple[MemoryLink, MemoryLink]:
    """Two links, each the other's far end.

    Args:
        info: what both declare. Frames are handed over as they are, so a virtio_net_hdr and large segments pass too.
        queue_frames: how many frames wait in each direction before `MemoryLink.send` accepts fewer.
        wakeup: whether each has a descriptor to wait on. Virtual time needs none, an asyncio driver does.
    """
    rightward, leftward = _Queue(queue_frames), _Queue(queue_frames)
    left_wake, right_wake = _wake_pair() if wakeup else (None, None)
    return MemoryLink(info, leftward, rightward, left_wake), MemoryLink(info, rightward, leftward, right_wake)


def _wake_pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least, so that a `_FILLER` or two fill it
    return ends


class _Queue:
    """The frames under way in one direction."""

    __slots__ = ("capacity", "closed", "frames")

    def __init__(self, capacity: int) -> None:
        self.frames: deque[bytes] = deque()
        self.capacity = capacity
        self.closed = False  # by either end: nothing is added any more


@final
class MemoryLink:
    """One end of a `pair`. A full queue is back-pressure, never loss.

    With ``wakeup`` the ends share a socket pair that carries no frames, only readiness: while frames wait, at least
    one byte does too (readable); while the far queue is full, the socket's buffer is as well (not writable); closing
    closes it.
    """

    def __init__(self, info: LinkInfo, inbox: _Queue, outbox: _Queue, wake: socket.socket | None) -> None:
        self._info = info
        self._inbox = inbox
        self._outbox = outbox
        self._wake = wake

    @property
    def info(self) -> LinkInfo:
        """What `pair` was given."""
        return self._info

    def fileno(self) -> int:
        """The descriptor to wait on; -1 without ``wakeup``, and once closed."""
        return self._wake.fileno() if self._wake is not None else -1

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:  # noqa: ARG002  (the protocol's)
        """Up to ``limit`` frames that the far end sent; see `pystack.link.base.Link.recv`."""
        waiting = self._inbox.frames
        if not waiting and self._inbox.closed:
            raise LinkClosed("the in-memory link is closed")
        frames = [waiting.popleft() for _ in range(min(limit, len(waiting)))]
        if not waiting and self._wake is not None:
            with contextlib.suppress(BlockingIOError):
                while len(self._wake.recv(_DRAIN_BYTES)) == _DRAIN_BYTES:
                    pass
        return frames

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:  # noqa: ARG002  (the protocol's)
        """Queue ``frames`` for the far end; fewer are accepted when its queue is full."""
        if self._outbox.closed:
            raise LinkClosed("the in-memory link is closed")
        queue = self._outbox.frames
        was_empty = not queue
        accepted = frames[: max(self._outbox.capacity - len(queue), 0)]
        queue.extend(map(b"".join, accepted))
        if self._wake is not None:
            self._signal(self._wake, wake=was_empty and bool(queue), full=len(accepted) < len(frames))
        return len(accepted)

    @staticmethod
    def _signal(sock: socket.socket, *, wake: bool, full: bool) -> None:
        with contextlib.suppress(BlockingIOError):
            if wake:
                sock.send(_TOKEN)
            while full:
                sock.send(_FILLER)

    def wants_write(self) -> bool:
        """Never: what was accepted is with the far end already."""
        return False

    def next_timeout(self) -> Micros | None:
        """Never: frames take no time."""
        return None

    def close(self) -> None:
        """End the link. The far end still gets what was sent before."""
        self._inbox.frames.clear()
        self._inbox.closed = self._outbox.closed = True
        if self._wake is not None:
            self._wake.close()
            self._wake = None
