"""Keys tell flows apart and nothing else; the table is bounded, and forgets in order."""

from __future__ import annotations

import pytest

from pystack.counters import Counters
from pystack.flow.key import PLAIN_BYTES, directed_key, flow_key, quoted_key_untrusted
from pystack.flow.table import AtBound, FlowTable
from pystack.testing.frames import Crafter
from pystack.timers import NEVER
from pystack.wire.packet import Packet, parse_untrusted

ONE = Crafter("10.0.0.1", "10.0.0.2")
BACK = Crafter("10.0.0.2", "10.0.0.1")


def packet(frame: bytes) -> Packet:
    found = parse_untrusted(frame, 0, Counters())
    assert found is not None
    return found


def tagged(frame: bytes, vlan: int) -> bytes:
    return frame[:12] + b"\x81\0" + vlan.to_bytes(2, "big") + frame[12:]


FRAMES = {
    "tcp": ONE.tcp(sport=1, dport=2),
    "tcp other port": ONE.tcp(sport=1, dport=3),
    "tcp in a vlan": tagged(ONE.tcp(sport=1, dport=2), 5),
    "tcp in another vlan": tagged(ONE.tcp(sport=1, dport=2), 6),
    "udp": ONE.udp(1, 2),
    "ping": ONE.echo(1),
    "another ping": ONE.echo(2),
    "icmp error": ONE.icmp_error(3, 3, BACK.udp(1, 2)[14:]),
    "gre": ONE.ipv4(47, b"x"),
    "esp": ONE.ipv4(50, b"x"),
}


def test_different_flows_have_different_keys_of_both_kinds() -> None:
    assert len({directed_key(packet(frame)) for frame in FRAMES.values()}) == len(FRAMES)
    assert len({flow_key(packet(frame))[0] for frame in FRAMES.values()}) == len(FRAMES)


def test_only_plain_tcp_has_a_key_of_twelve_bytes() -> None:
    plain = {name for name, frame in FRAMES.items() if len(directed_key(packet(frame))) == PLAIN_BYTES}
    assert plain == {"tcp", "tcp other port"}


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (ONE.tcp(sport=1, dport=2), BACK.tcp(sport=2, dport=1)),
        (ONE.udp(5, 5), BACK.udp(5, 5)),
        (ONE.echo(7), BACK.echo(7, kind=0)),
        (ONE.ipv4(47, b"x"), BACK.ipv4(47, b"y")),
    ],
)
def test_both_directions_of_a_flow_share_a_key_and_differ_in_direction(there: bytes, back: bytes) -> None:
    one, other = flow_key(packet(there)), flow_key(packet(back))
    assert one[0] == other[0]
    assert {one[1], other[1]} == {0, 1}
    assert directed_key(packet(there)) != directed_key(packet(back))


def test_what_is_not_ip_and_a_fragment_have_no_key() -> None:
    for frame in (ONE.arp_request(), ONE.fragments(17, bytes(100), 64)[0]):
        assert directed_key(packet(frame)) == b""
        assert flow_key(packet(frame))[0] == b""


def test_the_flow_that_an_error_quotes() -> None:
    for inner in (BACK.tcp(sport=80, dport=9), BACK.udp(80, 9, b"12345678")):
        error = packet(ONE.icmp_error(3, 1, inner[14:]))
        assert quoted_key_untrusted(error) == directed_key(packet(inner))
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
