"""Keys tell flows apart and nothing else; the table is bounded, and forgets in order."""

from __future__ import annotations

import gc
import weakref

import pytest

from pystack.flow.key import PLAIN_BYTES, directed_key, flow_key, quoted_flow_key_untrusted, quoted_key_untrusted
from pystack.flow.table import AtBound, FlowTable
from pystack.testing.frames import Crafter
from pystack.timers import NEVER
from pystack.wire import icmp, icmpv6, ipv6, tcp
from pystack.wire.packet import ETHERTYPE_IPV6, PROTO_ICMPV6, PROTO_TCP
from tests.unit.flow.rewriting import CLIENT6, GUEST6
from tests.unit.flow.tracking import parse as packet

ONE = Crafter("10.0.0.1", "10.0.0.2")
BACK = Crafter("10.0.0.2", "10.0.0.1")


def tagged(frame: bytes, vlan: int, priority: int = 0) -> bytes:
    return frame[:12] + b"\x81\0" + (priority << 13 | vlan).to_bytes(2, "big") + frame[12:]


def six(proto: int, payload: bytes, *, back: bool = False, extension: bytes = b"") -> bytes:
    """An IPv6 frame of GUEST6 to CLIENT6, or ``back``; ``proto`` is what the header or the extension says."""
    src, dst = (CLIENT6, GUEST6) if back else (GUEST6, CLIENT6)
    first, payload = (60, ipv6.build_options_header(proto) + payload) if extension else (proto, payload)
    header = ipv6.build_header(src=src, dst=dst, payload_len=len(payload), next_header=first)
    return ONE.ethernet(ETHERTYPE_IPV6, header + payload)


def six_tcp(*, back: bool = False, extension: bytes = b"") -> bytes:
    src, dst = (CLIENT6, GUEST6) if back else (GUEST6, CLIENT6)
    sport, dport = (2, 1) if back else (1, 2)
    return six(PROTO_TCP, tcp.build(src=src, dst=dst, sport=sport, dport=dport), back=back, extension=extension)


def six_echo(ident: int, *, reply: bool = False) -> bytes:
    src, dst = (CLIENT6, GUEST6) if reply else (GUEST6, CLIENT6)
    kind = 129 if reply else 128
    return six(PROTO_ICMPV6, icmpv6.build_echo(src=src, dst=dst, kind=kind, ident=ident, sequence=1), back=reply)


def six_error(original: bytes) -> bytes:
    message = icmpv6.build_error(src=GUEST6, dst=CLIENT6, kind=1, code=4, original=original[14:])
    return six(PROTO_ICMPV6, message)


FRAMES = {
    "tcp": ONE.tcp(sport=1, dport=2),
    "tcp other port": ONE.tcp(sport=1, dport=3),
    "tcp in a vlan": tagged(ONE.tcp(sport=1, dport=2), 5),
    "tcp in another vlan": tagged(ONE.tcp(sport=1, dport=2), 6),
    "udp": ONE.udp(1, 2),
    "ping": ONE.echo(1),
    "another ping": ONE.echo(2),
    "icmp error": ONE.icmp_error(3, 3, BACK.udp(1, 2)[14:]),
    "timestamp": ONE.ipv4(1, icmp.build(13, 0, 1 << 16, bytes(12))),
    "router advertisement": ONE.ipv4(1, icmp.build(9, 0, 0, bytes(8))),
    "cut off ping": ONE.ipv4(4, bytes(3)),
    "gre": ONE.ipv4(47, b"x"),
    "esp": ONE.ipv4(50, b"x"),
    "icmp's number for IPv6 in IPv4": ONE.ipv4(58, bytes(8)),
    "tcp over IPv6": six_tcp(),
    "ping over IPv6": six_echo(1),
    "another ping over IPv6": six_echo(2),
    "error over IPv6": six_error(six_tcp(back=True)),
    "neighbour discovery": six(58, bytes((135, 0)) + bytes(22)),
    "tcp over IPv6 in a vlan": tagged(six_tcp(), 5),
    "two vlans": tagged(tagged(ONE.tcp(sport=1, dport=2), 5), 6),
    "two vlans, the other way about": tagged(tagged(ONE.tcp(sport=1, dport=2), 6), 5),
}


