"""Where QEMU 7.2's colo-compare is wrong, shown: the same frames into QEMU and into ours, and both answers asserted.

docs/reference/differences-from-qemu.md lists these tests by the weakness that they show. Numbers in the assertions are
those of the steps: which frames of the primary had left when all were fed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pystack.testing.frames import Crafter
from pystack.wire import icmp, udp, vlan
from pystack.wire.packet import ACK, FIN, RST
from tests.colo_guests import Guest
from tests.interop.qemu_judge import datagram_cases, judge, oracle
from tests.interop.qemu_judge.draft import Case, Step, Want

pytestmark = pytest.mark.requires("qemu")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "differences-from-qemu.md"
CLIENT = "192.0.2.1"
_ADDRESS = itertools.count(1)


@pytest.fixture(scope="module")
def qemu() -> Iterator[oracle.Judge]:
    with oracle.qemu_compare() as judged:
        yield judged


def wire() -> Crafter:
    """From a guest of its own to the client: one object of QEMU's serves all tests of this file."""
    number = next(_ADDRESS)
    return Crafter(f"10.200.{number >> 8}.{number & 255}", CLIENT)


def guests(**fields: int) -> tuple[Guest, Guest]:
    """The two machines of one connection."""
    one = Guest(wire=wire(), **fields)
    return one, replace(one, ident=4000)


def p(frame: bytes) -> Step:
    return Step(True, frame)


def s(frame: bytes) -> Step:
    return Step(False, frame)


class Answers:
    """What QEMU and ours made of the same steps: indexes of what left, whether they asked."""

    def __init__(self, qemu: oracle.Judge, *steps: Step) -> None:
        self.case = Case(0, "hole", steps, Want(), vnet=qemu.vnet)
        self.outcomes = (judge.put_to(qemu, self.case), judge.put_to_ours(self.case))
        self.qemu, self.ours = (self._left(outcome.released) for outcome in self.outcomes)
        self.qemu_flushed, self.ours_flushed = (self._left(outcome.flushed) for outcome in self.outcomes)
        self.qemu_asks, self.ours_asks = (outcome.asked for outcome in self.outcomes)
        self.reasons = self.outcomes[1].reasons

    def _left(self, released: Sequence[oracle.Framed]) -> list[int]:
        numbers = {step.frame: index for index, step in enumerate(self.case.steps) if step.primary}
        return [numbers.get(frame, -1) for _, frame in released]


# ----------------------------------------------------------------------------------------------------- streams of bytes


def test_equal_is_equal_in_every_protocol(qemu: oracle.Judge) -> None:
    """1e907a32b7: an inverted condition reported equal packets as different."""
    one, other = guests()
    frames = [wire().udp(1, 2, b"x"), wire().echo(), wire().ipv4(47, b"gre!"), one.syn_ack()]
    for frame in frames:
        found = Answers(qemu, p(frame), s(frame))
        assert found.qemu == found.ours == [0]
        assert not found.qemu_asks and not found.ours_asks
    assert Answers(qemu, p(one.data(0, b"a")), s(other.data(0, b"a"))).ours == [0]


def test_segmentation_does_not_matter(qemu: oracle.Judge) -> None:
    """f449c9e549, 45b9e8c33a: packets were compared one to one; partly used up ones went wrong."""
    stream = bytes(range(60))
    one, other = guests()
    single = [other.data(at, stream[at : at + 1]) for at in range(60)]
    found = Answers(qemu, p(one.data(0, stream)), *map(s, single))
    assert found.qemu == found.ours == [0]
    one, other = guests()
    parts = [one.data(at, stream[at : at + 7]) for at in range(0, 60, 7)]
    others = [other.data(at, stream[at : at + 11]) for at in range(0, 60, 11)]
    found = Answers(qemu, *map(p, parts), *map(s, others))
    assert found.qemu == found.ours == list(range(len(parts)))
    assert not found.qemu_asks and not found.ours_asks


