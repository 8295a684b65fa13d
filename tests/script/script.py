"""Packet scripts: one TCP engine in virtual time, and a test that plays the peer, segment by segment.

A script reads like the RFC. What the peer sends and what is expected back is one line of text per segment::

    s = Script(listen=True)
    s.peer("SYN seq=0 win=65535 mss=1460")
    s.expect("SYN-ACK seq=0 ack=1 mss=1460")
    s.peer("ACK seq=1 ack=1")
    s.after(ms(200), "ACK seq=1 ack=1001")  # silence until then, and exactly this at that very microsecond

Sequence numbers are relative: the peer's to the peer's ISN, ours to ours. Both ISNs lie just below 2**32 unless a
script says otherwise, so that every script crosses the wrap. The first word names the flags (SYN, ACK, FIN, RST, PSH,
URG joined by "-"; NONE). PSH is compared only where it is written. Then:

    seq= ack= win=   as in the header; win is the field, unscaled
    len=             bytes of payload; the peer's payload is a pattern that `Script.pattern` knows by its place
    mss= ws= sackok ts=VALUE:ECHO sack=LEFT:RIGHT[,LEFT:RIGHT]   options
    opt=             further options of the peer's, in hexadecimal
    gso= urg=        segment size of a super-frame; the urgent pointer
    csum=bad         a checksum of the peer's that is wrong

In what is expected, flags, seq, ack and len are compared always (seq and ack default to what the state suggests: the
next ones), the rest where written; ``noopt`` says that there is no option at all.
"""

from __future__ import annotations

from typing import Final

from pystack.clock import MILLISECOND, ManualClock, Micros
from pystack.counters import Counters
from pystack.frame import LinkInfo, TxFrame
from pystack.net.path import Path
from pystack.seq import MASK, sub
from pystack.tcp.config import TcpConfig
from pystack.tcp.engine import TcpEndpoint, TcpEngine
from pystack.tcp.listener import Listener
from pystack.tcp.tcb import Connection
from pystack.timers import Timers
from pystack.wire import checksum, tcp
from pystack.wire.packet import ACK, FIN, PSH, RST, SYN, URG, Packet, parse_untrusted, verify_untrusted

US, PEER = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
US_MAC, PEER_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
US_PORT, PEER_PORT = 80, 40_000
US_ISN, PEER_ISN = 0xFFFF_FFF0, 0xFFFF_F000
ETHERNET = LinkInfo(mtu=1500)
OFFLOAD = LinkInfo(mtu=1500, vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True, tso6=True)

PLAIN: Final = {"timestamps": False, "sack": False, "window_scale": False}
"""Settings without any option but MSS: the scripts that are not about options stay short."""

_FLAGS: Final = {"FIN": FIN, "SYN": SYN, "RST": RST, "PSH": PSH, "ACK": ACK, "URG": URG, "NONE": 0}


def ms(n: float) -> Micros:
    """``n`` milliseconds."""
    return round(n * MILLISECOND)


def seconds(n: float) -> Micros:
    """``n`` seconds."""
    return round(n * 1_000_000)


def config(**settings: object) -> TcpConfig:
    """A `TcpConfig` without options, changed by ``settings``."""
    return TcpConfig(**{**PLAIN, **settings})  # type: ignore[arg-type]


class Segment:
    """One line of a script."""

    def __init__(self, text: str) -> None:
        first, *fields = text.split()
        self.text = text
        self.flags = 0
        for name in first.split("-"):
            self.flags |= _FLAGS[name]
        self.fields = dict(field.partition("=")[::2] for field in fields)
        unknown = set(self.fields) - {
            *("seq", "ack", "win", "len", "mss", "ws", "sackok", "ts", "sack", "gso", "urg", "noopt", "opt", "csum")
        }
        assert not unknown, f"{text!r}: unknown {unknown}"

    def number(self, name: str, default: int) -> int:
        """The field ``name`` as a number."""
        return int(self.fields[name], 0) if name in self.fields else default

    def pairs(self, name: str) -> tuple[tuple[int, int], ...]:
        """The field ``name`` as A:B,A:B."""
        text = self.fields.get(name, "")
        return tuple((int(a), int(b)) for a, b in (pair.split(":") for pair in text.split(",") if pair))


