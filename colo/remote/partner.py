"""One agent as the proxy sees it: a session, the secondary's link, and what came of the checkpoint under way."""

from __future__ import annotations

import asyncio  # noqa: TID251
import socket  # noqa: TID251
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from colo.address import Address
from colo.checkpoint import Step
from colo.qemu.client import Client
from colo.qemu.qmp import Monitor
from colo.remote.links import RemoteLink
from colo.remote.records import Beat, Hello, Kind, Purpose, Record, Side, State, encode_hello
from colo.remote.session import Session, no_delay
from pystack import Counters, Micros
from pystack.link import sockets


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a partner needs of the proxy around it.

    Attributes:
        ready: the machine can be joined. attach: its link takes the secondary's place.
        quiesce, hold, wake: as of `colo.qemu.owner.Owner`. lost: the partner is of no use any more.
    """

    ready: Callable[[], None]
    attach: Callable[[RemoteLink], None]
    quiesce: Callable[[], Awaitable[None]]
    hold: Callable[[], None]
    wake: Callable[[], None]
    lost: Callable[[str], None]


class Partner(Client):
    """A `colo.checkpoint.CheckpointClient`, for as long as one session lasts.

    Args:
        hello: what was said to the agent at ``address``. monitor: the primary's.

    Attributes:
        live: the primary runs while it is copied for a machine that joins.
        joined: the machine is a copy. link: what it says, and what is said to it.
        said_goodbye: the agent has ended by intention, and takes nothing over.
    """

    live = False

    def __init__(
        self, sock: socket.socket, hello: Hello, address: Address, monitor: Monitor, hooks: Hooks, counters: Counters
    ) -> None:
        super().__init__(hooks.wake)
        self.joined = False
        self.said_goodbye = False
        self.counters = counters
        self._hello = hello
        self._address = address
        self._monitor = monitor
        self._hooks = hooks
        self.link = RemoteLink(lambda frame: self.session.say(Kind.CLIENT, frame), counters)
        beat = Beat(hello.heartbeat_ms * 1000, hello.detect_ms * 1000)
        self.session = Session(
            sock, Side.AGENT, beat, counters, received=self._received, turned=hooks.wake, lost=self.lose
        )

    def record(self, epoch: int, head: bytes) -> None:
        """Tell the agent of a segment of the primary."""
        self.session.say(Kind.PRIMARY, head, epoch)

    def _received(self, record: Record) -> None:
        if record.kind is Kind.SECONDARY:
            self.link.feed(record.body)
        elif record.kind is Kind.READY:
            self._on_ready()
        elif record.kind is Kind.BYE:
            self.said_goodbye = True
            self.lose(record.body.decode(errors="replace") or "it said goodbye")
        else:
            self._on_record(record)

    def _on_ready(self) -> None:
        self._hooks.ready()

    @abstractmethod
    def _on_record(self, record: Record) -> None:
        """One that has to do with checkpoints."""

    # ------------------------------------------------------------------------------------------------ as a client

    @abstractmethod
    def begin(self, reason: str, now: Micros) -> None:
        """Ask for one; the first one lets the machine join."""

    def _on_failure(self, error: BaseException) -> None:
        if not self._closed:
            self.counters.bump("engine.failed")
            if self.joined:
                self._tell(Step.FAILED)
            else:
                self.lose(str(error))

    def _connect(self) -> socket.socket:
        """In a thread: the second connection to the agent, for what the primary migrates."""
        sock = sockets.connect(self._address.where)
        no_delay(sock)
        hello = self._hello._replace(purpose=Purpose.MIGRATION, state=State.FRESH)
        sock.sendall(encode_hello(hello))
        return sock

    # ------------------------------------------------------------------------------------------------- the end

    def lose(self, why: str) -> None:
        """It is of no use any more: tell the agent, and whoever owns this."""
        if not self._closed:
            self.close(bye=f"given up: {why}")
            self._hooks.lost(why)

    def close(self, bye: str = "") -> None:
        """Part with it; nothing is told any more. May be repeated."""
        if self._closed:
            return
        self._closed = True
        self._steps.clear()
        for task in list(self._work):
            if task is not asyncio.current_task():
                task.cancel()
        self.session.close(bye or None)

    def stand_down(self) -> None:
        """The primary is gone, and the proxy with it: let the agent carry on."""
        self.session.say(Kind.TAKE_OVER)
        self.session.last_words()
        self.close()

    @abstractmethod
    async def free_primary(self) -> None:
        """Let the primary go on alone, whatever it waits for."""
