"""A DNS message is read in bounded time or refused with one counter, and is the same when it is built again."""

from __future__ import annotations

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.wire import dns

SEEDS = [
    *seeds.payloads(dns.PORT),
    bytes.fromhex("000781800001000100000000") + b"\x03www\xc0\x15\x00\x01\x00\x01\x01a\x00",
]
MAX_LEN = 1500


def target(data: bytes) -> None:
    """Read ``data`` as a message."""
    counters = Counters()
    message = dns.parse_untrusted(data, counters)
    assert sum(counters.snapshot().values()) == (message is None)
    first = dns.parse_question_untrusted(data, Counters())
    if message is None:
        return
    assert first == (message.header, message.questions[0] if message.questions else None)
    for name in (*[q.name for q in message.questions], *[r.name for r in message.answers]):
        assert len(name) <= 255
        assert dns.name_text(name).isprintable()
    built = dns.build(message)
    again = dns.parse_untrusted(built, counters)
    assert again is not None
    assert dns.build(again) == built
    assert again[1:] == message[1:]


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
