"""When a reset of the primary leaves, and what a reset of the secondary stands for."""

from __future__ import annotations

import pytest

from pystack.wire.packet import ACK, RST
from tests.unit.colo.bench import Bench

HELLO = b"HTTP/1.1 200 OK\r\n\r\nhello"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_reset_needs_the_secondarys_at_the_same_place(bench: Bench) -> None:
    bench.open()
    assert bench.p(bench.primary.rst(0)) == 0
    assert bench.s(bench.secondary.ack(0)) == 0
    assert bench.s(bench.secondary.rst(0)) == 1
    assert bench.reasons == []


def test_resets_at_different_places_are_a_difference(bench: Bench) -> None:
    bench.open()
    assert bench.both(bench.primary.rst(0), bench.secondary.rst(5)) == 0
    assert bench.reasons == ["flags"]


@pytest.mark.parametrize("primary_first", [True, False])
@pytest.mark.parametrize("own", [4_000_000, 5, 0xFFFF_FFF0])
def test_a_reset_without_acknowledgement_may_bear_the_secondarys_own_number(
    bench: Bench, own: int, primary_first: bool
) -> None:
    """QEMU's filter-rewriter translates no segment without ACK, and so the two differ by what the SYNs do."""
    bench.secondary.iss = own
    bench.open()
    bench.secondary.iss = bench.primary.iss  # as the rewriter makes it
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 1
    reset_p, reset_s = bench.primary.rst(24, RST), bench.secondary.segment(own + 1 + 24, RST)
    if primary_first:
        assert bench.both(reset_p, reset_s) == 1
    else:
        assert bench.s(reset_s) == 0
        assert bench.p(reset_p) == 1
    assert bench.reasons == []


@pytest.mark.parametrize(("at", "flags"), [(23, RST), (24, RST | ACK)])
def test_a_reset_with_another_number_is_a_difference_whosever_it_is(bench: Bench, at: int, flags: int) -> None:
    bench.secondary.iss = 4_000_000
    bench.open()
    bench.secondary.iss = bench.primary.iss
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.data(0, HELLO)) == 1
    assert bench.both(bench.primary.rst(24, flags), bench.secondary.segment(4_000_001 + at, flags)) == 0
    assert bench.reasons == ["flags"]


def test_a_reset_whose_number_was_translated_is_one_too(bench: Bench) -> None:
    bench.secondary.iss = 4_000_000
    bench.open()
    bench.secondary.iss = bench.primary.iss
    assert bench.both(bench.primary.rst(0, RST), bench.secondary.rst(0, RST)) == 1
    assert bench.reasons == []


def test_a_reset_after_a_checkpoint_has_one_number(bench: Bench) -> None:
    bench.secondary.iss = 4_000_000
    bench.open()
    bench.commit()
    assert bench.both(bench.primary.rst(0, RST), bench.secondary.segment(4_000_001, RST)) == 0
    assert bench.reasons == ["flags"]


def test_a_reset_of_the_secondary_ends_the_wait_for_its_bytes(bench: Bench) -> None:
    bench.open()
    assert bench.both(bench.primary.data(0, HELLO), bench.secondary.rst(0)) == 0
    assert bench.reasons == ["flags"]