def test_a_retransmission_with_more_is_no_difference(qemu: oracle.Judge) -> None:
    """Start numbers are taken to be equal: an overlap is compared with the wrong bytes."""
    one, other = guests()
    stream = b"0123456789"
    steps = [
        p(one.data(0, stream[:5])),
        s(other.data(0, stream[:5])),
        p(one.data(0, stream)),
        s(other.data(5, stream[5:])),
    ]
    found = Answers(qemu, *steps)
    assert (found.qemu, found.qemu_asks) == ([0], True)
    assert (found.ours, found.ours_asks) == ([0, 2], False)


def test_nothing_is_compared_across_a_gap(qemu: oracle.Judge) -> None:
    """The primary's first bytes and the secondary's next ones happen to be the same."""
    one, other = guests()
    found = Answers(qemu, p(one.data(0, b"AAAAA")), s(other.data(5, b"AAAAA")))
    assert (found.qemu, found.qemu_asks) == ([0], False)  # it has left, and the secondary never said it
    assert (found.ours, found.ours_asks) == ([], False)
    one, other = guests()
    found = Answers(qemu, p(one.syn_ack()), s(other.syn_ack()), p(one.data(0, b"abcde")), s(other.data(5, b"fghij")))
    assert (found.qemu, found.qemu_asks) == ([0], True)  # a reordered or lost frame is called a difference
    assert (found.ours, found.ours_asks) == ([0], False)


def test_a_retransmission_must_repeat_what_was_agreed_on(qemu: oracle.Judge) -> None:
    one, other = guests()
    steps = [p(one.data(0, b"agreed")), s(other.data(0, b"agreed")), p(one.data(0, b"AGREED")), s(other.ack(6))]
    found = Answers(qemu, *steps)
    assert (found.qemu, found.qemu_asks) == ([0, 2], False)
    assert (found.ours, found.reasons) == ([0], ["retransmission"])


def test_out_of_order_is_put_in_order(qemu: oracle.Judge) -> None:
    """a935cc3132: sorting helps QEMU only while all is there; across 2^32 too."""
    one, other = guests(iss=0xFFFF_FFF8)
    steps = [
        p(one.data(0, b"abcd")),
        p(one.data(8, b"ijkl")),
        p(one.data(4, b"efgh")),
        s(other.data(0, b"abcdefghijkl")),
    ]
    found = Answers(qemu, *steps)
    assert found.qemu == [0, 2, 1]  # by number, which tells the client's TCP nothing of the reordering there was
    assert found.ours == [0, 1, 2]


def test_a_stream_that_ends_at_zero(qemu: oracle.Judge) -> None:
    """Position 0 doubles as "unknown", so that a retransmission across it is compared with what follows."""
    one, other = guests(iss=(1 << 32) - 11)
    stream = b"0123456789abcde"
    steps = [
        p(one.data(0, stream[:10])),
        s(other.data(0, stream[:10])),
        p(one.data(4, stream[4:10])),
        s(other.data(10, b"abcde")),
    ]
    found = Answers(qemu, *steps)
    assert (found.qemu, found.qemu_asks) == ([0], True)
    assert (found.ours, found.ours_asks) == ([0, 2], False)


# ------------------------------------------------------------------------------------- acknowledgements, windows, flags


def test_a_pure_acknowledgement_waits_for_the_secondary_s_own(qemu: oracle.Judge) -> None:
    one, other = guests()
    found = Answers(qemu, p(one.ack(0, 9000)), s(other.ack(0, 7000)))
    assert found.qemu == [0]  # the client drops data that only the primary has
    assert (found.ours, found.ours_asks) == ([], False)


def test_a_pure_acknowledgement_that_was_given_need_not_wait(qemu: oracle.Judge) -> None:
    """The other way round: QEMU holds it, for 3 seconds, until the secondary says anything."""
    one, other = guests()
    found = Answers(qemu, p(one.data(0, b"x")), s(other.data(0, b"x")), p(one.ack(1)))
    assert found.qemu == [0]
    assert found.ours == [0, 2]


