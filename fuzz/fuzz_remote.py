"""The records between two hosts are the same whatever the cuts, never raise, and are never longer than they may be."""

from __future__ import annotations

from colo.remote.records import (
    HELLO_BYTES,
    Kind,
    Record,
    RecordDecoder,
    Side,
    decode_hello_untrusted,
    encode,
    encode_hello,
)
from fuzz import harness
from pystack.link.qemu_framing import MAX_FRAME_BYTES

SEEDS = [
    b"\x00\x01" + encode(Kind.CLIENT, b"x" * 60) + encode(Kind.PRIMARY, b"y" * 54, 1) + encode(Kind.TAKE_OVER),
    b"\x01\x07" + encode(Kind.READY) + encode(Kind.COMPLETED, b"", 0) + encode(Kind.SECONDARY, b"x" * 60),
    b"\x01\x03" + encode(Kind.HEARTBEAT) * 3 + encode(Kind.COMPLETED, b"", 7),
    b"\x00\x05" + encode(Kind.BYE, b"enough") + b"\xff\xff\xff\xff\x03",
]


def target(data: bytes) -> None:
    """The first byte chooses the side, the second how long the pieces are; the rest is the stream."""
    if len(data) < 2:
        return
    side, step, stream = (Side.PROXY, Side.AGENT)[data[0] & 1], data[1] + 1, data[2:]
    whole = RecordDecoder(side)
    records = whole.feed_untrusted(stream)
    cut = RecordDecoder(side)
    pieces: list[Record] = []
    for at in range(0, len(stream), step):
        pieces += cut.feed_untrusted(stream[at : at + step])
        assert cut.buffered < MAX_FRAME_BYTES + 5
    assert pieces == records
    assert whole.error == cut.error
    epochs = (Kind.PRIMARY, Kind.COMPLETED)
    again = b"".join(encode(kind, body, epoch if kind in epochs else None) for kind, body, epoch in records)
    assert stream.startswith(again)
    hello = decode_hello_untrusted(stream[:HELLO_BYTES])
    assert hello is None or encode_hello(hello) == stream[:HELLO_BYTES]


if __name__ == "__main__":
    harness.main(__file__, target, include=["colo"], seeds=SEEDS)
