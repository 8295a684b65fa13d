"""The records between two hosts: whatever the cuts, bounded, and never a surprise."""

from __future__ import annotations

import pytest

from colo.remote.records import (
    HELLO_BYTES,
    Beat,
    Engine,
    Hello,
    Kind,
    Peer,
    Purpose,
    Record,
    RecordDecoder,
    Side,
    State,
    decode_hello_untrusted,
    encode,
    encode_hello,
)
from pystack import Counters

HELLO = Hello(Purpose.RECORDS, State.FRESH, Engine.STOP_COPY, bytes(range(16)), 250, 1000)
SECOND = 1_000_000


def test_the_layout_is_what_the_reference_says() -> None:
    parts = (
        "00000025",
        "01",
        b"COLOPAIR".hex(),
        "0002",
        "01",
        "00",
        "01",
        bytes(range(16)).hex(),
        "000000fa",
        "000003e8",
    )
    assert encode_hello(HELLO).hex() == "".join(parts)
    assert encode(Kind.CLIENT, b"frame").hex() == "00000005036672616d65"
    assert encode(Kind.PRIMARY, b"head", 7).hex() == "00000008040000000768656164"
    assert encode(Kind.COMPLETED, b"", 0).hex() == "000000040600000000"


def test_a_hello_comes_back_and_nothing_else_is_one() -> None:
    good = encode_hello(HELLO)
    assert len(good) == HELLO_BYTES
    assert decode_hello_untrusted(good) == HELLO
    for at in range(15):  # the length, the kind, the magic and the version
        changed = bytearray(good)
        changed[at] ^= 1
        assert decode_hello_untrusted(bytes(changed)) is None, at
    assert decode_hello_untrusted(good[:-1]) is None
    assert decode_hello_untrusted(good + b"\0") is None


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_records_come_out_whatever_the_cuts(step: int) -> None:
    stream = encode(Kind.CLIENT, b"a" * 60) + encode(Kind.PRIMARY, b"head", 3) + encode(Kind.HEARTBEAT)
    stream += encode(Kind.BYE, b"enough")
    decoder = RecordDecoder(Side.PROXY)
    records = []
    for at in range(0, len(stream), step):
        records += decoder.feed_untrusted(stream[at : at + step])
    assert records == [
        Record(Kind.CLIENT, b"a" * 60),
        Record(Kind.PRIMARY, b"head", 3),
        Record(Kind.HEARTBEAT, b""),
        Record(Kind.BYE, b"enough"),
    ]
    assert decoder.error == ""
    assert decoder.buffered == 0


@pytest.mark.parametrize(
    ("side", "stream", "error"),
    [
        (Side.PROXY, encode(Kind.SECONDARY, b"x"), "remote.bad_kind"),
        (Side.AGENT, encode(Kind.CLIENT, b"x"), "remote.bad_kind"),
        (Side.AGENT, b"\0\0\0\0\x63", "remote.bad_kind"),
        (Side.AGENT, encode_hello(HELLO), "remote.bad_kind"),
        (Side.PROXY, encode(Kind.CLIENT), "remote.bad_length"),
        (Side.PROXY, b"\xff\xff\xff\xff\x03", "remote.bad_length"),
        (Side.PROXY, encode(Kind.BYE, b"x" * 201), "remote.bad_length"),
        (Side.AGENT, encode(Kind.COMPLETED, b"", 1), "remote.bad_epoch"),
        (Side.AGENT, encode(Kind.COMPLETED, b"", 0) * 2, "remote.bad_epoch"),
    ],
)
def test_nonsense_ends_the_stream(side: Side, stream: bytes, error: str) -> None:
    decoder = RecordDecoder(side)
    decoder.feed_untrusted(stream)
    assert decoder.error == error
    assert decoder.feed_untrusted(encode(Kind.HEARTBEAT)) == []
    assert decoder.buffered == 0


def test_nonsense_is_the_loss_of_the_other_side() -> None:
    counters = Counters()
    peer = Peer(Side.AGENT, Beat(), counters, 0)
    assert peer.feed_untrusted(encode(Kind.READY) + b"\0\0\0\0\xff", 0) == [Record(Kind.READY, b"")]
    assert peer.lost == "it talks nonsense"
    assert counters["remote.bad_kind"] == 1


def test_a_peer_says_that_it_is_there_and_notices_silence() -> None:
    counters = Counters()
    peer = Peer(Side.AGENT, Beat(SECOND // 4, SECOND), counters, 0)
    now = 0
    for _ in range(40):  # whatever comes is a sign of life
        now += SECOND // 8
        peer.feed_untrusted(encode(Kind.SECONDARY, b"x") if now % SECOND else encode(Kind.HEARTBEAT), now)
        peer.tick(now)
    assert peer.lost == ""
    assert bytes(peer.out) == encode(Kind.HEARTBEAT) * 20
    peer.tick(now + SECOND - 1)
    assert peer.lost == ""
    assert peer.next_timeout() <= now + SECOND
    peer.tick(now + SECOND)
    assert peer.lost == "nothing was heard for 1 s"
    assert counters["remote.silent"] == 1