def test_an_acknowledgement_with_data(qemu: oracle.Judge) -> None:
    """Cut alike it is not looked at, cut otherwise it is a difference; it is held, until the secondary gives it."""
    one, other = guests()
    found = Answers(qemu, p(one.data(0, b"ab", ack=9000)), s(other.data(0, b"ab", ack=7000)))
    assert (found.qemu, found.qemu_asks) == ([0], False)
    assert (found.ours, found.ours_asks) == ([], False)
    one, other = guests()
    steps = [p(one.data(0, b"ab", ack=9000)), s(other.data(0, b"abc", ack=7000)), s(other.ack(3, 9000))]
    found = Answers(qemu, *steps)
    assert (found.qemu, found.qemu_asks) == ([0], True)
    assert (found.ours, found.ours_asks) == ([0], False)


def test_acknowledgements_around_zero(qemu: oracle.Judge) -> None:
    """fb5eca4a57, e29bc931e1: first unsigned differences, now a minimum, where 16 is less than 2^32 - 16."""
    one, other = guests(acked=0xFFFF_FFF0)
    steps = [
        p(one.syn_ack()),
        s(other.syn_ack()),
        p(one.data(0, b"ab", ack=16)),
        s(other.data(0, b"abc", ack=0xFFFF_FFF0)),
    ]
    found = Answers(qemu, *steps)
    assert found.qemu == [0, 2]
    assert (found.ours, found.ours_asks) == ([0], False)
    one, other = guests(acked=0xFFFF_FFF0)
    steps[2:] = [p(one.data(0, b"ab")), s(other.data(0, b"abc", ack=16))]
    found = Answers(qemu, p(one.syn_ack()), s(other.syn_ack()), *steps[2:])
    assert (found.qemu, found.qemu_asks) == ([0, 2], False)
    assert (found.ours, found.ours_asks) == ([0, 2], False)


def test_the_window_is_what_both_can_take(qemu: oracle.Judge) -> None:
    one, other = guests()
    other.window = 1000
    frame = one.data(0, b"ab")
    found = Answers(qemu, p(one.syn_ack()), s(other.syn_ack()), p(frame), s(other.data(0, b"ab")))
    assert found.qemu == [0, 2]
    left = [released for _, released in found.outcomes[1].released]
    assert [int.from_bytes(sent[48:50], "big") for sent in left] == [1000, 1000]
    assert not found.ours_asks


def test_a_refusal_is_not_an_acceptance(qemu: oracle.Judge) -> None:
    one, other = guests()
    found = Answers(qemu, p(one.syn_ack()), s(other.segment(0, RST | ACK)))
    assert (found.qemu, found.qemu_asks) == ([0], False)
    assert (found.ours, found.reasons) == ([], ["flags"])


def test_an_end_is_not_an_acknowledgement(qemu: oracle.Judge) -> None:
    one, other = guests()
    found = Answers(qemu, p(one.data(0, b"ab")), s(other.data(0, b"ab")), p(one.fin(2)), s(other.ack(2)))
    assert found.qemu == [0, 2]
    assert (found.ours, found.ours_asks) == ([0], False)
    one, other = guests()
    found = Answers(qemu, p(one.data(0, b"ab", FIN | ACK)), s(other.data(0, b"ab")))
    assert found.qemu == [0]
    assert found.ours == []


def test_one_ends_where_the_other_goes_on(qemu: oracle.Judge) -> None:
    """QEMU finds out by its timeout, 3 to 4 seconds later."""
    one, other = guests()
    steps = [p(one.data(0, b"ab")), s(other.data(0, b"ab")), s(other.fin(2)), p(one.data(2, b"cd"))]
    found = Answers(qemu, *steps)
    assert (found.qemu, found.qemu_asks) == ([0], False)
    assert (found.ours, found.reasons) == ([0], ["flags"])


