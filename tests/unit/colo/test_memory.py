"""What a connection costs in the rewriter and in the comparator is what the pages state."""

from __future__ import annotations

import gc
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from colo.compare import Comparator, CompareConfig
from pystack import Counters
from pystack.flow.rewriter import Rewriter, RewriterConfig
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, SYN, Packet, parse_untrusted
from tests.colo_guests import CLIENT, GUEST, Guest

DOCS = Path(__file__).resolve().parents[3] / "docs" / "reference"
CONNECTIONS = 8192
ALLOWANCE = 1.1  # Python versions differ
SOURCE, DESTINATION = 26, 30
OPENING = Crafter(CLIENT, GUEST).tcp(
    flags=SYN,
    sport=5000,
    dport=80,
    seq=6999,
    options=tcp.build_options(mss=1460, sack_permitted=True, timestamps=(1, 0), window_scale=7),
)
PRIMARY = Guest(iss=1000, tsval=10)
SECONDARY = Guest(iss=77_000, tsval=999)


def from_address(frame: bytes, place: int, number: int) -> bytes:
    """A frame of or to another client, with checksums that do not know of it; nobody here verifies them."""
    return frame[:place] + (0x0B00_0000 + number).to_bytes(4, "big") + frame[place + 4 :]


def parsed(frame: bytes) -> Packet:
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    return packet


def measure(connection: Callable[[int], None]) -> float:
    """Bytes for each of many connections."""
    for number in range(CONNECTIONS, CONNECTIONS + 8):
        connection(number)  # what is made once
    gc.collect()
    tracemalloc.start()
    for number in range(CONNECTIONS):
        connection(number)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / CONNECTIONS


def stated(page: str, pattern: str) -> int:
    """The figure that a page of the reference gives."""
    found = re.search(pattern, " ".join((DOCS / page).read_text(encoding="utf-8").split()))
    assert found, f"{page} no longer says {pattern}"
    return int(found[1].replace(",", ""))


def test_of_the_rewriter() -> None:
    rewriter = Rewriter(RewriterConfig(max_flows=CONNECTIONS + 8))
    one, other = PRIMARY.syn_ack(), SECONDARY.syn_ack()

    def connection(number: int) -> None:
        rewriter.to_secondary(parsed(from_address(OPENING, SOURCE, number)), number)
        rewriter.observe_primary(parsed(from_address(one, DESTINATION, number)), number)
        rewriter.from_secondary(parsed(from_address(other, DESTINATION, number)), number)

    used = measure(connection)
    assert len(rewriter) == CONNECTIONS + 8
    figure = stated("rewriter.md", r"takes about ([\d,]+) bytes")
    assert figure / 2 < used < figure * ALLOWANCE


@pytest.mark.parametrize("established", [False, True])
def test_of_the_comparator(established: bool) -> None:
    comparator = Comparator(CompareConfig(max_flows=CONNECTIONS + 8))
    frames = [(PRIMARY.syn_ack(), SECONDARY.syn_ack())]
    if established:
        other = Guest(iss=PRIMARY.iss, tsval=999)  # what a rewriter has made of it
        frames.append((PRIMARY.segment(1001, ACK, b"x"), other.segment(1001, ACK, b"x")))
    released = 0

    def connection(number: int) -> None:
        nonlocal released
        for one, other in frames:
            comparator.primary(from_address(one, DESTINATION, number), number)
            comparator.secondary(from_address(other, DESTINATION, number), number)
        released += len(comparator.take_released())

    used = measure(connection)
    assert released == (CONNECTIONS + 8) * len(frames)
    figure = stated("flow.md", r"The comparator keeps about ([\d,]+) bytes for each TCP connection")
    assert figure / 2 < used < figure * ALLOWANCE
