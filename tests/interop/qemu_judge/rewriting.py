"""Seeded connections through a rewriter: QEMU's filter-rewriter, ours in its place, and ours beside the primary.

Each frame is made twice: as it is sent, and as it must come out, with the other machine's numbers in it and the
checksum that belongs to them. So what is right is known without either rewriter.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pystack import Counters
from pystack.flow.rewriter import Rewriter, RewriterConfig
from pystack.testing.frames import Crafter
from pystack.wire import icmp, tcp, vlan
from pystack.wire.packet import ACK, FIN, PSH, RST, SYN, Packet, parse_untrusted, verify_untrusted
from tests.interop.qemu_judge.filters import Filters

MASK: Final = 0xFFFF_FFFF
_ISS: Final = (1000, 0x7FFF_FFF0, 0x8000_0010, 0xFFFF_FFF0, 0xFFFF_FFFF, 0)

TO_GUEST: Final = "to the guest"
TO_CLIENT: Final = "to the client"

CLASSES: Final[dict[str, str]] = {
    "sack": "the edges of SACK blocks keep the primary's numbers",
    "timestamps": "timestamps keep the machine's own clock",
    "reset-without-ack": "a RST without ACK keeps the secondary's number",
    "late-syn": "a SYN after the handshake has the next acknowledgement move the offset again",
    "early-ack": "an acknowledgement before the secondary's SYN-ACK is taken for the end of the handshake",
    "half-open-checkpoint": "a handshake that a checkpoint interrupts ends with a wrong offset",
    "opened-by-guest": "a connection that the guest opens is not translated",
    "tagged": "frames with VLAN tags pass unchanged",
    "quoted": "ICMP errors quote the numbers of the other machine",
    "checksum-made-right": "a wrong checksum is replaced by a right one",
}
"""Name of a class: what QEMU does."""


@dataclass(frozen=True, slots=True)
class Step:
    """``who``: client, secondary, primary, or checkpoint. ``want``: how the frame must come out."""

    who: str
    frame: bytes = b""
    want: bytes = b""


@dataclass(frozen=True, slots=True)
class Case:
    """See the module's text."""

    number: int
    kind: str
    steps: tuple[Step, ...]

    def describe(self) -> str:
        """The case as text that it can be made from again."""
        lines = [f"rewriter case {self.number} ({self.kind})"]
        lines += [f"  {index}: {step.who} {step.frame.hex()}" for index, step in enumerate(self.steps)]
        return "\n".join(lines)