def test_what_is_negotiated_is_compared(qemu: oracle.Judge) -> None:
    """The client would use a window scale that the survivor has never heard of."""
    one, other = guests()
    found = Answers(qemu, p(one.syn_ack(scale=7)), s(other.syn_ack(scale=2)))
    assert (found.qemu, found.qemu_asks) == ([0], False)
    assert (found.ours, found.reasons) == ([], ["options"])


def test_options_of_a_segment_are_no_difference(qemu: oracle.Judge) -> None:
    """184d4d4203, 6f5009c38c: options, or SACK blocks, that one machine alone sends."""
    one, other = guests()
    one.tsval = 77
    found = Answers(qemu, p(one.data(0, b"ab")), s(other.data(0, b"ab")))
    assert found.qemu == found.ours == [0]
    assert not found.qemu_asks and not found.ours_asks


def test_a_reused_four_tuple_is_a_new_connection(qemu: oracle.Judge) -> None:
    one, other = guests(iss=0x5000_0000)
    first = [p(one.syn_ack()), s(other.syn_ack()), p(one.data(0, b"first")), s(other.data(0, b"first"))]
    one, other = replace(one, iss=0x4000_0000), replace(other, iss=0x4000_0000)
    second = [p(one.syn_ack()), s(other.syn_ack()), p(one.data(0, b"PRIMARY")), s(other.data(0, b"SECONDA"))]
    found = Answers(qemu, *first, *second)
    assert (found.qemu, found.qemu_asks) == ([0, 2, 4, 6], False)  # PRIMARY has left
    assert (found.ours, found.reasons) == ([0, 2, 4], ["payload"])


def test_padding_is_no_payload(qemu: oracle.Judge) -> None:
    one, other = guests()
    short = one.data(0, b"ab") + b"\1\2\3\4"
    found = Answers(qemu, p(short), s(other.data(0, b"ab") + bytes(4)))
    assert (found.qemu, found.qemu_asks) == ([], True)
    assert (found.ours, found.ours_asks) == ([0], False)


# ------------------------------------------------------------------------------------------------------------ datagrams


def test_udp_is_compared_in_order_and_patiently(qemu: oracle.Judge) -> None:
    """a5f038e2c5, 626bba988a: the newest is compared first since 7.0, and what is late is called a difference."""
    guest = wire()
    first, second = guest.udp(1, 2, b"A"), guest.udp(1, 2, b"B")
    found = Answers(qemu, p(first), p(second), s(first), s(second))
    assert (found.qemu, found.qemu_asks) == ([1, 0], True)
    assert (found.ours, found.ours_asks) == ([0, 1], False)


def test_a_checksum_that_is_left_out_is_no_difference(qemu: oracle.Judge) -> None:
    frame = wire().udp(1, 2, b"data")
    found = Answers(qemu, p(frame), s(frame[:40] + b"\0\0" + frame[42:]))
    assert (found.qemu, found.qemu_asks) == ([], True)
    assert (found.ours, found.ours_asks) == ([0], False)


def test_icmp_flows_are_told_apart(qemu: oracle.Judge) -> None:
    guest = wire()
    found = Answers(qemu, p(guest.echo(1, kind=icmp.ECHO_REPLY)), s(guest.echo(2, kind=icmp.ECHO_REPLY)))
    assert found.qemu_asks
    assert (found.ours, found.ours_asks) == ([], False)


def test_other_protocols_are_compared_from_their_header_on(qemu: oracle.Judge) -> None:
    guest = wire()
    found = Answers(qemu, p(guest.ipv4(47, b"gre", ident=1)), s(guest.ipv4(47, b"gre", ident=2)))
    assert (found.qemu, found.qemu_asks) == ([], True)
    assert (found.ours, found.ours_asks) == ([0], False)


