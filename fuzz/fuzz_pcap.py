"""Any bytes as a capture file give frames or one sentence, in memory that is bounded by the file."""

from __future__ import annotations

import io

from fuzz import harness
from pystack.errors import UsageError
from pystack.link import pcap
from pystack.link.pcap import PcapWriter
from pystack.link.pcapng import PcapngWriter


def _seeds() -> list[bytes]:
    seeds = []
    for order in ("little", "big"):
        stream = io.BytesIO()
        classic = PcapWriter(stream, byteorder="big" if order == "big" else "little", nanoseconds=order == "big")
        for n in range(3):
            classic.write(bytes(20 * n), n * 10**9, length=100)
        seeds.append(stream.getvalue())
    stream = io.BytesIO()
    modern = PcapngWriter(stream)
    modern.write(bytes(60), 10**18, direction=1, comments=["a comment", "another"])
    modern.write(bytes(61), 10**18 + 1)
    return [*seeds, stream.getvalue(), stream.getvalue() * 2]


SEEDS = _seeds()


def target(data: bytes) -> None:
    """The input is the file."""
    total = 0
    try:
        for record in pcap.read(io.BytesIO(data), "file"):
            assert len(record.data) <= record.length
            assert record.direction in {0, 1, 2}
            total += len(record.data) + sum(map(len, record.comments))
    except UsageError as error:
        text = str(error)
        assert text.startswith("file ")
        assert text.endswith(".")
        assert "\n" not in text
    assert total <= len(data)


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack", "pcapng"], seeds=SEEDS)
