"""TCP options read the same with and without the shortcut, within their bytes, and survive being built again."""

from __future__ import annotations

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.wire import tcp

SEEDS = seeds.parts(lambda packet: packet.frame[packet.l4 + 20 : packet.payload] if packet.proto == 6 else None)
MAX_LEN = 64


def target(data: bytes) -> None:
    """Read the options area ``data``, in the middle of a frame."""
    frame = b"\x02\x04" + data + b"\x05\xb4\x01\x01"
    fast, general = Counters(), Counters()
    options = tcp.parse_options_untrusted(frame, 2, 2 + len(data), fast)
    assert options == tcp.parse_options_general_untrusted(data, 0, len(data), general)
    assert fast.snapshot() == general.snapshot()
    assert options.window_scale is None or options.window_scale <= tcp.MAX_WINDOW_SCALE
    again = tcp.build_options(
        mss=options.mss,
        window_scale=options.window_scale,
        sack_permitted=options.sack_permitted,
        timestamps=options.timestamps,
        sack=options.sack,
    )
    assert len(again) <= tcp.MAX_OPTIONS_BYTES
    assert len(again) % 4 == 0
    counters = Counters()
    rebuilt = tcp.parse_options_untrusted(again, 0, len(again), counters)
    assert counters.snapshot() == {}
    assert rebuilt.sack == options.sack[: len(rebuilt.sack)]  # as many blocks as fit
    rebuilt.sack = options.sack
    assert rebuilt == options


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
