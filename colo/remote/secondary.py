"""`colo secondary`: the agent on the secondary's host."""

from __future__ import annotations

import asyncio  # noqa: TID251
import contextlib
import socket  # noqa: TID251
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, final

from colo.address import Address
from colo.remote.agent import Agent
from colo.remote.common import allowed
from colo.remote.copy_kept import CopyKept
from colo.remote.guest import OwnGuest
from colo.remote.kept import Hooks, Kept
from colo.remote.links import open_client
from colo.remote.ports import Port
from colo.remote.records import MAX_SAID, Beat, Engine, Hello, Kind, Purpose, Record, Side, State, encode_hello
from colo.remote.session import Session, no_delay, read_hello
from colo.remote.x_colo_kept import XColoKept
from pystack import Counters, PystackError
from pystack.drivers.aio import monotonic
from pystack.link import sockets

_MAX_GREETING: Final = 8  # connections that have not said who they are
_LIMITS: Final = (range(1, 60_000), range(2, 600_000))  # of what a proxy may ask for, milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class YourMachine:
    """A machine that somebody else runs.

    Attributes:
        machine: where its card connects to. qmp: its monitor. incoming: where it waits for the primary's state.
    """

    machine: Address
    qmp: Address
    incoming: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondarySide:
    """What `colo secondary` is told.

    Attributes:
        listen: for the proxy. machine: the person's, or what machines of our own are. client: the clients' network,
            for the time after. witness: see `colo.remote.common.allowed`; "" for none.
    """

    listen: Address
    machine: YourMachine | OwnGuest
    client: str
    witness: str = ""


