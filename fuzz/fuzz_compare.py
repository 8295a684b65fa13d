"""One stream sent in two ways is found equal and leaves whole; with one byte changed it is found different.

Input: a byte each for initial numbers (two bits for each machine; with its high bit, what may leave is taken after each
frame, so that frames leave in parts), length, and where to change a byte (0: nowhere), and then pairs of bytes that say
how the two machines cut, repeat and interleave the stream. What is left over is fed to the comparator as framed noise.
"""

from __future__ import annotations

from collections.abc import Iterator

from colo.compare import Comparator, CompareConfig
from fuzz import harness
from pystack.counters import Counters
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, SYN, parse_untrusted, verify_untrusted

_GUEST = Crafter("10.0.0.2", "10.0.0.1")
_ISS = (1000, 0xFFFF_FF80, 0xFFFF_FFFF, 0x7FFF_FFF0)
_STREAM = bytes(range(256))
_STEPS = 24

SEEDS = [
    bytes((0, 40, 0)) + bytes(range(48)),
    bytes((1 | 3 << 2, 200, 7)) + bytes(range(100, 148)),
    bytes((0x80, 200, 0)) + b"\x3f\x05\x05\x85" * 12,
    bytes((0x83, 100, 60)) + b"\x3f\x05\x86\x85" * 12,
    bytes((2, 255, 0)) + b"\x85\x10\x05\x81" * 12,
    bytes((3, 9, 1)) + b"\0\0\0\x2a" * 12 + b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\x00",
]
MAX_LEN = 400


def _segment(iss: int, start: int, payload: bytes, ident: int) -> bytes:
    body = tcp.build(
        src=b"\x0a\0\0\x02", dst=b"\x0a\0\0\x01", sport=80, dport=9, seq=iss + 1 + start & 0xFFFF_FFFF, ack=7000,
        flags=ACK, payload=payload,
    )  # fmt: skip
    return _GUEST.ipv4(6, body, ident=ident)


def _syn(iss: int) -> bytes:
    body = tcp.build(
        src=b"\x0a\0\0\x02", dst=b"\x0a\0\0\x01", sport=80, dport=9, seq=iss, ack=7000, flags=SYN | ACK,
        options=tcp.build_options(mss=1460),
    )  # fmt: skip
    return _GUEST.ipv4(6, body)


def _sent(choices: bytes, iss: int, stream: bytes, ident: int, own_iss: int) -> Iterator[bytes]:
    """One machine's frames: each choice is how much comes next, and with its high bit what is repeated first.

    Its SYN has its own initial number, ``own_iss``; a rewriter has translated the rest.
    """
    yield _syn(own_iss)
    at = 0
    for choice in choices:
        if choice & 0x80 and at:
            back = min(at, choice & 0x3F or 1)
            yield _segment(iss, at - back, stream[at - back : at], ident)
        size = min(choice & 0x3F, len(stream) - at)
        if size:
            yield _segment(iss, at, stream[at : at + size], ident)
            at += size
    if at < len(stream):
        yield _segment(iss, at, stream[at:], ident)


def _interleaved(primary: list[bytes], secondary: list[bytes], choices: bytes) -> Iterator[tuple[bool, bytes]]:
    """Frames of both, each with whether it is the primary's, in an order that ``choices`` say."""
    left, right = iter(primary), iter(secondary)
    for index in range(len(primary) + len(secondary)):
        which = bool(choices[index % len(choices)] & 1)
        frame = next(left if which else right, None)
        if frame is not None:
            yield which, frame
    for frame in left:
        yield True, frame
    for frame in right:
        yield False, frame


def _told(frames: list[bytes], iss: int) -> dict[int, int]:
    """The bytes of the stream that a client has from ``frames``, by their offset."""
    told: dict[int, int] = {}
    for frame in frames:
        packet = parse_untrusted(frame, 0, Counters())
        assert packet is not None
        assert verify_untrusted(packet, Counters(), rx_checksum=False)
        at = packet.seq - iss - 1 & 0xFFFF_FFFF
        told |= {at + index: byte for index, byte in enumerate(packet.payload_bytes())}
    return told


def target(data: bytes) -> None:
    """Run both machines through one comparator."""
    if len(data) < 3 + 2 * _STEPS:
        return
    iss, stream = _ISS[data[0] % 4], _STREAM[: data[1] + 1]
    spoilt = bytearray(stream)
    if data[2]:
        spoilt[(data[2] - 1) % len(stream)] ^= 1 + data[2] % 255
    choices = data[3 : 3 + 2 * _STEPS]
    primary = list(_sent(choices[::2], iss, stream, 1, iss))
    secondary = list(_sent(choices[1::2], iss, bytes(spoilt), 2, _ISS[data[0] >> 2 & 3]))
    comparator = Comparator(CompareConfig(max_queue_size=1000))
    piecemeal = data[0] & 0x80
    released: list[bytes] = []
    for which, frame in _interleaved(primary, secondary, choices):
        (comparator.primary if which else comparator.secondary)(frame, 0)
        if piecemeal:
            released += map(bytes, comparator.take_released())
    released += map(bytes, comparator.take_released())
    differences = comparator.take_requests()
    told = _told(released, iss)
    assert all(told[at] == stream[at] for at in told)
    if bytes(spoilt) == stream:
        assert not differences, differences
        assert piecemeal or sorted(released) == sorted(primary)
        assert len(told) == len(stream)
        assert comparator.held_bytes == 0
    else:
        assert differences
        assert (data[2] - 1) % len(stream) not in told
    _noise(data[3 + 2 * _STEPS :])


def _noise(data: bytes) -> None:
    """Anything, as the framed stream of either side: no exception, and the same whole and in pieces."""
    outcomes = []
    for size in (len(data) or 1, 3):
        comparator = Comparator(CompareConfig(framed=True))
        for at in range(0, len(data), size):
            comparator.secondary_bytes(data[at : at + size], 0)
            comparator.primary_bytes(data[at : at + size], 0)
        comparator.tick(10_000_000)
        outcomes.append((b"".join(comparator.take_released()), comparator.primary_error, comparator.held_bytes))
    assert outcomes[0] == outcomes[1]


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack", "colo"], seeds=SEEDS)
