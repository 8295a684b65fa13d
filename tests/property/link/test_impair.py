"""The impaired link for any impairment and seed: reproducible, bounded faults, and no packet out of nothing."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pystack.link import memory
from pystack.link.impair import ImpairLink, Impairment
from pystack.testing.frames import Crafter

_FRAMES = [Crafter("10.0.0.1", "10.0.0.2").udp(1, 2, n.to_bytes(2, "big")) for n in range(200)]
_FRACTION = st.sampled_from([0.0, 0.05, 0.5, 1.0])
_IMPAIRMENTS = st.builds(
    Impairment,
    loss=st.sampled_from([0.0, 0.05, 0.5]),
    reorder=_FRACTION,
    duplicate=_FRACTION,
    delay=st.integers(0, 20_000),
    jitter=st.integers(0, 20_000),
    rate=st.sampled_from([0, 1_000_000, 10_000_000]),
    queue=st.integers(1, 100),
)


def _run(impairment: Impairment, seed: int) -> tuple[list[tuple[int, bytes]], dict[str, int]]:
    """Every packet that comes out, with the instant at which it does, and what was counted."""
    left, right = memory.pair()
    link = ImpairLink(left, impairment, seed=seed)
    got: list[tuple[int, bytes]] = []
    for n, frame in enumerate(_FRAMES):
        link.send([(frame,)], n * 500)
        got += [(n * 500, data) for data in right.recv(0)]
    while (at := link.next_timeout()) is not None:
        link.send((), at)
        got += [(at, data) for data in right.recv(0)]
    return got, link.counters.snapshot()


@given(_IMPAIRMENTS, st.integers(0, 2**64 - 1))
def test_counters_account_for_every_packet(impairment: Impairment, seed: int) -> None:
    got, counted = _run(impairment, seed)
    gone = counted.get("impair.lost", 0) + counted.get("impair.overflow", 0)
    assert len(got) == len(_FRAMES) - gone + counted.get("impair.duplicated", 0)
    copies = Counter(data for _, data in got)
    assert set(copies) <= set(_FRAMES)
    assert max(copies.values(), default=0) <= 2


@given(_IMPAIRMENTS, st.integers(0, 2**64 - 1))
def test_a_run_can_be_repeated(impairment: Impairment, seed: int) -> None:
    assert _run(impairment, seed) == _run(impairment, seed)


@given(_IMPAIRMENTS, st.integers(0, 2**64 - 1))
def test_without_reordering_the_order_stays(impairment: Impairment, seed: int) -> None:
    got, counted = _run(impairment, seed)
    if "impair.reordered" not in counted:
        places = [_FRAMES.index(data) for _, data in got]
        assert places == sorted(places)
