"""The composition: mirror, rewriter, comparator, checkpoints and policy around two machines."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from colo.checkpoint import State, Step
from colo.compare import CompareConfig, Mode
from colo.policy import PolicyConfig
from colo.proxy import Proxy, ProxyConfig, Role
from pystack.counters import Counters
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, FIN, SYN, Packet, parse_untrusted
from tests.colo_guests import CLIENT, GUEST, Guest

SECOND = 1_000_000
FROM_CLIENT = Crafter(CLIENT, GUEST)
OFFSET = 4_000_000_000
"""What lies between the two machines' initial sequence numbers."""


class Checkpointer:
    """A client whose steps the test makes."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.steps: list[Step] = []
        self.automatic = False

    def begin(self, reason: str, _now: int) -> None:
        self.asked.append(reason)
        if self.automatic:
            self.steps += [Step.PAUSED, Step.COMPLETED, Step.RESUMED]

    def poll(self, _now: int) -> list[Step]:
        steps, self.steps = self.steps, []
        return steps

    def next_timeout(self) -> int | None:
        return 0 if self.steps else None


class Rig:
    def __init__(self, *, alone: bool = False, **config: Any) -> None:
        self.checkpointer = Checkpointer()
        self.proxy = Proxy(ProxyConfig(**config), self.checkpointer, alone=alone)
        self.p, self.s = Guest(iss=1000), Guest(iss=(1000 + OFFSET) & 0xFFFF_FFFF, ident=99)
        self.now = 0

    def client(self, seq: int, flags: int, ack: int = 0, payload: bytes = b"", sport: int = 5000) -> None:
        frame = FROM_CLIENT.tcp(
            sport=sport, dport=80, seq=6999 + seq, ack=(1000 + ack) & 0xFFFF_FFFF if flags & ACK else 0,
            flags=flags, payload=payload,
            options=tcp.build_options(mss=1460) if flags & SYN else b"",
        )  # fmt: skip
        self.proxy.from_client(frame, self.now)

    def primary(self, *frames: bytes) -> list[Packet]:
        for frame in frames:
            self.proxy.from_primary(frame, self.now)
        return self.out()

    def secondary(self, *frames: bytes) -> list[Packet]:
        for frame in frames:
            self.proxy.from_secondary(frame, self.now)
        return self.out()

    def out(self) -> list[Packet]:
        self.proxy.tick(self.now)
        return [parsed(frame) for frame in self.proxy.to_client()]

    def to_secondary(self) -> list[Packet]:
        return [parsed(frame) for frame in self.proxy.to_secondary()]

    def open(self) -> None:
        self.client(0, SYN)
        assert self.primary(self.p.syn_ack()) == []
        assert len(self.secondary(self.s.syn_ack())) == 1
        self.client(1, ACK, 1)
        self.proxy.to_primary()
        self.proxy.to_secondary()


def mode(rig: Rig) -> Mode:
    return rig.proxy.comparator.mode


def parsed(frame: bytes) -> Packet:
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    return packet


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.open()
    return rig


def test_the_client_is_heard_by_both_each_in_its_own_numbers(rig: Rig) -> None:
    rig.client(1, ACK, 1, b"GET")
    (to_primary,) = map(parsed, rig.proxy.to_primary())
    (to_secondary,) = rig.to_secondary()
    assert to_primary.ack == 1001
    assert to_secondary.ack == (1001 + OFFSET) & 0xFFFF_FFFF
    assert to_secondary.payload_bytes() == to_primary.payload_bytes() == b"GET"


def test_what_both_say_leaves_in_the_primarys_numbers(rig: Rig) -> None:
    assert rig.primary(rig.p.data(0, b"hello")) == []
    (out,) = rig.secondary(rig.s.data(0, b"hello"))
    assert out.seq == 1001


def test_a_difference_becomes_a_checkpoint_and_the_offset_is_gone(rig: Rig) -> None:
    rig.primary(rig.p.data(0, b"hello"))
    rig.secondary(rig.s.data(0, b"hallo"))
    assert rig.checkpointer.asked == ["payload"]
    rig.checkpointer.steps = [Step.PAUSED, Step.COMPLETED, Step.RESUMED]
    assert [packet.payload_bytes() for packet in rig.out()] == [b"hello"]
    rig.client(1, ACK, 6)
    assert rig.to_secondary()[-1].ack == 1006
    rig.s.iss = rig.p.iss
    assert len(rig.primary(rig.p.data(5, b"more")) + rig.secondary(rig.s.data(5, b"more"))) == 1


def test_nothing_leaves_before_the_copy_is_made_nor_when_it_fails(rig: Rig) -> None:
    rig.primary(rig.p.data(0, b"hello"))
    rig.secondary(rig.s.data(0, b"hallo"))
    rig.checkpointer.steps = [Step.PAUSED]
    assert rig.out() == []
    rig.checkpointer.steps = [Step.FAILED]
    assert rig.out() == []
    rig.now += SECOND
    rig.out()
    assert rig.checkpointer.asked == ["payload", "payload"]


class TestHope:
    """The owner of the machines is told when checkpoints fail and go on failing."""

    def failing(self, rig: Rig) -> list[int]:
        """The answers differ, and each checkpoint fails 0.1 s after it was begun: when the owner was told."""
        told: list[int] = []
        rig.proxy.hopeless = lambda: told.append(rig.now)
        rig.primary(rig.p.data(0, b"hello"))
        rig.secondary(rig.s.data(0, b"hallo"))
        while rig.now < 8 * SECOND:
            at = rig.proxy.checkpoints.next_timeout()
            assert at is not None
            rig.now = at if rig.proxy.checkpoints.state is State.FAILED else rig.now + SECOND // 10
            if rig.proxy.checkpoints.state is State.REQUESTED:
                rig.checkpointer.steps = [Step.PAUSED, Step.FAILED]
            assert rig.out() == []
        return told

    def test_after_a_while_and_again(self, rig: Rig) -> None:
        told = self.failing(rig)
        assert len(told) >= 2
        assert 3 * SECOND <= told[0] < 5 * SECOND
        assert rig.proxy.counters["proxy.hopeless"] == len(told)
        rig.proxy.secondary_failed(rig.now)
        assert [packet.payload_bytes() for packet in rig.out()] == [b"hello"]

    def test_not_for_one_that_failed_late(self, rig: Rig) -> None:
        rig.proxy.hopeless = lambda: pytest.fail("it was the first one")
        rig.primary(rig.p.data(0, b"hello"))
        rig.secondary(rig.s.data(0, b"hallo"))
        rig.checkpointer.steps = [Step.PAUSED]
        rig.out()
        rig.now += 60 * SECOND
        rig.checkpointer.steps = [Step.FAILED]
        rig.out()
        assert rig.proxy.checkpoints.failures == 1

    def test_not_while_the_next_one_is_under_way(self, rig: Rig) -> None:
        """The boundary that it has drawn stands."""
        rig.proxy.hopeless = lambda: pytest.fail("another one has paused")
        rig.primary(rig.p.data(0, b"hello"))
        rig.secondary(rig.s.data(0, b"hallo"))
        for _ in range(3):
            rig.checkpointer.steps = [Step.PAUSED, Step.RESUMED]
            rig.out()
            rig.now += 4 * SECOND
        rig.checkpointer.steps = [Step.COMPLETED]
        assert rig.proxy.checkpoints.failures == 2
        assert len(rig.out()) == 1

    def test_not_while_one_joins(self) -> None:
        """Nobody waits for it."""
        rig = Rig(alone=True)
        rig.proxy.hopeless = lambda: pytest.fail("clients are served")
        rig.proxy.join(rig.checkpointer, rig.now)
        rig.out()
        for _ in range(3):
            rig.checkpointer.steps = [Step.PAUSED, Step.FAILED]
            rig.out()
            rig.now += 6 * SECOND
            rig.out()
        assert rig.proxy.checkpoints.failures == 3


def test_what_the_client_sends_during_the_pause_reaches_both_afterwards(rig: Rig) -> None:
    rig.primary(rig.p.data(0, b"hello"))
    rig.secondary(rig.s.data(0, b"hallo"))
    rig.checkpointer.steps = [Step.PAUSED]
    rig.out()
    rig.client(1, ACK, 1, b"GET")
    assert (rig.proxy.to_primary(), rig.proxy.to_secondary()) == ([], [])
    rig.checkpointer.steps = [Step.COMPLETED]
    rig.out()
    assert rig.proxy.to_primary() == []
    rig.checkpointer.steps = [Step.RESUMED]
    rig.out()
    assert len(rig.proxy.to_primary()) == 1
    assert rig.to_secondary()[-1].ack == 1001


def test_what_was_sent_before_the_pause_is_fetched_before_the_boundary(rig: Rig) -> None:
    late = [rig.p.data(0, b"late")]

    def drain(now: int) -> None:
        while late:
            rig.proxy.from_primary(late.pop(), now)

    rig.proxy.drain = drain
    rig.checkpointer.steps = [Step.PAUSED, Step.COMPLETED, Step.RESUMED]
    assert [packet.payload_bytes() for packet in rig.out()] == [b"late"]


@pytest.mark.parametrize("outcome", [Step.COMPLETED, Step.FAILED])
def test_where_links_are_marked_they_are_read_when_the_outcome_is_known_and_before_it_counts(
    rig: Rig, outcome: Step
) -> None:
    calls: list[str] = []

    def drain(now: int) -> None:
        calls.append("drain")
        rig.proxy.from_primary(rig.p.data(0, b"late"), now)

    rig.proxy.mark = lambda: calls.append("mark")
    rig.proxy.drain = drain
    rig.proxy.checkpoints.request("test", rig.now)
    rig.checkpointer.steps = [Step.PAUSED]
    assert rig.out() == []
    assert calls == ["mark"]
    rig.checkpointer.steps = [outcome]
    assert [packet.payload_bytes() for packet in rig.out()] == ([b"late"] if outcome is Step.COMPLETED else [])
    assert calls == ["mark", "drain"]


def test_a_machine_that_is_lost_at_a_mark_is_read_to_it(rig: Rig) -> None:
    rig.proxy.mark = lambda: None
    rig.proxy.drain = lambda now: rig.proxy.from_secondary(rig.s.data(0, b"mine"), now)
    rig.proxy.checkpoints.request("test", rig.now)
    rig.checkpointer.steps = [Step.PAUSED]
    assert rig.out() == []
    rig.proxy.primary_failed(rig.now)
    assert [packet.payload_bytes() for packet in rig.out()] == [b"mine"]


@pytest.mark.parametrize("outcome", [[Step.PAUSED, Step.COMPLETED, Step.RESUMED], [Step.FAILED]])
def test_before_a_checkpoint_the_client_waits_and_is_heard_after_it_whatever_comes_of_it(
    rig: Rig, outcome: list[Step]
) -> None:
    rig.proxy.checkpoints.request("test", rig.now)
    rig.proxy.quiesce()
    rig.client(1, ACK, 1, b"GET")
    assert rig.proxy.to_primary() == rig.proxy.to_secondary() == []
    assert len(rig.primary(rig.p.data(0, b"hi")) + rig.secondary(rig.s.data(0, b"hi"))) == 1
    rig.checkpointer.steps = outcome
    rig.out()
    assert [parsed(frame).payload_bytes() for frame in rig.proxy.to_primary()] == [b"GET"]
    assert [packet.payload_bytes() for packet in rig.to_secondary()] == [b"GET"]


def test_the_secondary_carries_on_in_the_primarys_numbers(rig: Rig) -> None:
    rig.primary(rig.p.data(0, b"both"))
    rig.secondary(rig.s.data(0, b"both"))
    rig.primary(rig.p.data(4, b"only the primary"))
    rig.proxy.primary_failed(rig.now)
    assert rig.out() == []
    (out,) = rig.secondary(rig.s.data(4, b"the secondary"))
    assert (out.seq, out.payload_bytes()) == (1005, b"the secondary")
    assert rig.primary(rig.p.data(4, b"a ghost")) == []
    rig.client(1, ACK, 18)
    assert rig.to_secondary()[-1].ack == (1018 + OFFSET) & 0xFFFF_FFFF
    assert rig.proxy.to_primary() == []
    assert rig.proxy.role is Role.SECONDARY_ALONE


def test_what_the_secondary_had_said_first_leaves_with_the_failover(rig: Rig) -> None:
    rig.secondary(rig.s.data(0, b"ahead"))
    rig.proxy.primary_failed(rig.now)
    assert [packet.payload_bytes() for packet in rig.out()] == [b"ahead"]


@pytest.mark.parametrize("live", [False, True])
def test_who_joins_hears_from_the_copy_on(live: bool) -> None:
    """And is copied once more if the primary may have been given what it had not read when it was copied."""
    rig = Rig(alone=True)
    rig.proxy.join(rig.checkpointer, rig.now, live=live)
    rig.client(0, SYN)
    assert len(rig.primary(rig.p.syn_ack())) == 1
    rig.client(1, ACK, 1, b"before")
    assert (len(rig.proxy.to_primary()), rig.proxy.to_secondary()) == (2, [])
    rig.now += SECOND
    rig.checkpointer.steps = [Step.PAUSED, Step.COMPLETED, Step.RESUMED]
    rig.out()
    assert rig.proxy.protected
    assert rig.checkpointer.asked == ["join", "join"][: 1 + live]
    rig.client(7, ACK, 1, b"behind")
    assert [packet.payload_bytes() for packet in rig.to_secondary()] == [b"behind"]
    assert rig.primary(rig.p.data(0, b"an answer")) == []


def test_a_connection_that_only_the_secondary_has_answered_opens_with_the_failover() -> None:
    """Its client must not have to ask again, a second later."""
    rig = Rig()
    rig.client(0, SYN)
    assert rig.secondary(rig.s.syn_ack()) == []
    rig.proxy.primary_failed(rig.now)
    (out,) = rig.out()
    assert (out.flags, out.seq) == (SYN | ACK, rig.s.iss)


def test_the_last_words_of_connections_that_are_finished_are_not_repeated() -> None:
    """There may be thousands of them, and the others wait."""
    rig = Rig()
    rig.open()
    rig.client(1, ACK | FIN, 1)
    for guest, say in ((rig.p, rig.primary), (rig.s, rig.secondary)):
        guest.acked += 1
        say(guest.fin(0))
    rig.client(2, ACK, 2)
    rig.client(0, SYN, sport=5001)
    for guest, say in ((rig.p, rig.primary), (rig.s, rig.secondary)):
        say(replace(guest, dport=5001, acked=7000).syn_ack())
    rig.client(1, ACK, 1, sport=5001)
    rig.proxy.to_secondary()
    rig.proxy.primary_failed(rig.now)
    assert [packet.sport for packet in rig.to_secondary()] == [5001]


def test_the_primary_carries_on_alone(rig: Rig) -> None:
    rig.primary(rig.p.data(0, b"held"))
    rig.proxy.secondary_failed(rig.now)
    assert [packet.payload_bytes() for packet in rig.out()] == [b"held"]
    assert len(rig.primary(rig.p.data(4, b"more"))) == 1
    assert rig.secondary(rig.s.data(0, b"a ghost")) == []
    rig.client(1, ACK, 9)
    assert rig.proxy.to_secondary() == []


def test_the_clients_last_word_is_repeated_to_a_secondary_that_was_not_heard(rig: Rig) -> None:
    rig.primary(rig.p.data(0, b"hello"))
    rig.secondary(rig.s.data(0, b"hello"))
    rig.client(1, ACK, 6, b"thanks")
    rig.proxy.to_secondary()  # and is lost on the way
    rig.secondary(rig.s.data(0, b"hello"))
    (again,) = rig.to_secondary()
    assert (again.ack, again.seq, again.flags, again.payload_len) == ((1006 + OFFSET) & 0xFFFF_FFFF, 7006, ACK, 0)
    rig.secondary(rig.s.data(5, b"news"))
    assert rig.to_secondary() == []


def test_the_secondarys_arp_request_is_answered_from_what_the_client_has_said(rig: Rig) -> None:
    rig.proxy.from_client(FROM_CLIENT.arp_request(), rig.now)
    rig.proxy.to_secondary()
    question = Crafter(GUEST, CLIENT).arp_request()
    assert rig.secondary(question) == []
    (answer,) = rig.proxy.to_secondary()
    assert answer[22:28] == FROM_CLIENT.src_mac
    assert rig.primary(question) != []


def test_malformed_frames_from_anywhere_are_counted_and_nothing_more(rig: Rig) -> None:
    broken = FROM_CLIENT.ethernet(0x0800, b"\x45" + bytes(10))
    rig.proxy.from_client(broken, rig.now)
    assert rig.secondary(broken, b"", b"x") == []
    rig.proxy.from_client(b"", rig.now)
    assert rig.primary(FROM_CLIENT.ethernet(0x0800, b"\x46" + bytes(10))) == []
    assert rig.proxy.counters["compare.opaque"] == 2
    assert rig.proxy.counters["ipv4.short"] == 5


# ------------------------------------------------------------------------------------------------------------- bounds


def test_differences_that_come_too_often_lead_to_periodic_mode_and_back() -> None:
    rig = Rig(policy=PolicyConfig(hold=2 * SECOND, peace=SECOND))
    rig.checkpointer.automatic = True
    reply = Crafter(GUEST, CLIENT)
    rounds = 0
    while mode(rig) is Mode.COMPARE and rounds < 200:
        rig.primary(reply.udp(53, 900, b"%d" % rounds))
        rig.secondary(reply.udp(53, 900, b"other %d" % rounds))
        rig.now += 20_000
        rig.out()
        rounds += 1
    assert mode(rig) is Mode.PERIODIC
    assert rig.proxy.counters["policy.to_periodic.differences"] == 1
    # Buffered output leaves with the next checkpoint, and only then.
    assert rig.primary(reply.udp(53, 900, b"buffered")) == []
    released = 0
    for _ in range(20):
        rig.now += 20_000
        released += len(rig.out())
    assert released == 1
    for _ in range(400):
        rig.now += 20_000
        rig.out()
    assert mode(rig) is Mode.COMPARE
    assert rig.proxy.counters["policy.to_compare"] == 1
    assert rig.primary(reply.udp(53, 900, b"same")) + rig.secondary(reply.udp(53, 900, b"same")) != []


def test_more_connections_than_can_be_tracked_are_carried_by_checkpoints_and_nothing_is_lost() -> None:
    rig = Rig(compare=CompareConfig(max_flows=500), policy=PolicyConfig(hold=SECOND))
    rig.checkpointer.automatic = True
    reply = Crafter(GUEST, CLIENT)
    released = 0
    for port in range(5000):
        released += len(rig.primary(reply.udp(53, 1000 + port, b"x")))
        rig.now += 1000
    for _ in range(100):
        rig.now += 20_000
        released += len(rig.out())
    assert released == 5000
    assert rig.proxy.counters["policy.to_periodic.table"] == 1
    assert rig.proxy.comparator.flows <= 500
    assert rig.proxy.comparator.held_bytes == 0


def test_a_secondary_that_never_answers_costs_bounded_memory_and_loses_nothing_acknowledged() -> None:
    rig = Rig(compare=CompareConfig(max_held_bytes=1 << 20))
    rig.open()
    for index in range(4000):
        rig.proxy.from_primary(rig.p.data(index * 1000, bytes(1000)), rig.now)
    assert rig.out() == []
    assert rig.proxy.comparator.held_bytes < (1 << 20) + 2000
    assert rig.proxy.counters["compare.primary_dropped"] > 2000
    rig.checkpointer.automatic = True
    rig.now += 60 * SECOND
    rig.out()
    rig.now += 60 * SECOND
    released = rig.out()
    assert sum(packet.payload_len for packet in released) > 900_000
    assert rig.proxy.comparator.held_bytes == 0


def test_a_secondary_that_floods_is_bounded_and_does_no_harm() -> None:
    rig = Rig(compare=CompareConfig(max_queue_size=64, max_flows=1000))
    rig.open()
    reply = Crafter(GUEST, CLIENT)
    tracemalloc.start()
    for index in range(20_000):
        rig.proxy.from_secondary(reply.udp(53, 1000 + index % 40_000, bytes(100)), rig.now)
        rig.proxy.from_secondary(rig.s.data(5 + index, b"y"), rig.now)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 40 << 20
    rig.checkpointer.automatic = True
    rig.out()
    rig.now += SECOND
    rig.out()
    rig.s.iss = rig.p.iss
    assert len(rig.primary(rig.p.data(0, b"fine")) + rig.secondary(rig.s.data(0, b"fine"))) >= 1


def test_a_checkpoint_that_never_completes_is_asked_for_again_and_its_boundary_stands(rig: Rig) -> None:
    """Nothing is released that the secondary, which may have become a copy unbeknown, could contradict."""
    rig.secondary(rig.s.data(0, b"hello, and what it says ahead"))
    rig.primary(rig.p.data(0, b"hallo"))
    rig.checkpointer.steps = [Step.PAUSED]
    rig.out()
    rig.primary(rig.p.data(5, b", and what it says ahead"))  # equal to what the secondary has said before it was copied
    rig.now += 11 * SECOND
    assert rig.out() == []
    assert rig.proxy.counters["checkpoint.timed_out"] == 1
    assert len(rig.checkpointer.asked) == 2
    rig.checkpointer.steps = [Step.COMPLETED, Step.RESUMED]
    assert [packet.payload_bytes() for packet in rig.out()] == [b"hallo"]
    rig.s.iss = rig.p.iss
    (packet,) = rig.secondary(rig.s.data(5, b", and what it says ahead"))
    assert packet.payload_bytes() == b", and what it says ahead"


def test_a_hundred_thousand_half_open_connections_and_a_flood_of_syns_are_bounded() -> None:
    """Spoofed SYNs that both machines answer: the tables stay within their bounds, and the mode follows."""
    rig = Rig(compare=CompareConfig(max_flows=4096), policy=PolicyConfig(hold=SECOND))
    rig.checkpointer.automatic = True
    for index in range(20_000):
        port = 1024 + index % 60_000
        rig.client(0, SYN, sport=port)
        rig.p.dport = rig.s.dport = port
        rig.proxy.from_primary(rig.p.syn_ack(), rig.now)
        rig.proxy.from_secondary(rig.s.syn_ack(), rig.now)
        if not index % 50:
            rig.now += 5000
            rig.out()
            rig.proxy.to_primary()
            rig.proxy.to_secondary()
    assert rig.proxy.comparator.flows <= 4096
    assert len(rig.proxy.tracker) <= rig.proxy.tracker.capacity
    rig.now += 5 * SECOND
    rig.out()
    rig.now += 500 * SECOND
    for _ in range(200):
        rig.now += 50_000
        rig.out()
    assert rig.proxy.tracker.live == 0
    assert rig.proxy.comparator.mode is Mode.COMPARE
    assert rig.proxy.comparator.held_bytes == 0
