"""Output commit, checked from outside: what each machine has said, what a checkpoint has copied, and what leaves.

Written to be obviously right and not to be fast, and without a line of the comparator: each machine's output is a
dictionary of bytes by their offset in the stream. A frame may leave if everything in it is in the secondary's
dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pystack.counters import Counters
from pystack.link.segment import complete_untrusted
from pystack.seq import sub
from pystack.wire import checksum
from pystack.wire.packet import ACK, FIN, PROTO_TCP, RST, SYN, VNET_NEEDS_CSUM, Packet, parse_untrusted
from pystack.wire.tcp import TcpOptions, parse_options_untrusted
from tests.sim.scenario import Violation


@dataclass
class Said:
    """What one machine has said on one connection. Offsets count from its own initial sequence number."""

    iss: int = -1
    options: tuple[int | None, int | None, bool, bool] | None = None
    data: dict[int, int] = field(default_factory=dict)
    also: set[tuple[int, int]] = field(default_factory=set)  # (offset, byte): a broken machine says two things
    acked: int = -1  # as in the header; client's numbers are the same for both
    fin: int = -1
    resets: set[int] = field(default_factory=set)
    before: Said | None = None  # on the connection before this one that had the same addresses and ports

    def copy(self) -> Said:
        before = None if self.before is None else replace(self.before, before=None)
        return replace(self, data=dict(self.data), also=set(self.also), resets=set(self.resets), before=before)


@dataclass
class Machine:
    """Everything that one machine has said."""

    connections: dict[bytes, Said] = field(default_factory=dict)
    datagrams: set[bytes] = field(default_factory=set)

    def copy(self) -> Machine:
        return Machine({key: said.copy() for key, said in self.connections.items()}, set(self.datagrams))


def _parse(frame: bytes, vnet_hdr_len: int) -> Packet | None:
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    return packet if packet is not None and packet.version == 4 else None


def _datagram(packet: Packet) -> bytes:
    """What counts of a packet that is not TCP's, or of a fragment: not its identification, its time to live."""
    eth = packet.eth
    frame = complete_untrusted(packet.frame, eth)  # nor who filled the checksum
    head = frame[packet.l3 - eth : packet.l4 - eth]
    return head[6:8] + head[9:10] + head[12:] + frame[packet.l4 - eth : packet.end - eth]


def _negotiated(options: TcpOptions) -> tuple[int | None, int | None, bool, bool]:
    return options.mss, options.window_scale, options.sack_permitted, options.timestamps is not None


