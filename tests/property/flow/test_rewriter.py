"""Rewriting can be undone, leaves checksums as right or wrong as they were, and is learnt in any order of segments."""

from __future__ import annotations

import struct

from hypothesis import assume, example, given
from hypothesis import strategies as st

from pystack.counters import Counters
from pystack.flow import translate
from pystack.flow.rewriter import Rewriter
from pystack.wire import tcp
from pystack.wire.packet import ACK, FIN, PSH, SYN, VNET_NEEDS_CSUM, Packet, parse_untrusted, verify_untrusted
from tests.property.wire.strategies import any_frames, payloads, u8, u32
from tests.unit.flow.rewriting import MASK, Lane, Machines, numbers, parse

option = st.one_of(
    st.just(bytes((tcp.OPT_NOP,))),
    st.builds(lambda val, ecr: struct.pack("!BBII", tcp.OPT_TIMESTAMPS, 10, val, ecr), u32, u32),
    st.lists(u32, min_size=1, max_size=4).map(
        lambda edges: struct.pack(f"!BB{2 * len(edges)}I", tcp.OPT_SACK, 2 + 8 * len(edges), *edges, *edges)
    ),
    st.builds(lambda kind, length: bytes((kind, length)), u8, u8),
)
options = st.lists(option, max_size=5).map(b"".join).filter(lambda found: len(found) <= 40)
lanes = st.builds(
    Lane,
    v6=st.booleans(),
    tags=st.sampled_from((b"", bytes.fromhex("81002007"), bytes.fromhex("88a8000581000007"))),
    vnet_hdr=st.sampled_from((b"", bytes(10), bytes((1,)) + bytes(11), bytes((2,)) + bytes(19))),
)
isns = u32 | st.sampled_from((0, 1, 0x7FFF_FFFF, 0x8000_0000, MASK - 1, MASK))


@st.composite
def segments(draw: st.DrawFn) -> Packet:
    lane = draw(lanes)
    frame = lane.segment(
        outward=draw(st.booleans()),
        seq=draw(isns),
        ack=draw(isns),
        flags=draw(u8),
        options=draw(options),
        payload=draw(payloads),
    )
    if draw(st.integers(0, 9)) == 0:  # damage, which must not be repaired
        at = draw(st.integers(lane_end(lane), len(frame) - 1))
        frame = frame[:at] + bytes((frame[at] ^ draw(u8),)) + frame[at + 1 :]
    packet = parse_untrusted(frame, len(lane.vnet_hdr), Counters())
    assume(packet is not None)
    assert packet is not None
    return packet


def lane_end(lane: Lane) -> int:
    """Where the TCP header starts."""
    return len(lane.vnet_hdr) + 14 + len(lane.tags) + (40 if lane.v6 else 20)


def is_right(packet: Packet) -> bool:
    return verify_untrusted(packet, Counters(), rx_checksum=False)


def same_but_for_the_sign_of_zero(one: bytes, other: bytes, at: int) -> bool:
    """Equal, 0 and 0xffff being the same in the checksum at ``at`` (RFC 1624 section 3)."""
    pair = {one[at : at + 2], other[at : at + 2]}
    return one[:at] + one[at + 2 :] == other[:at] + other[at + 2 :] and (
        len(pair) == 1 or pair == {b"\0\0", b"\xff\xff"}
    )


@given(segments(), isns, isns)
def test_the_inverse_restores_a_segment_of_the_secondary(packet: Packet, seq: int, ts: int) -> None:
    counters = Counters()
    there = parse(translate.from_secondary(packet, seq, ts, counters), packet.eth)
    back = translate.from_secondary(there, -seq, -ts, counters)
    assert same_but_for_the_sign_of_zero(back, packet.frame, packet.l4 + 16)
    assert there.seq == (packet.seq - seq) & MASK
    assert counters["rewriter.bad_option"] in (0, 2, 4, 6, 8, 10)


