"""A guest, a gateway and a host whose sockets exist in a test's imagination only, all on one virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from pystack.clock import SECOND, Micros
from pystack.frame import LinkInfo
from pystack.net.icmp import IcmpError
from pystack.net.udp import UdpEndpoint
from pystack.slirp import requests as op
from pystack.slirp.forwards import Publish
from pystack.slirp.gateway import Gateway, GatewayConfig
from pystack.slirp.nat import InboundPeer, TcpFlow
from pystack.stack import Stack, StackConfig
from pystack.tcp import events
from pystack.tcp.config import TcpConfig
from pystack.tcp.tcb import Connection

HOLD = -1
"""In place of an errno: the dial stays undecided until the test decides it."""

REMOTE = IPv4Address("198.51.100.7").packed
GUEST = "10.0.2.15"
GUEST_MAC = b"\x02\0\0\0\0\x15"


class FakeSocket:
    """The host's end of a TCP flow.

    Attributes:
        got: what the gateway wrote. room: bytes that the kernel still takes; None for any number.
        incoming: what the remote sent and nobody read. ends: "", "shutdown", "closed" or "reset" by the gateway.
    """

    def __init__(self, host: FakeHost, flow: TcpFlow) -> None:
        self.host = host
        self.flow = flow
        self.got = bytearray()
        self.room: int | None = None
        self.incoming = bytearray()
        self.finished = False
        self.shutdown = False
        self.ends = ""

    @property
    def nat(self) -> Any:
        return self.host.gateway.tcp

    def write(self) -> None:
        conn = self.flow.conn
        while conn.readable and self.room != 0 and not self.ends:
            data = b"".join(conn.peek(2))[: self.room]
            self.got += data
            if self.room is not None:
                self.room -= len(data)
            self.nat.written(self.flow, len(data), self.host.now())

    def send(self, data: bytes) -> None:
        """The remote sends ``data``."""
        self.incoming += data
        self.read()

    def finish(self) -> None:
        """The remote closes its direction."""
        self.finished = True
        self.read()

    def reset(self) -> None:
        """The remote resets the connection."""
        self.ends = "gone"
        self.flow.host = None
        self.nat.host_reset(self.flow, self.host.now())

    def take(self, room: int | None) -> None:
        """The kernel has room for ``room`` more bytes."""
        self.room = room
        self.write()

    def read(self) -> None:
        while self.incoming and not self.ends:
            space = self.nat.host_space(self.flow)
            if not space:
                return
            data = bytes(self.incoming[:space])
            del self.incoming[:space]
            self.nat.host_data(self.flow, data, self.host.now())
        if self.finished and not self.ends:
            self.nat.host_eof(self.flow, self.host.now())


class FakeHost:
    """Carries out requests, and remembers what there was to carry out.

    Attributes:
        outcome: what becomes of a dial to (address, port): 0, an errno, or HOLD. dialled: every dial so far.
        sockets: the TCP sockets so far. udp, pings, queries, inbound: what was to be sent.
        done: (operation, flow) of everything else.
    """

    def __init__(self, gateway: Gateway, now: Callable[[], Micros]) -> None:
        self.gateway = gateway
        self.now = now
        self.outcome: Callable[[bytes, int], int] = lambda _address, _port: 0
        self.dialled: list[tuple[bytes, int]] = []
        self.sockets: list[FakeSocket] = []
        self.udp: list[tuple[Any, bytes, int, int, bytes]] = []
        self.pings: list[tuple[Any, bytes, int, int, bytes]] = []
        self.queries: list[tuple[Any, bytes]] = []
        self.inbound: list[tuple[InboundPeer, bytes]] = []
        self.done: list[tuple[int, Any]] = []

    def serve(self) -> bool:
        """Carry out what is requested; whether there was anything."""
        requests = self.gateway.requests()
        for operation, flow, argument in requests:
            self._perform(operation, flow, argument)
        return bool(requests)

    def _perform(self, operation: int, flow: Any, argument: Any) -> None:
        if operation == op.DIAL:
            self._dial(flow)
        elif operation == op.UDP_SEND:
            self.udp.append((flow, *argument))
        elif operation == op.PING_SEND:
            self.pings.append((flow, *argument))
        elif operation == op.DNS_QUERY:
            self.queries.append((flow, argument))
        elif operation == op.INBOUND_SEND:
            self.inbound.append((flow, argument))
        elif isinstance(flow.host, FakeSocket):
            self._tcp(operation, flow.host)
        else:
            self.done.append((operation, flow))

    def _tcp(self, operation: int, socket: FakeSocket) -> None:
        if operation == op.WRITE:
            socket.write()
        elif operation == op.READ:
            socket.read()
        elif operation == op.SHUTDOWN:
            assert not socket.flow.conn.readable, "shut down before everything was written"
            socket.shutdown = True
        else:
            assert operation in (op.CLOSE, op.ABORT)
            assert not socket.ends, "ended twice"
            socket.ends = "closed" if operation == op.CLOSE else "reset"
            socket.flow.host = None

    def _dial(self, flow: TcpFlow) -> None:
        self.dialled.append((flow.address, flow.port))
        outcome = self.outcome(flow.address, flow.port)
        if flow.host is None:
            flow.host = socket = FakeSocket(self, flow)
            self.sockets.append(socket)
        if outcome != HOLD:
            self.decide(flow, outcome)

    def decide(self, flow: TcpFlow, outcome: int) -> None:
        """Decide a dial."""
        if outcome:
            flow.host = None
            self.gateway.tcp.dial_failed(flow, outcome, self.now())
        else:
            self.gateway.tcp.dialled(flow, self.now())

    def accept(self, publish: Publish, peer: tuple[bytes, int]) -> FakeSocket | None:
        """Somebody connects to a published port."""
        flow = self.gateway.inbound(publish, peer, self.now())
        if flow is None:
            return None
        flow.host = socket = FakeSocket(self, flow)
        self.sockets.append(socket)
        return socket


class GuestSocket:
    """A program's end of a connection in the guest."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.got = bytearray()
        self.happened = 0
        self.reads = True
        conn.user = self

    @property
    def opened(self) -> bool:
        return bool(self.happened & events.OPEN)

    @property
    def over(self) -> bool:
        return bool(self.happened & events.CLOSED)

    def on_event(self, flags: int) -> None:
        self.happened |= flags
        if self.reads:
            self.read()

    def read(self, limit: int = 1 << 30) -> None:
        self.got += self.conn.read(limit)


