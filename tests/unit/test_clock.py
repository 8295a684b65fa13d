"""The clock that tests move."""

from __future__ import annotations

import pytest

from pystack.clock import MILLISECOND, SECOND, ManualClock


def test_units() -> None:
    assert SECOND == 1000 * MILLISECOND == 1_000_000


def test_clock_stands_until_it_is_moved() -> None:
    clock = ManualClock(5)
    assert clock.now == 5
    assert clock.advance(10) == 15
    assert clock.now == 15


def test_clock_does_not_go_back() -> None:
    clock = ManualClock(100)
    with pytest.raises(ValueError, match="cannot go back"):
        clock.advance(-1)
    assert clock.jump_to(50) == 100
    assert clock.jump_to(150) == 150
