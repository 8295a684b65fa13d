"""Counters: named integers that only grow."""

from __future__ import annotations

from pystack.counters import Counters


def test_a_counter_that_was_never_bumped_is_zero() -> None:
    assert Counters()["tcp.nothing"] == 0


def test_bump_adds() -> None:
    counters = Counters()
    counters.bump("a.b")
    counters.bump("a.b", 4)
    assert counters["a.b"] == 5


def test_since_shows_what_moved_and_nothing_else() -> None:
    counters = Counters()
    counters.bump("a.old", 3)
    counters.bump("a.moved")
    before = counters.snapshot()
    counters.bump("a.moved", 2)
    counters.bump("a.new")
    counters.bump("a.still", 0)
    assert counters.since(before) == {"a.moved": 2, "a.new": 1}


def test_snapshot_is_a_copy() -> None:
    counters = Counters()
    counters.bump("a.b")
    snapshot = counters.snapshot()
    counters.bump("a.b")
    assert snapshot == {"a.b": 1}
