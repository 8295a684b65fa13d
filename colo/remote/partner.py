"""One agent as the proxy sees it: joins its machine to the primary, and takes checkpoints of the two."""

from __future__ import annotations

import asyncio  # noqa: TID251
import socket  # noqa: TID251
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from colo.address import Address
from colo.checkpoint import Step
from colo.qemu.colo_stream import ColoStream, Event
from colo.qemu.qmp import Monitor, MonitorError
from colo.qemu.relay import Relay
from colo.qemu.settings import ON_DEMAND, enable_colo
from colo.remote.links import RemoteLink
from colo.remote.records import Beat, Hello, Kind, Purpose, Record, Side, State, encode_hello
from colo.remote.session import Session, no_delay
from pystack import Counters, Micros
from pystack.link import sockets

_ANSWER_SECONDS: Final = 3.0  # of a primary that may be gone
_SILENCE_SECONDS: Final = 5.0  # with nothing going by, of a secondary that is to load a copy


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


@final
class Partner:
    """A `colo.checkpoint.CheckpointClient`, for as long as one session lasts.

    Attributes:
        joined: the machine is a copy. link: what it says, and what is said to it.
        said_goodbye: the agent has ended by intention, and takes nothing over.
    """

    def __init__(
        self,
        sock: socket.socket,
        hello: Hello,
        address: Address,
        monitor: Monitor,
        path: Path,
        hooks: Hooks,
        counters: Counters,
    ) -> None:
        self.joined = False
        self.said_goodbye = False
        self.counters = counters
        self._hello = hello
        self._address = address
        self._monitor = monitor
        self._path = path
        self._hooks = hooks
        self._steps: list[Step] = []
        self._work: set[asyncio.Task[None]] = set()
        self._relay: Relay | None = None
        self._awaited: Event | None = None  # held in the migration stream until the agent has told its boundary
        self._told = False  # which it has
        self._closed = False
        self.link = RemoteLink(lambda frame: self.session.say(Kind.CLIENT, frame), counters)
        beat = Beat(hello.heartbeat_ms * 1000, hello.detect_ms * 1000)
        self.session = Session(
            sock, Side.AGENT, beat, counters, received=self._received, turned=hooks.wake, lost=self._lose
        )

    def record(self, epoch: int, head: bytes) -> None:
        """Tell the agent of a segment of the primary."""
        self.session.say(Kind.PRIMARY, head, epoch)

    def _received(self, record: Record) -> None:
        if record.kind is Kind.SECONDARY:
            self.link.feed(record.body)
        elif record.kind is Kind.READY:
            self._hooks.ready()
        elif record.kind is Kind.COMPLETED:
            self.link.bound()
            self._told = True
            self._decide()
        elif record.kind is Kind.BYE:
            self.said_goodbye = True
            self._lose(record.body.decode(errors="replace") or "it said goodbye")

    # ------------------------------------------------------------------------------------------------ as a client

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Ask for one; the first one lets the machine join."""
        if self._closed:
            return
        if self.joined:
            self._do(self._ask())
        elif self._relay is None:
            self._do(self._migrate())

    def poll(self, now: Micros) -> list[Step]:  # noqa: ARG002 - as above
        """What happened."""
        steps, self._steps = self._steps, []
        return steps

    def next_timeout(self) -> Micros | None:
        """At once while there is something to tell; otherwise ``wake`` is called."""
        return 0 if self._steps else None

    def _tell(self, *steps: Step) -> None:
        self._steps += steps
        self._hooks.wake()

    def _do(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._closed:
            self.counters.bump("engine.failed")
            if self.joined:
                self._tell(Step.FAILED)
            else:
                self._lose(str(error))

    async def _ask(self) -> None:
        await self._hooks.quiesce()
        await self._monitor.execute("migrate-set-parameters", x_checkpoint_delay=ON_DEMAND)

    async def _migrate(self) -> None:
        stream = ColoStream(self.counters, stops=True)
        self._relay = Relay(self._path, self._connect, self._happened, self._ended, self.counters, stream=stream)
        await enable_colo(self._monitor)
        await self._hooks.quiesce()
        await self._monitor.execute("migrate", uri=f"unix:{self._path}")

    def _connect(self) -> socket.socket:
        """In a thread: the second connection to the agent, for what the primary migrates."""
        sock = sockets.connect(self._address.where)
        no_delay(sock)
        hello = self._hello._replace(purpose=Purpose.MIGRATION, state=State.FRESH)
        sock.sendall(encode_hello(hello))
        return sock

    # ------------------------------------------------------------------------------------------------- the stream

    def _happened(self, event: Event) -> bool:
        """Both machines, or the one that matters, wait until this returns False, or until the relay is released."""
        if self._closed:
            return False
        if event is Event.SECONDARY_STOPPED:
            self._hooks.hold()
        elif event is Event.BOTH_STOPPED:
            self._tell(Step.PAUSED)
            self._do(self._await_decision())
        elif event is Event.BROKEN:
            self._lose("what goes by in the migration is not QEMU's COLO")
        elif event in (Event.ENTERED, Event.LOADED):
            self._awaited = event
            if not self._told:
                return True
            self._decide()
        return False

    def _decide(self) -> None:
        """Go on when the stream and the agent have said that the machine is a copy."""
        event = self._awaited
        if event is None or not self._told or self._relay is None:
            return
        self._awaited, self._told = None, False
        if event is Event.ENTERED:
            self._tell(Step.PAUSED)
            self.joined = True
            self._hooks.attach(self.link)
            self.counters.bump("engine.joined")
        else:
            self.counters.bump("engine.copied")
        self._tell(Step.COMPLETED, Step.RESUMED)
        self._relay.release()

    async def _await_decision(self) -> None:
        """A secondary that cannot load what it was given says nothing any more, and the primary waits: give it up."""
        relay, passed = self._relay, -1
        while relay is not None and relay.stream.undecided and not self._closed:
            if relay.passed == passed:
                self.counters.bump("engine.not_loaded")
                self._lose("its machine does not load a copy")
                return
            passed = relay.passed
            await asyncio.sleep(_SILENCE_SECONDS)

    def _ended(self) -> None:
        if not self._closed:
            self._do(self._ask_who_is_left())

    async def _ask_who_is_left(self) -> None:
        """The stream has ended: if the primary is there, the secondary is of no use any more."""
        try:
            await self._monitor.execute("query-status", _ANSWER_SECONDS)
        except MonitorError:
            return  # whoever watches over the primary notices
        why = self._relay.why_not if self._relay is not None else ""
        self._lose(why or "the migration has ended")

    def _lose(self, why: str) -> None:
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
        if self._relay is not None:
            self._relay.close()

    def stand_down(self) -> None:
        """The primary is gone, and the proxy with it: let the agent carry on."""
        self.session.say(Kind.TAKE_OVER)
        self.session.last_words()
        self.close()

    async def free_primary(self) -> None:
        """Let the primary go on alone: it may be waiting for a word in the migration stream."""
        try:
            if self.joined:
                await self._monitor.execute("x-colo-lost-heartbeat")
            elif self._relay is not None:
                await self._monitor.execute("migrate_cancel")
        except MonitorError:
            self.counters.bump("engine.failed")
