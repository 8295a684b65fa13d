"""Fragments put together for inspection: IPv6 and what is in a VLAN, on top of what the IPv4 reassembler does."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest

from pystack.clock import SECOND
from pystack.counters import Counters
from pystack.flow.fragments import FragmentInspector
from pystack.net.reassembly import Limits
from pystack.wire import checksum, ipv6, tcp, udp
from pystack.wire.packet import ETHERTYPE_IPV6, PROTO_TCP, PROTO_UDP, Packet, verify_untrusted
from tests.unit.flow.rewriting import CLIENT6, GUEST6
from tests.unit.flow.test_key_and_table import ONE, tagged
from tests.unit.flow.tracking import CLIENT, parse

DATA = bytes(range(256)) * 2
SEGMENT = tcp.build(src=GUEST6, dst=CLIENT6, sport=80, dport=5000, seq=7, payload=DATA)


def piece(
    payload: bytes,
    offset: int,
    more: bool,
    ident: int = 1,
    proto: int = PROTO_TCP,
    options: bool = False,
    tags: bytes = b"",
    vnet_hdr: bytes = b"",
) -> Packet:
    """A fragment over IPv6; ``offset`` in bytes, ``options`` puts two more headers in front."""
    body = ipv6.build_fragment_header(proto, offset=offset >> 3, more=more, ident=ident) + payload
    first = 44
    if options:
        body = ipv6.build_options_header(44) + body  # destination options before the Fragment header
        body = ipv6.build_options_header(60) + body  # hop-by-hop
        first = 0
    header = ipv6.build_header(src=GUEST6, dst=CLIENT6, payload_len=len(body), next_header=first)
    frame = ONE.ethernet(ETHERTYPE_IPV6, header + body)
    return parse(vnet_hdr + frame[:12] + tags + frame[12:], len(vnet_hdr))


def cut(payload: bytes = SEGMENT, *at: int, **fields: object) -> list[Packet]:
    """``payload`` cut at these offsets."""
    edges = [0, *(at or (64, 256)), len(payload)]
    return [
        piece(payload[start:end], start, end < len(payload), **fields)  # type: ignore[arg-type]
        for start, end in pairwise(edges)
    ]


def fed(packets: list[Packet], inspector: FragmentInspector) -> list[Packet]:
    """What comes out."""
    return [whole for packet in packets if (whole := inspector.add_untrusted(packet, 0)) is not None]


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def inspector(counters: Counters) -> FragmentInspector:
    return FragmentInspector(counters, Limits(datagrams=4, fragments=8, bytes=8192))


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("options", [False, True])
def test_an_ipv6_datagram_in_any_order(
    inspector: FragmentInspector, counters: Counters, order: tuple[int, ...], options: bool
) -> None:
    pieces = cut(options=options)
    found = fed([pieces[index] for index in order], inspector)
    assert len(found) == 1
    whole = found[0]
    assert (whole.proto, whole.sport, whole.dport, whole.seq, whole.payload_bytes()) == (PROTO_TCP, 80, 5000, 7, DATA)
    assert (whole.is_fragment, whole.version, whole.src, whole.dst) == (False, 6, GUEST6, CLIENT6)
    assert whole.l4 - whole.l3 == (56 if options else 40)
    assert verify_untrusted(whole, counters, rx_checksum=False)
    assert (len(inspector), inspector.bytes_held) == (0, 0)
    assert counters.snapshot() == {"ipv6.fragments": 3, "ipv6.reassembled": 1}
    inspector._check()


def test_with_tags_and_a_virtio_net_hdr_in_front(inspector: FragmentInspector) -> None:
    tags = bytes.fromhex("88a8000581002007")
    found = fed(cut(tags=tags, vnet_hdr=bytes(12)), inspector)
    assert len(found) == 1
    assert (found[0].eth, found[0].tags, found[0].vlan, found[0].payload_bytes()) == (0, 2, 5, DATA)


def test_ipv4_in_a_vlan_is_not_mixed_with_what_is_not(inspector: FragmentInspector, counters: Counters) -> None:
    """The same addresses and identification, in three networks."""
    pieces = {
        tag: [
            parse(frame if tag is None else tagged(frame, tag))
            for frame in CLIENT.fragments(
                PROTO_UDP,
                udp.build(src=bytes((10, 0, 0, 9)), dst=bytes((10, 0, 0, 2)), sport=1, dport=2, payload=text * 30),
                64,
            )
        ]
        for tag, text in ((None, b"none"), (5, b"five"), (6, b"six"))
    }
    found = fed([pieces[tag][index] for index in range(2) for tag in pieces], inspector)
    assert [whole.payload_bytes()[:4] for whole in found] == [b"none", b"five", b"sixs"]
    assert [whole.vlan for whole in found] == [-1, 5, 6]
    for whole in found:
        assert verify_untrusted(whole, counters, rx_checksum=False)
        assert checksum.valid(whole.frame[whole.l3 : whole.l4])
    assert counters.snapshot() == {"ipv4.fragments": 6, "ipv4.reassembled": 3}


def test_duplicates_are_ignored_and_overlap_ends_the_datagram(inspector: FragmentInspector, counters: Counters) -> None:
    """RFC 5722 section 4: with all that comes of it later."""
    first, second, last = cut()
    assert len(fed([first, first, second, last], inspector)) == 1
    overlap = piece(SEGMENT[56:200], 56, more=True)
    assert fed([first, overlap, second, last], inspector) == []
    assert counters["ipv6.fragment_bad"] == 1
    assert counters["ipv6.fragment_late"] == 2
    assert (len(inspector), inspector.bytes_held) == (1, 0)
    inspector.tick(60 * SECOND)
    assert len(inspector) == 0
    assert counters["ipv6.reassembly_timeout"] == 0  # it had been given up before
    assert len(fed(cut(), inspector)) == 1


@pytest.mark.parametrize(
    "bad",
    [piece(b"", 8, more=True), piece(b"1234567", 8, more=True), piece(bytes(16), 65_528, more=False)],
    ids=["empty", "misaligned", "too long"],
)
def test_implausible_fragments_are_counted(inspector: FragmentInspector, counters: Counters, bad: Packet) -> None:
    assert inspector.add_untrusted(bad, 0) is None
    assert len(inspector) == 0
    assert counters.snapshot() == {"ipv6.fragments": 1, "ipv6.fragment_bad": 1}


def test_headers_and_fragments_can_be_too_long_together(counters: Counters) -> None:
    inspector = FragmentInspector(counters)
    first, last = piece(bytes(65_496), 0, more=True, options=True), piece(bytes(39), 65_496, more=False)
    assert fed([first, last], inspector) == []
    assert counters["ipv6.fragment_bad"] == 1
    assert len(inspector) == 0


def test_what_is_put_together_may_be_nonsense(inspector: FragmentInspector, counters: Counters) -> None:
    assert fed([piece(bytes(8), 0, more=True), piece(bytes(2), 8, more=False)], inspector) == []
    assert counters.snapshot() == {"ipv6.fragments": 2, "tcp.short": 1}


def test_the_longest_waiting_makes_room(inspector: FragmentInspector, counters: Counters) -> None:
    """For more datagrams, and for more bytes; too many pieces of one end it."""
    for ident in range(6):
        inspector.add_untrusted(piece(bytes(64), 0, more=True, ident=ident), ident)
        inspector._check()
    assert len(inspector) == 4
    assert counters["ipv6.reassembly_evicted"] == 2
    for ident in range(2, 6):
        inspector.add_untrusted(piece(bytes(2048), 64, more=True, ident=ident), ident)
        inspector._check()
    assert inspector.bytes_held <= 8192
    assert counters["ipv6.reassembly_evicted"] == 4
    for index in range(9):
        inspector.add_untrusted(piece(bytes(8), 4000 + 8 * index, more=True, ident=5), 6)
        inspector._check()
    assert counters["ipv6.fragment_bad"] == 1


def test_time_runs_out(inspector: FragmentInspector, counters: Counters) -> None:
    assert inspector.next_timeout() is None
    inspector.add_untrusted(cut()[0], 5)
    inspector.add_untrusted(parse(CLIENT.fragments(PROTO_UDP, bytes(100), 64)[0]), 3)
    assert inspector.next_timeout() == 60 * SECOND + 3
    inspector.tick(60 * SECOND + 3)
    assert inspector.next_timeout() == 60 * SECOND + 5
    inspector.tick(60 * SECOND + 5)
    assert (len(inspector), inspector.bytes_held, inspector.next_timeout()) == (0, 0, None)
    assert (counters["ipv4.reassembly_timeout"], counters["ipv6.reassembly_timeout"]) == (1, 1)
