"""Reassembled datagrams equal those of a naive model under any order, overlap and duplication, within the bounds.

Input: records of 4 bytes each: datagram (2 bits) and last (1 bit) and padding, offset in units of 8 bytes, length, and
a byte to fill with. The model keeps a dictionary of bytes per datagram.
"""

from __future__ import annotations

from collections.abc import Iterator

from fuzz import harness
from pystack.counters import Counters
from pystack.net.reassembly import Limits, Reassembler
from pystack.testing.frames import Crafter
from pystack.timers import Timers
from pystack.wire.packet import IP_MF, parse_untrusted

MAX_LEN = 512

_WIRE = Crafter("10.0.0.9", "10.0.0.1")
_PROTO = 253
_LIMITS = Limits(datagrams=3, fragments=24, bytes=8192)


class _Model:
    """What becomes of one datagram, byte by byte. ``dead`` once its fragments contradict each other."""

    def __init__(self) -> None:
        self.data: dict[int, int] = {}
        self.pieces: set[tuple[int, bytes]] = set()
        self.total: int | None = None
        self.dead = False

    def add(self, start: int, data: bytes, *, last: bool) -> bytes | None:
        """Take a fragment; returns the payload once it is complete."""
        end = start + len(data)
        if self.dead or not data or (not last and len(data) & 7):
            return None
        beyond = self.total is not None and (end > self.total or (last and end != self.total))
        if beyond or len(self.pieces) >= _LIMITS.fragments:
            self.dead = True
        elif (start, data) not in self.pieces:
            if any(at in self.data for at in range(start, end)) or (last and max(self.data, default=0) >= end):
                self.dead = True
            else:
                self.pieces.add((start, data))
                self.data.update(zip(range(start, end), data, strict=True))
                self.total = end if last else self.total
        if self.dead or len(self.data) != self.total:
            return None
        return bytes(self.data[at] for at in range(len(self.data)))


def _records(data: bytes) -> Iterator[tuple[int, bool, int, bytes]]:
    for at in range(0, len(data) - 3, 4):
        control, offset, length, fill = data[at : at + 4]
        yield control & 3, bool(control & 4), offset % 64 * 8, bytes([fill]) * length


def target(data: bytes) -> None:
    """Feed the records to both and compare."""
    counters = Counters()
    reassembler = Reassembler(counters, Timers(), _LIMITS)
    models: dict[int, _Model] = {}
    for ident, last, start, payload in _records(data):
        frame = _WIRE.ipv4(_PROTO, payload, fragment=start >> 3 | (0 if last else IP_MF), ident=ident)
        packet = parse_untrusted(frame, 0, counters)
        assert packet is not None
        if not packet.is_fragment:
            continue
        evicted = counters["ipv4.reassembly_evicted"]
        whole = reassembler.add_untrusted(packet, 0)
        expected = models.setdefault(ident, _Model()).add(start, payload, last=last)
        assert len(reassembler) <= _LIMITS.datagrams
        assert reassembler.bytes_held <= _LIMITS.bytes + 65_535
        if counters["ipv4.reassembly_evicted"] != evicted:
            return  # from here on they know different things
        assert (whole.payload_bytes() if whole is not None else None) == expected
        if expected is not None:
            del models[ident]


SEEDS = [
    bytes((0, 0, 16, 65, 0, 2, 8, 66, 4, 3, 5, 67)),  # in order
    bytes((4, 3, 5, 67, 0, 2, 8, 66, 0, 0, 16, 65)),  # the last one first
    bytes((0, 0, 16, 65, 0, 0, 16, 65, 4, 2, 5, 67)),  # a duplicate
    bytes((0, 0, 16, 65, 0, 1, 16, 66, 4, 3, 5, 67)),  # an overlap
    bytes((0, 0, 8, 1, 1, 0, 8, 2, 2, 0, 8, 3, 3, 0, 8, 4, 4, 1, 1, 9)),  # more datagrams than there is room for
]

if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