def test_different_flows_have_different_keys_of_both_kinds() -> None:
    assert len({directed_key(packet(frame)) for frame in FRAMES.values()}) == len(FRAMES)
    assert len({flow_key(packet(frame))[0] for frame in FRAMES.values()}) == len(FRAMES)


def test_only_plain_tcp_has_a_key_of_twelve_bytes() -> None:
    plain = {name for name, frame in FRAMES.items() if len(directed_key(packet(frame))) == PLAIN_BYTES}
    assert plain == {"tcp", "tcp other port"}
    assert all(len(directed_key(packet(frame))) >= PLAIN_BYTES for frame in FRAMES.values())
    assert directed_key(packet(FRAMES["tcp"])) == packet(FRAMES["tcp"]).key == FRAMES["tcp"][26:38]
    assert len(flow_key(packet(FRAMES["tcp"]))[0]) == PLAIN_BYTES


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (ONE.tcp(sport=1, dport=2), BACK.tcp(sport=2, dport=1)),
        (ONE.udp(5, 5), BACK.udp(5, 5)),
        (ONE.echo(7), BACK.echo(7, kind=0)),
        (ONE.ipv4(47, b"x"), BACK.ipv4(47, b"y")),
        (six_tcp(), six_tcp(back=True, extension=b"options")),
        (six_echo(7), six_echo(7, reply=True)),
        (tagged(six_tcp(), 9), tagged(six_tcp(back=True), 9, priority=5)),
        (ONE.ipv4(1, icmp.build(13, 0, 1 << 16, bytes(12))), BACK.ipv4(1, icmp.build(14, 0, 1 << 16, bytes(12)))),
    ],
)
def test_both_directions_of_a_flow_share_a_key_and_differ_in_direction(there: bytes, back: bytes) -> None:
    one, other = flow_key(packet(there)), flow_key(packet(back))
    assert one[0] == other[0]
    assert {one[1], other[1]} == {0, 1}
    assert directed_key(packet(there)) != directed_key(packet(back))


def test_equal_addresses_are_told_apart_by_ports() -> None:
    """And a flow of one end with itself has one direction."""
    home = Crafter("10.0.0.1", "10.0.0.1")
    one, other = flow_key(packet(home.tcp(sport=9, dport=300))), flow_key(packet(home.tcp(sport=300, dport=9)))
    assert (one, other) == ((one[0], 0), (one[0], 1))
    assert flow_key(packet(home.udp(9, 9)))[1] == 0


def test_the_priority_of_a_tag_is_not_part_of_the_flow() -> None:
    """IEEE 802.1Q section 9.6: the first three bits, and the one that says whether it may be dropped."""
    frame = ONE.tcp(sport=1, dport=2)
    assert len({directed_key(packet(tagged(frame, 5, priority))) for priority in range(8)}) == 1


def test_what_is_not_ip_and_a_fragment_have_no_key() -> None:
    for frame in (ONE.arp_request(), ONE.fragments(17, bytes(100), 64)[0]):
        assert directed_key(packet(frame)) == b""
        assert flow_key(packet(frame))[0] == b""


def test_the_flow_that_an_error_quotes() -> None:
    for inner in (BACK.tcp(sport=80, dport=9), BACK.udp(80, 9, b"12345678"), BACK.echo(5)):
        error = ONE.icmp_error(3, 1, inner[14:])
        assert quoted_key_untrusted(packet(error)) == directed_key(packet(inner))
        assert quoted_flow_key_untrusted(packet(error)) == flow_key(packet(inner))
        assert quoted_key_untrusted(packet(tagged(error, 7))) == directed_key(packet(tagged(inner, 7)))
    for inner in (six_tcp(back=True), six_echo(4, reply=True)):
        assert quoted_key_untrusted(packet(six_error(inner))) == directed_key(packet(inner))
        assert quoted_flow_key_untrusted(packet(six_error(inner))) == flow_key(packet(inner))