def test_fragments_are_put_together(qemu: oracle.Judge) -> None:
    guest = wire()
    body = udp.build(src=bytes(4), dst=bytes(4), sport=1, dport=2, payload=bytes(range(200)))
    frames = [p(frame) for frame in guest.fragments(17, body, 104)]
    found = Answers(qemu, *frames, *(s(frame) for frame in guest.fragments(17, body, 48, 48)))
    assert (found.qemu, found.qemu_asks) != ([0, 1], False)
    assert (found.ours, found.ours_asks) == ([0, 1], False)


def test_ipv6_and_tagged_frames_are_compared(qemu: oracle.Judge) -> None:
    guest = wire()
    for one, other in (
        (vlan.push(guest.udp(1, 2, b"one"), 7), vlan.push(guest.udp(1, 2, b"two"), 7)),
        (datagram_cases.ipv6_frame(guest, b"one"), datagram_cases.ipv6_frame(guest, b"two")),
    ):
        found = Answers(qemu, p(one), s(other))
        assert (found.qemu, found.qemu_asks) == ([0], False)
        assert (found.ours, found.reasons) == ([], ["datagram"])


def test_what_is_not_ip_passes_and_the_secondary_s_does_not(qemu: oracle.Judge) -> None:
    arp = wire().arp_request()
    found = Answers(qemu, p(arp), s(wire().arp_request()), s(arp))
    assert found.qemu == found.ours == [0]


# ------------------------------------------------------------------------------------------------- bounds, times, order


def test_a_full_queue_loses_nothing() -> None:
    """bdadbb0f74 and others: QEMU drops what does not fit, without a word. Ours asks, and keeps it."""
    one, _ = guests()
    steps = [p(one.data(at, b"%d" % at)) for at in range(8)]
    case = Case(0, "hole", tuple(steps), Want(), vnet=False)
    with oracle.qemu_compare(max_queue_size=4) as small:
        told = judge.put_to(small, case)
    assert not told.asked
    assert len(told.flushed) == 5
    ours = judge.put_to_ours(case, max_queue_size=4)
    assert ours.reasons == ["queue_full"]
    assert [frame for _, frame in ours.flushed] == [step.frame for step in steps]