@dataclass(slots=True)
class Connection:
    """A connection, its frames made in two sets of numbers at once.

    Attributes:
        wire: from the guest to the client. c, p, s: initial numbers. tagged: whether frames have a VLAN tag.
        stamps: whether segments have timestamps, of clocks that start with c_ts, p_ts and s_ts.
    """

    rng: random.Random
    wire: Crafter
    c: int
    p: int
    s: int
    stamps: bool
    c_ts: int = 100
    p_ts: int = 5000
    s_ts: int = 900_000
    tagged: bool = False
    same: bool = False  # a checkpoint has made the secondary a copy of the primary
    port: int = 5000
    steps: list[Step] = field(default_factory=list)

    def _frame(self, wire: Crafter, ports: tuple[int, int], **fields: Any) -> bytes:
        for name in ("seq", "ack"):
            fields[name] = fields.get(name, 0) & MASK
        frame = wire.tcp(sport=ports[0], dport=ports[1], **fields)
        return vlan.push(frame, 9) if self.tagged else frame

    def _options(self, val: int, ecr: int, **more: Any) -> bytes:
        stamps = (val & MASK, ecr & MASK) if self.stamps else None
        return tcp.build_options(timestamps=stamps, **more)

    def of_client(
        self,
        iss: int,
        ts: int,
        flags: int = ACK,
        *,
        offset: int = 0,
        acked: int = 0,
        later: int = 0,
        sack: Sequence[tuple[int, int]] = (),
        payload: bytes = b"",
    ) -> bytes:
        """A segment of the client in the numbers of the machine with ``iss`` and clock ``ts``."""
        blocks = [(iss + 1 + left & MASK, iss + 1 + right & MASK) for left, right in sack]
        options = self._options(self.c_ts + later, ts + later if flags & ACK else 0, sack=blocks)
        wire = self.wire.but(src=self.wire.dst, dst=self.wire.src)
        seq = self.c if flags & SYN else self.c + 1 + offset
        ack = iss + 1 + acked if flags & ACK else 0
        return self._frame(wire, (self.port, 80), seq=seq, ack=ack, flags=flags, options=options, payload=payload)

    def of_guest(
        self, iss: int, ts: int, flags: int = ACK, offset: int = 0, acked: int = 0, later: int = 0, payload: bytes = b""
    ) -> bytes:
        """A segment of a machine with ``iss`` and clock ``ts``."""
        more = {"mss": 1460, "window_scale": 7} if flags & SYN else {}
        options = self._options(ts + later, self.c_ts if flags & ACK else 0, **more)
        seq = iss if flags & SYN else iss + 1 + offset
        ack = self.c + 1 + acked if flags & ACK else 0
        return self._frame(self.wire, (80, self.port), seq=seq, ack=ack, flags=flags, options=options, payload=payload)

    def client(self, flags: int = ACK, **fields: Any) -> None:
        """The client sends a segment, in the primary's numbers."""
        frame = self.of_client(self.p, self.p_ts, flags, **fields)
        there = (self.p, self.p_ts) if self.same else (self.s, self.s_ts)
        want = frame if flags & SYN and not flags & ACK else self.of_client(*there, flags, **fields)
        self.steps.append(Step("client", frame, want))

    def secondary(self, flags: int = ACK, **fields: Any) -> None:
        """The secondary sends a segment."""
        there = (self.p, self.p_ts) if self.same else (self.s, self.s_ts)
        frame = self.of_guest(*there, flags, **fields)
        self.steps.append(Step("secondary", frame, self.of_guest(self.p, self.p_ts, flags, **fields)))

    def primary(self, flags: int = ACK, **fields: Any) -> None:
        """The primary sends a segment, which a proxy sees and QEMU's rewriter does not."""
        self.steps.append(Step("primary", self.of_guest(self.p, self.p_ts, flags, **fields)))

    def checkpoint(self) -> None:
        """The secondary becomes a copy of the primary."""
        self.same = True
        self.steps.append(Step("checkpoint"))

    def open(self) -> None:
        """The client opens the connection; the primary is first or last to answer."""
        self.client(SYN)
        if self.rng.random() < 0.3:
            self.client(SYN)  # again: it must not matter
        self.primary(SYN | ACK)
        self.secondary(SYN | ACK)
        self.client()

    def talk(self, start: int = 0, count: int = 4) -> int:
        """Data both ways; returns how far both streams are then."""
        at = start
        for _ in range(count):
            data = self.rng.randbytes(self.rng.randrange(1, 30))
            if self.rng.random() < 0.5:
                self.client(ACK | PSH, offset=at, acked=at, payload=data, later=4 * at + 1)
                self.secondary(ACK, offset=at, acked=at + len(data), later=4 * at + 1)
                self.primary(ACK, offset=at, acked=at + len(data), later=4 * at + 1)
                self.secondary(ACK | PSH, offset=at, acked=at + len(data), payload=data, later=4 * at + 1)
                self.primary(ACK | PSH, offset=at, acked=at + len(data), payload=data, later=4 * at + 1)
            else:
                self.secondary(ACK | PSH, offset=at, acked=at, payload=data, later=4 * at + 1)
                self.primary(ACK | PSH, offset=at, acked=at, payload=data, later=4 * at + 1)
                self.client(ACK | PSH, offset=at, acked=at + len(data), payload=data, later=4 * at + 1)
            at += len(data)
        return at


# ---------------------------------------------------------------------------------------------------------------- kinds


def data(connection: Connection) -> None:
    connection.open()
    connection.talk()


def selective(connection: Connection) -> None:
    connection.open()
    at = connection.talk()
    blocks = [(at + 10 * index + 5, at + 10 * index + 10) for index in range(connection.rng.randrange(1, 4))]
    connection.client(acked=at, offset=at, sack=blocks)


def ended(connection: Connection) -> None:
    """FIN of the one, then of the other, each acknowledged."""
    connection.open()
    at = connection.talk()
    if connection.rng.random() < 0.5:
        connection.client(FIN | ACK, offset=at, acked=at)
        connection.secondary(offset=at, acked=at + 1)
        connection.secondary(FIN | ACK, offset=at, acked=at + 1)
        connection.client(offset=at + 1, acked=at + 1)
    else:
        connection.secondary(FIN | ACK, offset=at, acked=at)
        connection.client(FIN | ACK, offset=at, acked=at + 1)
        connection.secondary(offset=at + 1, acked=at + 1)
    connection.secondary(offset=at + 1, acked=at + 1)


def reset(connection: Connection) -> None:
    connection.open()
    at = connection.talk()
    flags = connection.rng.choice((RST, RST | ACK))
    if connection.rng.random() < 0.5:
        connection.client(flags, offset=at, acked=at)
    else:
        connection.secondary(flags, offset=at, acked=at)


def late_syn(connection: Connection) -> None:
    """A duplicate of the client's SYN arrives when the connection is long open."""
    connection.open()
    at = connection.talk(count=2)
    connection.client(SYN)
    connection.talk(at)


