"""Sequence arithmetic modulo 2**32 (RFC 9293 section 3.4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pystack import seq

NUMBERS = st.integers(0, seq.MASK)


def test_add_wraps_both_ways() -> None:
    assert seq.add(seq.MASK, 1) == 0
    assert seq.add(0, -1) == seq.MASK


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [(5, 3, 2), (3, 5, -2), (0, seq.MASK, 1), (seq.MASK, 0, -1), (1 << 31, 0, -(1 << 31)), (0, 1 << 31, -(1 << 31))],
)
def test_sub_is_the_signed_distance(a: int, b: int, distance: int) -> None:
    assert seq.sub(a, b) == distance


@given(NUMBERS, st.integers(-(1 << 31), (1 << 31) - 1))
def test_sub_undoes_add(a: int, n: int) -> None:
    assert seq.sub(seq.add(a, n), a) == n


@given(NUMBERS, st.integers(1, (1 << 31) - 1))
def test_lt_and_le_order_what_is_less_than_half_the_space_apart(a: int, n: int) -> None:
    b = seq.add(a, n)
    assert seq.lt(a, b)
    assert not seq.lt(b, a)
    assert seq.le(a, b)
    assert seq.le(a, a)
    assert not seq.lt(a, a)


@given(NUMBERS, st.integers(0, 1 << 31), st.integers(0, seq.MASK))
def test_in_window_agrees_with_counting(left: int, size: int, offset: int) -> None:
    assert seq.in_window(seq.add(left, offset), left, size) == (offset < size)


@given(st.integers(0, 1 << 40), st.integers(-(1 << 31), (1 << 31) - 1))
def test_unwrap_finds_the_number_next_to_a_known_one(near: int, distance: int) -> None:
    absolute = near + distance
    assert seq.unwrap(absolute & seq.MASK, near) == absolute
