"""Of the primary's output each connection finds what it said, whatever frames look like and wherever reads were cut."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from colo.framing import PLAIN, VNET, Framing
from colo.input import FramedInput
from colo.recent import Recent
from pystack import Counters
from pystack.flow.key import directed_key
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, FIN, PSH, URG, parse_untrusted

_CRAFTERS = (Crafter("10.0.0.1", "10.0.1.1"), Crafter("10.0.0.1", "10.0.1.2"))
_TIMES = tcp.build_options(timestamps=(1, 2))


class Said(NamedTuple):
    """A frame, and what it says: nothing if it is no TCP segment with payload."""

    key: bytes
    seq: int
    payload: bytes
    frame: bytes
    vnet_hdr_len: int


@st.composite
def _frames(draw: st.DrawFn) -> Said:
    vnet_hdr_len = draw(st.sampled_from((0, 0, 10, 12)))
    crafter = draw(st.sampled_from(_CRAFTERS)).but(vnet_hdr_len=vnet_hdr_len)
    seq = draw(st.integers(0, 0xFFFF_FFFF))
    payload = draw(st.binary(max_size=20))
    frame = crafter.tcp(
        flags=ACK | draw(st.sampled_from((0, 0, PSH, FIN, URG))), sport=80, dport=5000, seq=seq, payload=payload,
        ack=draw(st.sampled_from((1, 0x5010_0001))),  # the latter looks like flags, four bytes off
        options=draw(st.sampled_from((b"", _TIMES))),
    )  # fmt: skip
    change = draw(
        st.sampled_from(("", "", "", "padded", "tagged", "options", "fragment", "length", "offset", "udp", "long"))
    )
    at = vnet_hdr_len + 12
    if change == "padded":
        frame += bytes(draw(st.integers(1, 6)))
    elif change == "tagged":
        frame = frame[:at] + b"\x81\0\0\x05" + frame[at:]
    elif change == "options":  # of IP: four bytes of them, which do nothing
        frame = frame[: at + 2] + b"\x46" + frame[at + 3 : at + 22] + b"\1\1\1\0" + frame[at + 22 :]
        frame = frame[: at + 4] + struct.pack("!H", len(frame) - at - 2) + frame[at + 6 :]
    elif change == "fragment":
        frame = frame[: at + 8] + b"\x20\0" + frame[at + 10 :]
    elif change == "length":
        frame = frame[: at + 4] + struct.pack("!H", draw(st.integers(0, 200))) + frame[at + 6 :]
    elif change == "offset":
        frame = frame[: at + 34] + bytes((draw(st.sampled_from((0, 4, 5, 6, 15))) << 4,)) + frame[at + 35 :]
    elif change == "udp":
        frame = crafter.udp(80, 5000, payload)
    elif change == "long":
        vnet_hdr_len = min(21, len(frame))
    packet = parse_untrusted(frame, vnet_hdr_len, Counters()) if vnet_hdr_len <= 20 else None
    if packet is None or packet.proto != 6 or not packet.payload_len:
        return Said(b"", 0, b"", frame, vnet_hdr_len)
    return Said(directed_key(packet), packet.seq, packet.payload_bytes(), frame, vnet_hdr_len)


@given(st.lists(_frames(), min_size=1, max_size=12), st.data(), st.booleans())
def test_each_connection_finds_what_it_said_before_a_place(said: list[Said], data: st.DataObject, vnet: bool) -> None:
    if not vnet:
        said = [each for each in said if not each.vnet_hdr_len]
    framing = Framing(framed=True, vnet=vnet, vnet_hdr_len=0)
    wire, starts = b"", []
    for each in said:
        starts.append(len(wire))
        length = len(each.frame)
        wire += (VNET.pack(length, each.vnet_hdr_len) if vnet else PLAIN.pack(length)) + each.frame
    cuts = sorted(data.draw(st.sets(st.integers(0, len(wire)), max_size=4)) | {0, len(wire)})
    recent = Recent(framing)
    reader = FramedInput(framing, Counters(), None, recent.add)  # type: ignore[arg-type]  # it has no use for a lane
    keys = sorted({each.key for each in said if each.key})
    asked = data.draw(st.sets(st.integers(0, len(wire)), max_size=4))

    def walk(chunk: bytes, at: int, position: int, now: int) -> int:
        while (end := reader.whole_untrusted(chunk, at)[0]) >= 0:
            at = end
        return at

    def check(before: int) -> None:
        for key in keys:
            found = [(seq, chunk[at : at + length]) for seq, chunk, at, length in recent.segments(key, before)]
            told = [
                (each.seq, each.payload)
                for each, start in zip(said, starts, strict=True)
                if each.key == key and start < before
            ]
            assert found == told

    for begin, end in pairwise(cuts):
        reader.feed(wire[begin:end], walk, 0)
        for before in sorted(asked):
            if before <= reader.position:
                check(before)
    check(len(wire))
    assert reader.position == len(wire)
