"""The writer of segments: what it writes is what the parser reads, with or without offload, over IPv4 and IPv6."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pystack.counters import Counters
from pystack.frame import LinkInfo
from pystack.net.path import Path
from pystack.tcp.segment import SegmentWriter
from pystack.wire.packet import parse_untrusted, verify_untrusted

MACS = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
LINKS = st.sampled_from(
    [
        LinkInfo(),
        LinkInfo(vnet_hdr_len=10),
        LinkInfo(vnet_hdr_len=12, rx_checksum=True),
        LinkInfo(vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True, tso6=True),
    ]
)
U32 = st.integers(0, 0xFFFF_FFFF)
U16 = st.integers(0, 0xFFFF)


@given(
    LINKS, st.sampled_from([4, 16]), U16, U16, U32, U32, st.integers(0, 255), U16, st.integers(0, 10),
    st.lists(st.binary(max_size=60), max_size=5), U16, st.integers(0, 255),
)  # fmt: skip
def test_parser_reads_what_the_writer_wrote(
    link: LinkInfo, size: int, sport: int, dport: int, seq: int, ack: int, flags: int, window: int, words: int,
    payload: list[bytes], urgent: int, tos: int,
) -> None:  # fmt: skip
    path = Path(link, *MACS, bytes(range(10, 10 + size)), bytes(range(100, 100 + size)), ttl=7, tos=tos)
    writer = SegmentWriter(path, sport, dport)
    length = sum(map(len, payload))
    frame = writer.write(seq, ack, flags, window, b"\x01" * 4 * words, payload, length, 0, urgent)
    counters = Counters()
    packet = parse_untrusted(b"".join(frame), link.vnet_hdr_len, counters)
    assert packet is not None
    assert (packet.src, packet.dst, packet.ttl, packet.tos) == (path.src, path.dst, 7, tos)
    assert (packet.sport, packet.dport, packet.seq, packet.ack) == (sport, dport, seq, ack)
    assert (packet.flags, packet.window, packet.urgent) == (flags, window, urgent)
    assert packet.payload - packet.l4 == 20 + 4 * words
    assert packet.payload_bytes() == b"".join(payload)
    assert (packet.src_mac(), packet.dst_mac()) == MACS
    assert verify_untrusted(packet, counters, rx_checksum=link.tx_checksum), counters.snapshot()


def test_neighbour_that_becomes_known_is_in_the_next_segment() -> None:
    path = Path(LinkInfo(), MACS[0], None, bytes(4), bytes(4))
    writer = SegmentWriter(path, 1, 2)
    path.dst_mac = MACS[1]
    assert bytes(writer.write(0, 0, 0, 0)[0][:6]) == MACS[1]


def test_payload_is_not_copied() -> None:
    writer = SegmentWriter(Path(LinkInfo(), *MACS, bytes(4), bytes(4)), 1, 2)
    payload = bytes(1000)
    assert writer.write(0, 0, 0, 0, b"", [payload], 1000)[1] is payload


def test_segment_size_of_a_train_stands_in_its_virtio_header() -> None:
    link = LinkInfo(vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True)
    writer = SegmentWriter(Path(link, *MACS, bytes(4), bytes(4)), 1, 2)
    for n in range(40):  # more sizes than are remembered
        frame = writer.write(0, 0, 0, 0, b"", [bytes(5000)], 5000, 1000 + n)
        packet = parse_untrusted(b"".join(frame), 10, Counters())
        assert packet is not None
        assert (packet.gso_type, packet.gso_size, packet.vnet_flags) == (1, 1000 + n, 1)


def test_without_gso_a_segment_is_all_that_fits() -> None:
    assert SegmentWriter(Path(LinkInfo(), *MACS, bytes(4), bytes(4)), 1, 2).segment_limit(1448, 12) == 1448
