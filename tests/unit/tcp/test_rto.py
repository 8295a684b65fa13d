"""RFC 6298 as pure functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pystack.clock import MILLISECOND, SECOND
from pystack.tcp.rto import AFTER_LOST_SYN, GRANULARITY, RttEstimate

BOUNDS = (SECOND, 200 * MILLISECOND, 60 * SECOND)


def test_before_a_sample_the_initial_timeout_holds() -> None:
    assert RttEstimate().rto(*BOUNDS) == SECOND


def test_first_sample() -> None:
    # Rule 2.2.
    estimate = RttEstimate().sample(400 * MILLISECOND)
    assert estimate == (400 * MILLISECOND, 200 * MILLISECOND)
    assert estimate.rto(*BOUNDS) == 1200 * MILLISECOND


def test_next_sample_moves_the_variance_by_the_old_mean() -> None:
    # Rule 2.3: RTTVAR first, then SRTT.
    estimate = RttEstimate(800, 400).sample(1600)
    assert estimate == (800 + 100, 400 + (800 - 400) // 4)


def test_timeout_stays_between_its_bounds() -> None:
    # Rules 2.4 and 2.5; G of rule 2.3 where the variance is none.
    assert RttEstimate(10, 1).rto(*BOUNDS) == 200 * MILLISECOND
    assert RttEstimate(SECOND, 0).rto(*BOUNDS) == SECOND + GRANULARITY
    assert RttEstimate(50 * SECOND, 50 * SECOND).rto(*BOUNDS) == 60 * SECOND


def test_after_a_lost_syn_three_seconds_until_the_first_sample() -> None:
    # Rule 5.7.
    assert AFTER_LOST_SYN.rto(*BOUNDS) == 3 * SECOND
    assert AFTER_LOST_SYN.rto(5 * SECOND, *BOUNDS[1:]) == 5 * SECOND
    assert AFTER_LOST_SYN.sample(1000) == RttEstimate().sample(1000)


@given(st.lists(st.integers(0, 100 * SECOND), min_size=1, max_size=50))
def test_estimate_stays_within_what_was_seen(samples: list[int]) -> None:
    estimate = RttEstimate()
    for sample in samples:
        estimate = estimate.sample(sample)
        assert estimate.srtt >= 1
        assert estimate.rttvar >= 0
    assert min(samples) - 8 <= estimate.srtt <= max(*samples, 1)
