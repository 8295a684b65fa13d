"""QEMU's framing: whatever the cuts, the same frames; whatever the bytes, bounded and silent."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pystack.link import qemu_framing
from pystack.link.qemu_framing import FrameDecoder

_FRAMES = st.lists(st.binary(max_size=300), max_size=12)


def _pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(frames=_FRAMES, cuts=st.lists(st.integers(0, 10_000), max_size=30))
def test_frames_survive_any_cut(frames: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(map(qemu_framing.encode, frames))
    decoder = FrameDecoder()
    got = [framed for piece in _pieces(stream, cuts) for framed in decoder.feed(piece)]
    assert got == [(0, frame) for frame in frames]
    assert decoder.error is None
    assert decoder.buffered == 0


@given(frames=st.lists(st.tuples(st.sampled_from([0, 10, 12]), st.binary(min_size=12, max_size=200)), max_size=12),
       cuts=st.lists(st.integers(0, 10_000), max_size=30))  # fmt: skip
def test_vnet_frames_survive_any_cut(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(qemu_framing.encode(frame, length) for length, frame in frames)
    decoder = FrameDecoder(vnet_hdr=True)
    assert [framed for piece in _pieces(stream, cuts) for framed in decoder.feed(piece)] == frames


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=10), vnet=st.booleans())
def test_any_bytes_give_the_same_in_pieces_as_whole(data: bytes, cuts: list[int], *, vnet: bool) -> None:
    whole, cut = FrameDecoder(vnet_hdr=vnet, max_frame=64), FrameDecoder(vnet_hdr=vnet, max_frame=64)
    expected = whole.feed(data)
    got = []
    for piece in _pieces(data, cuts):
        got += cut.feed(piece)
        assert cut.buffered <= 64 + 8
    assert got == expected
    assert (whole.error is None) == (cut.error is None)
    assert all(length <= len(frame) <= 64 for length, frame in got)
