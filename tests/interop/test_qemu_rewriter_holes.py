"""Where QEMU 7.2's filter-rewriter and filter-redirector are wrong, shown: the same frames into QEMU and into ours."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from pystack import Counters
from pystack.flow.rewriter import Rewriter
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, PSH, RST, SYN, Packet, parse_untrusted, verify_untrusted
from tests.interop.qemu_judge import rewriting
from tests.interop.qemu_judge.filters import Filters, mirror_command, qemu_mirrors, qemu_rewriter
from tests.interop.qemu_judge.rewriting import TO_CLIENT, TO_GUEST, Case, Connection

pytestmark = pytest.mark.requires("qemu")

CLIENT_ISS, P_ISS, S_ISS = 7000, 1000, 5000
OFFSET = S_ISS - P_ISS
_PORTS = iter(range(20_000, 30_000))


@pytest.fixture(scope="module")
def filters() -> Iterator[Filters]:
    with qemu_rewriter() as found:
        yield found


def connection(*, stamps: bool = False) -> Connection:
    wire = Crafter("10.201.0.1", "192.0.2.1")
    return Connection(random.Random(1), wire, CLIENT_ISS, P_ISS, S_ISS, stamps, port=next(_PORTS))


def answers(filters: Filters, made: Connection) -> tuple[rewriting.Outcome, rewriting.Outcome]:
    """QEMU's answer, and ours beside the primary, which must be the right one."""
    case = Case(0, "hole", tuple(made.steps))
    ours = rewriting.put_to_ours(case, observing=True)
    assert ours == rewriting.wanted(case, observing=True)
    assert rewriting.put_to_ours(case, observing=False) == rewriting.wanted(case, observing=False)
    return rewriting.put_to_qemu(filters, case), ours


def parsed(frame: bytes) -> Packet:
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    return packet


def test_a_connection_of_the_client(filters: Filters) -> None:
    """What QEMU can do: but for the SYN-ACK all is translated, and the checksums are right."""
    made = connection()
    made.open()
    made.client(ACK | PSH, payload=b"GET")
    made.secondary(acked=3)
    qemu, ours = answers(filters, made)
    assert qemu[TO_GUEST] == ours[TO_GUEST]
    assert qemu[TO_CLIENT][1:] == ours[TO_CLIENT][1:]
    assert parsed(qemu[TO_CLIENT][0]).seq == S_ISS
    assert parsed(ours[TO_CLIENT][0]).seq == P_ISS


def test_a_late_syn_moves_nothing(filters: Filters) -> None:
    """QEMU begins to learn again, and subtracts a second time."""
    made = connection()
    made.open()
    made.client(ACK | PSH, payload=b"GET")
    made.client(SYN)
    made.client(ACK | PSH, offset=3, payload=b"GET")
    qemu, ours = answers(filters, made)
    assert parsed(ours[TO_GUEST][-1]).ack == S_ISS + 1
    assert parsed(qemu[TO_GUEST][-1]).ack == S_ISS + 1 - P_ISS


def test_an_early_acknowledgement_waits(filters: Filters) -> None:
    """The primary answered first, as it does half of the time: QEMU's secondary sees an acknowledgement of nothing."""
    made = connection()
    made.client(SYN)
    made.primary(SYN | ACK)
    made.client()
    made.secondary(SYN | ACK)
    made.client(ACK | PSH, payload=b"GET")
    qemu, ours = answers(filters, made)
    assert [parsed(frame).ack for frame in ours[TO_GUEST][1:]] == [S_ISS + 1] * 2
    assert parsed(qemu[TO_GUEST][1]).ack == 1


def test_a_handshake_that_a_checkpoint_interrupts(filters: Filters) -> None:
    made = connection()
    rewriting.checkpointed_half_open(made)
    qemu, ours = answers(filters, made)
    assert parsed(ours[TO_GUEST][1]).ack == P_ISS + 1
    assert parsed(qemu[TO_GUEST][1]).ack == 1


def test_a_connection_of_the_guest(filters: Filters) -> None:
    """QEMU's secondary gets a SYN-ACK of a SYN that it has not sent, and refuses it."""
    made = connection()
    made.primary(SYN)
    made.secondary(SYN)
    made.client(SYN | ACK)
    made.secondary()
    qemu, ours = answers(filters, made)
    assert parsed(ours[TO_GUEST][0]).ack == S_ISS + 1
    assert parsed(qemu[TO_GUEST][0]).ack == P_ISS + 1


def test_selective_acknowledgements(filters: Filters) -> None:
    made = connection()
    made.open()
    made.client(sack=[(100, 200)])
    qemu, ours = answers(filters, made)
    edges = [_options(outcome[TO_GUEST][-1]).sack for outcome in (qemu, ours)]
    assert edges == [((P_ISS + 101, P_ISS + 201),), ((S_ISS + 101, S_ISS + 201),)]


