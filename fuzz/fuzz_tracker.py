"""The tracker never raises, stays within its bound, and its numbers never contradict each other.

Input: records of two bytes and a frame, fed in order. The bytes are the length of the frame (11 bits, so that every
mutation of a length moves what follows) and by how much time goes on before it (5 bits, in steps of 8 s).
"""

from __future__ import annotations

from fuzz import harness
from pystack.clock import SECOND
from pystack.counters import Counters
from pystack.flow.table import AtBound
from pystack.flow.tracker import Tracker
from pystack.net.reassembly import Limits
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, FIN, RST, SYN, parse_untrusted

MAX_LEN = 2048

_ONE, _OTHER = Crafter("10.0.0.1", "10.0.0.2"), Crafter("10.0.0.2", "10.0.0.1")
_CAPACITY = 8
_LIMITS = Limits(datagrams=2, fragments=4, bytes=4096)
_SCALE = tcp.build_options(mss=1460, window_scale=7)


def _one(seq: int, flags: int, ack: int = 0, payload: bytes = b"", options: bytes = b"") -> bytes:
    return _ONE.tcp(sport=1, dport=2, seq=seq, ack=ack, flags=flags, payload=payload, options=options)


def _other(seq: int, flags: int, ack: int = 0, payload: bytes = b"", options: bytes = b"") -> bytes:
    return _OTHER.tcp(sport=2, dport=1, seq=seq, ack=ack, flags=flags, payload=payload, options=options)


def _records(*frames: bytes, pause: int = 0) -> bytes:
    return b"".join((len(frame) | pause << 11).to_bytes(2, "big") + frame for frame in frames)


def _six(frame: bytes) -> bytes:
    """An IPv4 frame's payload over IPv6 instead."""
    header = bytes((0x60, 0, 0, 0)) + (len(frame) - 34).to_bytes(2, "big") + bytes((frame[23], 64))
    return frame[:12] + b"\x86\xdd" + header + bytes(12) + frame[26:30] + bytes(12) + frame[30:34] + frame[34:]


_OPEN = (_one(9, SYN, options=_SCALE), _other(70, SYN | ACK, 10, options=_SCALE), _one(10, ACK, 71))
_CLOSE = (_other(71, ACK | FIN, 10), _one(10, ACK | FIN, 72), _other(72, ACK, 11))
SEEDS = [
    _records(*_OPEN, _one(10, ACK, 71, b"hello"), _other(71, ACK, 15, b"world"), _one(15, ACK, 76)),
    _records(*_OPEN, *_CLOSE, _one(5000, SYN), _other(900, SYN | ACK, 5001), _one(5001, ACK, 901)),  # used again
    _records(*_OPEN, _one(5000, SYN), _other(900, SYN | ACK, 5001)),  # a claim taken up
    _records(_one(9, SYN), _other(70, SYN), _one(9, SYN | ACK, 71), _other(70, SYN | ACK, 10)),  # both at once
    _records(*_OPEN, _other(500, RST), _other(71, ACK, 10, bytes(600))),  # a reset that was none
    _records(_one(9, SYN), _other(0, RST | ACK, 10), _one(9, SYN)),
    _records(*_OPEN, _other(71, FIN | ACK, 10, b"ab"), _other(71, ACK, 10, b"abcd"), _other(72, FIN | ACK, 10)),
    _records(_one(700, ACK, 5000, b"midway"), _other(5000, ACK, 706), _other(5000, RST)),
    _records(*(_six(frame) for frame in (*_OPEN, *_CLOSE)), pause=1),
    _records(*(frame[:12] + b"\x81\0\x20\x05" + frame[12:] for frame in _OPEN)),
    _records(_ONE.udp(1, 2, b"x"), _OTHER.icmp_error(3, 3, _ONE.udp(1, 2, b"x")[14:]), _OTHER.echo(3), pause=2),
    _records(*_ONE.fragments(17, bytes(100), 64), _one(1, 0), _ONE.ipv4(47, b"x"), pause=31),
    _records(*(_ONE.tcp(sport=port, dport=2, seq=1, flags=SYN) for port in range(_CAPACITY + 2))),
]


def target(data: bytes) -> None:
    """Feed the frames and check."""
    at_bound = tuple(AtBound)[len(data) % 3]
    tracker = Tracker(capacity=_CAPACITY, at_bound=at_bound, limits=_LIMITS)
    counters = Counters()
    at, now = 0, 0
    while at + 2 <= len(data):
        record = int.from_bytes(data[at : at + 2], "big")
        length = record & 0x7FF
        frame = data[at + 2 : at + 2 + length]
        at += 2 + length
        now += (record >> 11) * 8 * SECOND
        tracker.tick(now)
        packet = parse_untrusted(frame, 0, counters)
        if packet is not None:
            flow = tracker.observe(packet, now)
            assert flow is None or packet.is_fragment or tracker.get(packet) is flow
        tracker._check()
        assert len(tracker) <= _CAPACITY
    tracker.tick(now + 1_000_000 * SECOND)
    assert (len(tracker), tracker.live, tracker.next_timeout()) == (0, 0, None)
    assert len(tracker.take_ended()) == tracker.counters["flow.new"]


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
