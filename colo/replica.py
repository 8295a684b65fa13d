"""A machine that can be copied: a stack, a service on it, and nothing else that lives.

What a hypervisor does with memory and devices is done here by pickling: `Replica.snapshot` is everything that the
machine knows, connections with their numbers, timers and queued data included, and `Replica.restore` makes another one
continue from there. Sans-I/O like the stack itself: a `pystack.Driver` runs one behind a link, a simulation steps it by
hand.
"""

from __future__ import annotations

import io
import pickle
from struct import Struct
from typing import Any, Protocol, final
from weakref import WeakSet

from pystack import Micros, Stack, TxFrame


class Service(Protocol):
    """What runs on a machine. It must be picklable together with the stack, and know nothing outside of the two."""

    def step(self, stack: Stack, identity: int, now: Micros) -> None:
        """Act on the stack's events. ``identity`` is what tells this machine from its copy, as its hardware would."""


class _Pickler(pickle.Pickler):
    """Knows what a stack holds and pickle does not: views of sent data, compiled formats, sets of weak references."""

    def reducer_override(self, obj: Any) -> Any:
        """The `pickle.Pickler` hook."""
        if isinstance(obj, memoryview):
            return bytes, (bytes(obj),)
        if isinstance(obj, Struct):
            return Struct, (obj.format,)
        if isinstance(obj, WeakSet):
            return WeakSet, (list(obj),)
        return NotImplemented


@final
class Replica:
    """One machine.

    Args:
        identity: differs between replicas and is no part of what is copied.

    Attributes:
        stack, service: replaced by `restore`. standing: whether it is paused: it takes no frame and gives none, and its
            timers wait.
    """

    def __init__(self, stack: Stack, service: Service, *, identity: int) -> None:
        self.stack = stack
        self.service = service
        self.identity = identity
        self.standing = False

    def receive(self, frame: bytes, now: Micros) -> None:
        """Take a frame. One that comes while it stands still is lost, as for a machine whose card is stopped."""
        if not self.standing:
            self.stack.receive(frame, now)
            self.service.step(self.stack, self.identity, now)

    def tick(self, now: Micros) -> None:
        """Do what is due."""
        if not self.standing:
            self.stack.tick(now)
            self.service.step(self.stack, self.identity, now)

    def frames(self, now: Micros, limit: int = 64) -> list[TxFrame]:
        """Frames to send."""
        return [] if self.standing else self.stack.frames(now, limit)

    def next_timeout(self) -> Micros | None:
        """When `tick` is due."""
        return None if self.standing else self.stack.next_timeout()

    def snapshot(self) -> bytes:
        """Everything that this machine knows."""
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump((self.stack, self.service))
        return buffer.getvalue()

    def restore(self, snapshot: bytes) -> None:
        """Be what another one was when its `snapshot` was taken. Only for snapshots that this process has made."""
        self.stack, self.service = pickle.loads(snapshot)  # noqa: S301 - our own bytes, never a peer's
