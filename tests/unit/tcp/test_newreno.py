"""Congestion control: RFC 5681, RFC 6582, RFC 6928."""

from __future__ import annotations

import pytest

from pystack.tcp.congestion.newreno import NewReno


@pytest.mark.parametrize(("smss", "window"), [(1460, 14_600), (536, 5360), (9000, 18_000), (1448, 14_480)])
def test_initial_window(smss: int, window: int) -> None:
    # RFC 6928 section 2: min(10*MSS, max(2*MSS, 14600)).
    assert NewReno(smss, 10).cwnd == window


def test_slow_start_grows_by_what_is_acknowledged() -> None:
    cc = NewReno(1000, 10)
    cc.on_ack(1000, 10_000)
    assert cc.cwnd == 11_000


def test_window_does_not_grow_while_it_is_not_used() -> None:
    cc = NewReno(1000, 10)
    cc.on_ack(1000, 1000)
    assert cc.cwnd == 10_000
    cc.ssthresh = 5000
    cc.on_ack(1000, 1000)
    assert cc.cwnd == 10_000


def test_slow_start_ends_at_ssthresh() -> None:
    cc = NewReno(1000, 10)
    cc.ssthresh = 12_000
    cc.on_ack(10_000, 10_000)
    assert cc.cwnd == 12_000


def test_congestion_avoidance_grows_by_one_segment_per_window() -> None:
    # RFC 5681 equation 3, counted in bytes, so that divided ACKs gain nothing (section 3.1).
    cc = NewReno(1000, 10)
    cc.ssthresh = 1000
    for _ in range(99):
        cc.on_ack(100, 10_000)
        assert cc.cwnd == 10_000
    cc.on_ack(100, 10_000)
    assert cc.cwnd == 11_000


def test_loss_halves_what_was_in_flight() -> None:
    # Equation 4: never below two segments.
    cc = NewReno(1000, 10)
    cc.on_loss(9000)
    assert (cc.cwnd, cc.ssthresh) == (4500, 4500)
    cc.on_loss(1000)
    assert (cc.cwnd, cc.ssthresh) == (2000, 2000)


def test_recovery_ends_without_a_burst() -> None:
    # RFC 6582 section 3.2 step 3.
    cc = NewReno(1000, 10)
    cc.on_loss(9000)
    cc.on_recovered(1500)
    assert cc.cwnd == 2500
    cc.on_recovered(0)
    assert cc.cwnd == 2000
    cc.on_recovered(100_000)
    assert cc.cwnd == 4500


def test_timeout_leaves_one_segment_and_halves_once() -> None:
    cc = NewReno(1000, 10)
    cc.on_timeout(8000, first=True)
    assert (cc.cwnd, cc.ssthresh) == (1000, 4000)
    cc.on_timeout(1000, first=False)
    assert (cc.cwnd, cc.ssthresh) == (1000, 4000)


def test_idle_restarts_from_the_initial_window_at_most() -> None:
    cc = NewReno(1000, 10)
    cc.cwnd = 50_000
    cc.on_idle()
    assert cc.cwnd == 10_000
    cc.cwnd = 2000
    cc.on_idle()
    assert cc.cwnd == 2000


def test_window_keeps_its_segments_when_their_size_changes() -> None:
    cc = NewReno(1000, 10)
    cc.on_smss(500)
    assert cc.cwnd == 5000
