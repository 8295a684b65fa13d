"""What UDP, ping and ICMP endpoints share: signals that are polled, and a receive queue that is bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar, final

DATAGRAM: Final = 128
"""Event flag: the endpoint has datagrams (or replies, or errors) to take. Never used by TCP's events."""

ItemT = TypeVar("ItemT")


class Endpoint:
    """Something with an owner above the stack.

    Attributes:
        user: a free slot for that owner.
        pending: flags that were raised since the last drain; 0 when the endpoint is in no `Signals`.
    """

    __slots__ = ("pending", "user")

    def __init__(self) -> None:
        self.pending = 0
        self.user: object = None


@final
class Signals:
    """Endpoints with something to tell, each at most once."""

    __slots__ = ("_raised",)

    def __init__(self) -> None:
        self._raised: list[Endpoint] = []

    def __len__(self) -> int:
        return len(self._raised)

    def signal(self, endpoint: Endpoint, flags: int) -> None:
        """Note ``flags`` for ``endpoint`` until the next drain."""
        if not endpoint.pending:
            self._raised.append(endpoint)
        endpoint.pending |= flags

    def drain(self) -> list[tuple[Endpoint, int]]:
        """What was raised since the last drain, in order of the first flag."""
        if not self._raised:
            return []
        raised, self._raised = self._raised, []
        drained = []
        for endpoint in raised:
            drained.append((endpoint, endpoint.pending))
            endpoint.pending = 0
        return drained


@final
class Inbox(Generic[ItemT]):
    """A queue bounded in items and in bytes: what does not fit is refused, as a kernel's receive buffer does.

    Invariant: ``0 <= held <= max_bytes`` and ``len(self) <= max_items``.
    """

    __slots__ = ("_items", "_max_bytes", "_max_items", "_size", "held")

    def __init__(self, size: Callable[[ItemT], int], *, max_items: int, max_bytes: int) -> None:
        self._items: deque[ItemT] = deque()
        self._size = size
        self._max_items = max_items
        self._max_bytes = max_bytes
        self.held = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: ItemT) -> bool:
        """Append ``item``; False when there is no room for it."""
        size = self._size(item)
        if len(self._items) >= self._max_items or self.held + size > self._max_bytes:
            return False
        self._items.append(item)
        self.held += size
        return True

    def take(self) -> ItemT | None:
        """The oldest item, None when there is none."""
        if not self._items:
            return None
        item = self._items.popleft()
        self.held -= self._size(item)
        return item

    def clear(self) -> None:
        """Drop everything."""
        self._items.clear()
        self.held = 0
