"""Two TCPs whose segments are lost, repeated, mangled or forged never raise, and keep to their states and bounds.

An input is one byte of settings, then operations of one byte each with the bytes they need behind them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from fuzz import harness
from pystack.clock import ManualClock
from pystack.counters import Counters
from pystack.frame import LinkInfo, TxFrame
from pystack.net.path import Path
from pystack.tcp.config import TcpConfig
from pystack.tcp.engine import TcpEngine
from pystack.tcp.tcb import Connection
from pystack.timers import Timers
from pystack.wire import tcp
from pystack.wire.packet import ACK, FIN, SYN, parse_untrusted
from tests.tcp_rules import every_transition_is_allowed

MAX_LEN = 512
_LINK = LinkInfo(mtu=1500, vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True)
_ADDRESSES = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
_MACS = (b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02")
_PORT = 80
_BUFFER = 20_000
_PAUSES = (0, 1, 1_000, 5_000, 200_000, 1_000_000, 60_000_000, 200_000_000)


class _Input:
    """The bytes of an input, taken one after the other; zeros behind their end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, n: int) -> bytes:
        piece = self._data[self._at : self._at + n]
        self._at += n
        return piece.ljust(n, b"\0")

    def byte(self) -> int:
        return self.take(1)[0]


class _Side:
    """One engine; what it sent and the other side has not seen yet."""

    def __init__(self, which: int, config: TcpConfig) -> None:
        self.counters = Counters()
        self.timers = Timers()
        self.wire: list[bytes] = []
        self.received = 0
        mine, peer = _MACS[which], _MACS[1 - which]
        self.engine = TcpEngine(
            config,
            self.counters,
            self.timers,
            lambda src, dst, _packet: Path(_LINK, mine, peer, src, dst),
            seed=which,
            max_connections=8,
        )

    def send(self, now: int) -> None:
        for _ in range(20):
            out: list[TxFrame] = []
            self.engine.output(now, out, 64)
            self.wire += [b"".join(frame) for frame in out]
            if not out:
                break
        assert len(self.engine.replies) <= 1024
        del self.wire[:-64]

    def receive(self, frame: bytes, now: int) -> None:
        packet = parse_untrusted(frame, _LINK.vnet_hdr_len, self.counters)
        if packet is not None and packet.key and packet.proto == 6:
            self.engine.on_packet(packet, now)

    def check(self) -> None:
        for c in self.engine.connections():
            c._check()
            assert c.readable <= _BUFFER + (1 << c.rcv_wscale)
            assert c.assembler is None or c.assembler.pieces <= 2 * c.config.max_out_of_order
            assert len(c.board._ranges) <= 512
        listeners = self.engine._listeners.values()
        for listener in listeners:
            half_open = [c for c in self.engine.connections() if c.listener is listener]
            assert listener.pending == len(half_open) <= listener.backlog


def _forged(c: Connection, source: _Input) -> bytes:
    """A segment from the peer of ``c`` that nobody sent: near what is expected, or anywhere."""
    flags, near, length, options = source.byte(), source.byte(), source.byte(), source.byte()
    seq = c.rcv_nxt + struct.unpack("!h", source.take(2))[0] if near & 1 else struct.unpack("!I", source.take(4))[0]
    ack = c.snd_una + struct.unpack("!h", source.take(2))[0] if near & 2 else struct.unpack("!I", source.take(4))[0]
    segment = tcp.build(
        src=c.remote_addr,
        dst=c.local_addr,
        sport=c.remote_port,
        dport=c.local_port,
        seq=seq & 0xFFFF_FFFF,
        ack=ack & 0xFFFF_FFFF,
        flags=flags,
        window=near << 8,
        urgent=length,
        options=_options(c, options, source),
        payload=bytes(length * (8 if near & 4 else 1)),
    )
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0) + c.remote_addr + c.local_addr
    return bytes(10) + _MACS[1] + _MACS[0] + b"\x08\0" + header + segment


def _options(c: Connection, kind: int, source: _Input) -> bytes:
    if kind & 1:
        return source.take(kind >> 4)
    sack = [
        (c.snd_una + a & 0xFFFF_FFFF, c.snd_una + b & 0xFFFF_FFFF) for a, b in struct.iter_unpack("!HH", source.take(8))
    ]
    return tcp.build_options(
        timestamps=(c.ts_recent + source.byte() & 0xFFFF_FFFF, 1) if c.ts_ok and kind & 2 else None,
        sack=sack if kind & 4 else (),
    )


def _application(c: Connection, what: int) -> None:
    match what % 8:
        case 0:
            c.write(bytes(1 + 100 * (what >> 3)))
        case 1:
            c.read(1 + 1000 * (what >> 3))
        case 2:
            c.shutdown()
        case 3:
            c.close()
        case 4:
            c.abort()
        case 5:
            c.accept()
        case 6:
            c.refuse(silent=bool(what & 8))
        case _:
            c.consume(1000)


