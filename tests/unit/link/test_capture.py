"""Links that show what passes: to a file, and to a person."""

from __future__ import annotations

import io
from pathlib import Path

from pystack.link import memory, pcap
from pystack.link.capture import CaptureLink, origin_of
from pystack.link.pcapng import PcapngWriter
from pystack.link.records import INBOUND, OUTBOUND
from pystack.link.trace import TraceLink
from pystack.testing.frames import Crafter
from pystack.wire import vnet
from pystack.wire.packet import ACK
from tests.unit.link.pairs import OFFLOADED

_WIRE = Crafter("10.0.0.1", "10.0.0.2")
_FRAME = _WIRE.udp(1000, 2000, b"hello")


def test_both_directions_are_captured_with_their_times() -> None:
    left, right = memory.pair()
    stream = io.BytesIO()
    link = CaptureLink(left, PcapngWriter(stream), origin=1_000_000)
    link.send([(_FRAME[:20], _FRAME[20:])], 5)
    right.send([(_FRAME,)], 0)
    link.recv(7)
    sent, received = pcap.read(io.BytesIO(stream.getvalue()), "capture")
    assert (sent.data, sent.direction, sent.at) == (_FRAME, OUTBOUND, 1_000_005_000)
    assert (received.data, received.direction, received.at) == (_FRAME, INBOUND, 1_000_007_000)
    assert link.counters.snapshot() == {"capture.frames": 2}


def test_what_the_inner_link_refuses_is_not_captured() -> None:
    left, _ = memory.pair(queue_frames=1)
    stream = io.BytesIO()
    link = CaptureLink(left, PcapngWriter(stream))
    assert link.send([(_FRAME,)] * 3, 0) == 1
    assert len(list(pcap.read(io.BytesIO(stream.getvalue()), "capture"))) == 1


def test_a_large_segment_is_captured_whole_with_a_complete_checksum_and_without_its_header() -> None:
    left, _ = memory.pair(OFFLOADED)
    stream = io.BytesIO()
    link = CaptureLink(left, PcapngWriter(stream))
    frame = _WIRE.tcp(sport=1, dport=2, flags=ACK, payload=bytes(40_000))
    header = vnet.build(
        10, flags=vnet.F_NEEDS_CSUM, gso_type=vnet.GSO_TCPV4, gso_size=1448, csum_start=34, csum_offset=16
    )
    length = 20 + 40_000
    partial = (0x0A00 + 0x0001 + 0x0A00 + 0x0002 + 6 + length).to_bytes(2, "big")
    link.send([(header + frame[:50] + partial + frame[52:],)], 0)
    (record,) = pcap.read(io.BytesIO(stream.getvalue()), "capture")
    assert record.data == frame


def test_checksums_may_be_left_as_they_are() -> None:
    left, _ = memory.pair(OFFLOADED)
    stream = io.BytesIO()
    link = CaptureLink(left, PcapngWriter(stream), complete_checksums=False)
    header = vnet.build(10, flags=vnet.F_NEEDS_CSUM, csum_start=34, csum_offset=6)
    undone = _FRAME[:40] + b"\xab\xcd" + _FRAME[42:]
    link.send([(header + undone,)], 0)
    (record,) = pcap.read(io.BytesIO(stream.getvalue()), "capture")
    assert record.data == undone


def test_the_file_can_be_read_while_it_grows(tmp_path: Path) -> None:
    left, _ = memory.pair()
    path = tmp_path / "growing.pcapng"
    link = CaptureLink(left, PcapngWriter.create(path))
    for n in range(1, 4):
        link.send([(_FRAME,)], 0)
        assert len(list(pcap.read_file(path))) == n
    link.close()


def test_a_full_disk_ends_the_capture_and_not_the_network() -> None:
    left, right = memory.pair()
    link = CaptureLink(left, PcapngWriter.create("/dev/full"))
    for _ in range(3):
        assert link.send([(_FRAME,)], 0) == 1
    assert len(right.recv(0)) == 3
    assert link.failure == "/dev/full cannot be written: no space left on device."
    assert link.counters["capture.failed"] == 1
    link.close()


def test_the_origin_turns_the_drivers_clock_into_the_time_of_day() -> None:
    assert origin_of(5) + 5 > 1_700_000_000_000_000


def test_trace_prints_a_line_for_each_frame_of_both_directions() -> None:
    left, right = memory.pair()
    lines: list[str] = []
    link = TraceLink(left, lines.append)
    link.send([(_FRAME,)], 1_000_000)
    right.send([(_FRAME,), (b"junk",)], 0)
    link.recv(2_000_000)
    assert lines[0].startswith("00:00:01.000000 > IP 10.0.0.1.1000 > 10.0.0.2.2000: ")
    assert lines[1].startswith("00:00:02.000000 < IP 10.0.0.1.1000 > 10.0.0.2.2000: ")
    assert len(lines) == 3
    assert not any("\n" in line for line in lines)


def test_trace_skips_the_virtio_header() -> None:
    left, _ = memory.pair(OFFLOADED)
    lines: list[str] = []
    TraceLink(left, lines.append).send([(bytes(10) + _FRAME,)], 0)
    assert "10.0.0.1.1000 > 10.0.0.2.2000" in lines[0]
