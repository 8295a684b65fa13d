"""Reassembly against a naive model that keeps every byte in a dictionary, under any order, overlap and duplication."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pystack.counters import Counters
from pystack.net.fragmentation import fragments
from pystack.net.reassembly import FragmentBuffer, Limits, Reassembler
from pystack.testing.frames import Crafter
from pystack.timers import Timers
from pystack.wire.packet import IP_MF, IP_OFFSET, parse_untrusted

WIRE = Crafter("10.0.0.9", "10.0.0.1")


class Model:
    """The same as `FragmentBuffer`, without a thought for speed."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.pieces: set[tuple[int, bytes]] = set()
        self.total: int | None = None
        self.dead = False

    def add(self, start: int, data: bytes, *, last: bool) -> None:
        end = start + len(data)
        if self.total is not None and (end > self.total or (last and end != self.total)):
            self.dead = True
            return
        if (start, data) in self.pieces:
            return
        if any(at in self.bytes for at in range(start, end)) or (last and any(at >= end for at in self.bytes)):
            self.dead = True
            return
        self.pieces.add((start, data))
        self.bytes.update(zip(range(start, end), data, strict=True))
        if last:
            self.total = end

    @property
    def complete(self) -> bool:
        return self.total is not None and len(self.bytes) == self.total


PIECES = st.lists(st.tuples(st.integers(0, 24), st.binary(min_size=1, max_size=12), st.booleans()), max_size=16)


@given(PIECES)
def test_the_buffer_equals_the_model(pieces: list[tuple[int, bytes, bool]]) -> None:
    buffer, model = FragmentBuffer(), Model()
    for start, data, last in pieces:
        reason = buffer.add(start, data, last=last)
        model.add(start, data, last=last)
        assert model.dead == (reason not in ("", "duplicate"))
        if model.dead:
            return
        assert buffer.complete == model.complete
        assert buffer.size == len(model.bytes)
        assert len(buffer) == len(model.pieces)
    if model.complete:
        assert buffer.join() == bytes(model.bytes[at] for at in range(len(model.bytes)))


@given(
    payload=st.binary(min_size=1, max_size=4000),
    head=st.binary(min_size=0, max_size=8),
    room=st.integers(16, 2000),
    data=st.data(),
)
def test_what_fragmentation_cuts_reassembly_joins(payload: bytes, head: bytes, room: int, data: st.DataObject) -> None:
    frames = []
    for piece in fragments(head, payload, room):
        parts = b"".join(piece.parts)
        assert len(parts) <= room
        assert not piece.frag & IP_MF or len(parts) % 8 == 0
        frames.append(WIRE.ipv4(253, parts, fragment=piece.frag, ident=7))
    offsets = [piece.frag & IP_OFFSET for piece in fragments(head, payload, room)]
    assert offsets == sorted(set(offsets))
    order = data.draw(st.permutations(frames))
    repeated = data.draw(st.lists(st.sampled_from(frames), max_size=3))
    counters = Counters()
    reassembler = Reassembler(counters, Timers(), Limits(fragments=1000))
    whole = []
    for frame in [*order[:-1], *(frame for frame in repeated if frame != order[-1]), order[-1]]:
        packet = parse_untrusted(frame, 0, counters)
        assert packet is not None
        done = reassembler.add_untrusted(packet, 0) if packet.is_fragment else packet
        if done is not None:
            whole.append(done)
    assert [packet.payload_bytes() for packet in whole][-1] == head + payload
