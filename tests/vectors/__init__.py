"""The captures that the parsers and the printer are held against, and a small reader for them.

The reader is separate from `pystack.link` on purpose: a defect there must not hide here.
"""

from __future__ import annotations

import struct
from pathlib import Path

HERE = Path(__file__).parent

_PCAP_LITTLE = 0xA1B2C3D4
_PCAPNG_SECTION = 0x0A0D0D0A
_ENHANCED_PACKET = 6


def captures() -> list[Path]:
    """Every committed capture, sorted."""
    return sorted([*HERE.glob("*.pcap"), *HERE.glob("*.pcapng")])


def frames(path: Path) -> list[bytes]:
    """The Ethernet frames of a little-endian pcap or pcapng file."""
    data = path.read_bytes()
    (magic,) = struct.unpack_from("<I", data)
    found = []
    if magic == _PCAP_LITTLE:
        at = 24
        while at < len(data):
            captured, original = struct.unpack_from("<II", data, at + 8)
            assert captured == original, f"{path.name} holds a frame that was cut"
            found.append(data[at + 16 : at + 16 + captured])
            at += 16 + captured
        return found
    assert magic == _PCAPNG_SECTION, f"{path.name} is neither pcap nor pcapng"
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == _ENHANCED_PACKET:
            (captured,) = struct.unpack_from("<I", data, at + 20)
            found.append(data[at + 28 : at + 28 + captured])
        at += size
    return found


def write_pcap(path: Path, contents: list[bytes]) -> None:
    """A little-endian pcap of Ethernet frames, one millisecond apart from the epoch on, so that it is reproducible."""
    parts = [struct.pack("<IHHiIII", _PCAP_LITTLE, 2, 4, 0, 0, 262_144, 1)]
    for number, frame in enumerate(contents):
        parts.append(struct.pack("<IIII", number // 1000, number % 1000 * 1000, len(frame), len(frame)) + frame)
    path.write_bytes(b"".join(parts))
