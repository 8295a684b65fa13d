"""Packets as QEMU's colo-compare reads them, and as they are: what the model and the checks of a case look at."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pystack import Counters
from pystack.seq import MASK
from pystack.wire.packet import ACK, FIN, RST, SYN
from pystack.wire.tcp import parse_options_untrusted
from tests.interop.qemu_judge.draft import Step


def after(one: int, other: int) -> bool:
    """Whether ``one`` comes after ``other`` modulo 2^32."""
    return 0 < (one - other & MASK) < 1 << 31


@dataclass(slots=True, eq=False)
class Item:
    """A packet in a queue. ``stop`` counts neither SYN nor FIN; ``payload`` includes Ethernet padding."""

    step: int
    frame: bytes
    vnet_hdr_len: int
    seq: int = 0
    ack: int = 0
    stop: int = 0
    flags: int = 0
    header: int = 0
    payload: bytes = b""
    true_payload: bytes = b""  # without padding
    window: int = 0
    right: int = 0
    options: tuple[object, ...] = ()
    offset: int = 0

    @property
    def bare(self) -> bool:
        return self.seq == self.stop

    def rest(self) -> bytes:
        return self.payload[self.offset :]


@dataclass(slots=True)
class Said:
    """What a machine has told its peer so far."""

    ack: int | None = None
    top: int | None = None
    syn: tuple[object, ...] | None = None
    fin: int | None = None
    rst: int | None = None

    def note(self, item: Item) -> None:
        if item.flags & ACK and (self.ack is None or after(item.ack, self.ack)):
            self.ack = item.ack
        if item.flags & SYN:
            self.syn = item.options
        if item.flags & FIN:
            self.fin = item.seq + len(item.true_payload) & MASK
        if item.flags & RST:
            self.rst = item.seq

    def covers_flags(self, item: Item) -> bool:
        """Whether SYN, FIN and RST of a frame were said here too."""
        return (
            (not item.flags & SYN or self.syn == item.options)
            and (not item.flags & FIN or self.fin == item.seq + len(item.true_payload) & MASK)
            and (not item.flags & RST or self.rst == item.seq)
        )

    def covers_ack(self, item: Item) -> bool:
        """Whether a frame's acknowledgement was given here too."""
        return not item.flags & ACK or (self.ack is not None and not after(item.ack, self.ack))


def datum(proto: int, item: Item) -> bytes:
    """What of a packet the second machine does not choose differently: the payload by the lengths that are declared."""
    frame, l3 = item.frame, item.vnet_hdr_len + 14
    l4 = l3 + (frame[l3] & 15) * 4
    end = l3 + int.from_bytes(frame[l3 + 2 : l3 + 4], "big")
    if proto == 17:
        return frame[l4 : l4 + 4] + frame[l4 + 8 : end]
    if proto == 1:
        # Of an error's quotation what names the packet: its header and eight bytes.
        return frame[l4 : l4 + 2] + (frame[l4 + 8 : l4 + 36] if frame[l4] in (3, 11, 12) else frame[l4 + 4 : end])
    return frame[l4:end]


def contradicts(mine: Item, other: Item) -> bool:
    """Whether two segments of one machine say different things about the same bytes."""
    distance = (other.seq - mine.seq + (1 << 31) & MASK) - (1 << 31)
    low, high = max(distance, 0), min(distance + len(other.true_payload), len(mine.true_payload))
    return low < high and mine.true_payload[low:high] != other.true_payload[low - distance : high - distance]


def says_ip(step: Step) -> bool:
    """Whether a frame that QEMU does not look into is IP: version 6, or behind a tag."""
    kind = step.frame[step.vnet_hdr_len + 12 : step.vnet_hdr_len + 14]
    return len(step.frame) >= step.vnet_hdr_len + 18 and kind in (b"\x86\xdd", b"\x81\0", b"\x08\0")


def item_of(index: int, step: Step, *, tcp: bool) -> Item:
    frame, vnet = step.frame, step.vnet_hdr_len
    item = Item(index, frame, vnet)
    if tcp:
        l3 = vnet + 14
        l4 = l3 + (frame[l3] & 15) * 4
        _, _, item.seq, item.ack, word, window = struct.unpack_from("!HHIIHH", frame, l4)
        item.flags = word & 0x3F
        payload = l4 + (word >> 12) * 4
        item.payload = frame[payload:]
        item.true_payload = frame[payload : l3 + int.from_bytes(frame[l3 + 2 : l3 + 4], "big")]
        item.stop = item.seq + len(item.payload) & MASK
        if item.flags & SYN:
            options = parse_options_untrusted(frame, l4 + 20, payload, Counters())
            stamps = options.timestamps is not None
            item.options = (item.flags & ACK, options.mss, options.window_scale, options.sack_permitted, stamps)
        item.window = window
    return item


def repeated(steps: Sequence[Step]) -> list[int]:
    """The segments of the primary, by number, whose bytes it has all sent before."""
    found = []
    top: int | None = None
    for index, step in enumerate(steps):
        l3 = step.vnet_hdr_len + 14
        if not step.primary or step.frame[l3 - 2 : l3] != b"\x08\0" or step.frame[l3 + 9] != 6:
            continue
        item = item_of(index, step, tcp=True)
        end = item.seq + len(item.true_payload) & MASK
        if item.flags & SYN:
            top = item.seq + 1 & MASK
        elif item.true_payload and top is not None and not after(end, top):
            found.append(index)
        elif top is None or after(end, top):
            top = end
    return found
