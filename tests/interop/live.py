"""A guest's stack and a gateway with real host sockets, joined in this process: no TAP, no namespace, no privileges."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

from pystack.clock import Micros
from pystack.drivers.hostio import HostIO
from pystack.frame import LinkInfo
from pystack.slirp.forwards import Publish
from pystack.slirp.gateway import Gateway, GatewayConfig
from pystack.stack import Stack, StackConfig
from pystack.tcp import events
from pystack.tcp.config import TcpConfig
from pystack.tcp.tcb import Connection

LARGE = LinkInfo(vnet_hdr_len=12, rx_checksum=True, tx_checksum=True, tso4=True)
HOST = IPv4Address("10.0.2.2").packed
_PATIENCE = 20.0
_GRAIN = 0.02  # what `done` looks at may change without waking us


class Socket:
    """A program's end of a connection in the guest."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.got = bytearray()
        self.happened = 0
        self.reads = True
        conn.user = self

    def on_event(self, flags: int) -> None:
        self.happened |= flags
        if self.reads:
            self.read()

    def read(self) -> None:
        self.got += self.conn.read(self.conn.readable)

    def is_open(self) -> bool:
        return bool(self.happened & events.OPEN)

    def is_over(self) -> bool:
        return bool(self.happened & events.CLOSED)


class Live(AbstractContextManager["Live"]):
    """All of it, on the real clock. The guest reaches this machine's loopback at 10.0.2.2."""

    def __init__(
        self,
        *,
        info: LinkInfo = LARGE,
        publish: tuple[Publish, ...] = (),
        resolv_conf: Path | None = None,
        guest_tcp: TcpConfig | None = None,
        **config: Any,
    ) -> None:
        options = {"allow_host_loopback": True} | config
        self.gateway = Gateway(GatewayConfig(**options), info, seed=3)
        self.hostio = HostIO(self.gateway, publish=publish, resolv_conf=resolv_conf)
        self.guest = Stack(
            StackConfig(
                mac=b"\x02\0\0\0\0\x15",
                addresses=(IPv4Interface("10.0.2.15/24"),),
                gateway=IPv4Address("10.0.2.2"),
                tcp=guest_tcp or TcpConfig(),
            ),
            info,
            seed=4,
        )
        self.accepted: list[Socket] = []
        self.turns = 0

    def __exit__(self, *_: object) -> None:
        self.hostio.close()

    def now(self) -> Micros:
        return time.monotonic_ns() // 1000

    def connect(self, port: int, address: bytes = HOST) -> Socket:
        return Socket(self.guest.connect((address, port), self.now()))

    def listen(self, port: int) -> None:
        self.guest.listen(port)

    def turn(self) -> bool:
        """Whatever can happen now; whether anything did."""
        self.turns += 1
        now = self.now()
        moved = self._carry(self.guest, self.gateway, now)
        self.hostio.serve(now)
        moved |= self._carry(self.gateway, self.guest, now)
        for endpoint, flags in self.guest.events():
            moved = True
            owner = endpoint.user
            if isinstance(owner, Socket):
                owner.on_event(flags)
            elif flags & events.ACCEPT:
                while (conn := endpoint.take()) is not None:  # type: ignore[union-attr]
                    assert isinstance(conn, Connection)
                    accepted = Socket(conn)
                    accepted.on_event(events.OPEN)
                    self.accepted.append(accepted)
        return moved

    @staticmethod
    def _carry(source: Any, sink: Any, now: Micros) -> bool:
        frames = source.frames(now, 64)
        for frame in frames:
            sink.receive(b"".join(frame), now)
        return bool(frames)

    def until(self, done: Callable[[], object], *, patience: float = _PATIENCE) -> None:
        """Run until ``done()`` is true, waiting where there is nothing to do but wait; fails after ``patience``."""
        end = time.monotonic() + patience
        while not done():
            left = end - time.monotonic()
            assert left > 0, "this does not come to its end"
            if not self.turn():
                self.wait(_GRAIN)

    def settle(self) -> None:
        """Run until nothing moves any more. On the loopback, what was sent has arrived."""
        while self.turn():
            pass

    def wait(self, longest: float) -> None:
        """Sleep until a socket or a timer has something to do, as a driver would."""
        due = [at for at in (self.guest.next_timeout(), self.gateway.next_timeout()) if at is not None]
        timeout = min([longest, *((at - self.now()) / 1e6 for at in due)])
        select.select([self.hostio.fileno()], [], [], max(timeout, 0.0005))
        self.guest.tick(self.now())
        self.gateway.tick(self.now())


def listening(kind: socket.SocketKind = socket.SOCK_STREAM) -> tuple[socket.socket, int]:
    """A socket of this machine's loopback that listens (or, for datagrams, is bound), and its port."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        sock.listen(512)
    sock.settimeout(_PATIENCE)
    return sock, sock.getsockname()[1]


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of the loopback that nobody listens on."""
    sock, port = listening(kind)
    sock.close()
    return port