def early_ack(connection: Connection) -> None:
    """The primary was faster: the client's answer to it arrives before the secondary's own SYN-ACK."""
    connection.client(SYN)
    connection.primary(SYN | ACK)
    connection.client()
    if connection.rng.random() < 0.5:
        connection.client(ACK | PSH, payload=b"GET")
    connection.secondary(SYN | ACK)
    connection.client(ACK | PSH, payload=b"GET")
    connection.secondary(acked=3)


def checkpointed(connection: Connection) -> None:
    connection.open()
    at = connection.talk()
    connection.checkpoint()
    connection.talk(at)


def checkpointed_half_open(connection: Connection) -> None:
    """A checkpoint falls between the SYN-ACKs and the client's acknowledgement."""
    connection.client(SYN)
    connection.primary(SYN | ACK)
    connection.secondary(SYN | ACK)
    connection.checkpoint()
    connection.client()
    connection.talk()


def opened_by_guest(connection: Connection) -> None:
    connection.primary(SYN)
    connection.secondary(SYN)
    connection.client(SYN | ACK)
    connection.secondary()
    connection.primary()
    connection.talk()


def in_the_middle(connection: Connection) -> None:
    """Nobody has seen how it began, nothing is known, and nothing is changed."""
    connection.same = True
    connection.talk()


def used_anew(connection: Connection) -> None:
    """A second connection on the same ports, after both have ended the first."""
    connection.open()
    at = connection.talk(count=2)
    connection.client(FIN | ACK, offset=at, acked=at)
    connection.secondary(FIN | ACK, offset=at, acked=at + 1)
    connection.client(offset=at + 1, acked=at + 1)
    connection.c, connection.p, connection.s = (connection.rng.getrandbits(32) for _ in range(3))
    connection.open()
    connection.talk()


def tagged(connection: Connection) -> None:
    connection.tagged = True
    data(connection)


def quoted(connection: Connection) -> None:
    """An ICMP error of the network quotes the primary's segment, whose number the secondary does not know."""
    connection.open()
    at = connection.talk(count=2)
    outer = connection.wire.but(src=connection.wire.dst, dst=connection.wire.src)
    frame, want = (
        outer.icmp_error(icmp.UNREACHABLE, 4, connection.of_guest(*numbers, offset=at)[14:42], 1400)
        for numbers in ((connection.p, connection.p_ts), (connection.s, connection.s_ts))
    )
    connection.steps.append(Step("client", frame, want))


def damaged(connection: Connection) -> None:
    """A checksum that was wrong must not become right: the receiver would believe what was damaged on the way."""
    connection.open()
    at = connection.talk(count=2)
    connection.client(ACK | PSH, offset=at, acked=at, payload=b"damaged!")
    step = connection.steps[-1]
    connection.steps[-1] = replace(step, frame=_damaged(step.frame), want=_damaged(step.want))


def _damaged(frame: bytes) -> bytes:
    return frame[:-2] + bytes((frame[-2] ^ 0x10, frame[-1]))


def not_tcp(connection: Connection) -> None:
    there = connection.wire.but(src=connection.wire.dst, dst=connection.wire.src)
    for frame in (there.udp(5, 6, b"query"), there.echo(), there.arp_request()):
        connection.steps.append(Step("client", frame, frame))
    for frame in (
        connection.wire.udp(6, 5, b"reply"),
        connection.wire.echo(kind=icmp.ECHO_REPLY),
        connection.wire.arp_reply(),
    ):
        connection.steps.append(Step("secondary", frame, frame))


KINDS: Final[tuple[Callable[[Connection], None], ...]] = (
    data, selective, ended, reset, late_syn, early_ack, checkpointed, checkpointed_half_open, opened_by_guest,
    in_the_middle, used_anew, tagged, quoted, damaged, not_tcp,
)  # fmt: skip


def case(number: int, seed: int) -> Case:
    """Case ``number`` of the sequence that ``seed`` begins; kinds take turns."""
    rng = random.Random(f"{seed}/rewriter/{number}")
    kind = KINDS[number % len(KINDS)]
    address = number + 1
    wire = Crafter(f"10.{address >> 16}.{address >> 8 & 255}.{address & 255}", "192.0.2.1")
    p, s = rng.sample(_ISS, 2) if rng.random() < 0.8 else [rng.choice(_ISS)] * 2
    stamps = rng.random() < 0.3
    # Equal numbers and other clocks would be two machines that one who does not see the primary takes for one.
    clocks = (5000, 5000) if p == s else (rng.choice((5000, 0xFFFF_FF00)), rng.choice((900_000, 0xFFFF_FF00)))
    connection = Connection(
        rng, wire, rng.choice(_ISS), p, s, stamps, p_ts=clocks[0], s_ts=clocks[1], port=rng.randrange(1024, 65536)
    )
    kind(connection)
    return Case(number, kind.__name__, tuple(connection.steps))


