"""A frame in two says on the wire what the whole one says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colo.compare import Comparator, CompareConfig
from colo.framing import PLAIN, VNET, Framing
from colo.held import Outbox, Record
from colo.parting import cut
from pystack import Counters
from pystack.link.segment import to_wire_untrusted
from pystack.wire import tcp
from pystack.wire.packet import ACK, CWR, FIN, PSH, Packet, parse_untrusted, verify_untrusted
from tests.large_frames import Large, syn_ack

_STREAM = bytes(range(251)) * 8
_FLAGS = (0, PSH, FIN | PSH, CWR, 0x40 | CWR | PSH, FIN)
_OPTIONS = (b"", tcp.build_options(timestamps=(1, 2)))


@st.composite
def _larges(draw: st.DrawFn) -> Large:
    return Large(
        iss=draw(st.sampled_from((1000, 0xFFFF_FF00, 0xFFFF_FFFF))),
        version=draw(st.sampled_from((4, 6))),
        vnet_hdr_len=draw(st.sampled_from((10, 12))),
        gso_size=draw(st.integers(1, 300)),
        partial=draw(st.booleans()),
        tagged=draw(st.booleans()),
        options=draw(st.sampled_from(_OPTIONS)),
    )


def _record(frame: bytes, start: int, length: int, flags: int, payload: int) -> Record:
    return (start, start + length, frame, payload, 5000, 9000, flags, 0, len(frame), 3, 77, None)


def _parsed(frame: bytes, vnet_hdr_len: int) -> Packet:
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    assert packet is not None
    return packet


def _out(vnet_hdr_len: int) -> Outbox:
    return Outbox(Framing(framed=False, vnet=False, vnet_hdr_len=vnet_hdr_len), Counters())


@given(
    _larges(), st.integers(2, len(_STREAM)), st.data(), st.sampled_from(_FLAGS), st.sampled_from((1, 0xFFFE)),
    st.booleans(),
)  # fmt: skip
def test_the_two_are_what_the_card_makes_of_the_whole(
    large: Large, length: int, data: st.DataObject, more: int, ident: int, anywhere: bool
) -> None:
    frame = large.data(0, _STREAM[:length], ACK | more, ident)
    whole = _parsed(frame, large.vnet_hdr_len)
    covered = data.draw(st.integers(1, length - 1))
    out = _out(large.vnet_hdr_len)
    parts = cut(_record(frame, 1, length, whole.flags, whole.payload), covered, out, anywhere=anywhere)
    if covered < large.gso_size and not anywhere:
        assert parts is None
        return
    assert parts is not None
    part, rest = parts
    assert (part[0], part[1], rest[0], rest[1]) == (1, 1 + covered, 1 + covered, 1 + length)
    assert part[4:6] == rest[4:6] == (5000, 9000)
    assert [half[2][half[3] :] for half in parts] == [_STREAM[:covered], _STREAM[covered:length]]
    assert (part[6], rest[6]) == (whole.flags & ~(FIN | PSH), whole.flags & ~CWR)
    counters = Counters()
    sent = [packet for half in parts for packet in to_wire_untrusted(half[2], large.vnet_hdr_len, counters)]
    if not covered % large.gso_size:
        assert sent == to_wire_untrusted(frame, large.vnet_hdr_len, counters)
    _assert_whole(sent, large, length, whole.flags)
    assert counters.snapshot() == {}


def _assert_whole(sent: list[bytes], large: Large, length: int, flags: int) -> None:
    """Segments that can be believed, in order, no larger than they may be, the flags where they belong."""
    at = 0
    for index, packet in enumerate(_parsed(frame, 0) for frame in sent):
        assert verify_untrusted(packet, Counters(), rx_checksum=False)
        assert packet.seq == large.iss + 1 + at & 0xFFFF_FFFF
        assert 0 < packet.payload_len <= large.gso_size
        at += packet.payload_len
        expected = flags & ~(0 if at == length else FIN | PSH) & ~(0 if not index else CWR)
        assert (packet.flags, packet.ack, packet.window) == (expected, large.acked, large.window)
    assert at == length


@given(_larges(), st.integers(2, 400), st.data())
def test_an_ordinary_frame_in_two(large: Large, length: int, data: st.DataObject) -> None:
    large = large.but(gso_size=0, vnet_hdr_len=data.draw(st.sampled_from((0, 12))))
    large = large.but(partial=large.partial and large.vnet_hdr_len > 0)
    frame = large.data(0, _STREAM[:length], ACK | PSH | FIN)
    whole = _parsed(frame, large.vnet_hdr_len)
    covered = data.draw(st.integers(1, length - 1))
    record = _record(frame, 1, length, whole.flags, whole.payload)
    out = _out(large.vnet_hdr_len)
    assert cut(record, covered, out, anywhere=False) is None
    assert cut(record, length, out, anywhere=True) is None, "its end has nothing to wait with"
    parts = cut(record, covered, out, anywhere=True)
    assert parts is not None
    counters = Counters()
    sent = [packet for half in parts for packet in to_wire_untrusted(half[2], large.vnet_hdr_len, counters)]
    assert len(sent) == 2
    _assert_whole(sent, large.but(gso_size=length), length, whole.flags)
    assert counters.snapshot() == {}


@given(
    _larges(), st.integers(2, len(_STREAM)), st.lists(st.integers(1, 700), min_size=1, max_size=12), st.booleans(),
    st.sampled_from((None, "plain", "vnet")), st.booleans(),
)  # fmt: skip
def test_a_stream_in_large_frames_leaves_as_the_secondary_sends_it(
    large: Large, length: int, steps: list[int], fin: bool, framing: str | None, secondary_first: bool
) -> None:
    """Never a byte more; and when the secondary repeats itself, every byte. What is held is known at every time."""
    if framing == "plain":
        large = large.but(vnet_hdr_len=0, partial=False, gso_size=0)
    config = CompareConfig(framed=framing is not None, vnet_framing=framing == "vnet", vnet_hdr_len=large.vnet_hdr_len)
    comparator = Comparator(config)
    feed_p = comparator.primary_bytes if framing else comparator.primary
    feed_s = comparator.secondary_bytes if framing else comparator.secondary

    def wrapped(frame: bytes) -> bytes:
        if framing == "vnet":
            return VNET.pack(len(frame), large.vnet_hdr_len) + frame
        return PLAIN.pack(len(frame)) + frame if framing else frame

    whole = wrapped(large.data(0, _STREAM[:length], ACK | (FIN if fin else 0)))
    feed_p(wrapped(syn_ack(large)), 0)
    feed_s(wrapped(syn_ack(large)), 0)
    comparator.take_released()
    if not secondary_first:
        feed_p(whole, 0)
    small, at, got = large.but(gso_size=0), 0, 0
    for step in [*steps, length]:
        before, at = at, min(at + step, length)
        frame = wrapped(small.data(before, _STREAM[before:at], ACK | (FIN if fin and at == length else 0)))
        feed_s(frame, 0)
        if secondary_first:
            feed_p(whole, 0)
            secondary_first = False
        assert len(whole) >= comparator.held_bytes >= 0
        got += _received(comparator, large, framing, got)
        assert got <= at
        if got < at:
            feed_s(frame, 0)
            got += _received(comparator, large, framing, got)
            assert got == at
        if at == length:
            break
    assert comparator.take_requests() == []
    assert (comparator.held_bytes, comparator.held_frames) == (0, 0)


@given(
    _larges(), st.integers(2, 600), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=4),
    st.lists(st.integers(1, 300), max_size=6),
)  # fmt: skip
def test_headers_that_lie_break_nothing(
    large: Large, length: int, lies: list[tuple[int, int]], steps: list[int]
) -> None:
    """No exception, no more than was sent, and all of it in the end."""
    whole = bytearray(large.data(0, _STREAM[:length]))
    for at, value in lies:
        whole[at % len(whole)] = value
    frame = bytes(whole)
    comparator = Comparator(CompareConfig(vnet_hdr_len=large.vnet_hdr_len))
    comparator.primary(frame, 0)
    released = b"".join(comparator.take_released())
    small, at = large.but(gso_size=0), 0
    for step in steps:
        segment = small.data(at, _STREAM[at : at + step])
        for _ in range(2):
            comparator.secondary(segment, 0)
            released += b"".join(comparator.take_released())
        at += step
        assert 0 <= comparator.held_bytes <= len(frame)
    comparator.commit(0)
    released += b"".join(comparator.take_released())
    assert (comparator.held_bytes, comparator.held_frames) == (0, 0)
    packet = parse_untrusted(frame, large.vnet_hdr_len, Counters())
    assert len(released) >= (len(frame) if packet is None else packet.end), "all but what pads it"
    if not comparator.counters["compare.cut"] and not comparator.counters["compare.window_clamped"]:
        assert released[: len(frame)] == frame


def _received(comparator: Comparator, large: Large, framing: str | None, got: int) -> int:
    """How many bytes have left, which are the stream's next ones."""
    released = [bytes(buffer) for buffer in comparator.take_released()]
    prefix = 0
    if framing:
        prefix = VNET.size if framing == "vnet" else PLAIN.size
        released = list(_frames(b"".join(released), prefix))
    count = 0
    for frame in released:
        assert not framing or int.from_bytes(frame[:4], "big") == len(frame) - prefix
        for packet in to_wire_untrusted(frame[prefix:], large.vnet_hdr_len, Counters()):
            parsed = _parsed(packet, 0)
            assert verify_untrusted(parsed, Counters(), rx_checksum=False)
            payload = parsed.payload_bytes()
            assert parsed.seq == large.iss + 1 + got + count & 0xFFFF_FFFF
            assert payload == _STREAM[got + count : got + count + len(payload)]
            count += len(payload)
    return count


def _frames(stream: bytes, prefix: int) -> list[bytes]:
    frames = []
    while stream:
        size = prefix + int.from_bytes(stream[:4], "big")
        frames.append(stream[:size])
        stream = stream[size:]
    return frames
