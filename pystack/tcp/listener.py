"""A listening port, or the catch-all that takes connections to any address (RFC 9293 section 3.9.1.1, passive OPEN)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, final

from pystack.tcp import events
from pystack.tcp.config import TcpConfig

if TYPE_CHECKING:
    from pystack.tcp.engine import TcpEngine
    from pystack.tcp.tcb import Connection


@final
class Listener:
    """Connections that arrive wait here to be taken.

    Attributes:
        backlog: the bound on connections that are half open or not yet taken; SYNs beyond it are dropped and counted,
            so that the peer tries again.
        deferred: connections are handed over at their SYN and wait for `Connection.accept` or `Connection.refuse`.
        pending: how many count against the backlog.
        user: a free slot for the owner.
    """

    __slots__ = ("_engine", "_queue", "backlog", "config", "deferred", "events", "key", "pending", "user")

    def __init__(
        self, engine: TcpEngine, key: tuple[bytes, int], backlog: int, config: TcpConfig, deferred: bool
    ) -> None:
        self._engine = engine
        self._queue: deque[Connection] = deque()
        self.key = key
        self.backlog = backlog
        self.config = config
        self.deferred = deferred
        self.pending = 0
        self.events = 0
        self.user: object = None

    @property
    def full(self) -> bool:
        """Whether the backlog has no place left; the dead that were not taken count too, they hold memory."""
        return self.pending >= self.backlog or len(self._queue) >= self.backlog

    def offer(self, connection: Connection) -> None:
        """Called by the engine: ``connection`` is ready to be taken."""
        self._queue.append(connection)
        if not self.events:
            self._engine.ready.append(self)
        self.events |= events.ACCEPT

    def take(self) -> Connection | None:
        """The next connection, or None. One that died while it waited here is handed over all the same, CLOSED."""
        if not self._queue:
            return None
        connection = self._queue.popleft()
        if connection.listener is self:
            self.release(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """``connection`` counts against the backlog no longer: taken, or dead before that."""
        connection.listener = None
        self.pending -= 1

    def close(self) -> None:
        """Stop listening. Connections that were not taken are reset; those that were live on."""
        self._engine.unlisten(self)
        while (connection := self.take()) is not None:
            connection.abort()
