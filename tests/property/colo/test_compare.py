"""Equal is found equal and different is found different, whatever the two machines' TCPs do.

And the fast lanes say what the readable way says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from colo.compare import Comparator, CompareConfig
from pystack import Counters
from pystack.flow.rewriter import Rewriter
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, SYN, Packet, parse_untrusted
from tests.colo_guests import CLIENT, GUEST, Cut, Guest, cuts, framed

_STREAM = bytes(range(256)) * 2
_LENGTHS = st.integers(1, len(_STREAM))
_ISS = st.sampled_from((1000, 0xFFFF_FF80, 0xFFFF_FFFF, 0x7FFF_FFF0))


def _frames(guest: Guest, segments: Sequence[Cut], stream: bytes, acks: Sequence[int], *, fin: bool) -> list[bytes]:
    frames = [guest.syn_ack()]
    acked = guest.acked
    for index, (start, stop) in enumerate(segments):
        acked = max(acked, acks[index % len(acks)]) if acks else acked
        guest.acked = acked
        frames.append(guest.data(start, stream[start:stop]))
    guest.acked = max(acks, default=acked)
    frames.append(guest.ack(len(stream)))
    if fin:
        frames.append(guest.fin(len(stream)))
    return frames


def _interleaved(one: list[bytes], other: list[bytes], order: Sequence[bool]) -> Iterator[tuple[bool, bytes]]:
    left, right = iter(one), iter(other)
    for primary in order:
        frame = next(left if primary else right, None)
        if frame is not None:
            yield primary, frame
    yield from ((True, frame) for frame in left)
    yield from ((False, frame) for frame in right)


@st.composite
def _pairs(draw: st.DrawFn) -> tuple[list[tuple[bool, bytes]], list[bytes]]:
    """Both machines' frames of one connection in the order of their arrival; and the primary's alone.

    Each machine has an initial number of its own. Ours translates all that the secondary sends; QEMU's filter-rewriter
    leaves the number of its SYN, as it does not know better yet.
    """
    length = draw(_LENGTHS)
    iss = draw(_ISS)
    acks = draw(st.lists(st.integers(7000, 7600), max_size=4))
    fin = draw(st.booleans())
    primary = Guest(iss=iss, tsval=draw(st.none() | st.just(10)), ident=5)
    secondary = Guest(iss=draw(_ISS), tsval=None if primary.tsval is None else 999, ident=77)
    ours = draw(st.booleans())
    one = _frames(primary, draw(cuts(length)), _STREAM[:length], acks, fin=fin)
    segments = draw(cuts(length))
    if ours:
        other = _frames(secondary, segments, _STREAM[:length], acks[::-1], fin=fin)
    else:
        syn_ack = secondary.syn_ack()
        secondary.iss = iss
        other = [syn_ack, *_frames(secondary, segments, _STREAM[:length], acks[::-1], fin=fin)[1:]]
    order = draw(st.lists(st.booleans(), max_size=len(one) + len(other)))
    if ours:
        return list(_translated(_interleaved(one, other, [True, *order]))), one
    return list(_interleaved(one, other, order)), one


def _translated(frames: Iterable[tuple[bool, bytes]]) -> Iterator[tuple[bool, bytes]]:
    """The secondary's with the primary's numbers, by the `Rewriter` between them."""
    rewriter = Rewriter()
    opening = tcp.build(
        src=bytes((10, 0, 0, 1)), dst=bytes((10, 0, 0, 2)), sport=5000, dport=80, seq=6999, flags=SYN, window=8000
    )
    rewriter.to_secondary(_parsed(Crafter(CLIENT, GUEST).ipv4(6, opening)), 0)
    for primary, frame in frames:
        if primary:
            rewriter.observe_primary(_parsed(frame), 0)
        yield primary, frame if primary else rewriter.from_secondary(_parsed(frame), 0)


def _parsed(frame: bytes) -> Packet:
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    return packet


def _run(frames: Sequence[tuple[bool, bytes]]) -> tuple[Comparator, list[bytes]]:
    comparator = Comparator(CompareConfig())
    released: list[bytes] = []
    for primary, frame in frames:
        (comparator.primary if primary else comparator.secondary)(frame, 0)
        released += [bytes(buffer) for buffer in comparator.take_released()]
    return comparator, released


@given(_pairs())
@settings(max_examples=400)
def test_one_stream_sent_in_two_ways_is_equal(pair: tuple[list[tuple[bool, bytes]], list[bytes]]) -> None:
    frames, primary = pair
    comparator, released = _run(frames)
    assert comparator.take_requests() == []
    assert _said(released) == _said(primary), comparator.counters.snapshot()
    if not comparator.counters["compare.cut"]:
        assert sorted(released) == sorted(primary)
    assert _new_ones(released) == _new_ones(primary), "only what repeats may overtake"
    assert comparator.held_bytes == 0
    assert comparator.held_frames == 0


def _said(frames: Sequence[bytes]) -> list[tuple[int, int, int]]:
    """What frames say however they are cut: each byte or each end with its number and what is acknowledged with it."""
    said = []
    for frame in frames:
        seq, ack = struct.unpack_from("!II", frame, 38)
        payload = _payload(frame)
        said += [(seq + at & 0xFFFF_FFFF, byte, ack) for at, byte in enumerate(payload)]
        if not payload:
            said.append((seq, -frame[47], ack))
    return sorted(said)


def _new_ones(frames: Sequence[bytes]) -> list[bytes]:
    """The frames that repeat nothing, as far as that is told from a frame alone: those without payload."""
    return [frame for frame in frames if not _payload(frame)]


@given(_pairs(), st.data())
@settings(max_examples=400)
def test_a_changed_byte_is_found_and_never_leaves(
    pair: tuple[list[tuple[bool, bytes]], list[bytes]], data: st.DataObject
) -> None:
    frames, _ = pair
    carriers = [index for index, (_, frame) in enumerate(frames) if _payload(frame)]
    index = data.draw(st.sampled_from(carriers))
    primary, frame = frames[index]
    at = data.draw(st.integers(len(frame) - len(_payload(frame)), len(frame) - 1))
    changed = frame[:at] + bytes((frame[at] ^ 1,)) + frame[at + 1 :]
    frames[index] = (primary, changed)
    comparator, released = _run(frames)
    first_of_its_side = _first_with(frames, index)
    if first_of_its_side:
        reasons = {request.reason for request in comparator.take_requests()}
        assert reasons & {"payload", "retransmission"}
    if primary:
        assert changed not in released
        seq, _ = _extent(changed)
        byte = seq + at - (len(frame) - len(_payload(frame))) & 0xFFFF_FFFF, changed[at]
        assert byte not in {(number, value) for number, value, _ in _said(released)}


def _first_with(frames: Sequence[tuple[bool, bytes]], index: int) -> bool:
    """Whether no other frame of the same machine carries any of these bytes, so that this one is what counts."""
    primary, frame = frames[index]
    mine = _extent(frame)
    return all(
        side is not primary or other_index == index or not _overlap(mine, _extent(other))
        for other_index, (side, other) in enumerate(frames)
    )


def _payload(frame: bytes) -> bytes:
    return frame[34 + (frame[46] >> 4) * 4 :]


def _extent(frame: bytes) -> tuple[int, int]:
    seq = int.from_bytes(frame[38:42], "big")
    return seq, len(_payload(frame))


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    distance = (other[0] - one[0] + 0x8000_0000 & 0xFFFF_FFFF) - 0x8000_0000
    return distance < one[1] and -distance < other[1] and one[1] > 0 and other[1] > 0


@given(
    _pairs(),
    st.booleans(),
    st.lists(st.integers(1, 4000), max_size=8),
    st.integers(0, 400),
    st.sampled_from((None, 0, 12)),
)
@settings(max_examples=400)
def test_the_lanes_say_what_the_readable_way_says(
    pair: tuple[list[tuple[bool, bytes]], list[bytes]], spoil: bool, sizes: list[int], where: int, vnet: int | None
) -> None:
    frames = list(pair[0])
    if spoil:
        primary, frame = frames[where % len(frames)]
        frames[where % len(frames)] = (primary, frame[:-1] + bytes((frame[-1] ^ 1,)))
    config = CompareConfig(framed=True, vnet_framing=vnet is not None, vnet_hdr_len=vnet or 0)
    outcomes = []
    for quick in (True, False):
        comparator = Comparator(config)
        if not quick:
            comparator.walk_slowly()
        released = b""
        for primary, chunk in _chunks(frames, sizes, vnet):
            (comparator.primary_bytes if primary else comparator.secondary_bytes)(chunk, 0)
            released += b"".join(comparator.take_released())
        outcomes.append((released, comparator.take_requests(), comparator.held_bytes, comparator.held_frames))
    assert outcomes[0] == outcomes[1]


def _chunks(frames: Sequence[tuple[bool, bytes]], sizes: list[int], vnet: int | None) -> Iterator[tuple[bool, bytes]]:
    """Both streams cut anywhere, runs of one side's frames joined."""
    runs: list[tuple[bool, bytes]] = []
    for primary, frame in frames:
        data = framed(bytes(vnet or 0) + frame, vnet)
        if runs and runs[-1][0] is primary:
            runs[-1] = (primary, runs[-1][1] + data)
        else:
            runs.append((primary, data))
    at = 0
    for primary, data in runs:
        start = 0
        while start < len(data):
            size = sizes[at % len(sizes)] if sizes else len(data)
            at += 1
            yield primary, data[start : start + size]
            start += size


