"""A stream is cut between frames, wherever its bytes were cut on their way."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.cutter import Cutter
from pystack import Counters
from pystack.link.qemu_framing import MAX_FRAME_BYTES, encode


def cutter(*, vnet: bool = False) -> tuple[Cutter, Counters]:
    counters = Counters()
    return Cutter(vnet=vnet, name="mirror", counters=counters), counters


@given(
    frames=st.lists(st.binary(min_size=12, max_size=200), max_size=12),
    vnet=st.booleans(),
    places=st.lists(st.integers(0, 4000), max_size=12),
)
def test_what_comes_out_is_what_went_in_up_to_the_last_whole_frame(
    frames: list[bytes], vnet: bool, places: list[int]
) -> None:
    stream = b"".join(encode(frame, 12 if vnet else None) for frame in frames)
    made, counters = cutter(vnet=vnet)
    ends = {0}
    for frame in frames:
        ends.add(max(ends) + (8 if vnet else 4) + len(frame))
    out = b""
    marks = sorted({0, len(stream), *(place for place in places if place < len(stream))})
    for low, high in itertools.pairwise(marks):
        out += b"".join(made.feed_untrusted(stream[low:high]))
        assert len(out) == max(end for end in ends if end <= high)
    assert out == stream
    assert counters["mirror.frames"] == len(frames)


def test_a_read_of_whole_frames_is_not_copied() -> None:
    made, _ = cutter()
    data = encode(b"one") + encode(b"two")
    (only,) = made.feed_untrusted(data)
    assert only is data


def test_empty_frames_are_left_out() -> None:
    made, counters = cutter()
    data = encode(b"") + encode(b"one") + encode(b"") + encode(b"two") + encode(b"")
    assert b"".join(made.feed_untrusted(data)) == encode(b"one") + encode(b"two")
    assert counters.snapshot() == {"mirror.frames": 2, "mirror.empty": 3}


@pytest.mark.parametrize(
    ("vnet", "prefix", "reason"),
    [
        (False, struct.pack("!I", MAX_FRAME_BYTES + 1), "mirror.too_long"),
        (False, b"\xff\xff\xff\xff", "mirror.too_long"),
        (True, struct.pack("!II", 5, 6), "mirror.bad_vnet_hdr_len"),
    ],
)
@pytest.mark.parametrize("split", [False, True])
def test_a_prefix_that_cannot_be_ends_the_stream_until_it_starts_anew(
    prefix: bytes, reason: str, *, vnet: bool, split: bool
) -> None:
    made, counters = cutter(vnet=vnet)
    good = encode(b"x" * 12, 0 if vnet else None)
    pieces = [good + prefix[:3], prefix[3:] + good] if split else [good + prefix + good]
    assert b"".join(b"".join(made.feed_untrusted(piece)) for piece in pieces) == good
    assert made.error == reason
    assert made.feed_untrusted(good) == []
    made.reset()
    assert b"".join(made.feed_untrusted(good)) == good
    assert counters[reason] == 1


def test_what_is_held_is_less_than_one_frame() -> None:
    made, _ = cutter()
    longest = encode(bytes(MAX_FRAME_BYTES))
    for at in range(0, len(longest) - 1, 1000):
        assert made.feed_untrusted(longest[at : at + 1000] if at + 1000 < len(longest) else longest[at:-1]) == []
    assert made.feed_untrusted(b"\0" + encode(b"next")) == [longest + encode(b"next")]