@final
class AgentSide:
    """Lives with one machine: until that is lost, or its proxy says goodbye; carries on when the primary is lost.

    Attributes:
        agent: the frames' way. state: as a proxy is told. counters: of everything.
    """

    def __init__(self, config: SecondarySide, say: Callable[[str], None], counters: Counters) -> None:
        self.config = config
        self.counters = counters
        self.agent = Agent(counters)
        self.state = State.FRESH
        self._say = say
        self._loop = asyncio.get_running_loop()
        self._undo = contextlib.ExitStack()
        self._ready = False
        self._session: Session | None = None
        self._token = b""
        self._work: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        if config.client.startswith("tap:"):
            open_client(config.client, counters).close()  # better known now than when it is needed
        self._kept = self._keep(config.machine)
        self._client: Port | None = None
        self._listener = sockets.listen(config.listen.where)
        self._undo.callback(sockets.remove, config.listen.where)
        self._undo.callback(self._listener.close)
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _keep(self, machine: YourMachine | OwnGuest) -> Kept:
        hooks = Hooks(
            ready=self._on_ready,
            received=self._from_machine,
            stopped=self._on_stopped,
            copied=self._on_copied,
            not_copied=lambda why: self._tell(Kind.NOT_COPIED, why.encode()[:MAX_SAID]),
            continued=self._on_continued,
            failed=self._fail,
        )
        if isinstance(machine, OwnGuest):
            return CopyKept(machine.guest, machine.directory, hooks, self.counters)
        return XColoKept(machine.machine, machine.qmp, machine.incoming, hooks, self._say, self.counters)

    async def run(self, stopped: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Serve until ``stopped()`` returns, or until the machine is of no use any more.

        Raises:
            UsageError: the machine is of no use.
            PystackError: it is gone.
        """
        waiting = asyncio.create_task(stopped())
        self._do(self._kept.watch())
        try:
            either: set[asyncio.Future[Any]] = {self._ended, waiting}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if self._ended.done():
                self._ended.result()
            return 0
        finally:
            await self._close(waiting)

    async def _close(self, waiting: asyncio.Task[int]) -> None:
        self._loop.remove_reader(self._listener.fileno())
        if self._session is not None:
            self._session.close(bye="colo secondary has ended")
        tasks = [waiting, *self._work]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        await self._kept.close()
        self._undo.close()
        self._ended.cancel()

    def _do(self, work: Awaitable[None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def _on_ready(self) -> None:
        if not self._ready:
            self._say("the machine waits for a primary.")
        self._ready = True
        self._tell(Kind.READY)

    def _tell(self, kind: Kind, body: bytes = b"", epoch: int | None = None) -> None:
        if self._session is not None:
            self._session.say(kind, body, epoch)

    # ------------------------------------------------------------------------------------------------ connections

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._work) >= _MAX_GREETING:
            self.counters.bump("remote.refused")
            sock.close()
        else:
            self._do(self._greet(sock))

    async def _greet(self, sock: socket.socket) -> None:
        try:
            no_delay(sock)
            hello = await read_hello(sock)
            if hello.heartbeat_ms not in _LIMITS[0] or hello.detect_ms not in _LIMITS[1]:
                raise PystackError("These are no times.")
            if hello.purpose == Purpose.MIGRATION:
                self._take_migration(sock, hello)
            else:
                await self._take_records(sock, hello)
        except (PystackError, OSError):
            self.counters.bump("remote.bad_hello")
            sock.close()
        except asyncio.CancelledError:
            sock.close()
            raise

    def _take_migration(self, sock: socket.socket, hello: Hello) -> None:
        if self._session is None or hello.token != self._token:
            raise PystackError("This is not the migration of our primary.")
        self._kept.take_migration(sock)

    async def _take_records(self, sock: socket.socket, hello: Hello) -> None:
        state = State.BUSY if self._session is not None else self.state
        mine = hello._replace(state=state, engine=self._kept.engine)
        if state is State.FRESH:
            self._token = hello.token
            beat = Beat(hello.heartbeat_ms * 1000, hello.detect_ms * 1000)
            sock.sendall(encode_hello(mine))  # the first bytes of a connection find room
            self._session = Session(
                sock, Side.PROXY, beat, self.counters, received=self._received, turned=self._turn, lost=self._lost
            )
            if self._ready:
                self._session.say(Kind.READY)
        else:
            await self._loop.sock_sendall(sock, encode_hello(mine))
            sock.close()

    def _received(self, record: Record) -> None:
        now = monotonic()
        if record.kind is Kind.CLIENT:
            if self.agent.epoch >= 0:
                self.agent.from_client(record.body, now)
        elif record.kind is Kind.PRIMARY:
            self.agent.observe_primary(record.epoch, record.body, now)
        elif record.kind is Kind.TAKE_OVER:
            self._part("the proxy has lost the primary", told=True)
        elif record.kind is Kind.BYE:
            self._say_goodbye(record.body.decode(errors="replace"))
        else:
            self._kept.take(record)

    def _say_goodbye(self, why: str) -> None:
        assert self._session is not None
        self._session.close()
        self._session = None
        if self._kept.begun:
            self._fail(PystackError(f"The pair is over ({why}): start the machine anew, and colo secondary with it."))

    def _lost(self, why: str) -> None:
        self._part(why, told=False)

    def _part(self, why: str, *, told: bool) -> None:
        """There is no proxy any more: carry on if the machine is a copy."""
        if self._session is not None:
            self._session.close()
            self._session = None
        if not self._kept.begun:
            self._say(f"the proxy is lost: {why}; waiting for another one.")
        elif self.agent.epoch < 0:
            self._fail(PystackError(f"The proxy is lost ({why}) before the machine was a copy: start both anew."))
        elif self.state is State.FRESH:
            self.state = State.STALE
            self._do(self._take_over(why, told=told))

    # ----------------------------------------------------------------------------------------------- the boundary

    def _on_stopped(self) -> None:
        self._turn()
        self.agent.stopped()
        if self._kept.engine is Engine.STOP_COPY:
            self._tell(Kind.STOPPED)

    def _on_copied(self) -> None:
        self._turn()
        self.agent.copied(monotonic())
        self._tell(Kind.COMPLETED, b"", self.agent.epoch)
        self._turn()

    def _on_continued(self) -> None:
        self.agent.continued(monotonic())
        self._turn()

    # ------------------------------------------------------------------------------------------------- carrying on

    async def _take_over(self, why: str, *, told: bool) -> None:
        self._say(f"the primary is lost: {why}.")
        if not told:
            await allowed(self.config.witness, "secondary", self._say)
        await self._kept.take_over()
        self._client = Port(
            open_client(self.config.client, self.counters), self._from_client, self._fail, self.counters
        )
        self._undo.callback(self._client.close)
        self._undo.callback(self._client.link.close)
        if self._kept.port is not None:
            self._kept.port.thaw(drop_cut=False)
        self.agent.output()  # what was for a proxy that is gone
        self.agent.fail_over(monotonic())
        self.state = State.SERVING
        self._turn()
        self._say("the secondary carries on: its addresses were announced.")

    def _from_machine(self, frames: list[bytes]) -> None:
        now = monotonic()
        for frame in frames:
            self.agent.from_secondary(frame, now)
        self._turn()

    def _from_client(self, frames: list[bytes]) -> None:
        now = monotonic()
        for frame in frames:
            self.agent.from_client(frame, now)
        self._turn()

    def _turn(self) -> None:
        """Everything out that there is, and the clock set."""
        now = monotonic()
        self.agent.tick(now)
        frames = self.agent.to_machine()
        if self._kept.port is not None:
            self._kept.port.send(frames)
        output = self.agent.output()
        if self._client is not None:
            self._client.send(output)
        elif self._session is not None and self.agent.epoch >= 0:
            for frame in output:
                self._session.say(Kind.SECONDARY, frame)
        at = self.agent.next_timeout()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None and not self._ended.done():
            self._timer = self._loop.call_at(max(at, now + 1000) / 1e6, self._turn)
