"""The same TCP over IPv6."""

from __future__ import annotations

import pytest

from pystack.frame import LinkInfo
from pystack.tcp.config import TcpConfig
from pystack.tcp.tcb import Connection
from pystack.wire.packet import SYN, Packet
from pystack.wire.tcp import parse_options_untrusted
from tests.unit.tcp.pair import OFFLOAD, PLAIN, Pair

A6 = bytes.fromhex("fd00 0000 0000 0000 0000 0000 0000 0001")
B6 = bytes.fromhex("fd00 0000 0000 0000 0000 0000 0000 0002")


def _open(pair: Pair) -> tuple[Connection, Connection]:
    listener = pair.b.engine.listen(80)
    ours = pair.a.engine.connect((A6, 40_000), (B6, 80), pair.clock.now)
    pair.run(for_=1000)
    theirs = listener.take()
    assert theirs is not None
    return ours, theirs


@pytest.mark.parametrize("link", [PLAIN, OFFLOAD])
def test_bytes_arrive_over_ipv6(link: LinkInfo) -> None:
    pair = Pair(link=link)
    ours, theirs = _open(pair)
    data = bytes(range(256)) * 400
    received = bytearray()
    ours.write(data)
    ours.shutdown()
    while not theirs.eof:
        pair.run(for_=1000)
        received += theirs.read(1 << 20)
    assert received == data
    assert theirs.remote_addr == A6
    assert all(packet.version == 6 for _, _, packet in pair.log)


def test_mss_leaves_room_for_the_ipv6_header() -> None:
    pair = Pair()
    _open(pair)
    _, _, syn = pair.log[0]
    assert parse_options_untrusted(syn.frame, syn.l4 + 20, syn.payload, pair.a.counters).mss == 1440


def test_without_an_mss_option_1220_is_assumed() -> None:
    # MUST-15.
    def without_mss(frame: bytes, packet: Packet) -> list[tuple[int, bytes]]:
        if packet.flags & SYN:
            at = packet.l4 + 20
            frame = frame[:at] + b"\x01" * 4 + frame[at + 4 :]
        return [(0, frame)]

    settings = TcpConfig(timestamps=False)
    ours, theirs = _open(Pair(link=OFFLOAD, a=settings, b=settings, mangle=without_mss))
    assert ours.mss == theirs.mss == 1220
