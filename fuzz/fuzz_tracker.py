"""The tracker never raises, stays within its bound, and its numbers never contradict each other.

Input: records of two bytes of length and a frame, fed in order, a second apart.
"""

from __future__ import annotations

from fuzz import harness
from pystack.counters import Counters
from pystack.flow.table import AtBound
from pystack.flow.tracker import State, Tracker
from pystack.testing.frames import Crafter
from pystack.wire.packet import ACK, FIN, RST, SYN, parse_untrusted

_ONE, _OTHER = Crafter("10.0.0.1", "10.0.0.2"), Crafter("10.0.0.2", "10.0.0.1")
_CAPACITY = 8


def _records(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(2, "big") + frame for frame in frames)


SEEDS = [
    _records(
        _ONE.tcp(sport=1, dport=2, seq=9, flags=SYN),
        _OTHER.tcp(sport=2, dport=1, seq=70, ack=10, flags=SYN | ACK),
        _ONE.tcp(sport=1, dport=2, seq=10, ack=71, flags=ACK, payload=b"hello"),
        _OTHER.tcp(sport=2, dport=1, seq=71, ack=15, flags=ACK | FIN),
        _ONE.tcp(sport=1, dport=2, seq=15, ack=72, flags=ACK | FIN),
        _OTHER.tcp(sport=2, dport=1, seq=72, ack=16, flags=ACK),
    ),
    _records(_ONE.tcp(sport=1, dport=2, seq=9, flags=SYN), _OTHER.tcp(sport=2, dport=1, ack=10, flags=RST | ACK)),
    _records(_ONE.udp(1, 2, b"x"), _OTHER.echo(3), *_ONE.fragments(17, bytes(100), 64)),
]
MAX_LEN = 2048


def target(data: bytes) -> None:
    """Feed the frames and check."""
    tracker = Tracker(capacity=_CAPACITY, at_bound=AtBound.EVICT_UNFINISHED)
    counters = Counters()
    at, now = 0, 0
    while at + 2 <= len(data):
        length = int.from_bytes(data[at : at + 2], "big")
        frame = data[at + 2 : at + 2 + length]
        at += 2 + length
        now += 1_000_000
        packet = parse_untrusted(frame, 0, counters)
        if packet is not None:
            _check(tracker, tracker.observe(packet, now))
        tracker.tick(now)
    assert len(tracker) <= _CAPACITY
    assert 0 <= tracker.live <= len(tracker)
    tracker.tick(now + 100_000_000_000)
    assert len(tracker) == 0
    assert tracker.live == 0


def _check(tracker: Tracker, flow: object) -> None:
    assert len(tracker) <= _CAPACITY
    tcp = getattr(flow, "tcp", None)
    if tcp is None:
        return
    for end in tcp.ends:
        assert end.fin < 0 or end.fin < end.nxt
        assert end.iss < 0 or end.iss < end.nxt
        assert end.ack <= end.right or end.ack < 0
    assert isinstance(tcp.state, State)


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