def cases(count: int, seed: int) -> list[Case]:
    """``count`` cases."""
    return [case(number, seed) for number in range(count)]


# ------------------------------------------------------------------------------------------------------------- answers

Outcome = dict[str, list[bytes]]
"""What came out on each side, in order."""


def put_to_qemu(filters: Filters, case: Case) -> Outcome:
    """Put a case to filter-rewriter."""
    outcome: Outcome = {TO_GUEST: [], TO_CLIENT: []}
    for step in case.steps:
        if step.who == "client":
            outcome[TO_GUEST].append(filters.to_guest(step.frame))
        elif step.who == "secondary":
            outcome[TO_CLIENT].append(filters.from_guest(step.frame))
        elif step.who == "checkpoint":
            filters.checkpoint()
    return outcome


def put_to_ours(case: Case, *, observing: bool, header: bytes = b"") -> Outcome:
    """Put a case to a `Rewriter`, which sees the primary's frames too or, as QEMU's, does not.

    Args:
        header: the virtio_net_hdr in front of each frame, which must come out as it is.
    """
    rewriter = Rewriter(RewriterConfig(vnet_hdr_len=len(header)))
    outcome: Outcome = {TO_GUEST: [], TO_CLIENT: []}
    for now, step in enumerate(case.steps):
        packet = _parsed(header + step.frame, len(header)) if step.frame else None
        if step.who == "checkpoint":
            rewriter.checkpoint()
        elif packet is not None and step.who == "client":
            frame = rewriter.to_secondary(packet, now)
            outcome[TO_GUEST] += rewriter.take_waiting()
            if frame is not None:
                outcome[TO_GUEST].append(frame)
        elif packet is not None and step.who == "secondary":
            outcome[TO_CLIENT].append(rewriter.from_secondary(packet, now))
        elif packet is not None and observing:
            rewriter.observe_primary(packet, now)
        outcome[TO_GUEST] += rewriter.take_waiting()
    return {way: [_bare(frame, header) for frame in frames] for way, frames in outcome.items()}


def _bare(frame: bytes, header: bytes) -> bytes:
    assert frame.startswith(header), f"{header.hex()} came back as {frame[: len(header)].hex()}"
    return frame[len(header) :]


def wanted(case: Case, *, observing: bool) -> Outcome:
    """What must come out.

    Who does not see the primary cannot know its number before the client has acknowledged it: a SYN that the secondary
    sends earlier passes as it is.
    """
    outcome: Outcome = {TO_GUEST: [], TO_CLIENT: []}
    told = observing
    for step in case.steps:
        if step.who == "client":
            flags = _parsed(step.frame).flags
            told = observing or (not flags & SYN and (told or bool(flags & ACK)))
            outcome[TO_GUEST].append(step.want)
        elif step.who == "secondary":
            is_syn = bool(_parsed(step.frame).flags & SYN)
            outcome[TO_CLIENT].append(step.frame if is_syn and not told else step.want)
    return outcome


def _parsed(frame: bytes, vnet_hdr_len: int = 0) -> Packet:
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    assert packet is not None
    return packet


def classes_of(case: Case) -> frozenset[str]:
    """The classes that a case belongs to, by its frames alone."""
    found = set()
    acked = answered = opening = False
    for step in case.steps:
        if step.who == "checkpoint":
            if opening:
                found.add("half-open-checkpoint")
            continue
        packet = _parsed(step.frame)
        if packet.proto == 1 and packet.frame[packet.l4] == icmp.UNREACHABLE:
            found.add("quoted")
        if packet.proto != 6:
            continue
        options = tcp.parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, Counters())
        if packet.tags:
            found.add("tagged")
        if options.sack:
            found.add("sack")
        if options.timestamps is not None:
            found.add("timestamps")
        if step.who == "secondary":
            answered |= bool(packet.flags & SYN)
            if packet.flags & (SYN | ACK) == SYN:
                found.add("opened-by-guest")
            if packet.flags & (RST | ACK) == RST:
                found.add("reset-without-ack")
        elif step.who == "client":
            if packet.flags & SYN:
                if acked:
                    found.add("late-syn")
                opening = True
            elif packet.flags & ACK:
                if opening and not answered:
                    found.add("early-ack")
                acked, opening = True, False
            if not _checksum_right(packet):
                found.add("checksum-made-right")
    return frozenset(found)


def _checksum_right(packet: Packet) -> bool:
    return verify_untrusted(packet, Counters(), rx_checksum=True)