class Rig:
    """All of it. ``config`` are fields of `GatewayConfig`; the guest has the address that ``guest`` says.

    Args:
        configured: the gateway knows that address.
    """

    def __init__(
        self,
        *,
        guest: str = GUEST,
        configured: bool = False,
        info: LinkInfo | None = None,
        guest_tcp: TcpConfig | None = None,
        resolvers: tuple[tuple[bytes, int], ...] = (),
        **config: Any,
    ) -> None:
        info = info or LinkInfo()
        self.now: Micros = 1_000
        known = IPv4Address(guest).packed if configured else None
        self.gateway = Gateway(GatewayConfig(resolvers=resolvers, guest=known, **config), info, seed=7)
        self.host = FakeHost(self.gateway, lambda: self.now)
        plan = self.gateway.config.plan
        self.stack = Stack(
            StackConfig(
                mac=GUEST_MAC,
                addresses=(IPv4Interface(f"{guest}/{plan.network.prefixlen}"),),
                gateway=IPv4Address(plan.gateway),
                tcp=guest_tcp or TcpConfig(),
            ),
            info,
            seed=8,
        )
        self.to_guest: list[bytes] = []
        self.to_gateway: list[bytes] = []
        self.cut = False  # nothing gets through any more
        self.lost: Callable[[], bool] = lambda: False  # asked for every frame
        self.accepted: list[GuestSocket] = []

    @property
    def counters(self) -> Any:
        return self.gateway.counters

    @property
    def sockets(self) -> list[FakeSocket]:
        return self.host.sockets

    # ----------------------------------------------------------------------------------------------- the guest's side

    def connect(self, address: bytes = REMOTE, port: int = 80, *, local_port: int = 0) -> GuestSocket:
        return GuestSocket(self.stack.connect((address, port), self.now, local_port=local_port))

    def listen(self, port: int) -> None:
        self.stack.listen(port).user = self

    def on_event(self, _flags: int) -> None:
        raise AssertionError("a rig listens itself")

    def inject(self, frame: bytes) -> None:
        """The guest sends a frame that no stack would."""
        self.to_gateway.append(frame)
        self.gateway.receive(frame, self.now)

    def datagrams(self, endpoint: UdpEndpoint) -> list[tuple[tuple[bytes, int], bytes]]:
        """What a guest's endpoint received: (source, payload)."""
        taken = []
        while (datagram := endpoint.take()) is not None:
            taken.append((datagram.source, datagram.payload))
        return taken

    def errors(self, endpoint: UdpEndpoint) -> list[IcmpError]:
        taken = []
        while (error := endpoint.take_error()) is not None:
            taken.append(error)
        return taken

    # ------------------------------------------------------------------------------------------------------- time goes

    def settle(self) -> None:
        """Carry frames and requests until nothing moves; virtual time stands still."""
        for _ in range(10_000):
            moved = self._frames(self.stack, self.gateway, self.to_gateway)
            moved |= self.host.serve()
            moved |= self._frames(self.gateway, self.stack, self.to_guest)
            moved |= self._guest_events()
            if not moved:
                self.gateway.check()
                return
        raise AssertionError("it never comes to rest")

    def _frames(self, source: Any, sink: Any, log: list[bytes]) -> bool:
        frames = [b"".join(frame) for frame in source.frames(self.now, 64)]
        if not self.cut:
            log += frames
            for frame in frames:
                if not self.lost():
                    sink.receive(frame, self.now)
        return bool(frames)

    def _guest_events(self) -> bool:
        happened = self.stack.events()
        for endpoint, flags in happened:
            owner = endpoint.user
            if isinstance(owner, GuestSocket):
                owner.on_event(flags)
            elif owner is self:
                while (conn := endpoint.take()) is not None:  # type: ignore[union-attr]
                    assert isinstance(conn, Connection)
                    socket = GuestSocket(conn)
                    socket.on_event(events.OPEN)
                    self.accepted.append(socket)
        return bool(happened)

    def run(self, seconds: float, *, max_steps: int = 20_000) -> None:
        """Let ``seconds`` of virtual time go by."""
        end = self.now + round(seconds * SECOND)
        for _ in range(max_steps):
            self.settle()
            due = [at for at in (self.stack.next_timeout(), self.gateway.next_timeout()) if at is not None]
            if not due or min(due) > end:
                break
            self.now = max(min(due), self.now + 1)
            self.stack.tick(self.now)
            self.gateway.tick(self.now)
        else:
            raise AssertionError("too many timers: something spins")
        self.now = max(self.now, end)
        self.stack.tick(self.now)
        self.gateway.tick(self.now)
        self.settle()
