"""What the rewriter changes in a frame: which numbers, and the checksum with them. Nothing else."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from pystack.counters import Counters
from pystack.flow import translate
from pystack.flow.rewriter import RewriterConfig
from pystack.testing.frames import Crafter
from pystack.wire import checksum, ethernet, icmp, icmpv6, ipv6, tcp, vnet
from pystack.wire.packet import (
    ACK,
    ETHERTYPE_IPV6,
    FIN,
    PROTO_ICMPV6,
    PROTO_TCP,
    PROTO_UDP,
    PSH,
    RST,
    SYN,
    verify_untrusted,
)
from tests.unit.flow.rewriting import CLIENT6, GUEST6, Lane, Machines, machines, numbers, parse

STAMPS: dict[str, Any] = {"c_ts": 50, "p_ts": 100_000, "s_ts": 0xFFFF_FF00}
NEEDS_CSUM = struct.pack("<BBHHHH", 1, 1, 54, 1448, 34, 16)


def differing(one: bytes, other: bytes) -> set[int]:
    """The offsets at which two frames of the same length differ."""
    assert len(one) == len(other)
    return {at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b}


def odd(option: bytes) -> bytes:
    """``option`` at an odd offset, as a sender that leaves out the padding has it."""
    return bytes((tcp.OPT_NOP,)) + option


TIMESTAMPS = struct.Struct("!BBII")

# ------------------------------------------------------------------------------------------------------ which numbers


def test_of_the_secondary_s_data_only_seq_tsval_and_checksum_change() -> None:
    m = machines(**STAMPS).open()
    frame = m.guest(m.s, m.s_ts, flags=ACK | PSH, payload=b"payload")
    seen = m.up(frame)
    assert isinstance(seen, bytes)
    assert differing(frame, seen) <= {*range(38, 42), 50, 51, *range(58, 62)}
    assert seen == m.guest(m.p, m.p_ts, flags=ACK | PSH, payload=b"payload")


def test_of_the_client_s_data_only_ack_tsecr_and_checksum_change() -> None:
    m = machines(**STAMPS).open()
    frame = m.client(ACK | PSH, payload=b"payload")
    seen = m.down(frame)
    assert seen is not None
    assert differing(frame, seen) <= {*range(42, 46), 50, 51, *range(62, 66)}
    assert m.read(seen).ack == m.s + 1
    assert m.read(seen).stamps == (50, m.s_ts)


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, FIN, RST | ACK, RST, PSH | ACK | FIN])
def test_seq_is_translated_whatever_the_flags(flags: int) -> None:
    """A reset without ACK, and a FIN without data, are segments as any other: QEMU left out what has no ACK."""
    m = machines().open()
    assert numbers(m.up(m.guest(m.s, 0, 5, flags=flags))).seq == m.p + 6


@pytest.mark.parametrize("flags", [FIN, RST, PSH])
def test_an_ack_field_without_its_flag_is_left_alone(flags: int) -> None:
    m = machines().open()
    frame = m.client(flags, ack=77)
    assert m.down(frame) == frame


def test_sack_blocks_of_the_client_are_about_the_machines_data_and_are_translated() -> None:
    m = machines(**STAMPS).open()
    blocks = ((m.p + 100, m.p + 200), (m.p + 400, m.p + 500), (m.p + 700, m.p + 800))
    frame = m.client(acked=50, options=m.options(50, m.p_ts, sack=blocks))
    seen = m.read(m.down(frame))
    move = m.s - m.p
    assert seen.sack == tuple((left + move, right + move) for left, right in blocks)
    assert (seen.ack, seen.stamps) == (m.s + 51, (50, m.s_ts))


def test_sack_blocks_of_the_secondary_are_about_the_client_s_data_and_stay() -> None:
    """Their numbers are the client's own, which both machines know as they are."""
    m = machines(**STAMPS).open()
    blocks = ((m.c + 100, m.c + 200),)
    seen = numbers(m.up(m.guest(m.s, m.s_ts, options=m.options(m.s_ts, 50, sack=blocks))))
    assert seen.sack == blocks
    assert (seen.seq, seen.stamps) == (m.p + 1, (m.p_ts, 50))


def test_a_tsecr_of_zero_is_no_echo() -> None:
    """RFC 7323 section 3.2."""
    m = machines(**STAMPS).open()
    seen = m.read(m.down(m.client(ecr=0)))
    assert (seen.ack, seen.stamps) == (m.s + 1, (50, 0))


def test_timestamps_alone_may_differ() -> None:
    m = machines(p=5, s=5, **STAMPS).open()
    assert m.translates()


