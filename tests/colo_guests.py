"""What a guest sends, for tests of the comparator: one connection's output, twice, as two TCPs would send it.

`Guest` makes frames of one machine; `outputs` lets hypothesis choose how each of two machines cuts, repeats and
reorders the same stream.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, FIN, PSH, RST, SYN

GUEST = "10.0.0.2"
CLIENT = "10.0.0.1"


@dataclass(slots=True)
class Guest:
    """One machine's end of a connection. ``iss`` as in the header; offsets in `data` count from 0 after the SYN."""

    iss: int = 1000
    sport: int = 80
    dport: int = 5000
    acked: int = 7000
    window: int = 8000
    ident: int = 0
    vnet_hdr_len: int = 0
    tsval: int | None = None
    wire: Crafter = field(default_factory=lambda: Crafter(GUEST, CLIENT))

    def segment(
        self, seq: int, flags: int, payload: bytes = b"", *, options: bytes = b"", ack: int | None = None
    ) -> bytes:
        """A frame with an absolute ``seq``."""
        self.ident = (self.ident + 1) & 0xFFFF
        if self.tsval is not None and not options:
            options = tcp.build_options(timestamps=(self.tsval, 1))
        built = tcp.build(
            src=bytes(map(int, self.wire.src.split("."))),
            dst=bytes(map(int, self.wire.dst.split("."))),
            sport=self.sport,
            dport=self.dport,
            seq=seq & 0xFFFF_FFFF,
            ack=(self.acked if ack is None else ack) & 0xFFFF_FFFF if flags & ACK else 0,
            flags=flags,
            window=self.window,
            options=options,
            payload=payload,
        )
        return replace(self.wire, vnet_hdr_len=self.vnet_hdr_len).ipv4(6, built, ident=self.ident)

    def syn_ack(self, *, mss: int = 1460, scale: int | None = 7, sack: bool = True) -> bytes:
        """The answer to the client's SYN."""
        stamps = None if self.tsval is None else (self.tsval, 1)
        options = tcp.build_options(mss=mss, window_scale=scale, sack_permitted=sack, timestamps=stamps)
        return self.segment(self.iss, SYN | ACK, options=options)

    def data(self, offset: int, payload: bytes, flags: int = ACK | PSH, **fields: int) -> bytes:
        """Payload at ``offset`` of the stream."""
        return self.segment(self.iss + 1 + offset, flags, payload, **fields)  # type: ignore[arg-type]

    def ack(self, offset: int, number: int | None = None) -> bytes:
        """A pure acknowledgement after ``offset`` bytes."""
        return self.segment(self.iss + 1 + offset, ACK, ack=number)

    def fin(self, offset: int, payload: bytes = b"") -> bytes:
        """The end of the stream after ``offset`` bytes and ``payload``."""
        return self.segment(self.iss + 1 + offset, FIN | ACK, payload)

    def rst(self, offset: int, flags: int = RST | ACK) -> bytes:
        """A reset at ``offset``."""
        return self.segment(self.iss + 1 + offset, flags)


def framed(frame: bytes, vnet_hdr_len: int | None = None) -> bytes:
    """``frame`` as it travels in QEMU's stream."""
    if vnet_hdr_len is None:
        return struct.pack("!I", len(frame)) + frame
    return struct.pack("!II", len(frame), vnet_hdr_len) + frame


Cut = tuple[int, int]
"""(start, stop) of one segment in the stream."""


@st.composite
def cuts(draw: st.DrawFn, length: int, *, disorder: bool = True) -> list[Cut]:
    """The stream of ``length`` bytes as segments: cut anywhere, some repeated, some out of order."""
    marks = sorted(set(draw(st.lists(st.integers(1, max(length - 1, 1)), max_size=6))) | {length})
    segments = [(start, stop) for start, stop in zip([0, *marks], marks, strict=False) if start < stop <= length]
    again = draw(st.lists(st.tuples(st.integers(0, length - 1), st.integers(1, 40), st.integers(0, 6)), max_size=3))
    for start, size, after in again:
        stop = min(start + size, length)
        # A retransmission never comes before everything in it was sent once.
        sent = [index for index, segment in enumerate(segments) if segment[1] >= stop]
        segments.insert(min(max(after, min(sent) + 1 if sent else after), len(segments)), (start, stop))
    if disorder and len(segments) > 1:
        for at in draw(st.lists(st.integers(0, len(segments) - 2), max_size=2)):
            segments[at], segments[at + 1] = segments[at + 1], segments[at]
    return segments