def target(data: bytes) -> None:
    """Play one world from ``data``."""
    with every_transition_is_allowed():
        for _ in _world(_Input(data)):
            pass


def _config(settings: int) -> TcpConfig:
    return TcpConfig(
        receive_buffer=_BUFFER,
        send_buffer=_BUFFER,
        sack=bool(settings & 1),
        timestamps=bool(settings & 2),
        window_scale=bool(settings & 4),
        nagle=bool(settings & 8),
        keepalive=1_000_000 if settings & 16 else 0,
        max_out_of_order=16,
    )


def _world(source: _Input) -> Iterator[None]:
    settings = source.byte()
    clock = ManualClock(1_000_000)
    sides = (_Side(0, _config(settings)), _Side(1, _config(settings ^ 6 if settings & 32 else settings)))
    if settings & 64:
        sides[1].engine.listen_any(backlog=4)
    else:
        sides[1].engine.listen(_PORT, backlog=4)
    sides[0].engine.connect((_ADDRESSES[0], 40_000), (_ADDRESSES[1], _PORT), clock.now)
    if settings & 128:  # simultaneous open
        sides[1].engine.connect((_ADDRESSES[1], _PORT), (_ADDRESSES[0], 40_000), clock.now)
    while source:
        operation = source.byte()
        side, other = sides if operation & 1 else sides[::-1]
        side.send(clock.now)
        known = side.engine.connections()
        what = operation >> 1 & 7
        if what < 5:
            if other.wire:
                _on_the_wire(side, other.wire, what, source, clock.now)
        elif what == 5 and known:
            side.receive(_forged(known[operation >> 4 & len(known) - 1], source), clock.now)
        elif what == 6 and known:
            _application(known[0], source.byte())
        elif what == 7:
            clock.advance(_PAUSES[operation >> 4 & 7])
            for one in sides:
                one.timers.fire(clock.now)
            if operation & 128 and known:
                c = known[0]
                seq = c.snd_una + source.byte() & 0xFFFF_FFFF
                side.engine.on_icmp_error(c.key, seq, hard=bool(operation & 2), text="", mtu=source.byte() << 4)
        for one in sides:
            one.check()
            one.engine.events_into([])
        yield


def _on_the_wire(side: _Side, wire: list[bytes], what: int, source: _Input, now: int) -> None:
    """A frame on its way to ``side``: delivered, delivered out of turn and again later, mangled, or lost."""
    if what == 2:
        side.receive(wire[-1], now)
        return
    frame = wire.pop(0)
    if what == 3:
        mangled = bytearray(frame)
        for _ in range(1 + source.byte() % 4):
            mangled[24 + source.byte() % (len(frame) - 24)] ^= source.byte()
        frame = bytes(mangled)
    if what != 4:
        side.receive(frame, now)


def _script(settings: int, *operations: int) -> bytes:
    return bytes([settings, *operations])


_DELIVER_A, _DELIVER_B = 1, 0
_SAY_A, _SAY_B = 13, 12
_WAIT = 14 | 4 << 4
_FORGE_A = 11
SEEDS = [
    # Handshake, a little text each way, an orderly close.
    _script(7, _DELIVER_B, _DELIVER_A, _DELIVER_B, _SAY_A, 0x40, _SAY_B, 0x40, *[_DELIVER_B, _DELIVER_A] * 4, _WAIT,
            _SAY_A, 2, *[_DELIVER_B, _DELIVER_A] * 3, _SAY_B, 3, *[_DELIVER_B, _DELIVER_A] * 4),
    # Simultaneous open and close, no options.
    _script(0x80, _DELIVER_B, _DELIVER_A, _DELIVER_B, _DELIVER_A, _DELIVER_B, _DELIVER_A, _SAY_A, 2, _SAY_B, 2,
            *[_DELIVER_B, _DELIVER_A] * 3),
    # Deferred: accepted; bulk with loss and time.
    _script(0x47, _DELIVER_B, _SAY_B, 5, _DELIVER_A, _DELIVER_B, *[_SAY_A, 0xF8] * 4, 8, *[_DELIVER_B] * 4, _WAIT,
            *[_DELIVER_B, _DELIVER_A] * 6),
    # Deferred: refused.
    _script(0x40, _DELIVER_B, _SAY_B, 6, _DELIVER_A),
    # A forged reset near the window, and one of anything.
    _script(3, _DELIVER_B, _DELIVER_A, _DELIVER_B, _FORGE_A, 4, 3, 0, 0, 0, 5, 0, 0, _FORGE_A, ACK | FIN, 7, 9, 6, 0, 0,
            0, 0, *[0, 10, 0, 20] * 2, 0, _FORGE_A, SYN, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8),
]  # fmt: skip


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
