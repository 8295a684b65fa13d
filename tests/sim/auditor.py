"""Output commit, checked from outside: what each machine has said, what a checkpoint has copied, and what leaves.

Written to be obviously right and not to be fast, and without a line of the comparator: each machine's output is a
dictionary of bytes by their offset in the stream. A frame may leave if everything in it is in the secondary's
dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from pystack.counters import Counters
from pystack.seq import sub
from pystack.wire import checksum
from pystack.wire.packet import ACK, FIN, PROTO_TCP, RST, SYN, Packet, parse_untrusted
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


def _parse(frame: bytes) -> Packet | None:
    packet = parse_untrusted(frame, 0, Counters())
    return packet if packet is not None and packet.proto == PROTO_TCP and packet.version == 4 else None


def _negotiated(options: TcpOptions) -> tuple[int | None, int | None, bool, bool]:
    return options.mss, options.window_scale, options.sack_permitted, options.timestamps is not None


class Auditor:
    """Sees all three links."""

    def __init__(self) -> None:
        self.machines: list[dict[bytes, Said]] = [{}, {}]
        self.told: dict[bytes, int] = {}  # the initial sequence number that the client knows, by connection
        self.checked = 0

    def said(self, number: int, frame: bytes) -> None:
        """The machine ``number`` has sent ``frame``."""
        packet = _parse(frame)
        if packet is not None:
            self._note(self.machines[number].setdefault(packet.key, Said()), packet)

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
        """A checkpoint has completed: the secondary has said what the primary had."""
        primary, secondary = self.machines
        secondary.clear()
        for key, said in primary.items():
            secondary[key] = replace(said, data=dict(said.data), also=set(said.also), resets=set(said.resets))

    def flipped(self, frame: bytes) -> bytes:
        """A retransmission of a broken primary: other bytes under old numbers, with a right checksum."""
        packet = _parse(frame)
        if packet is None or packet.payload_len < 2 or packet.flags & SYN:
            return frame
        said = self.machines[0].get(packet.key)
        if said is None or sub(packet.seq, said.iss) + packet.payload_len > max(said.data, default=0) - 600:
            return frame
        body = bytearray(packet.payload_bytes())
        body[0] ^= 0xFF
        head = bytearray(frame[: packet.payload])
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
        packet = _parse(frame)
        if packet is None:
            return
        self.checked += 1
        secondary = self.machines[1].get(packet.key)
        where = f"{packet.key.hex()} seq {packet.seq} flags {packet.flags:#x}"
        if secondary is None:
            raise Violation(f"{where}: a connection of which the secondary has said nothing")
        if packet.flags & SYN:
            self.told[packet.key] = packet.seq
        iss = self.told.get(packet.key, secondary.iss)
        start = sub(packet.seq, iss) if iss >= 0 else 0
        wrong = self._uncovered(packet, start, secondary, payload=payload)
        if wrong:
            raise Violation(f"{where}: {wrong}")

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