class Script:
    """One engine, its clock, and the peer's side of one connection."""

    def __init__(
        self,
        *,
        listen: bool = False,
        deferred: bool = False,
        backlog: int = 8,
        link: LinkInfo = ETHERNET,
        us: int = US_ISN,
        peer: int = PEER_ISN,
        max_connections: int = 100,
        resolved: bool = True,
        **settings: object,
    ) -> None:
        self.clock = ManualClock(10_000_000_000)
        self.counters = Counters()
        self.timers = Timers()
        self.link = link
        self.config = config(**settings)
        self.paths: list[Path] = []
        self.resolved = resolved
        self.engine = TcpEngine(
            self.config, self.counters, self.timers, self._path, seed=1, max_connections=max_connections
        )
        self.us_isn = us
        # The numbers below are absolute ISNs of one connection: the script decides ours.
        self.engine._isn = lambda _key, _now: (self.us_isn, 0)  # type: ignore[assignment]
        self.peer_isn = peer
        self.peer_port = PEER_PORT
        self.peer_next = 0
        self.us_next = 0
        self.listener: Listener | None = None
        if listen:
            self.listener = self.engine.listen(US_PORT, backlog=backlog)
        if deferred:
            self.listener = self.engine.listen_any(backlog=backlog)
        self._snapshot = self.counters.snapshot()
        self.connection: Connection | None = None

    def _path(self, src: bytes, dst: bytes, packet: Packet | None) -> Path:
        path = Path(self.link, US_MAC, PEER_MAC if self.resolved else None, src, dst)
        self.paths.append(path)
        return path

    # -- what is looked at ------------------------------------------------------------------------------------------

    @property
    def now(self) -> Micros:
        """The virtual instant."""
        return self.clock.now

    @property
    def c(self) -> Connection:
        """The connection of this script: the one that was opened, or the newest one the engine knows."""
        if self.connection is None:
            self.connection = self.engine.connections()[-1]
        return self.connection

    @property
    def state(self) -> str:
        """The connection's state as the RFC writes it."""
        return self.c.state_name

    def recovering(self) -> bool:
        """Whether the connection is within a fast recovery."""
        return self.c.in_recovery

    def counted(self, **expected: int) -> None:
        """Exactly these ``tcp.`` counters moved, by these amounts, since the last call."""
        moved = self.counters.since(self._snapshot)
        assert moved == {f"tcp.{name}": value for name, value in expected.items()}
        self._snapshot = self.counters.snapshot()

    def events(self) -> dict[TcpEndpoint, int]:
        """Drain the events."""
        drained: list[tuple[TcpEndpoint, int]] = []
        self.engine.events_into(drained)
        return dict(drained)

    @staticmethod
    def pattern(start: int, length: int) -> bytes:
        """The peer's stream at relative sequence numbers [start, start + length); its first byte has number 1."""
        return bytes((at * 7 + (at >> 8)) & 0xFF for at in range(start, start + length))

    # -- the peer ---------------------------------------------------------------------------------------------------

    def peer(self, *segments: str) -> None:
        """The peer's segments arrive now, in this order."""
        for text in segments:
            self.inject(Segment(text))
            self._check()

    def inject(self, s: Segment) -> None:
        """Build the peer's segment and hand it to the engine."""
        seq = s.number("seq", self.peer_next)
        length = s.number("len", 0)
        ack = s.number("ack", self.us_next) if s.flags & ACK or "ack" in s.fields else None
        stamps = s.pairs("ts")
        options = tcp.build_options(
            mss=s.number("mss", 0) if "mss" in s.fields else None,
            window_scale=s.number("ws", 0) if "ws" in s.fields else None,
            sack_permitted="sackok" in s.fields,
            timestamps=stamps[0] if stamps else None,
            sack=[((a + self.us_isn) & MASK, (b + self.us_isn) & MASK) for a, b in s.pairs("sack")],
        ) + bytes.fromhex(s.fields.get("opt", ""))
        segment = tcp.build(
            src=PEER,
            dst=US,
            sport=self.peer_port,
            dport=US_PORT,
            seq=(seq + self.peer_isn) & MASK,
            ack=(ack + self.us_isn) & MASK if ack is not None else 0,
            flags=s.flags,
            window=s.number("win", 65_535),
            urgent=s.number("urg", 0),
            options=options,
            payload=self.pattern(seq + bool(s.flags & SYN), length),
        )
        if "csum" in s.fields:
            segment = segment[:16] + bytes((segment[16] ^ 0xFF, segment[17])) + segment[18:]
        total = (20 + len(segment)).to_bytes(2, "big")
        header = b"\x45\0" + total + b"\0\0\x40\0\x40\x06\0\0" + PEER + US
        header = header[:10] + checksum.finish(checksum.sum16(header)).to_bytes(2, "big") + header[12:]
        vnet = bytes(self.link.vnet_hdr_len)
        self.deliver(vnet + US_MAC + PEER_MAC + b"\x08\0" + header + segment)
        if not s.flags & RST:
            self.peer_next = max(self.peer_next, seq + length + bool(s.flags & SYN) + bool(s.flags & FIN))

    def deliver(self, frame: bytes) -> None:
        """Hand a frame to the engine as the network layer would."""
        packet = parse_untrusted(frame, self.link.vnet_hdr_len, self.counters)
        if packet is not None and verify_untrusted(packet, self.counters, rx_checksum=self.link.rx_checksum):
            self.engine.on_packet(packet, self.now)

    # -- what comes back --------------------------------------------------------------------------------------------

    def sent(self) -> list[Packet]:
        """Everything the engine has to send now."""
        packets = []
        for _ in range(100):
            out: list[TxFrame] = []
            self.engine.output(self.now, out, 64)
            for gathered in out:
                packet = parse_untrusted(b"".join(gathered), self.link.vnet_hdr_len, self.counters)
                assert packet is not None
                assert verify_untrusted(packet, self.counters, rx_checksum=True)
                packets.append(packet)
                length = packet.payload_len + bool(packet.flags & SYN) + bool(packet.flags & FIN)
                if not packet.flags & RST:
                    self.us_next = max(self.us_next, sub(packet.seq, self.us_isn) + length)
            if not out:
                break
        self._check()
        return packets

    def _check(self) -> None:
        for c in self.engine.connections():
            c._check()

    def expect(self, *segments: str) -> list[Packet]:
        """Exactly these segments leave now, in this order; none at all without arguments."""
        before = self.us_next
        packets = self.sent()
        shown = [self.show(p) for p in packets]
        assert len(packets) == len(segments), f"expected {list(segments)}, got {shown}"
        following = before
        for packet, text in zip(packets, segments, strict=True):
            following = self._compare(packet, Segment(text), following)
        return packets

    def _compare(self, p: Packet, s: Segment, following: int) -> int:
        options = tcp.parse_options_untrusted(p.frame, p.l4 + 20, p.payload, self.counters)
        got: dict[str, object] = {
            "flags": p.flags & ~(0 if s.flags & PSH else PSH),
            "seq": sub(p.seq, self.us_isn) if p.seq or not p.flags & RST else 0,
            "ack": sub(p.ack, self.peer_isn) if p.flags & ACK else 0,
            "len": p.payload_len,
            "win": p.window,
            "mss": options.mss,
            "ws": options.window_scale,
            "sackok": options.sack_permitted,
            "ts": options.timestamps and (options.timestamps,),
            "sack": tuple((sub(a, self.peer_isn), sub(b, self.peer_isn)) for a, b in options.sack),
            "gso": p.gso_size,
            "urg": p.urgent,
            "noopt": p.payload == p.l4 + 20,
        }
        want: dict[str, object] = {
            "flags": s.flags,
            "seq": s.number("seq", following),
            "ack": s.number("ack", self.peer_next) if s.flags & ACK else 0,
            "len": s.number("len", 0),
        }
        for name in s.fields:
            if name in ("win", "mss", "ws", "gso", "urg"):
                want[name] = int(s.fields[name]) if s.fields[name] != "none" else None
            elif name in ("ts", "sack"):
                want[name] = s.pairs(name) or None if name == "ts" else s.pairs(name)
            elif name in ("sackok", "noopt"):
                want[name] = s.fields[name] != "no"
        different = {name: (value, got[name]) for name, value in want.items() if got[name] != value}
        assert not different, f"expected {s.text!r}, got {self.show(p)!r}: {different}"
        if not p.flags & RST:
            following = max(following, sub(p.seq, self.us_isn) + p.payload_len + bool(p.flags & (SYN | FIN)))
        return following

    def show(self, p: Packet) -> str:
        """A segment of ours as a script would write it."""
        options = tcp.parse_options_untrusted(p.frame, p.l4 + 20, p.payload, self.counters)
        names = "-".join(name for name, bit in _FLAGS.items() if bit and p.flags & bit)
        ack = f" ack={sub(p.ack, self.peer_isn)}" if p.flags & ACK else ""
        return f"{names} seq={sub(p.seq, self.us_isn)}{ack} len={p.payload_len} win={p.window} {options!r}"

    # -- time -------------------------------------------------------------------------------------------------------

    def after(self, by: Micros, *segments: str) -> list[Packet]:
        """Nothing leaves for ``by`` microseconds; at that very instant exactly these segments do."""
        self.quiet(by - 1)
        self.clock.advance(1)
        self.timers.fire(self.now)
        return self.expect(*segments)

    def quiet(self, by: Micros) -> None:
        """``by`` microseconds pass and nothing leaves."""
        self.expect()
        end = self.now + by
        while (at := self.timers.next_timeout()) is not None and at <= end:
            self.clock.jump_to(at)
            self.timers.fire(self.now)
            assert not (sent := self.sent()), (
                f"{self.now - end + by} us later: {[self.show(p) for p in sent]} instead of silence for {by} us"
            )
        self.clock.jump_to(end)

    # -- ways to begin ----------------------------------------------------------------------------------------------

    def connect(self, **settings: object) -> Connection:
        """An active open; its SYN has not left yet."""
        changed = config(**settings) if settings else None
        self.connection = self.engine.connect((US, US_PORT), (PEER, self.peer_port), self.now, changed)
        return self.connection

    def open_actively(self, syn_ack: str = "SYN-ACK seq=0 ack=1 win=65535 mss=1460") -> Connection:
        """An established connection that we opened."""
        c = self.connect()
        assert len(self.sent()) == 1
        self.peer(syn_ack)
        assert len(self.sent()) == 1
        assert self.state == "ESTABLISHED"
        self.events()
        self._snapshot = self.counters.snapshot()
        return c

    def open_passively(self, syn: str = "SYN seq=0 win=65535 mss=1460", ack: str = "ACK seq=1 ack=1") -> Connection:
        """An established connection that the peer opened, taken from its listener."""
        if self.listener is None:
            self.listener = self.engine.listen(US_PORT)
        self.peer(syn)
        assert len(self.sent()) == 1
        self.peer(ack)
        self.expect()
        assert self.state == "ESTABLISHED"
        if self.listener is not None:
            assert self.listener.take() is self.c
        self.events()
        self._snapshot = self.counters.snapshot()
        return self.c
