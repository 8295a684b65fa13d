"""Our TCP against the Linux kernel over a TAP, without a gateway: each as client and server, each closing first."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict

import pytest

from tests.interop.conftest import ROOT
from tests.interop.kernel_peer import Report, Scenario, payload
from tests.interop.lab import Lab

pytestmark = pytest.mark.requires("netns", "tap", "nsenter", "ip")

CLOSED, TIME_WAIT = "0", "10"


def play(lab: Lab, scenario: Scenario, timeout: float = 70.0) -> Report:
    """Play one scenario in a network namespace of its own."""
    argument = json.dumps(asdict(scenario))
    done = lab.run(
        ["unshare", "--net", sys.executable, "-m", "tests.interop.kernel_peer", argument], cwd=ROOT, timeout=timeout
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    return Report(**json.loads(done.stdout))


def assert_all_arrived(report: Report, size: int) -> None:
    assert report.ours_got == hashlib.sha256(payload("kernel", size)).hexdigest()
    assert report.kernel_got == hashlib.sha256(payload("ours", size)).hexdigest()
    assert not report.kernel_left


@pytest.mark.parametrize("offload", [True, False], ids=["offload", "no offload"])
@pytest.mark.parametrize("first", ["ours", "kernel", "both"])
@pytest.mark.parametrize("client", ["ours", "kernel"])
def test_data_flows_both_ways_and_the_connection_ends(lab: Lab, client: str, first: str, *, offload: bool) -> None:
    scenario = Scenario(client, first, 3_000_000, offload)
    report = play(lab, scenario)
    assert_all_arrived(report, scenario.size)
    # Who sends the first FIN is left in TIME-WAIT (RFC 9293 section 3.6), and the other one is free at once.
    if first == "ours":
        assert (report.ours_state, report.kernel_time_wait) == (TIME_WAIT, False)
    if first == "kernel":
        assert (report.ours_state, report.kernel_time_wait) == (CLOSED, True)


@pytest.mark.parametrize("first", ["ours", "kernel", "both"])
@pytest.mark.parametrize("client", ["ours", "kernel"])
def test_nothing_is_lost_over_an_impaired_link(lab: Lab, client: str, first: str) -> None:
    scenario = Scenario(
        client,
        first,
        1_000_000,
        offload=False,
        impair="loss=3%,reorder=5%,duplicate=1%,corrupt=0.5%,delay=2ms",
    )
    report = play(lab, scenario)
    assert_all_arrived(report, scenario.size)
    assert report.retransmitted > 0