def test_timestamps(filters: Filters) -> None:
    """After a failover the client drops whatever is older than what it saw of the primary (RFC 7323 section 5.3)."""
    made = connection(stamps=True)
    made.open()
    made.secondary(payload=b"data")
    qemu, ours = answers(filters, made)
    stamps = [_options(outcome[TO_CLIENT][-1]).timestamps for outcome in (qemu, ours)]
    assert stamps == [(made.s_ts, made.c_ts), (made.p_ts, made.c_ts)]


def _options(frame: bytes) -> tcp.TcpOptions:
    packet = parsed(frame)
    return tcp.parse_options_untrusted(frame, packet.l4 + 20, packet.payload, Counters())


def test_a_reset_without_acknowledgement(filters: Filters) -> None:
    """The client judges it by its number alone (RFC 9293 section 3.10.7.4), and does not believe QEMU's."""
    made = connection()
    made.open()
    made.secondary(RST)
    qemu, ours = answers(filters, made)
    assert parsed(qemu[TO_CLIENT][-1]).seq == S_ISS + 1
    assert parsed(ours[TO_CLIENT][-1]).seq == P_ISS + 1


def test_a_wrong_checksum_stays_wrong(filters: Filters) -> None:
    made = connection()
    rewriting.damaged(made)
    qemu, ours = answers(filters, made)
    assert verify_untrusted(parsed(qemu[TO_GUEST][-1]), Counters(), rx_checksum=True)
    assert not verify_untrusted(parsed(ours[TO_GUEST][-1]), Counters(), rx_checksum=True)


@pytest.mark.parametrize("kind", [rewriting.tagged, rewriting.quoted], ids=["tagged", "quoted"])
def test_what_qemu_does_not_translate(filters: Filters, kind: Callable[[Connection], None]) -> None:
    """Frames with VLAN tags, and ICMP errors, which quote the other machine's numbers."""
    made = connection()
    kind(made)
    qemu, ours = answers(filters, made)
    sent = [step.frame for step in made.steps if step.who == "client"]
    assert qemu[TO_GUEST][-1] == sent[-1] != ours[TO_GUEST][-1]


def test_many_connections() -> None:
    """94c36c4875, 6214231abd, a18d436954: the 16,386th connection has QEMU forget the offsets of all."""
    wire = Crafter("10.202.0.1", "192.0.2.1")
    first = Connection(random.Random(1), wire, CLIENT_ISS, P_ISS, S_ISS, stamps=False, port=1)
    first.open()
    at = len(first.steps)
    first.client(ACK | PSH, payload=b"GET")
    others = [
        Connection(
            random.Random(1),
            wire.but(dst=f"192.0.2.{2 + index // 10_000}"),
            1,
            2,
            3,
            stamps=False,
            port=1000 + index % 10_000,
        )
        for index in range(16_400)
    ]
    for other in others:
        other.client(SYN)
    steps = [*first.steps[:at], *(other.steps[0] for other in others), *first.steps[at:]]
    case = Case(0, "hole", tuple(steps))
    with qemu_rewriter() as crowded:
        qemu = rewriting.put_to_qemu(crowded, case)
    ours = rewriting.put_to_ours(case, observing=True)
    assert parsed(qemu[TO_GUEST][-1]).ack == P_ISS + 1
    assert parsed(ours[TO_GUEST][-1]).ack == S_ISS + 1


def test_connections_end() -> None:
    """6214231abd, 013a62020a, 24525e93c1: QEMU keeps them, since it compares numbers of two spaces; ours ends."""
    made = connection()
    rewriting.ended(made)
    rewriter = Rewriter()
    for step in made.steps:
        packet = parsed(step.frame)
        if step.who == "client":
            rewriter.to_secondary(packet, 0)
        elif step.who == "secondary":
            rewriter.from_secondary(packet, 0)
        else:
            rewriter.observe_primary(packet, 0)
    assert len(rewriter) == 1
    rewriter.tick(rewriter.config.closing_timeout + 1)
    assert len(rewriter) == 0


def test_a_redirector_takes_its_next_peer() -> None:
    """5193528b9f: QEMU 7.2 never reads from the second one."""
    frame = Crafter("10.203.0.1", "192.0.2.1").arp_request()
    with qemu_mirrors() as qemu:
        qemu.given.send(frame)
        assert qemu.leaves("near") == frame
        qemu.reconnect_given()
        qemu.given.send(frame)
        with pytest.raises(TimeoutError):
            qemu.leaves("near", patience=0.1)
    with mirror_command() as ours:
        ours.source.send(frame)
        assert ours.out.receive() == (0, frame)
        ours.reconnect()
        ours.source.send(frame)
        assert ours.out.receive() == (0, frame)
