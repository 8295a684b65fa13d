"""What the primary has sent lately is found by connection, before a place in its output, wherever reads were cut."""

from __future__ import annotations

import pytest

from colo.framing import PLAIN, Framing
from colo.recent import RECENT_BYTES, Recent
from pystack.testing.frames import Crafter
from pystack.wire.packet import ACK, SYN

ONE, OTHER = Crafter("10.0.0.1", "10.0.1.1"), Crafter("10.0.0.1", "10.0.1.2")
FRAMED = Framing(framed=True, vnet=False, vnet_hdr_len=0)
BARE = Framing(framed=False, vnet=False, vnet_hdr_len=0)


def segment(crafter: Crafter, seq: int, payload: bytes = b"", flags: int = ACK) -> bytes:
    return crafter.tcp(flags=flags, sport=80, dport=5000, seq=seq, ack=1, payload=payload)


def key_of(frame: bytes) -> bytes:
    return frame[26:38]


def wrapped(*frames: bytes) -> bytes:
    return b"".join(PLAIN.pack(len(frame)) + frame for frame in frames)


def said(recent: Recent, key: bytes, before: int = 1 << 60) -> list[tuple[int, bytes]]:
    return [(seq, data[at : at + length]) for seq, data, at, length in recent.segments(key, before)]


def test_each_connection_has_its_own_and_a_place_has_what_was_before_it() -> None:
    recent = Recent(FRAMED)
    frames = [segment(ONE, 10, b"abc"), segment(OTHER, 10, b"xyz"), segment(ONE, 13, b"def"), segment(ONE, 16)]
    recent.add(0, wrapped(*frames), 0)
    third = sum(4 + len(frame) for frame in frames[:2])
    assert said(recent, key_of(frames[0]), third) == [(10, b"abc")]
    assert said(recent, key_of(frames[0]), third + 1) == [(10, b"abc"), (13, b"def")]
    assert said(recent, key_of(frames[0]), third) == [(10, b"abc")], "what is in the index already has its place too"
    assert said(recent, key_of(frames[1])) == [(10, b"xyz")]
    assert said(recent, b"nobody") == []


@pytest.mark.parametrize("cut", [1, 3, 5, 40, 60])
def test_a_frame_in_two_reads_is_found_once(cut: int) -> None:
    recent = Recent(FRAMED)
    first, second = segment(ONE, 10, b"abc"), segment(ONE, 13, b"def")
    whole = wrapped(first, second)
    start = 4 + len(first)
    # As `colo.input` tells it: the first read, the frame that was in both, the second read from behind it.
    recent.add(0, whole[: start + cut], 0)
    assert said(recent, key_of(first), start) == [(10, b"abc")]
    recent.add(start, whole[start:], 0)
    rest = whole[start + cut :] + wrapped(segment(ONE, 16, b"ghi"))
    recent.add(start + cut, rest, len(whole) - start - cut)
    assert said(recent, key_of(first)) == [(10, b"abc"), (13, b"def"), (16, b"ghi")]


def test_bare_frames_are_counted_by_one() -> None:
    recent = Recent(BARE)
    for number in range(5):
        recent.add(number, segment(ONE, 10 + number, b"%d" % number), 0)
    key = key_of(segment(ONE, 0))
    assert said(recent, key, 3) == [(10, b"0"), (11, b"1"), (12, b"2")]
    assert len(said(recent, key)) == 5


@pytest.mark.parametrize("framing", [BARE, FRAMED], ids=["bare", "framed"])
def test_a_syn_begins_anew_unless_it_is_sent_again(framing: Framing) -> None:
    recent = Recent(framing)
    frames = [segment(ONE, 9, flags=SYN | ACK), segment(ONE, 10, b"abc"), segment(ONE, 9, flags=SYN | ACK)]
    frames += [segment(ONE, 99, b"hi", flags=SYN | ACK)]
    for number, frame in enumerate(frames):
        recent.add(number, wrapped(frame) if framing.framed else frame, 0)
    key = key_of(frames[0])
    assert said(recent, key, 3) == [(10, b"abc")]
    assert said(recent, key) == [(100, b"hi")], "behind the SYN's own number"


def test_a_new_incarnation_in_the_younger_stretch_hides_the_older_one() -> None:
    recent = Recent(BARE)
    recent.add(0, segment(ONE, 9, flags=SYN | ACK), 0)
    recent.add(1, segment(ONE, 10, b"abc"), 0)
    filling = segment(OTHER, 1, bytes(60_000))
    for number in range(2, 2 + RECENT_BYTES // 2 // len(filling) + 1):
        recent.add(number, filling, 0)
    recent.add(50, segment(ONE, 10, b"ABC"), 0)
    key = key_of(segment(ONE, 0))
    assert said(recent, key) == [(10, b"abc"), (10, b"ABC")]
    recent.add(51, segment(ONE, 500, flags=SYN | ACK), 0)
    recent.add(52, segment(ONE, 501, b"new"), 0)
    assert said(recent, key) == [(501, b"new")]


def test_no_more_is_kept_than_stated() -> None:
    recent = Recent(BARE)
    payload = bytes(1000)
    frames = 3 * RECENT_BYTES // 1000
    for number in range(frames):
        recent.add(number, segment(ONE, number * 1000, payload), 0)
        if number == frames // 2:
            said(recent, key_of(segment(ONE, 0)))
    kept = said(recent, key_of(segment(ONE, 0)))
    assert RECENT_BYTES // 2 - 2000 < sum(len(data) for _, data in kept) <= RECENT_BYTES
    assert kept[-1][0] == (frames - 1) * 1000


def test_what_cannot_be_read_is_passed_over_and_counted_nowhere() -> None:
    recent = Recent(FRAMED)
    good = segment(ONE, 10, b"abc")
    lying = good[:16] + b"\xff\xff" + good[18:]  # IP's total length
    udp = ONE.udp(1, 2, b"datagram")
    recent.add(0, wrapped(lying, b"", b"short", udp, good) + b"\0\0\xff", 0)
    assert said(recent, key_of(good)) == [(10, b"abc")]
    too_long = Recent(FRAMED)
    too_long.add(0, b"\xff" * 40, 0)
    assert said(too_long, key_of(good)) == []