@given(segments(), isns, isns)
def test_the_inverse_restores_a_segment_of_the_client(packet: Packet, seq: int, ts: int) -> None:
    counters = Counters()
    there = parse(translate.to_secondary(packet, seq, ts, counters), packet.eth)
    stamps = translate.timestamps_untrusted(there)
    assume(stamps is None or stamps[1] or not ts)  # an echo that became 0 is none any more
    back = translate.to_secondary(there, -seq, -ts, counters)
    if there.frame[there.l4 + 20 : there.payload].count(bytes((tcp.OPT_TIMESTAMPS, 10))) < 2:
        assert same_but_for_the_sign_of_zero(back, packet.frame, packet.l4 + 16)
    assert there.ack == ((packet.ack + seq) & MASK if packet.flags & ACK else packet.ack)
    assert there.seq == packet.seq


@given(segments(), isns, isns, st.booleans())
def test_a_checksum_is_right_afterwards_if_and_only_if_it_was_before(
    packet: Packet, seq: int, ts: int, outward: bool
) -> None:
    function = translate.from_secondary if outward else translate.to_secondary
    seen = function(packet, seq, ts, Counters())
    if packet.vnet_flags & VNET_NEEDS_CSUM:
        assert seen[packet.l4 + 16 : packet.l4 + 18] == packet.frame[packet.l4 + 16 : packet.l4 + 18]
    else:
        assert is_right(parse(seen, packet.eth)) == is_right(packet)


@given(st.lists(any_frames, max_size=8), st.booleans())
def test_whatever_comes_nothing_raises_and_lengths_stay(frames: list[bytes], observed: bool) -> None:
    rewriter = Rewriter()
    for frame in frames:
        packet = parse_untrusted(frame, 0, Counters())
        if packet is None:
            continue
        if observed:
            rewriter.observe_primary(packet, 0)
        assert len(rewriter.from_secondary(packet, 0)) == len(frame)
        down = rewriter.to_secondary(packet, 0)
        assert down is None or len(down) == len(frame)
    rewriter.checkpoint()
    rewriter.failover(1)
    rewriter.tick(1 << 60)
    assert (len(rewriter), rewriter.waiting_bytes) == (0, 0)


# What may happen while a client's connection is opened: in any order, any number of times, once the SYN was sent.
EVENTS = ("primary", "secondary", "ack", "data", "syn", "old syn", "old answer")


@given(
    isns,
    isns,
    isns,
    st.none() | st.tuples(u32, u32),
    st.lists(st.sampled_from(EVENTS), max_size=12),
    st.permutations(("primary", "secondary")),
    st.booleans(),
)
@example(5, 1, 2, None, ["ack", "old syn", "secondary", "syn"], ["primary", "secondary"], True)
def test_the_offset_is_learnt_whatever_the_order(
    c: int,
    p: int,
    s: int,
    stamps: tuple[int, int] | None,
    happens: list[str],
    last: list[str],
    observed: bool,
) -> None:
    m = Machines(c=c, p=p, s=s)
    if stamps is not None:
        m.c_ts, (m.p_ts, m.s_ts) = 50, stamps
    kept = 0
    got: list[bytes] = []
    m.syn()
    answered = False
    for what in [*happens, *last, "ack"]:
        if what == "primary":
            answered = True
            if observed:
                m.observe(m.p_syn_ack())
        elif what == "secondary":
            m.up(m.s_syn_ack())
        elif what == "syn":
            m.syn()
        elif what == "old syn":
            m.down(m.client(SYN, offset=-100_000))
        elif what == "old answer":
            m.up(m.guest(s ^ 1, m.s_ts, flags=SYN | ACK, ack=(c - 200_000) & MASK))
        elif answered:  # the client has nothing to acknowledge before
            frame = m.down(m.client() if what == "ack" else m.client(ACK | PSH, payload=b"data"))
            kept += frame is None
            got += [frame] if frame is not None else []
        got += m.rewriter.take_waiting()
    assert len(got) >= kept
    assert all(numbers(frame).ack == (s + 1) & MASK for frame in got)
    assert m.rewriter.waiting_bytes == 0
    seen = numbers(m.up(m.guest(s, m.s_ts, 10, flags=FIN | ACK)))
    assert seen.seq == (p + 11) & MASK
    if stamps is not None and observed:
        assert seen.stamps == (m.p_ts, 50)
