"""A TFTP message is read or refused with one counter, is the same when built again, and a safe name stays below."""

from __future__ import annotations

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.wire import tftp

SEEDS = seeds.payloads(69)
MAX_LEN = 700


def target(data: bytes) -> None:
    """Read ``data`` as a message."""
    counters = Counters()
    message = tftp.parse_untrusted(data, counters)
    assert sum(counters.snapshot().values()) == (message is None)
    for name in (data, getattr(message, "filename", b"")):
        parts = tftp.safe_name(name)
        assert parts is None or (parts and not set("".join(parts)) & set("/\\\0") and ".." not in parts)
    if message is not None:
        assert tftp.parse_untrusted(tftp.build(message), counters) == message


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