def test_a_machine_that_sent_no_timestamps_has_no_offset_of_them() -> None:
    m = machines(**STAMPS)
    m.syn()
    m.observe(m.guest(m.p, 0, flags=SYN | ACK, options=b""))
    m.up(m.s_syn_ack())
    assert m.read(m.down(m.client())).stamps == (50, m.p_ts)


# ------------------------------------------------------------------------------------------------------------ alignment


@pytest.mark.parametrize("before", [0, 1, 2, 3, 5])
def test_timestamps_at_any_offset(before: int) -> None:
    """A sender may leave out the NOPs, and then the numbers lie across the checksum's words."""
    m = machines(**STAMPS).open()
    front = bytes((tcp.OPT_NOP,)) * before
    up = m.up(m.guest(m.s, 0, options=front + TIMESTAMPS.pack(8, 10, m.s_ts, 50)))
    assert numbers(up).stamps == (m.p_ts, 50)
    down = m.down(m.client(options=front + TIMESTAMPS.pack(8, 10, 50, m.p_ts)))
    assert m.read(down).stamps == (50, m.s_ts)


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_sack_blocks_at_any_offset(before: int) -> None:
    m = machines().open()
    blocks = (m.p + 1, m.p + 2, m.p + 5, m.p + 0x1234)
    options = bytes((tcp.OPT_NOP,)) * before + struct.pack("!BB4I", tcp.OPT_SACK, 18, *blocks)
    seen = m.read(m.down(m.client(options=options)))
    move = m.s - m.p
    assert seen.sack == ((blocks[0] + move, blocks[1] + move), (blocks[2] + move, blocks[3] + move))


# ---------------------------------------------------------------------------------------------------------- checksums


@pytest.mark.parametrize("vnet_hdr_len", [10, 12, 20])
def test_a_partial_checksum_stays_as_it_is(vnet_hdr_len: int) -> None:
    """6ce310b535, db0a762e4b: the checksum of a frame with a virtio_net_hdr, and its flags."""
    config = RewriterConfig(vnet_hdr_len=vnet_hdr_len)
    m = machines(config, lane=Lane(vnet_hdr=NEEDS_CSUM.ljust(vnet_hdr_len, b"\0")), **STAMPS).open()
    for frame, seen in (
        (data := m.guest(m.s, m.s_ts, payload=bytes(3000)), m.up(data)),
        (ack := m.client(options=odd(TIMESTAMPS.pack(8, 10, 50, m.p_ts))), m.down(ack)),
    ):
        assert seen is not None
        assert seen != frame
        at = vnet_hdr_len + 14 + 20 + 16
        assert seen[at : at + 2] == frame[at : at + 2]
        assert seen[:vnet_hdr_len] == frame[:vnet_hdr_len]


@pytest.mark.parametrize("flags", [0, vnet.F_DATA_VALID])
def test_a_whole_checksum_behind_a_virtio_net_hdr_is_kept_right(flags: int) -> None:
    lane = Lane(vnet_hdr=bytes((flags,)) + bytes(11))
    m = machines(RewriterConfig(vnet_hdr_len=12), lane=lane, **STAMPS).open()
    for seen in (m.up(m.guest(m.s, m.s_ts, payload=b"abc")), m.down(m.client(payload=b"abc"))):
        assert seen is not None
        assert verify_untrusted(parse(seen, 12), Counters(), rx_checksum=False)


