"""The published conformance test over every link that needs no device."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager

import pytest

from pystack.frame import LinkInfo
from pystack.link import memory
from pystack.link.capture import CaptureLink
from pystack.link.impair import Impairment
from pystack.link.memory import ETHERNET
from pystack.link.pcapng import PcapngWriter
from pystack.link.trace import TraceLink
from pystack.testing.conformance import MakePair, Pair, check_link
from tests.unit.link.pairs import OFFLOADED, both, impaired_pair, memory_pair, qemu_pair


@pytest.mark.parametrize(
    "make_pair",
    [
        pytest.param(memory_pair(), id="virtual-time"),
        pytest.param(memory_pair(wakeup=True), id="wakeup"),
        pytest.param(memory_pair(wakeup=True, queue_frames=7), id="short-queue"),
        pytest.param(memory_pair(OFFLOADED), id="offload"),
    ],
)
def test_memory_link_conforms(make_pair: MakePair) -> None:
    check_link(make_pair)


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
def test_qemu_client_conforms(address: tuple[str, int] | None) -> None:
    check_link(lambda: qemu_pair(address), reports_close=False)  # the server waits for its next client


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
def test_qemu_server_conforms(address: tuple[str, int] | None) -> None:
    check_link(lambda: qemu_pair(address, server_left=True))


def test_qemu_framing_with_a_virtio_header_conforms() -> None:
    check_link(lambda: qemu_pair(info=OFFLOADED, server_left=True))


@pytest.mark.parametrize("wakeup", [False, True], ids=["virtual-time", "wakeup"])
@pytest.mark.parametrize("info", [ETHERNET, OFFLOADED], ids=["plain", "offload"])
@pytest.mark.parametrize("impairment", [Impairment(), Impairment(delay=1)], ids=["nothing", "least-delay"])
def test_impaired_link_without_faults_conforms(impairment: Impairment, info: LinkInfo, *, wakeup: bool) -> None:
    # A link that holds frames loses them when it is closed.
    check_link(impaired_pair(impairment, info, wakeup=wakeup), reports_close=impairment.nothing)


def test_a_traced_and_captured_link_conforms() -> None:
    def make() -> AbstractContextManager[Pair]:
        left, right = memory.pair(wakeup=True)
        return both(CaptureLink(TraceLink(left, str), PcapngWriter(io.BytesIO())), right)

    check_link(make)
