"""Amounts and tables say what a person wants to know, and no more."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pystack.cli.stats import amount, table
from pystack.slirp.stats import GatewayStats

NOTHING = GatewayStats(
    tcp_opened=0, tcp_refused=0, tcp_active=0, bytes_to_host=0, bytes_to_guest=0, retransmissions=0, udp_flows=0,
    udp_active=0, datagrams_to_host=0, datagrams_to_guest=0, dns_queries=0, pings=0, frames_bad=0,
)  # fmt: skip


def _printed(stats: GatewayStats) -> str:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(table(stats))
    return capture.get()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1536, "1.54 kB"),
        (123_456, "123 kB"),
        (64_300_000, "64.3 MB"),
        (5_000_000_000, "5 GB"),
        (7_250_000_000_000_000, "7250 TB"),
    ],
)
def test_an_amount_has_three_digits_and_a_unit(count: int, text: str) -> None:
    assert amount(count) == text


def test_a_table_leaves_out_what_did_not_happen() -> None:
    said = _printed(NOTHING)
    for always in ("TCP connections", "Bytes to the host", "Bytes to the guest", "Retransmissions"):
        assert always in said
    for sometimes in ("refused", "still open", "UDP flows", "DNS queries", "Pings", "Bad frames"):
        assert sometimes not in said


def test_a_table_shows_what_happened() -> None:
    from dataclasses import replace

    said = _printed(replace(NOTHING, tcp_opened=1234, tcp_refused=5, pings=6, bytes_to_guest=2_500_000))
    assert "1,234" in said
    assert "2.5 MB" in said
    assert "refused" in said
    assert "Pings" in said
