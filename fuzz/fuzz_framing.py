"""QEMU's framing gives the same frames whatever the cuts, never raises, and never holds more than one frame."""

from __future__ import annotations

from fuzz import harness
from pystack.link.qemu_framing import Framed, FrameDecoder, encode

_MAX_FRAME = 256

SEEDS = [
    b"\x00\x01" + encode(b"x" * 60) + encode(b"y" * 20),
    b"\x01\x07" + encode(b"\0" * 10 + b"x" * 60, 10) + encode(b"\0" * 12 + b"y" * 20, 12),
    b"\x00\x03" + encode(b"") * 5 + (_MAX_FRAME + 1).to_bytes(4, "big"),
]


def target(data: bytes) -> None:
    """The first byte chooses the form of framing, the second how long the pieces are; the rest is the stream."""
    if len(data) < 2:
        return
    vnet_hdr, step, stream = bool(data[0] & 1), data[1] + 1, data[2:]
    whole = FrameDecoder(vnet_hdr=vnet_hdr, max_frame=_MAX_FRAME)
    frames = whole.feed(stream)
    cut = FrameDecoder(vnet_hdr=vnet_hdr, max_frame=_MAX_FRAME)
    pieces: list[Framed] = []
    for at in range(0, len(stream), step):
        pieces += cut.feed(stream[at : at + step])
        assert cut.buffered < _MAX_FRAME + 8
    assert pieces == frames
    assert repr(whole.error) == repr(cut.error)
    again = b"".join(encode(frame, length if vnet_hdr else None) for length, frame in frames)
    assert stream.startswith(again)


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
