"""A gateway, a connection that must not notice anything, and an attacker who makes frames by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from pystack.frame import LinkInfo
from pystack.slirp.nat import MAX_TCP_FLOWS, MAX_UDP_FLOWS
from pystack.testing.frames import Crafter, packed
from pystack.wire import udp
from pystack.wire.packet import (
    ACK,
    IP_MF,
    PROTO_UDP,
    RST,
    SYN,
    Packet,
    parse_untrusted,
    verify_untrusted,
)
from tests.unit.slirp.fake_host import FakeSocket, GuestSocket, Rig

ATTACKER = "10.0.2.77"
ATTACKER_MAC = b"\x02\0\0\0\0\x77"
GATEWAY_MAC = b"\x52\x55\x0a\x00\x02\x02"
SERVER = "198.51.100.7"
EVERYBODY = b"\xff" * 6

MAX_SIZES = {
    "connections": 2 * MAX_TCP_FLOWS,
    "tcp_flows": MAX_TCP_FLOWS,
    "udp_flows": MAX_UDP_FLOWS,
    "timers": 4 * MAX_TCP_FLOWS,
    "neighbours": 1024,
    "datagrams_in_reassembly": 64,
    "bytes_in_reassembly": 4 << 20,
    "queued_frames": 1024,
    "path_mtus": 256,
    "packets_waiting_for_neighbours": 16 * 1024,
}


class Bench:
    """A gateway, a guest with an open connection, and an attacker on the same link who makes frames by hand."""

    def __init__(self) -> None:
        self.rig = Rig(info=LinkInfo())
        self.wire = Crafter(ATTACKER, SERVER, src_mac=ATTACKER_MAC, dst_mac=GATEWAY_MAC)
        self.to_gateway = self.wire.but(dst="10.0.2.2")
        self.beside: GuestSocket = self.rig.connect()
        self.rig.settle()
        self.remote: FakeSocket = self.rig.sockets[0]
        self.answers: list[Packet] = []
        self.frames_in = 0
        self._seen = len(self.rig.to_guest)
        self.check_beside()

    def send(self, *frames: bytes) -> list[Packet]:
        """The attacker sends ``frames``; returns what the gateway sent to the attacker."""
        for frame in frames:
            self.frames_in += 1
            self.rig.gateway.receive(frame, self.rig.now)
        self.rig.settle()
        return self._take()

    def run(self, seconds: float) -> list[Packet]:
        """Let time go by; returns what the gateway sent to the attacker."""
        self.rig.run(seconds)
        return self._take()

    def _take(self) -> list[Packet]:
        frames = self.rig.to_guest[self._seen :]
        self._seen = len(self.rig.to_guest)
        answers = []
        for frame in frames:
            packet = parse_untrusted(frame, 0, self.rig.counters)
            assert packet is not None, "what we send can be parsed"
            assert verify_untrusted(packet, self.rig.counters, rx_checksum=False), "what we send is right"
            if packet.dst == packed(ATTACKER):
                answers.append(packet)
        self.answers += answers
        return answers

    def check_beside(self) -> None:
        """The flow beside works, both ways."""
        assert self.beside.conn.write(b"ping") == 4
        self.remote.got.clear()
        self.beside.got.clear()
        self.rig.settle()
        self.remote.send(b"pong")
        self.rig.settle()
        self.rig.run(0.05)
        assert self.remote.got == b"ping"
        assert self.beside.got == b"pong"

    def check_bounds(self) -> None:
        """No table is larger than it may be."""
        for name, size in self.rig.gateway.sizes().items():
            assert size <= MAX_SIZES.get(name, 4096), f"{name} holds {size}"

    def dial(self, sport: int = 4000, *, options: bytes = b"", window: int = 65_535) -> Handmade:
        """A connection of the attacker's own, made by hand."""
        seq = 1_000_000
        (answer,) = self.send(self.wire.tcp(sport=sport, dport=80, flags=SYN, seq=seq, options=options, window=window))
        assert answer.flags == SYN | ACK
        conn = Handmade(self, sport, seq + 1, answer.seq + 1)
        conn.send(ACK, window=window)
        return conn

    @property
    def hosts(self) -> list[FakeSocket]:
        """The host's ends of the attacker's connections."""
        return self.rig.sockets[1:]


class Handmade:
    """The attacker's end of a connection: numbers and nothing more."""

    def __init__(self, bench: Bench, sport: int, seq: int, ack: int) -> None:
        self.bench = bench
        self.sport = sport
        self.seq = seq
        self.ack = ack

    def frame(self, flags: int, payload: bytes = b"", *, at: int = 0, acks: int = 0, **fields: object) -> bytes:
        """A segment ``at`` bytes behind what was sent so far, acknowledging ``acks`` bytes more than we know of."""
        return self.bench.wire.tcp(
            sport=self.sport,
            dport=80,
            flags=flags,
            seq=(self.seq + at) & 0xFFFF_FFFF,
            ack=(self.ack + acks) & 0xFFFF_FFFF,
            payload=payload,
            **fields,
        )

    def send(self, flags: int, payload: bytes = b"", **fields: object) -> list[Packet]:
        return self.bench.send(self.frame(flags, payload, **fields))  # type: ignore[arg-type]


Program = Callable[[Bench], object]


class Row(NamedTuple):
    """One case: what is done, and which counters must move (one of several names separated by a bar)."""

    name: str
    program: Program
    counter: str


def frames(make: Callable[[Bench], bytes | Iterable[bytes]]) -> Program:
    """A program that only sends what ``make`` makes."""

    def program(bench: Bench) -> None:
        made = make(bench)
        bench.send(*([made] if isinstance(made, bytes) else made))

    return program


def fragment(bench: Bench, offset: int, data: bytes, *, more: bool, ident: int = 1, options: bytes = b"") -> bytes:
    """One fragment of a UDP datagram to the gateway."""
    field = offset >> 3 | (IP_MF if more else 0)
    return bench.to_gateway.ipv4(PROTO_UDP, data, fragment=field, ident=ident, options=options)


def no_answer(make: Callable[[Bench], bytes]) -> Program:
    """A frame that gets no answer at all."""

    def program(bench: Bench) -> None:
        assert bench.send(make(bench)) == []

    return program


def resets(make: Callable[[Bench], bytes]) -> Program:
    """A frame that is answered by one RST and nothing else."""

    def program(bench: Bench) -> None:
        (answer,) = bench.send(make(bench))
        assert answer.flags & RST

    return program


def spoofed(source: str) -> Program:
    """UDP from ``source``, and from port 0."""
    return no_answer(lambda bench: bench.wire.but(src=source).udp(0, 53))


def datagram(size: int) -> bytes:
    """A UDP datagram with its header, from the attacker to a closed port of the gateway."""
    return udp.build(src=packed(ATTACKER), dst=packed("10.0.2.2"), sport=1, dport=9, payload=bytes(size))
