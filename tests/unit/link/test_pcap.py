"""Capture files: written and read, in every form, and damaged."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Literal

import pytest
from pcapng import blocks
from scapy.utils import RawPcapNgReader

from pystack.errors import LinkClosed, LinkError, UsageError
from pystack.link import pcap, pcapng_blocks, records
from pystack.link.pcap import PcapLink, PcapWriter
from pystack.link.pcapng import PcapngWriter
from pystack.link.records import INBOUND, OUTBOUND, UNKNOWN, Record
from pystack.testing.frames import Crafter

_FRAMES = [Crafter("10.0.0.1", "10.0.0.2").udp(1, 2, bytes(n)) for n in range(5)]
_AT = 1_700_000_000_123_456_789


def _read(data: bytes) -> list[Record]:
    return list(pcap.read(io.BytesIO(data), "capture"))


def _pcapng() -> io.BytesIO:
    stream = io.BytesIO()
    writer = PcapngWriter(stream)
    for n, frame in enumerate(_FRAMES):
        comments = ("first", "zweite ✓") if n == 2 else ()
        writer.write(frame, _AT + n, direction=(UNKNOWN, INBOUND, OUTBOUND)[n % 3], comments=comments)
    return stream


# ------------------------------------------------------------------------------------------------------------ formats


def test_pcapng_keeps_times_directions_and_comments() -> None:
    got = _read(_pcapng().getvalue())
    assert [record.data for record in got] == _FRAMES
    assert [record.at for record in got] == [_AT + n for n in range(5)]
    assert [record.direction for record in got] == [UNKNOWN, INBOUND, OUTBOUND, UNKNOWN, INBOUND]
    assert [record.comments for record in got] == [(), (), ("first", "zweite ✓"), (), ()]


def test_another_library_reads_the_same() -> None:
    stream = _pcapng()
    stream.seek(0)
    got = list(RawPcapNgReader(stream))
    assert [data for data, _ in got] == _FRAMES
    seen = [meta for _, meta in got]
    assert {(meta.linktype, meta.tsresol, meta.ifname) for meta in seen} == {(1, 10**9, b"pystack")}
    assert [meta.tshigh << 32 | meta.tslow for meta in seen] == [_AT + n for n in range(5)]
    assert [meta.wirelen for meta in seen] == [len(frame) for frame in _FRAMES]
    assert [meta.direction for meta in seen] == [None, INBOUND, OUTBOUND, None, INBOUND]
    assert seen[2].comments == [b"first", "zweite ✓".encode()]


@pytest.mark.requires("tshark")
@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_tshark_reads_the_same(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"capture.{kind}"
    writer = PcapWriter.create(path) if kind == "pcap" else PcapngWriter.create(path)
    for n, frame in enumerate(_FRAMES):
        writer.write(frame, _AT + n, direction=OUTBOUND, comments=("seen",))
    writer.close()
    fields = ["frame.time_epoch", "frame.len", "udp.length", "frame.comment", "frame.packet_flags_direction"]
    command = ["tshark", "-r", str(path), "-T", "json", *(part for field in fields for part in ("-e", field))]
    said = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    layers = [packet["_source"]["layers"] for packet in json.loads(said)]
    assert [layer["udp.length"] for layer in layers] == [[str(8 + n)] for n in range(5)]
    assert [layer["frame.len"] for layer in layers] == [[str(len(frame))] for frame in _FRAMES]
    assert [layer["frame.time_epoch"] for layer in layers] == [[f"1700000000.{123_456_789 + n}"] for n in range(5)]
    if kind == "pcapng":
        assert all(layer["frame.comment"] == ["seen"] for layer in layers)
        assert all(layer["frame.packet_flags_direction"] == ["0x00000002"] for layer in layers)


@pytest.mark.parametrize("byteorder", ["little", "big"])
@pytest.mark.parametrize("nanoseconds", [True, False])
def test_pcap_is_written_and_read_in_each_of_its_four_forms(
    byteorder: Literal["little", "big"], *, nanoseconds: bool
) -> None:
    stream = io.BytesIO()
    writer = PcapWriter(stream, nanoseconds=nanoseconds, byteorder=byteorder)
    for n, frame in enumerate(_FRAMES):
        writer.write(frame, _AT + n * 1000, length=2000)
    got = _read(stream.getvalue())
    assert [record.data for record in got] == _FRAMES
    lost = 0 if nanoseconds else _AT % 1000
    assert [record.at for record in got] == [_AT + n * 1000 - lost for n in range(5)]
    assert {record.length for record in got} == {2000}


def _block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) & 3)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def _section(order: str, *, version: int = 1) -> bytes:
    return _block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, version, 0, -1))


def _interface(order: str, link_type: int = 1, snaplen: int = 0, options: bytes = b"") -> bytes:
    return _block(order, 1, struct.pack(order + "HHI", link_type, 0, snaplen) + options)


def _enhanced(order: str, data: bytes, ticks: int = 0, interface: int = 0, captured: int | None = None) -> bytes:
    captured = len(data) if captured is None else captured
    fields = struct.pack(order + "IIIII", interface, ticks >> 32, ticks & 0xFFFF_FFFF, captured, captured)
    return _block(order, 6, fields + data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_of_others_is_read_in_both_orders(order: str) -> None:
    frame = _FRAMES[1]
    obsolete = struct.pack(order + "HHIIII", 0, 7, 0, 3_000_000, len(frame), len(frame)) + frame
    simple = struct.pack(order + "I", len(frame)) + frame
    unknown = _block(order, 0x0BAD, b"whatever")
    data = _section(order) + unknown + _interface(order) + _enhanced(order, frame, 2_000_000)
    data += _block(order, 2, obsolete) + _block(order, 3, simple)
    got = _read(data)
    assert [record.data for record in got] == [frame] * 3
    assert [record.at for record in got] == [2 * 10**9, 3 * 10**9, 0]


@pytest.mark.parametrize(
    ("option", "ticks", "at"),
    [
        (b"\x09\0\x01\0\x03\0\0\0", 1500, 1_500_000_000),
        (b"\x09\0\x01\0\x8a\0\0\0", 1536, 1_500_000_000),
        (b"\x0e\0\x08\0" + struct.pack("<q", 100), 1_500_000, 101_500_000_000),
        (b"\x09\0\xff\xff", 1_500_000, 1_500_000_000),
        # An interface with an IPv6 address, at which a well-known library stumbles.
        (b"\x05\0\x11\0" + bytes(17) + bytes(3), 1_500_000, 1_500_000_000),
    ],
    ids=["milliseconds", "binary", "offset", "cut option", "ipv6"],
)
def test_the_interfaces_resolution_of_time_is_followed(option: bytes, ticks: int, at: int) -> None:
    (record,) = _read(_section("<") + _interface("<", options=option) + _enhanced("<", _FRAMES[0], ticks))
    assert record.at == at


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) & 3)


def test_what_decorates_a_frame_in_an_unusual_way_does_not_cost_it() -> None:
    odd = [_option(2, b"\xe4"), _option(0x8001, b"own"), _option(0x8001, b"own"), _option(4, b"short")]
    section = _block("<", 0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + b"".join(odd + odd))
    interface = _interface("<", options=b"".join(odd + odd))
    packet = _enhanced("<", bytes(4))[8:-4] + b"".join([_option(1, b"\xe4"), _option(1, b"b"), *odd[1:], *odd[1:]])
    (record,) = _read(section + interface + _block("<", 6, packet))
    assert record == Record(bytes(4), 0, 4, comments=("\ufffd", "b"))


def test_damage_in_a_block_without_frames_does_not_matter() -> None:
    names, statistics = _block("<", 4, b"\x01\0\x03\0abc"), _block("<", 5, struct.pack("<I", 9))
    assert _read(_HEAD + names + statistics + _enhanced("<", b"x")) == [Record(b"x", 0, 1)]


def test_an_empty_frame_is_written_and_read() -> None:
    stream = io.BytesIO()
    PcapngWriter(stream).write(b"", 0, comments=["nothing"])
    assert _read(stream.getvalue()) == [Record(b"", 0, 0, comments=("nothing",))]
    assert _read(_HEAD + _block("<", 3, bytes(4))) == [Record(b"", 0, 0)]


def test_the_library_stays_as_it_is_for_others() -> None:
    assert _read(_pcapng().getvalue())
    assert "if_IPv6addr" in blocks.InterfaceDescription(None, endianness="<").options._field_names
    assert blocks.KNOWN_BLOCKS[6] is blocks.EnhancedPacket


def test_classic_captures_do_not_wait_for_the_library_of_the_others() -> None:
    code = "import sys, pystack.link.pcap, pystack.link.capture; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "pcapng" not in loaded.split()


def test_sections_that_follow_each_other_start_anew() -> None:
    one = _section("<") + _interface("<") + _enhanced("<", b"one")
    two = _section(">") + _interface(">") + _interface(">") + _enhanced(">", b"two", interface=1)
    assert [(record.data, record.interface) for record in _read(one + two)] == [(b"one", 0), (b"two", 1)]


def test_a_simple_packet_is_cut_at_the_snapshot_length() -> None:
    data = _section("<") + _interface("<", snaplen=4) + _block("<", 3, struct.pack("<I", 100) + b"abcd")
    assert _read(data) == [Record(b"abcd", 0, 100)]


def test_a_comment_too_long_for_its_option_is_cut_between_characters() -> None:
    stream = io.BytesIO()
    PcapngWriter(stream).write(b"x", 0, comments=["é" * 40_000])
    (record,) = _read(stream.getvalue())
    assert record.comments == ("é" * 32_767,)


def test_a_frame_larger_than_any_mtu_is_written_whole() -> None:
    stream = io.BytesIO()
    PcapngWriter(stream).write(bytes(65_549), 0)
    assert len(_read(stream.getvalue())[0].data) == 65_549


# -------------------------------------------------------------------------------------------------------- bad input

_HEAD = _section("<") + _interface("<")
_PCAP = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65_535, 1)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"ab", "ends in the middle of a record"),
        (b"GIF89a", "is no pcap or pcapng file: it starts with 47 49 46 38"),
        (_PCAP[:20], "ends in the middle of a record"),
        (_PCAP + bytes(15), "ends in the middle of a record"),
        (_PCAP + struct.pack("<IIII", 0, 0, 10, 10) + bytes(9), "ends in the middle of a record"),
        (_PCAP + struct.pack("<IIII", 0, 0, 0xFFFF_FFFF, 10), "has a frame of 4294967295 bytes"),
        (_PCAP[:20] + struct.pack("<I", 113), "has frames of link type 113"),
        (struct.pack("<IHHIIII", 0xA1B2C3D4, 3, 4, 0, 0, 65_535, 1), "is of pcap version 3"),
        (_section("<")[:10], "ends in the middle of a record"),
        (_section("<", version=2), "is of pcapng version 2"),
        (struct.pack("<III", 0x0A0D0D0A, 28, 0x12345678) + bytes(16), "without a byte order"),
        (struct.pack("<III", 0x0A0D0D0A, 16, 0x1A2B3C4D) + struct.pack("<I", 16), "section header that is too short"),
        (_HEAD[:-1], "ends in the middle of a record"),
        (_HEAD + struct.pack("<II", 6, 0), "has a block of 0 bytes"),
        (_HEAD + struct.pack("<II", 6, 4), "has a block of 4 bytes"),
        (_HEAD + struct.pack("<II", 6, 33), "has a block of 33 bytes"),
        (_HEAD + struct.pack("<II", 6, 3 << 20), "has a block of 3145728 bytes"),
        (_HEAD + struct.pack("<II", 99, (16 << 20) + 16), "has a block of 16777232 bytes"),
        (_HEAD + struct.pack("<II", 0, 12), "has a block of type 0"),
        (_HEAD + struct.pack("<II", 6, 0xFFFF_FFFC), "has a block of 4294967292 bytes"),
        (_HEAD + struct.pack("<IIII", 99, 16, 0, 20), "two lengths differ"),
        (_HEAD + _block("<", 6, bytes(8)), "has a damaged block of type 6"),
        (_HEAD + _block("<", 3, b""), "has a damaged block of type 3"),
        (_HEAD + _block("<", 6, bytes(20) + struct.pack("<HHH", 1, 99, 0)), "has a damaged block of type 6"),
        (_section("<") + _interface("<", options=struct.pack("<HHI", 14, 4, 0)), "has a damaged block of type 1"),
        (_section(">") + _block(">", 1, b"abc"), "has a damaged block of type 1"),
        (_section("<") + _block("<", 1, b"abc"), "has a damaged block of type 1"),
        (_section("<") + _enhanced("<", b"x"), "has a frame of interface 0, which it does not describe"),
        (_section("<") + _block("<", 3, bytes(8)), "has a frame of interface 0"),
        (_section("<") + _interface("<", 113) + _enhanced("<", b"x"), "has frames of link type 113"),
        (_HEAD + _enhanced("<", b"x", captured=1000), "has a frame of 1000 bytes"),
        (_HEAD + _enhanced("<", b"x", captured=0xFFFF_FFFF), "has a frame of 4294967295 bytes"),
    ],
)
def test_a_damaged_file_is_one_sentence(data: bytes, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        _read(data)
    assert str(caught.value).startswith("capture ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_of_interfaces_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pcapng_blocks, "_MAX_INTERFACES", 3)
    assert len(_read(_section("<") + _interface("<") * 3 + _enhanced("<", b"x", interface=2))) == 1
    with pytest.raises(UsageError, match="describes more than 3 interfaces"):
        _read(_section("<") + _interface("<") * 4)


def test_a_block_that_is_too_short_is_not_the_end_of_the_file() -> None:
    reader = pcap.read(io.BytesIO(_HEAD + _enhanced("<", b"x") + _block("<", 6, b"") + _enhanced("<", b"y")), "capture")
    assert next(reader).data == b"x"
    with pytest.raises(UsageError, match="damaged block of type 6"):
        next(reader)


@pytest.mark.parametrize("cut", [1, 30, 60])
def test_frames_before_the_damage_are_read(cut: int) -> None:
    reader = pcap.read(io.BytesIO(_pcapng().getvalue()[:-cut]), "capture")
    assert [record.data for record in islice(reader, 4)] == _FRAMES[:4]
    with pytest.raises(UsageError, match=r"\(after 4 frames\)"):
        next(reader)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.pcap cannot be read: no such file or directory\.$"):
        list(pcap.read_file(tmp_path / "nothing.pcap"))
    with pytest.raises(UsageError, match=r"cannot be read: is a directory\.$"):
        list(pcap.read_file(tmp_path))
    for create in (PcapngWriter.create, PcapWriter.create):
        with pytest.raises(UsageError, match=r"cannot be written: no such file or directory\.$"):
            create(tmp_path / "no" / "where.pcapng")


def test_a_full_disk_is_a_link_error() -> None:
    writer = PcapngWriter.create("/dev/full")
    writer.write(b"x", 0)
    with pytest.raises(LinkError, match=r"^/dev/full cannot be written: no space left on device\.$"):
        writer.flush()
    writer.close()


def test_a_closed_writer_is_a_link_error() -> None:
    stream = io.BytesIO()
    writer = PcapWriter(stream)
    writer.close()
    with pytest.raises(LinkError):
        writer.write(b"x", 0)


# --------------------------------------------------------------------------------------------------------- as a link


def _records(*microseconds: int) -> list[Record]:
    return [Record(bytes([n]) * 60, _AT + at * 1000, 60) for n, at in enumerate(microseconds)]


def test_a_capture_is_replayed_at_its_intervals() -> None:
    link = PcapLink(iter(_records(0, 500, 500, 2000)))
    assert [len(link.recv(now)) for now in (1000, 1499, 1500, 2999)] == [1, 0, 2, 0]
    assert link.next_timeout() == 3000
    assert len(link.recv(3000)) == 1
    with pytest.raises(LinkClosed):
        link.recv(3000)


def test_a_capture_is_replayed_at_once_when_not_paced() -> None:
    link = PcapLink(iter(_records(0, 500, 10**9)), paced=False)
    assert len(link.recv(0, 2)) == 2
    assert len(link.recv(0, 2)) == 1


def test_what_was_not_captured_whole_is_left_out() -> None:
    link = PcapLink(iter([Record(b"x" * 20, 0, 60), Record(b"y" * 60, 0, 60)]))
    assert link.recv(0) == [b"y" * 60]
    assert link.counters.snapshot() == {"pcap.cut": 1}


def test_what_is_sent_to_a_capture_is_dropped_and_counted() -> None:
    link = PcapLink(iter(_records(0)))
    assert link.send([(b"x",)] * 3, 0) == 3
    assert link.counters.snapshot() == {"pcap.tx_dropped": 3}
    link.close()
    with pytest.raises(LinkClosed):
        link.send([(b"x",)], 0)


def test_closing_a_replay_closes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "c.pcapng"
    path.write_bytes(_pcapng().getvalue())
    link = PcapLink(pcap.read_file(path))
    assert len(link.recv(0, 1)) == 1
    link.close()
    with pytest.raises(LinkClosed):
        link.recv(0)


def test_directions_are_numbered_as_pcapng_does() -> None:
    assert (records.UNKNOWN, records.INBOUND, records.OUTBOUND) == (0, 1, 2)
