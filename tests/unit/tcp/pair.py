"""Two TCP engines joined by a wire that the test controls, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from pystack.clock import ManualClock, Micros
from pystack.counters import Counters
from pystack.frame import LinkInfo, TxFrame
from pystack.net.path import Path
from pystack.tcp.config import TcpConfig
from pystack.tcp.engine import TcpEndpoint, TcpEngine
from pystack.tcp.tcb import Connection
from pystack.timers import Timers
from pystack.wire.packet import Packet, parse_untrusted, verify_untrusted

A_ADDR, B_ADDR = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
A_MAC, B_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
PLAIN = LinkInfo(mtu=1500)
OFFLOAD = LinkInfo(mtu=1500, vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True, tso6=True)

Mangle: TypeAlias = Callable[[bytes, Packet], "list[tuple[Micros, bytes]]"]


class Side:
    """One engine with what a stack would give it."""

    def __init__(self, mac: bytes, peer_mac: bytes, link: LinkInfo, config: TcpConfig, seed: int) -> None:
        self.link = link
        self.counters = Counters()
        self.timers = Timers()
        self.engine = TcpEngine(
            config,
            self.counters,
            self.timers,
            lambda src, dst, packet: Path(link, mac, peer_mac, src, dst),
            seed=seed,
        )
        self.sent: list[Packet] = []
        self.seen: dict[int, int] = {}

    def events(self) -> dict[TcpEndpoint, int]:
        """Drain the events."""
        drained: list[tuple[TcpEndpoint, int]] = []
        self.engine.events_into(drained)
        return dict(drained)


class Pair:
    """Two sides and the wire between them. ``mangle`` decides what becomes of each frame: [(delay, frame), ...]."""

    def __init__(
        self,
        *,
        link: LinkInfo = PLAIN,
        a: TcpConfig | None = None,
        b: TcpConfig | None = None,
        seed: int = 1,
        delay: Micros = 100,
        mangle: Mangle | None = None,
    ) -> None:
        self.clock = ManualClock(1_000_000)
        self.a = Side(A_MAC, B_MAC, link, a or TcpConfig(), seed)
        self.b = Side(B_MAC, A_MAC, link, b or TcpConfig(), seed + 1)
        self.delay = delay
        self.mangle = mangle
        self._wire: list[tuple[Micros, int, Side, bytes]] = []
        self._serial = 0
        self.log: list[tuple[Micros, str, Packet]] = []

    def connect(self, port: int = 80, *, local_port: int = 40_000) -> Connection:
        """An active open from a to b's ``port``."""
        return self.a.engine.connect((A_ADDR, local_port), (B_ADDR, port), self.clock.now)

    def established(self, port: int = 80) -> tuple[Connection, Connection]:
        """A connection that is open on both sides."""
        listener = self.b.engine.listen(port)
        ours = self.connect(port)
        self.run(for_=1_000)
        theirs = listener.take()
        assert theirs is not None
        return ours, theirs

    def run(self, *, for_: Micros = 0, max_steps: int = 1_000_000, until: Callable[[], bool] | None = None) -> None:
        """Let ``for_`` microseconds pass, delivering frames and firing timers in order."""
        end = self.clock.now + for_
        for _ in range(max_steps):
            if until is not None and until():
                return
            self._flush()
            instants = [self._wire[0][0]] if self._wire else []
            instants += [t for t in (self.a.timers.next_timeout(), self.b.timers.next_timeout()) if t is not None]
            if not instants or min(instants) > end:
                break
            now = self.clock.jump_to(min(instants))
            while self._wire and self._wire[0][0] <= now:
                _, _, side, frame = self._wire.pop(0)
                self.deliver(side, frame)
            self.a.timers.fire(now)
            self.b.timers.fire(now)
        else:
            raise AssertionError("the world does not come to rest")
        self.clock.jump_to(end)

    def deliver(self, side: Side, frame: bytes) -> None:
        """Hand ``frame`` to ``side`` now."""
        packet = parse_untrusted(frame, side.link.vnet_hdr_len, side.counters)
        if packet is not None and verify_untrusted(packet, side.counters, rx_checksum=side.link.rx_checksum):
            side.engine.on_packet(packet, self.clock.now)

    def _flush(self) -> None:
        for side, other, name in ((self.a, self.b, "a"), (self.b, self.a, "b")):
            for _ in range(1000):
                out: list[TxFrame] = []
                side.engine.output(self.clock.now, out, 64)
                if not out:
                    break
                for frame in out:
                    self._put(name, side, other, b"".join(frame))
            for c in side.engine.connections():
                c._check()

    def _put(self, name: str, side: Side, other: Side, frame: bytes) -> None:
        packet = parse_untrusted(frame, side.link.vnet_hdr_len, side.counters)
        assert packet is not None
        self.log.append((self.clock.now, name, packet))
        copies = self.mangle(frame, packet) if self.mangle else [(0, frame)]
        for extra, copy in copies:
            self._serial += 1
            self._wire.append((self.clock.now + self.delay + extra, self._serial, other, copy))
        self._wire.sort(key=lambda item: item[:2])