def test_frames_of_a_link_with_another_virtio_net_hdr_teach_nothing() -> None:
    """8bdab83b34, 3772cf0d1b: one side with the header and the other without ended in a segmentation fault."""
    m = machines()
    m.lane.vnet_hdr = bytes(12)
    for frame in (m.client(SYN), m.p_syn_ack(), m.s_syn_ack()):
        m.observe(frame)
        assert m.up(frame) == frame
        assert m.down(frame) == frame
    assert len(m.rewriter) == 0
    assert m.rewriter.counters["rewriter.bad_vnet_hdr_len"] == 7


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("length", [0, 1, 1448, 4095, 60_000])
def test_payload_of_any_length_is_carried_over(length: int, v6: bool) -> None:
    m = machines(lane=Lane(v6=v6), **STAMPS).open()
    payload = bytes(range(251)) * (length // 251 + 1)
    seen = m.up(m.guest(m.s, m.s_ts, payload=payload[:length]))
    assert seen == m.guest(m.p, m.p_ts, payload=payload[:length])
    assert numbers(seen).seq == m.p + 1
    seen = m.up(m.guest(m.s, 0, payload=payload[:length], options=b""))
    assert seen == m.guest(m.p, 0, payload=payload[:length], options=b"")


def test_ethernet_padding_is_carried_over() -> None:
    m = machines().open()
    assert m.up(m.guest(m.s, 0) + b"padded") == m.guest(m.p, 0) + b"padded"


def test_a_wrong_checksum_stays_wrong() -> None:
    m = machines().open()
    frame = bytearray(m.guest(m.s, 0, payload=b"data"))
    frame[50] ^= 1
    seen = m.up(bytes(frame))
    assert not verify_untrusted(parse(seen), Counters(), rx_checksum=False)


# ---------------------------------------------------------------------------------------------------- options that lie


@pytest.mark.parametrize(
    ("options", "stamps"),
    [
        (bytes((8,)), False),
        (bytes((8, 10, 1, 2)), False),
        (bytes((8, 0)) + bytes(10), False),
        (bytes((8, 1)) + bytes(10), False),
        (bytes((8, 9)) + bytes(10), False),
        (bytes((1, 1, 8, 10)) + bytes(8) + bytes((5, 200)) + bytes(2), True),
        (bytes((1, 1, 8, 10)) + bytes(8) + bytes((5, 9)) + bytes(10), True),
        (bytes((1, 1, 8, 10)) + bytes(8) + bytes((254, 0)) + bytes(2), True),
    ],
)
def test_options_that_lie_end_the_reading_and_not_the_translation(options: bytes, stamps: bool) -> None:
    m = machines(**STAMPS).open()
    options += bytes(-len(options) % 4)
    if stamps:
        options = options[:4] + struct.pack("!II", m.s_ts, 50) + options[12:]
    seen = m.up(m.guest(m.s, 0, 3, options=options))
    assert numbers(seen).seq == m.p + 4
    if stamps:
        assert numbers(seen).stamps == (m.p_ts, 50)
    assert m.rewriter.counters["rewriter.bad_option"] == 1


def test_what_stands_behind_the_end_of_the_options_stays() -> None:
    m = machines(**STAMPS).open()
    rest = TIMESTAMPS.pack(8, 10, 1, 2) + b"\0"
    frame = m.guest(m.s, 0, options=b"\0" + rest)
    assert m.up(frame).endswith(b"\0" + rest)
    assert m.rewriter.counters["rewriter.bad_option"] == 0


def test_an_unknown_option_is_stepped_over() -> None:
    m = machines(**STAMPS).open()
    options = bytes((253, 3, 8)) + TIMESTAMPS.pack(8, 10, m.s_ts, 50)
    assert numbers(m.up(m.guest(m.s, 0, options=options))).stamps == (m.p_ts, 50)


# ------------------------------------------------------------------------------------------------------------ fragments


def in_fragments(frame: bytes, *sizes: int) -> list[bytes]:
    """The IPv4 packet in ``frame`` in fragments."""
    packet = parse(frame)
    src, dst = (".".join(map(str, address)) for address in (packet.src, packet.dst))
    return Crafter(src, dst).fragments(PROTO_TCP, frame[packet.l4 : packet.end], *sizes)


def test_the_first_fragment_is_translated_and_the_datagram_s_checksum_is_right() -> None:
    m = machines(**STAMPS).open()
    data = m.guest(m.s, m.s_ts, 9, payload=bytes(range(200)))
    fragments = [m.up(fragment) for fragment in in_fragments(data, 40, 80)]
    assert fragments == in_fragments(m.guest(m.p, m.p_ts, 9, payload=bytes(range(200))), 40, 80)
    fragments = [m.down(fragment) or b"" for fragment in in_fragments(m.client(payload=bytes(200)), 80)]
    segment = b"".join(fragment[34:] for fragment in fragments)
    packet = parse(fragments[0])
    assert checksum.valid(segment, checksum.pseudo(packet.src, packet.dst, PROTO_TCP, len(segment)))
    assert int.from_bytes(segment[8:12], "big") == m.s + 1


def test_a_first_fragment_that_ends_inside_the_header_passes() -> None:
    m = machines(**STAMPS).open()
    for fragment in in_fragments(m.guest(m.s, m.s_ts), 16):
        assert m.up(fragment) == fragment


# -------------------------------------------------------------------------------------------------------- other frames


@pytest.mark.parametrize(
    "frame",
    [
        Crafter("10.0.0.2", "10.0.0.9").udp(80, 5000, b"the same ports"),
        Crafter("10.0.0.2", "10.0.0.9").echo(),
        Crafter("10.0.0.2", "10.0.0.9").arp_request(),
        Crafter("10.0.0.2", "10.0.0.9").ipv4(47, b"what is this?"),
        Crafter("10.0.0.2", "10.0.0.9").icmp_error(3, 1, b"\x45short"),
    ],
)
def test_what_is_not_tcp_passes(frame: bytes) -> None:
    m = machines().open()
    m.observe(frame)
    assert m.up(frame) is frame
    assert m.down(frame) is frame


def error_about(m: Machines, frame: bytes, *, quoted: int, from_guest: bool) -> bytes:
    """An ICMP error about the packet in ``frame``, of which ``quoted`` bytes of TCP are quoted."""
    packet = parse(frame)
    quote = frame[packet.l3 : packet.l4 + quoted]
    if m.lane.v6:
        src, dst = (GUEST6, CLIENT6) if from_guest else (CLIENT6, GUEST6)
        message = icmpv6.build_error(src=src, dst=dst, kind=1, code=4, original=quote)
        header = ipv6.build_header(src=src, dst=dst, next_header=PROTO_ICMPV6, payload_len=len(message))
        front = ethernet.build_header(bytes(6), bytes(6), ETHERTYPE_IPV6)
        return front[:12] + m.lane.tags + front[12:] + header + message
    src4, dst4 = ("10.0.0.2", "10.0.0.9") if from_guest else ("192.0.2.1", "10.0.0.2")
    error = Crafter(src4, dst4).icmp_error(icmp.UNREACHABLE, icmp.HOST_UNREACHABLE, quote)
    return error[:12] + m.lane.tags + error[12:]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("tags", [b"", bytes.fromhex("81000007")])
@pytest.mark.parametrize("quoted", [8, 20])
def test_an_icmp_error_quotes_the_number_that_the_secondary_sent(quoted: int, tags: bytes, v6: bool) -> None:
    """A TCP believes an error about what it has sent and not seen acknowledged (RFC 5927 section 4.1)."""
    m = machines(lane=Lane(v6=v6, tags=tags)).open()
    frame = error_about(m, m.guest(m.p, 0, 30), quoted=quoted, from_guest=False)
    seen = m.down(frame)
    assert seen is not None
    packet = parse(seen)
    assert verify_untrusted(packet, Counters(), rx_checksum=False)
    at = packet.l4 + 8 + (40 if v6 else 20) + 4
    assert int.from_bytes(seen[at : at + 4], "big") == m.s + 31
    assert differing(frame, seen) <= {packet.l4 + 2, packet.l4 + 3, *range(at, at + 4)}


@pytest.mark.parametrize("v6", [False, True])
def test_an_icmp_error_of_the_secondary_quotes_what_the_client_sent(v6: bool) -> None:
    m = machines(lane=Lane(v6=v6)).open()
    sent = m.client(acked=9)
    got = m.down(sent)
    assert got is not None
    for quoted in (14, 20):
        seen = m.up(error_about(m, got, quoted=quoted, from_guest=True))
        packet = parse(seen)
        assert verify_untrusted(packet, Counters(), rx_checksum=False)
        at = packet.l4 + 8 + (40 if v6 else 20) + 8
        assert int.from_bytes(seen[at : at + 4], "big") == m.p + 10
    short = error_about(m, got, quoted=8, from_guest=True)
    assert m.up(short) == short


def test_an_icmp_error_about_another_flow_passes() -> None:
    m = machines().open()
    m.lane.dport = 1234
    frame = error_about(m, m.guest(m.p, 0), quoted=8, from_guest=False)
    assert m.down(frame) is frame
    udp = Crafter("10.0.0.2", "10.0.0.9").udp(80, 5000, b"x")
    frame = Crafter("192.0.2.1", "10.0.0.2").icmp_error(3, 1, udp[14:])
    assert parse(udp).proto == PROTO_UDP
    assert m.down(frame) is frame


def test_after_a_checkpoint_an_icmp_error_passes() -> None:
    m = machines().open()
    m.rewriter.checkpoint()
    frame = error_about(m, m.guest(m.p, 0), quoted=8, from_guest=False)
    assert m.down(frame) is frame
    m = machines().open()
    m.rewriter.checkpoint()
    frame = error_about(m, m.client(), quoted=20, from_guest=True)
    assert m.up(frame) is frame


def test_a_later_fragment_that_is_quoted_has_no_ports() -> None:
    m = machines().open()
    frame = bytearray(m.guest(m.p, 0))
    frame[20:22] = (7).to_bytes(2, "big")  # as the third of several fragments
    error = Crafter("192.0.2.1", "10.0.0.2").icmp_error(3, 1, bytes(frame[14:]))
    assert translate.quoted_untrusted(parse(error)) is None