class Auditor:
    """Sees all three links, whose frames have ``vnet_hdr_len`` bytes of virtio_net_hdr."""

    def __init__(self, vnet_hdr_len: int = 0) -> None:
        self._vnet_hdr_len = vnet_hdr_len
        self.machines = [Machine(), Machine()]
        self.told: dict[bytes, list[int]] = {}  # the initial sequence numbers that the client knows, the newest first
        self.checked = 0

    def said(self, number: int, frame: bytes) -> None:
        """The machine ``number`` has sent ``frame``."""
        packet = _parse(frame, self._vnet_hdr_len)
        if packet is None:
            return
        machine = self.machines[number]
        if packet.proto != PROTO_TCP or packet.is_fragment:
            machine.datagrams.add(_datagram(packet))
            return
        said = machine.connections.get(packet.key)
        if said is None or (packet.flags & SYN and packet.seq != said.iss >= 0):
            said = machine.connections[packet.key] = Said(before=said)
        self._note(said, packet)

    def _note(self, said: Said, packet: Packet) -> None:
        if packet.flags & SYN:
            said.iss = packet.seq
            options = parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, Counters())
            said.options = _negotiated(options)
        start = sub(packet.seq, said.iss) if said.iss >= 0 else 0
        said.data.update(enumerate(packet.payload_bytes(), start))
        if packet.flags & ACK and (said.acked < 0 or sub(packet.ack, said.acked) > 0):
            said.acked = packet.ack
        if packet.flags & FIN:
            said.fin = start + packet.payload_len
        if packet.flags & RST:
            said.resets.add(start)

    def copied(self) -> None:
        """A checkpoint has completed: the secondary has said what the primary had, and nothing else."""
        self.machines[1] = self.machines[0].copy()

    def flipped(self, frame: bytes) -> bytes:
        """A retransmission of a broken primary: other bytes under old numbers, with a right checksum."""
        packet = _parse(frame, self._vnet_hdr_len)
        if packet is None or packet.proto != PROTO_TCP or packet.payload_len < 2 or packet.flags & SYN:
            return frame
        said = self.machines[0].connections.get(packet.key)
        if said is None or sub(packet.seq, said.iss) + packet.payload_len > max(said.data, default=0) - 600:
            return frame
        body = bytearray(packet.payload_bytes())
        body[0] ^= 0xFF
        head = bytearray(frame[: packet.payload])
        if not packet.vnet_flags & VNET_NEEDS_CSUM:
            head[packet.l4 + 16 : packet.l4 + 18] = b"\0\0"
            total = checksum.pseudo(packet.src, packet.dst, PROTO_TCP, packet.end - packet.l4)
            total += checksum.sum16(head[packet.l4 :] + body)
            head[packet.l4 + 16 : packet.l4 + 18] = checksum.finish(total).to_bytes(2, "big")
        changed = bytes(head + body)
        said.also.add((sub(packet.seq, said.iss), body[0]))  # it did say so
        return changed

    def check(self, frame: bytes, *, payload: bool = True) -> None:
        """``frame`` leaves for the client. ``payload``: whether to look at that too.

        Raises:
            Violation: the secondary does not stand for all that it says.
        """
        packet = _parse(frame, self._vnet_hdr_len)
        if packet is None:
            return
        self.checked += 1
        machine = self.machines[1]
        if packet.proto != PROTO_TCP or packet.is_fragment:
            if _datagram(packet) not in machine.datagrams:
                raise Violation(f"protocol {packet.proto}: a datagram that the secondary has not sent")
            return
        secondary = machine.connections.get(packet.key)
        where = f"{packet.key.hex()} seq {packet.seq} flags {packet.flags:#x}"
        if secondary is None:
            raise Violation(f"{where}: a connection of which the secondary has said nothing")
        told = self.told.setdefault(packet.key, [])
        if packet.flags & RST and not told and secondary.resets and sub(packet.ack, secondary.acked) <= 0:
            return  # a client that was told of no number looks at the acknowledgement alone (RFC 9293 section 3.10.7.3)
        if packet.flags & SYN and packet.seq not in told:
            told.insert(0, packet.seq)
        wrong = self._wrong(packet, told, secondary, payload=payload)
        if wrong and secondary.before is not None:
            # A last word on the connection before this one.
            if not self._wrong(packet, told, secondary.before, payload=payload):
                return
        if wrong:
            raise Violation(f"{where}: {wrong}")

    def _wrong(self, packet: Packet, told: list[int], secondary: Said, *, payload: bool) -> str:
        """What is wrong with a segment whichever connection of those that the client knows it belongs to."""
        wrong = [
            self._uncovered(packet, sub(packet.seq, iss) if iss >= 0 else 0, secondary, payload=payload)
            for iss in told[:2] or [secondary.iss]
        ]
        return wrong[0] if all(wrong) else ""

    @staticmethod
    def _uncovered(packet: Packet, start: int, secondary: Said, *, payload: bool) -> str:
        flags = packet.flags
        if flags & SYN:
            if secondary.options is None:
                return "a SYN that the secondary has not sent"
            options = parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, Counters())
            if _negotiated(options) != secondary.options:
                return "a SYN with options that are not the secondary's"
        for at, byte in enumerate(packet.payload_bytes() if payload else b"", start):
            if secondary.data.get(at) != byte and (at, byte) not in secondary.also:
                return f"byte {at} is {byte}, the secondary's is {secondary.data.get(at)}"
        if flags & ACK and (secondary.acked < 0 or sub(packet.ack, secondary.acked) > 0):
            return f"acknowledges {packet.ack}, the secondary {secondary.acked}"
        if flags & FIN and secondary.fin != start + packet.payload_len:
            return f"a FIN at {start + packet.payload_len}, the secondary's at {secondary.fin}"
        if flags & RST and start not in secondary.resets:
            return "a reset that the secondary has not sent"
        return ""
