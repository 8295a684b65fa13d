"""The fast path reaches the same state as the general path, by the same segments."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pystack.seq import MASK
from pystack.tcp import receive
from pystack.tcp.assembler import Assembler
from pystack.tcp.congestion.newreno import NewReno
from pystack.tcp.sack import Scoreboard
from pystack.tcp.sendbuf import SendBuffer
from pystack.tcp.tcb import Connection
from pystack.wire.packet import Packet
from tests.script.script import Script, ms

NOT_COMPARED: Final = {
    *("engine", "counters", "config", "path", "writer", "listener", "cc", "board", "assembler", "sendbuf", "rx"),
    # When it is its turn to send, and when the timer looks at it next, may differ as long as nothing comes of it.
    *("dirty", "deadline", "armed_at"),
}


def state_of(c: Connection) -> dict[str, object]:
    """Everything that a connection is, as values that compare."""
    state: dict[str, object] = {name: getattr(c, name) for name in Connection.__slots__ if name not in NOT_COMPARED}
    assert isinstance(c.cc, NewReno)
    state["cc"] = [getattr(c.cc, name) for name in NewReno.__slots__]
    state["board"] = contents(c.board)
    state["assembler"] = contents(c.assembler)
    state["sendbuf"] = contents(c.sendbuf)
    state["rx"] = b"".join(c.rx)
    return state


def contents(part: Assembler | Scoreboard | SendBuffer | None) -> object:
    """The bytes or numbers that a part of a connection holds."""
    if isinstance(part, Assembler):
        return [(r.start, r.end, b"".join(r.chunks)) for r in part._ranges.values()], part.blocks(8)
    if isinstance(part, Scoreboard):
        return list(part._ranges.items()), part.sacked
    if isinstance(part, SendBuffer):
        return part.base, part.end, b"".join(part.slices(part.base, len(part))) if len(part) else b""
    return None


ORDINARY = st.tuples(
    st.just("segment"),
    st.just(0),
    st.sampled_from([0, 1, 700, 1460]),
    st.sampled_from([0, 0, -1460]),
    st.sampled_from([65_535, 30_000]),
    st.just(1),
    st.just("ACK"),
)
SEGMENTS = st.one_of(
    ORDINARY,
    ORDINARY,
    # (what, seq relative to the next one, length, ack relative to the highest sent, window, timestamp step, flags)
    st.tuples(
        st.just("segment"),
        st.sampled_from([0, 0, 0, 0, 0, 0, 100, -50, 1500]),
        st.sampled_from([0, 0, 1, 100, 500, 1460, 1460, 5000]),
        st.sampled_from([0, 0, 0, -1, -100, -1460, -3000, -100_000, 1]),
        st.sampled_from([65_535, 65_535, 40_000, 5000, 100, 0]),
        st.sampled_from([0, 1, 1, 5, -1]),
        st.sampled_from(["ACK", "ACK", "PSH-ACK", "ACK", "URG-ACK", "NONE"]),
    ),
    st.tuples(st.just("write"), st.sampled_from([1, 100, 1460, 20_000])),
    st.tuples(st.just("read"), st.sampled_from([1, 1000, 100_000])),
    st.tuples(st.just("wait"), st.sampled_from([0, 1, ms(1), ms(5), ms(250)])),
    st.tuples(st.just("output")),
)


def run(s: Script, step: tuple[Any, ...], stamp: list[int]) -> list[bytes]:
    """One step of a scenario; returns the frames that came of it."""
    match step:
        case ("segment", seq, length, ack, window, later, flags):
            stamp[0] += later
            ts = f" ts={stamp[0] & MASK}:{s.now // 1000}" if s.config.timestamps else ""
            highest = s.c.snd_max - s.c.iss
            s.peer(
                f"{flags} seq={s.c.rcv_nxt - s.c.irs + seq} len={length} "
                f"ack={max(highest + ack, s.c.snd_una - s.c.iss - 5)} win={window} urg=3{ts}"
            )
        case ("write", n):
            s.c.write(bytes(n))
        case ("read", n):
            s.c.read(n)
        case ("wait", time):
            s.clock.advance(time)
            s.timers.fire(s.now)
        case _:
            return [p.frame for p in s.sent()]
    return []


@settings(max_examples=300)
@given(
    st.lists(SEGMENTS, min_size=8, max_size=40),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1000, 50_000, 1 << 20]),
)
def test_fast_path_equals_general_path(
    steps: list[tuple[Any, ...]], timestamps: bool, sack: bool, window_scale: bool, buffer: int
) -> None:
    options = {"timestamps": timestamps, "sack": sack, "window_scale": window_scale, "receive_buffer": buffer}
    twins = [Script(listen=True, **options) for _ in range(2)]  # type: ignore[arg-type]
    ts = " ts=1:0" if timestamps else ""
    syn = "SYN seq=0 win=65535 mss=1460" + (" sackok" if sack else "") + (" ws=2" if window_scale else "") + ts
    for s in twins:
        s.open_passively(syn, f"ACK seq=1 ack=1{ts}")
    fast, slow = twins
    taken = 0
    in_order = receive._in_order

    def only_for_one(c: Connection, p: Packet, now: int) -> bool:
        nonlocal taken
        if c.engine is slow.engine:
            return False
        result = in_order(c, p, now)
        taken += result
        return result

    stamps = [[1], [1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receive, "_in_order", only_for_one)
        for step in [*steps, ("output",)]:
            frames = [run(s, step, stamp) for s, stamp in zip(twins, stamps, strict=True)]
            assert frames[0] == frames[1], step
            assert state_of(fast.c) == state_of(slow.c), step
            assert fast.events().popitem()[1:] == slow.events().popitem()[1:] if fast.c.events else True
            if fast.c.gone:
                break
    event("fast path taken" if taken else "fast path never taken")


def test_a_reordered_window_is_not_taken_by_the_fast_path() -> None:
    # Found by the property above: SND.WL1 lies beyond RCV.NXT after an ACK that overtook text.
    for fast in (True, False):
        s = Script(listen=True)
        c = s.open_passively()
        s.peer("ACK seq=101 ack=1 win=40000")
        with pytest.MonkeyPatch.context() as patch:
            if not fast:
                patch.setattr(receive, "_in_order", lambda *_: False)
            s.peer("ACK seq=1 ack=1 len=100 win=50000")
        assert c.snd_wnd == 40_000
