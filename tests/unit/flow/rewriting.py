"""One connection's segments on both sides of a rewriter, for its tests.

`Machines` is a client, a primary and a secondary with numbers of their own choice; `numbers` reads a frame back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from pystack.counters import Counters
from pystack.flow.rewriter import Rewriter, RewriterConfig
from pystack.testing.frames import packed
from pystack.wire import ethernet, ipv4, ipv6, tcp
from pystack.wire.packet import (
    ACK,
    ETHERTYPE_IPV4,
    ETHERTYPE_IPV6,
    PROTO_TCP,
    SYN,
    Packet,
    parse_untrusted,
    verify_untrusted,
)

GUEST = packed("10.0.0.2")
CLIENT = packed("10.0.0.9")
GUEST6 = IPv6Address("fd00::2").packed
CLIENT6 = IPv6Address("fd00::9").packed
MASK = 0xFFFF_FFFF


class Numbers(NamedTuple):
    """What a rewriter may change in a segment."""

    seq: int
    ack: int
    stamps: tuple[int, int] | None
    sack: tuple[tuple[int, int], ...]


def parse(frame: bytes, vnet_hdr_len: int = 0) -> Packet:
    """A frame that must parse."""
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    assert packet is not None
    return packet


def numbers(frame: bytes, vnet_hdr_len: int = 0) -> Numbers:
    """The numbers of a frame, whose checksums must be right."""
    packet = parse(frame, vnet_hdr_len)
    counters = Counters()
    assert verify_untrusted(packet, counters, rx_checksum=True), counters.snapshot()
    options = tcp.parse_options_untrusted(frame, packet.l4 + 20, packet.payload, counters)
    return Numbers(packet.seq, packet.ack, options.timestamps, options.sack)


@dataclass(slots=True)
class Lane:
    """How segments travel: addresses, ports, and what stands in front of them."""

    sport: int = 80
    dport: int = 5000
    v6: bool = False
    tags: bytes = b""
    vnet_hdr: bytes = b""

    def segment(self, *, outward: bool, **fields: Any) -> bytes:
        """A frame of the guest (``outward``) or the client; ``fields`` as for `pystack.wire.tcp.build`."""
        guest, client = (GUEST6, CLIENT6) if self.v6 else (GUEST, CLIENT)
        src, dst = (guest, client) if outward else (client, guest)
        sport, dport = (self.sport, self.dport) if outward else (self.dport, self.sport)
        for name in ("seq", "ack"):
            fields[name] = fields.get(name, 0) & MASK
        built = tcp.build(src=src, dst=dst, sport=sport, dport=dport, **fields)
        if self.v6:
            header = ipv6.build_header(src=src, dst=dst, payload_len=len(built), next_header=PROTO_TCP)
        else:
            header = ipv4.build_header(src=src, dst=dst, payload_len=len(built), proto=PROTO_TCP)
        ethertype = ETHERTYPE_IPV6 if self.v6 else ETHERTYPE_IPV4
        front = ethernet.build_header(b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02", ethertype)
        return self.vnet_hdr + front[:12] + self.tags + front[12:] + header + built


@dataclass(slots=True)
class Machines:
    """A connection of a client (``c``) with a primary (``p``) and a secondary (``s``), opened by either end.

    Attributes:
        c, p, s: initial sequence numbers. c_ts, p_ts, s_ts: timestamps of the SYNs, None: no such option.
    """

    c: int = 7_000
    p: int = 1_000
    s: int = 900_000
    c_ts: int | None = None
    p_ts: int = 0
    s_ts: int = 0
    lane: Lane = field(default_factory=Lane)
    rewriter: Rewriter = field(default_factory=Rewriter)
    now: int = 0

    @property
    def vnet_hdr_len(self) -> int:
        return len(self.lane.vnet_hdr)

    def options(self, val: int, ecr: int, **more: Any) -> bytes:
        """Timestamps if the connection has them, and ``more`` options."""
        return tcp.build_options(timestamps=None if self.c_ts is None else (val & MASK, ecr & MASK), **more)

    def guest(self, iss: int, base: int, offset: int = 0, flags: int = ACK, **fields: Any) -> bytes:
        """A segment of a machine with that ISS and TSval, ``offset`` after its SYN, acknowledging the client's SYN."""
        if "options" not in fields:
            fields["options"] = self.options(base, self.c_ts or 0)
        fields.setdefault("ack", self.c + 1 if flags & ACK else 0)
        seq = iss + (0 if flags & SYN else 1) + offset
        return self.lane.segment(outward=True, seq=seq, flags=flags, **fields)

    def client(
        self, flags: int = ACK, *, acked: int = 0, offset: int = 0, ecr: int | None = None, **fields: Any
    ) -> bytes:
        """A segment of the client, in the primary's numbers: ``acked`` bytes after the primary's SYN."""
        if "options" not in fields:
            echo = (self.p_ts if ecr is None else ecr) if flags & ACK else 0
            fields["options"] = self.options(self.c_ts or 0, echo)
        fields.setdefault("ack", self.p + 1 + acked if flags & ACK else 0)
        seq = self.c + (0 if flags & SYN else 1) + offset
        return self.lane.segment(outward=False, seq=seq, flags=flags, **fields)

    # What passes the rewriter.

    def observe(self, frame: bytes) -> None:
        """The primary sent ``frame``."""
        self.rewriter.observe_primary(parse(frame, self.vnet_hdr_len), self.now)

    def up(self, frame: bytes) -> bytes:
        """The secondary sent ``frame``; returns it as the client would see it."""
        return self.rewriter.from_secondary(parse(frame, self.vnet_hdr_len), self.now)

    def down(self, frame: bytes) -> bytes | None:
        """The client sent ``frame``; returns what the secondary gets, None if that is nothing yet."""
        return self.rewriter.to_secondary(parse(frame, self.vnet_hdr_len), self.now)

    def read(self, frame: bytes | None) -> Numbers:
        """The numbers of a frame that must be there."""
        assert frame is not None
        return numbers(frame, self.vnet_hdr_len)

    def syn(self) -> None:
        """The client's SYN."""
        frame = self.client(SYN)
        assert self.down(frame) == frame

    def p_syn_ack(self) -> bytes:
        return self.guest(self.p, self.p_ts, flags=SYN | ACK)

    def s_syn_ack(self) -> bytes:
        return self.guest(self.s, self.s_ts, flags=SYN | ACK)

    def open(self, *, observed: bool = True) -> Machines:
        """The client's handshake, in order, the offset known at its end."""
        self.syn()
        if observed:
            self.observe(self.p_syn_ack())
        self.up(self.s_syn_ack())
        assert self.read(self.down(self.client())).ack == (self.s + 1) & MASK
        return self

    def translates(self) -> bool:
        """Whether data and an acknowledgement pass with the secondary's numbers exchanged for the primary's."""
        data = self.up(self.guest(self.s, self.s_ts, 10, payload=b"data"))
        ack = self.down(self.client(acked=14))
        return self.read(data).seq == (self.p + 11) & MASK and self.read(ack).ack == (self.s + 15) & MASK

    def passes(self) -> bool:
        """Whether data and an acknowledgement pass as they are."""
        data, ack = self.guest(self.p, self.p_ts, 10, payload=b"data"), self.client(acked=14)
        return self.up(data) is not None and self.up(data) == data and self.down(ack) == ack


def machines(config: RewriterConfig | None = None, **fields: Any) -> Machines:
    """A connection through a rewriter with ``config``."""
    return Machines(rewriter=Rewriter(config), **fields)