@given(_pairs(), st.binary(max_size=200), st.integers(0, 30))
@settings(max_examples=200)
def test_noise_of_the_secondary_releases_nothing_uncovered(
    pair: tuple[list[tuple[bool, bytes]], list[bytes]], noise: bytes, at: int
) -> None:
    """Without the secondary's own frames nothing of a connection leaves, whatever else comes from there."""
    comparator = Comparator(CompareConfig())
    for index, (primary, frame) in enumerate(pair[0]):
        if primary:
            comparator.primary(frame, 0)
        if index == at:
            comparator.secondary(noise, 0)
    assert comparator.take_released() == []
    assert comparator.held_frames == len(pair[1])


def test_pure_acknowledgements_wait_for_the_secondary() -> None:
    primary, secondary = Guest(), Guest()
    comparator = Comparator(CompareConfig())
    comparator.primary(primary.syn_ack(), 0)
    comparator.secondary(secondary.syn_ack(), 0)
    comparator.take_released()
    comparator.primary(primary.segment(primary.iss + 1, ACK, ack=7100), 0)
    assert comparator.take_released() == []
    comparator.secondary(secondary.segment(secondary.iss + 1, ACK, ack=7099), 0)
    assert comparator.take_released() == []
    comparator.secondary(secondary.segment(secondary.iss + 1, ACK, ack=7100), 0)
    assert len(comparator.take_released()) == 1