def test_a_full_table_loses_nothing() -> None:
    """a18d436954: the 16,386th connection has QEMU forget all of them, and what it holds of them."""
    base = wire()
    frames = [base.udp(1 + index % 16_000, 1 + index // 16_000, b"held") for index in range(16_400)]
    with oracle.qemu_compare() as small:
        for frame in frames:
            small.primary.send(frame)
        passing = base.arp_request()
        small.primary.send(passing)
        assert small.out.receive() == (0, passing)  # all before it was dealt with
        flushed = small.flush()
    assert not flushed.asked
    assert 0 < len(flushed.released) < 20
    case = Case(0, "hole", tuple(map(p, frames)), Want(), vnet=False)
    ours = judge.put_to_ours(case)
    assert [frame for _, frame in ours.flushed] == frames
    ours = judge.put_to_ours(case, max_flows=1000)
    assert ours.reasons[0] == "table_full"
    assert [frame for _, frame in ours.flushed] == frames


def test_what_the_secondary_has_left_over_is_no_reason() -> None:
    """17475df2c1, ec081984f4: a pure acknowledgement of the secondary has QEMU ask, again and again, for nothing."""
    one, other = guests()
    steps = (p(one.data(0, b"x")), s(other.data(0, b"x")), s(other.ack(1)))
    case = Case(0, "hole", steps, Want(), vnet=False)
    with oracle.qemu_compare(compare_timeout=40, scan_cycle=20) as hasty:
        for step in steps:
            assert hasty.feed(step.primary, step.frame).asked == 0
        assert hasty.flush_after(0.2).asked > 1
    ours = judge.put_to_ours(case, timeout=40_000, wait=1_000_000)
    assert not ours.asked


def test_the_checkpoint_releases_in_the_primary_s_order(qemu: oracle.Judge) -> None:
    """QEMU goes by connection, and for datagrams from the newest back."""
    one, two = wire(), wire()
    steps = [p(one.udp(1, 2, b"1")), p(two.udp(1, 2, b"2")), p(one.udp(1, 2, b"3")), p(two.udp(1, 2, b"4"))]
    found = Answers(qemu, *steps)
    assert found.qemu_flushed == [2, 0, 3, 1]
    assert found.ours_flushed == [0, 1, 2, 3]


def test_one_request_for_many_differences(qemu: oracle.Judge) -> None:
    """bb70b66ed7, 78e4f446d2: on notify_dev QEMU asks for each event; `colo compare` once, until it is done."""
    flows = [guests() for _ in range(3)]
    differing = [step for one, other in flows for step in (p(one.data(0, b"a")), s(other.data(0, b"b")))]
    again = [s(other.data(1, b"c")) for _, other in flows]
    case = Case(0, "hole", (*differing, *again), Want(), vnet=False)
    told = judge.put_to(qemu, case)
    assert sum(asked for _, asked in told.trace) == 6
    with oracle.compare_command() as command:
        ours = judge.put_to(command, case)
    assert sum(asked for _, asked in ours.trace) + ours.late == 1
    assert [frame for _, frame in ours.flushed] == [step.frame for step in differing if step.primary]


def _stalled(judged: oracle.Judge) -> list[int]:
    """Send much and read nothing; then read. The numbers of the frames in the order in which they come."""
    base = wire()
    count = 3000
    for index in range(count):
        judged.primary.send(base.ethernet(0x88CC, index.to_bytes(2, "big") + bytes(1000)))
    judged.primary.send(base.ethernet(0x88CC, b"\xff\xff" + bytes(60)))
    got = [int.from_bytes(judged.out.receive()[1][14:16], "big") for _ in range(count + 1)]
    return [number for number in got if number != 0xFFFF]


def test_a_slow_reader_gets_everything_in_order() -> None:
    """9c55fe9408, 6113829680, a5f038e2c5: what waits leaves last in, first out; ours neither blocks nor does that."""
    with oracle.qemu_compare() as judged:
        order = _stalled(judged)
        assert order != sorted(order)
        assert sorted(order) == list(range(3000))
    with oracle.compare_command() as command:
        assert _stalled(command) == list(range(3000))


# ---------------------------------------------------------------------------------------------- bad input, reconnection


def test_an_empty_frame_ends_nothing() -> None:
    """QEMU aborts."""
    frame = wire().arp_request()
    with oracle.qemu_compare() as judged:
        judged.primary.sock.sendall(bytes(4) + bytes(4))
        assert judged.process.popen.wait(oracle.PATIENCE) != 0
        assert "assert" in judged.process.said().lower()
    with oracle.compare_command() as command:
        command.primary.sock.sendall(bytes(4) + bytes(4))
        assert command.feed(True, frame).released == [(0, frame)]


def test_a_length_that_is_too_large() -> None:
    """QEMU never listens to that socket again; ours parts with the peer, and takes the next one."""
    frame = wire().arp_request()
    with oracle.qemu_compare() as judged:
        judged.primary.sock.sendall((69_633).to_bytes(4, "big"))
        judged.reconnect_primary()
        judged.primary.send(frame)
        assert judged.out.waiting(0.1) == []
    with oracle.compare_command() as command:
        command.primary.sock.sendall((69_633).to_bytes(4, "big"))
        command.reconnect_primary()
        assert command.feed(True, frame).released == [(0, frame)]


def test_a_peer_that_goes_in_the_middle_of_a_frame() -> None:
    """What it left behind is the beginning of the next peer's first frame to QEMU."""
    frame = wire().arp_request()
    with oracle.qemu_compare() as judged:
        judged.primary.sock.sendall((100).to_bytes(4, "big") + bytes(10))
        judged.reconnect_primary()
        judged.primary.send(frame)
        judged.primary.send(frame)
        assert (0, frame) not in judged.out.waiting(0.1)
    with oracle.compare_command() as command:
        command.primary.sock.sendall((100).to_bytes(4, "big") + bytes(10))
        command.reconnect_primary()
        assert command.feed(True, frame).released == [(0, frame)]


def test_headers_that_lie_about_their_lengths(qemu: oracle.Judge) -> None:
    """QEMU reads what is not there; ours compares such a frame as it is."""
    one, other = guests()
    frame = one.data(0, b"ab")
    lying = frame[:46] + b"\xf0" + frame[47:]  # a data offset of 60 bytes in a segment of 22
    found = Answers(qemu, p(lying), s(lying))
    assert (found.ours, found.ours_asks) == ([0], False)
    found = Answers(qemu, p(frame[:16] + b"\xff\xff" + frame[18:]), s(other.data(0, b"ab")))
    assert found.ours == []
    assert not qemu.process.popen.poll()


# --------------------------------------------------------------------------------------------------------- vnet headers


@pytest.mark.parametrize("length", [0, 10, 12, 20])
def test_every_length_of_virtio_net_hdr(length: int) -> None:
    """5a2d9929ac: it was subtracted twice."""
    one, other = guests()
    frames = [(one.syn_ack(), other.syn_ack()), (one.data(0, b"ab"), other.data(0, b"ab"))]
    steps = [Step(primary, bytes(length) + pair[not primary], length) for pair in frames for primary in (True, False)]
    datagram = bytes(length) + wire().udp(1, 2, b"x")
    with oracle.qemu_compare(vnet=True) as judged:
        found = Answers(judged, *steps, Step(True, datagram, length), Step(False, datagram, length))
    assert found.qemu == found.ours == [0, 2, 4]
    assert not found.qemu_asks and not found.ours_asks


def test_one_side_with_virtio_net_hdr() -> None:
    """8bdab83b34, 3772cf0d1b, 0656fbc7dd: it crashed; now equal datagrams differ where one side has another header."""
    frame = wire().udp(1, 2, b"x")
    with oracle.qemu_compare(vnet=True) as judged:
        found = Answers(judged, Step(True, bytes(12) + frame, 12), Step(False, frame, 0))
    assert (found.qemu, found.qemu_asks) == ([], True)
    assert (found.ours, found.ours_asks) == ([0], False)


def test_a_partial_checksum_is_no_difference() -> None:
    """6ce310b535, db0a762e4b: with an offload the checksum field holds a part of the sum only (virtio 1.2, 5.1.6.2)."""
    frame = wire().udp(1, 2, b"data")
    partial = bytes((1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0)) + frame[:40] + b"\x12\x34" + frame[42:]
    with oracle.qemu_compare(vnet=True) as judged:
        found = Answers(judged, Step(True, partial, 12), Step(False, bytes(12) + frame, 12))
    assert (found.qemu, found.qemu_asks) == ([], True)
    assert (found.ours, found.ours_asks) == ([0], False)


# ------------------------------------------------------------------------------------------------------------- the page


OF_THE_PAGE = ("interop/test_qemu_holes.py", "interop/test_qemu_rewriter_holes.py", "unit/colo/test_qemu_history.py")


def test_the_page_names_tests_that_there_are() -> None:
    """All that it names exist, and all of the files that are made for it are named."""
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", PAGE.read_text(encoding="utf-8")))
    root = Path(__file__).resolve().parents[1]
    assert named >= _tests_of(*(root / name for name in OF_THE_PAGE)) - {"test_the_page_names_tests_that_there_are"}
    assert named <= _tests_of(*root.rglob("test_*.py"))


def _tests_of(*files: Path) -> set[str]:
    found: set[str] = set()
    for file in files:
        found |= set(re.findall(r"^def (test_[a-z0-9_]+)", file.read_text(encoding="utf-8"), re.MULTILINE))
    return found
