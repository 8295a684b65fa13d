"""Hosts joined by links on one virtual clock: seconds of a network in milliseconds, the same every time.

    world = World(seed=1)
    alice, bob = world.host("10.0.0.1/24"), world.host("10.0.0.2/24")
    world.link(alice, bob, Impairment(loss=0.05, delay=20_000))
    server = world.serve(bob, 80)
    client = world.connect(alice, bob, 80, send=b"hello" * 1000)
    world.run(until=lambda: client.closed and world.quiet)
    assert server.talkers[0].received == client.sent

The clock jumps when nobody has anything to do: to the next timer of a stack, a link or the test itself (`World.at`).
Every run is bounded in steps and in virtual time. Randomness comes from the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from ipaddress import IPv4Interface
from random import Random
from typing import Any, Final, TypeAlias, final

from pystack.clock import SECOND, ManualClock, Micros
from pystack.frame import LinkInfo, TxFrame
from pystack.link import memory
from pystack.link.base import Link
from pystack.link.impair import ImpairLink, Impairment
from pystack.stack import Event, Stack, StackConfig
from pystack.tcp import events
from pystack.tcp.config import TcpConfig
from pystack.tcp.listener import Listener
from pystack.tcp.tcb import Connection

_BATCH: Final = 64

Observer: TypeAlias = Callable[["Host", bytes], None]


@final
class Host:
    """A stack and its end of a link.

    Attributes:
        address: 4 bytes. stack: its stack, made with ``seed``. name: for error messages.
        observer: called with every frame that arrives; for tests that look at the wire.
    """

    def __init__(self, name: str, stack: Stack, info: LinkInfo, seed: int) -> None:
        self.name = name
        self.seed = seed
        self.stack = stack
        self.info = info
        self.address: Final = stack.config.addresses[0].packed
        self.observer: Observer | None = None
        self.link: Link | None = None
        self.unsent: list[TxFrame] = []

    def step(self, now: Micros) -> bool:
        """Carry frames both ways; whether there were any."""
        link = self.link
        if link is None:
            return False
        received = link.recv(now, _BATCH)
        for frame in received:
            if self.observer is not None:
                self.observer(self, frame)
            self.stack.receive(frame, now)
        if not self.unsent:
            self.unsent = self.stack.frames(now, _BATCH)
        due = link.next_timeout()
        held = due is not None and due <= now
        accepted = link.send(self.unsent, now) if self.unsent or held else 0
        del self.unsent[:accepted]
        return bool(received or accepted or held)

    def next_timeout(self) -> Micros | None:
        """The next instant at which the stack or the link has something to do."""
        instants = [self.stack.next_timeout(), self.link.next_timeout() if self.link is not None else None]
        return min((instant for instant in instants if instant is not None), default=None)


class Talker:
    """The program at one end of a connection: sends ``data``, collects what arrives, closes its direction.

    Args:
        data: to send. shut: when to close the sending direction: "sent" once all is queued, "eof" once the peer has
            closed too, "never".
        limit: bytes to read at each event; a slow reader closes the window. None: everything.
        pause: time between two reads of a slow reader.
    """

    def __init__(
        self,
        world: World,
        connection: Connection,
        data: bytes = b"",
        *,
        shut: str = "sent",
        limit: int | None = None,
        pause: Micros = 0,
    ) -> None:
        self._world = world
        self._data = memoryview(data)
        self._shut = shut
        self._limit = limit
        self._pause = pause
        self._read_is_due = False
        self.connection = connection
        self.sent = data
        self.received = bytearray()
        self.opened = False
        self.eof = False
        self.closed = False
        connection.user = self

    def on_event(self, flags: int) -> None:
        """Called by the world with what the connection has to tell."""
        if flags & events.OPEN:
            self.opened = True
        if flags & events.CLOSED:
            self.closed = True
        self._read()
        if self.opened:
            self._write()

    def _read(self) -> None:
        connection = self.connection
        if self._limit is None or self.closed:
            self.received += connection.read(connection.readable)
        elif connection.readable and not self._read_is_due:
            self._read_is_due = True
            self._world.after(self._pause, self._read_slowly)
        if connection.eof and not self.eof:
            self.eof = True
            self._write()

    def _read_slowly(self) -> None:
        self._read_is_due = False
        assert self._limit is not None
        self.received += self.connection.read(self._limit)
        self._read()

    def _write(self) -> None:
        connection = self.connection
        while self._data:
            taken = connection.write(self._data)
            if not taken:
                return
            self._data = self._data[taken:]
        if self._shut == "sent" or (self._shut == "eof" and self.eof):
            connection.shutdown()


@final
class Server:
    """Takes the connections of a listener; each gets a `Talker`."""

    def __init__(self, world: World, listener: Listener, data: bytes, options: dict[str, Any]) -> None:
        self._world = world
        self._data = data
        self._options = options
        self.listener = listener
        self.talkers: list[Talker] = []
        listener.user = self

    def on_event(self, _flags: int) -> None:
        """Called by the world when connections wait."""
        while (connection := self.listener.take()) is not None:
            talker = Talker(self._world, connection, self._data, **self._options)
            self.talkers.append(talker)
            talker.on_event(events.OPEN)


@final
class World:
    """Everything that happens, in order."""

    def __init__(self, seed: int, *, start: Micros = 0) -> None:
        self.clock: Final = ManualClock(start)
        self.random: Final = Random(seed)  # noqa: S311  (of a simulation)
        self.hosts: list[Host] = []
        self.steps = 0
        self._calls: list[tuple[Micros, int, Callable[[], None]]] = []
        self._serial = 0

    @property
    def now(self) -> Micros:
        """The current instant."""
        return self.clock.now

    # ---------------------------------------------------------------------------------------------------- what there is

    def host(
        self, address: str, *, info: LinkInfo = memory.ETHERNET, tcp: TcpConfig | None = None, **config: Any
    ) -> Host:
        """A host with ``address`` (with its prefix length); ``config`` are more fields of `StackConfig`."""
        number = len(self.hosts) + 1
        seed = self.random.getrandbits(128)
        stack = Stack(
            StackConfig(
                mac=bytes((2, 0, 0, 0, 0, number)),
                addresses=(IPv4Interface(address),),
                tcp=tcp or TcpConfig(),
                **config,
            ),
            info,
            seed=seed,
        )
        host = Host(f"host {number}", stack, info, seed)
        self.hosts.append(host)
        return host

    def link(self, a: Host, b: Host, impairment: Impairment | None = None, *, queue_frames: int = 1000) -> None:
        """Join two hosts, whose `LinkInfo` must agree; ``impairment`` works on both directions, each on its own."""
        assert a.info == b.info, "both ends of a link declare the same"
        near, b.link = memory.pair(a.info, queue_frames=queue_frames)
        a.link = near if impairment is None else ImpairLink(near, impairment, seed=self.random.getrandbits(64))

    def serve(
        self,
        host: Host,
        port: int,
        *,
        send: bytes = b"",
        backlog: int = 128,
        config: TcpConfig | None = None,
        **options: Any,
    ) -> Server:
        """Listen on ``port``; every connection is sent ``send`` and treated with ``options`` (see `Talker`)."""
        return Server(self, host.stack.listen(port, backlog=backlog, config=config), send, options)

    def connect(
        self,
        host: Host,
        to: Host,
        port: int,
        *,
        send: bytes = b"",
        local_port: int = 0,
        config: TcpConfig | None = None,
        **options: Any,
    ) -> Talker:
        """Connect to ``port`` of ``to``, send ``send`` and treat the connection with ``options`` (see `Talker`)."""
        connection = host.stack.connect((to.address, port), self.now, local_port=local_port, config=config)
        return Talker(self, connection, send, **options)

    # ---------------------------------------------------------------------------------------------------- how time goes

    def at(self, instant: Micros, call: Callable[[], None]) -> None:
        """Call ``call`` at ``instant``."""
        self._serial += 1
        heappush(self._calls, (instant, self._serial, call))

    def after(self, delay: Micros, call: Callable[[], None]) -> None:
        """Call ``call`` after ``delay`` microseconds."""
        self.at(self.now + delay, call)

    def step(self) -> bool:
        """Everything that can happen now, once; whether anything did."""
        self.steps += 1
        now = self.now
        moved = False
        while self._calls and self._calls[0][0] <= now:
            heappop(self._calls)[2]()
            moved = True
        for host in self.hosts:
            moved |= host.step(now)
            happened = host.stack.events()
            for event in happened:
                _tell(event)
            moved |= bool(happened)
        return moved

    def next_instant(self) -> Micros | None:
        """When the next thing happens by itself; None: never."""
        instants = [host.next_timeout() for host in self.hosts]
        instants += [self._calls[0][0]] if self._calls else []
        return min((instant for instant in instants if instant is not None), default=None)

    @property
    def quiet(self) -> bool:
        """Whether nothing is going to happen any more, at no time: no timer runs, no frame is under way."""
        return self.next_instant() is None

    def run(
        self, until: Callable[[], bool] | None = None, *, seconds: float = 3600, max_steps: int = 1_000_000
    ) -> bool:
        """Let time go by until ``until()`` is true, nothing can happen any more, or a bound is reached.

        Args:
            seconds: of virtual time, from now. max_steps: rounds over all hosts.

        Returns:
            Whether ``until()`` became true; without ``until`` whether the world became quiet within the bounds.
        """
        end = self.now + round(seconds * SECOND)
        for _ in range(max_steps):
            moved = self.step()
            if until is not None and until():
                return True
            if moved:
                continue
            instant = self.next_instant()
            if instant is None or instant > end:
                self.clock.jump_to(end if instant is not None else self.now)
                return until is None and instant is None
            self.clock.jump_to(instant)
            for host in self.hosts:
                host.stack.tick(self.now)
        return False


def _tell(event: Event) -> None:
    endpoint, flags = event
    listener = endpoint.user
    if listener is not None:
        listener.on_event(flags)  # type: ignore[attr-defined]  # a Talker, a Server, or a test's own