def test_what_is_quoted_must_be_there() -> None:
    inner = BACK.tcp(sport=80, dport=9)[14:]
    for cut in range(len(inner) + 1):
        found = quoted_key_untrusted(packet(ONE.ipv4(1, icmp.build(3, 1, 0, inner[:cut]))))
        assert (found is None) == (cut < 24)
    for cut in range(61):
        found = quoted_key_untrusted(packet(six_error(six_tcp(back=True)[: 14 + cut])))
        assert (found is None) == (cut < 44)
    later = inner[:6] + b"\x00\x05" + inner[8:]  # a later fragment has no ports
    for quoted in (later, b"\x35" + inner[1:], b"\x44" + inner[1:], BACK.ipv4(47, bytes(20))[14:]):
        assert quoted_key_untrusted(packet(ONE.icmp_error(3, 1, quoted))) is None
    assert quoted_flow_key_untrusted(packet(ONE.icmp_error(3, 1, later))) is None
    assert quoted_key_untrusted(packet(six(58, bytes((1, 4)) + bytes(60)))) is None
    assert quoted_key_untrusted(packet(ONE.tcp(sport=1, dport=2))) is None
    assert quoted_key_untrusted(packet(ONE.echo(1))) is None
    assert quoted_key_untrusted(packet(ONE.ipv4(1, bytes((3, 1, 0, 0)) + bytes(4) + b"\x4f" + bytes(30)))) is None


class Flow:
    """The least that a table holds."""

    def __init__(self, number: int, deadline: int = NEVER) -> None:
        self.key = number.to_bytes(4, "big")
        self.deadline = deadline
        self.armed_at = NEVER
        self.fired: list[int] = []

    def on_timer(self, now: int) -> None:
        self.fired.append(now)
        self.deadline = NEVER


def filled(at_bound: AtBound) -> tuple[FlowTable[Flow], list[Flow]]:
    table: FlowTable[Flow] = FlowTable(4, at_bound)
    flows = [Flow(number) for number in range(4)]
    for flow in flows:
        assert table.add(flow) == []
    return table, flows


def test_a_full_table_refuses() -> None:
    table, _ = filled(AtBound.REFUSE)
    assert table.add(Flow(9)) is None
    assert len(table) == 4
    assert table.counters.snapshot() == {"flow.table_full": 1}


def test_the_flow_that_has_been_unfinished_for_the_longest_makes_room() -> None:
    table, flows = filled(AtBound.EVICT_UNFINISHED)
    assert table.add(Flow(9)) is None
    for number in (2, 1):
        table.mark(flows[number], unfinished=True)
    assert table.add(Flow(10)) == [flows[2]]
    table.mark(flows[1], unfinished=False)
    assert table.add(Flow(11)) is None
    assert table.counters.snapshot() == {"flow.table_full": 2, "flow.evicted": 1}


def test_the_oldest_makes_room_after_the_unfinished() -> None:
    table, flows = filled(AtBound.EVICT_OLDEST)
    table.mark(flows[3], unfinished=True)
    assert [table.add(Flow(9 + n)) for n in range(3)] == [[flows[3]], [flows[0]], [flows[1]]]


def test_a_deadline_that_was_moved_forward_fires_once_and_late() -> None:
    table: FlowTable[Flow] = FlowTable(4)
    flow = Flow(1, deadline=100)
    table.add(flow)
    flow.deadline = 300
    assert table.next_timeout() == 300
    table.tick(200)
    assert flow.fired == []
    table.tick(300)
    assert flow.fired == [300]
    table.remove(flow)
    assert len(table) == 0
    assert table.next_timeout() is None


def test_flows_that_are_gone_do_not_stay_in_memory_until_their_time_would_have_come() -> None:
    """A heap entry each would keep all the flows of a flood."""
    table: FlowTable[Flow] = FlowTable(10, AtBound.EVICT_OLDEST)
    alive = weakref.WeakSet[Flow]()
    for number in range(5000):
        flow = Flow(number, deadline=1 << 40)
        alive.add(flow)
        table.add(flow)
        table._check()
    gc.collect()
    assert len(table) == 10
    assert len(alive) <= 300
    assert {flow.armed_at for flow in table.flows.values()} == {1 << 40}
    table.tick(1 << 40)
    assert all(flow.fired for flow in table.flows.values())


def test_whoever_becomes_unfinished_again_queues_up_again() -> None:
    table, flows = filled(AtBound.EVICT_UNFINISHED)
    for number in (0, 1):
        table.mark(flows[number], unfinished=True)
    table.mark(flows[0], unfinished=True)  # which it was already
    table.mark(flows[0], unfinished=False)
    table.mark(flows[0], unfinished=True)
    assert [table.add(Flow(9 + n)) for n in range(2)] == [[flows[1]], [flows[0]]]
    table.mark(flows[0], unfinished=True)  # it is gone
    assert table.add(Flow(12)) is None
    table._check()
