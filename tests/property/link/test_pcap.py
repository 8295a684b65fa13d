"""What is written to a capture file is read again, and no bytes make the reader fail otherwise than with a sentence."""

from __future__ import annotations

import contextlib
import io
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from pystack.errors import UsageError
from pystack.link import pcap
from pystack.link.pcap import PcapWriter
from pystack.link.pcapng import PcapngWriter
from pystack.link.records import Record

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
_RECORDS = st.lists(
    st.builds(
        lambda data, at, more, direction, comments: Record(data, at, len(data) + more, direction, tuple(comments)),
        data=st.binary(max_size=200),
        at=st.integers(0, 2**32 * 10**9 - 1),
        more=st.sampled_from([0, 1, 1000]),
        direction=st.integers(0, 2),
        comments=st.lists(_TEXT, max_size=3),
    ),
    max_size=8,
)


def _read(data: bytes) -> list[Record]:
    return list(pcap.read(io.BytesIO(data), "capture"))


@given(_RECORDS)
def test_pcapng_written_is_pcapng_read(given_records: list[Record]) -> None:
    stream = io.BytesIO()
    writer = PcapngWriter(stream)
    for data, at, length, direction, comments, _ in given_records:
        writer.write(data, at, direction=direction, comments=comments, length=length)
    assert _read(stream.getvalue()) == given_records


@given(_RECORDS, st.sampled_from(["little", "big"]), st.booleans())
def test_pcap_written_is_pcap_read(
    given_records: list[Record], byteorder: Literal["little", "big"], nanoseconds: bool
) -> None:
    stream = io.BytesIO()
    writer = PcapWriter(stream, byteorder=byteorder, nanoseconds=nanoseconds)
    for data, at, length, *_ in given_records:
        writer.write(data, at, length=length)
    unit = 1 if nanoseconds else 1000
    expected = [Record(data, at // unit * unit, length) for data, at, length, *_ in given_records]
    assert _read(stream.getvalue()) == expected


@given(_RECORDS, st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 10_000))
def test_damage_ends_in_a_sentence_or_in_frames(given_records: list[Record], at: int, value: int, cut: int) -> None:
    stream = io.BytesIO()
    writer = PcapngWriter(stream)
    for data, when, length, direction, comments, _ in given_records:
        writer.write(data, when, direction=direction, comments=comments, length=length)
    damaged = bytearray(stream.getvalue())
    damaged[at % len(damaged)] = value
    with contextlib.suppress(UsageError):
        _read(bytes(damaged[: cut % (len(damaged) + 1)]))
