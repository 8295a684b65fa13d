"""The agent's half and the proxy's recorder, in memory: numbers, epochs, and what outlives the primary."""

from __future__ import annotations

from colo.remote.agent import Agent
from colo.remote.recorder import Recorder, headers
from pystack import Counters
from pystack.wire import arp, ethernet, ipv4, tcp
from pystack.wire.packet import ACK, ETHERTYPE_IPV4, FIN, PROTO_TCP, SYN, Packet, parse_untrusted

CLIENT, GUEST = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])
CLIENT_MAC, GUEST_MAC = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
P_ISS, S_ISS, C_ISS = 1000, 777_000, 50


def segment(*, guest: bool, seq: int, ack: int, flags: int, payload: bytes = b"", options: bytes = b"") -> bytes:
    src, dst = (GUEST, CLIENT) if guest else (CLIENT, GUEST)
    ports = (80, 4000) if guest else (4000, 80)
    body = tcp.build(
        src=src,
        dst=dst,
        sport=ports[0],
        dport=ports[1],
        seq=seq,
        ack=ack,
        flags=flags,
        options=options,
        payload=payload,
    )
    header = ipv4.build_header(src=src, dst=dst, proto=PROTO_TCP, payload_len=len(body))
    macs = (CLIENT_MAC, GUEST_MAC) if guest else (GUEST_MAC, CLIENT_MAC)
    return ethernet.build_header(*macs, ETHERTYPE_IPV4) + header + body


def parsed(frame: bytes) -> Packet:
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    return packet


def head(frame: bytes) -> bytes:
    return headers(parsed(frame))


SYN_ACK = segment(guest=True, seq=P_ISS, ack=C_ISS + 1, flags=SYN | ACK)


def opened() -> Agent:
    """An agent in epoch 0, with one connection that both machines have opened, each with its own number."""
    agent = Agent(Counters())
    agent.copied(0)
    agent.from_client(segment(guest=False, seq=C_ISS, ack=0, flags=SYN), 0)
    agent.observe_primary(0, head(SYN_ACK), 0)
    agent.from_secondary(segment(guest=True, seq=S_ISS, ack=C_ISS + 1, flags=SYN | ACK), 0)
    agent.from_client(segment(guest=False, seq=C_ISS + 1, ack=P_ISS + 1, flags=ACK), 0)
    *_, last = agent.to_machine()
    assert parsed(last).ack == S_ISS + 1
    (said,) = agent.output()
    assert parsed(said).seq == P_ISS
    return agent


def test_both_directions_are_translated() -> None:
    agent = opened()
    agent.from_secondary(segment(guest=True, seq=S_ISS + 1, ack=C_ISS + 1, flags=ACK, payload=b"hello"), 0)
    (said,) = agent.output()
    assert (parsed(said).seq, parsed(said).payload_bytes()) == (P_ISS + 1, b"hello")


def test_a_connection_is_followed_also_when_the_secondary_is_first_to_accept() -> None:
    agent = Agent(Counters())
    agent.copied(0)
    agent.from_client(segment(guest=False, seq=C_ISS, ack=0, flags=SYN), 0)
    agent.from_secondary(segment(guest=True, seq=S_ISS, ack=C_ISS + 1, flags=SYN | ACK), 0)
    agent.observe_primary(0, head(SYN_ACK), 0)
    agent.from_client(segment(guest=False, seq=C_ISS + 1, ack=P_ISS + 1, flags=ACK), 0)
    agent.from_secondary(segment(guest=True, seq=S_ISS + 1, ack=C_ISS + 1, flags=ACK | FIN, payload=b"bye"), 0)
    agent.from_client(segment(guest=False, seq=C_ISS + 1, ack=P_ISS + 5, flags=ACK | FIN), 0)
    agent.from_secondary(segment(guest=True, seq=S_ISS + 5, ack=C_ISS + 2, flags=ACK), 0)
    counted = agent.counters.snapshot()
    assert not [name for name in counted if name.startswith("flow.tcp_")], counted
    agent.tick(600_000_000)
    assert agent.counters["flow.ended"] == 1


def answered_by_the_secondary() -> Agent:
    """The primary has not answered yet, or nobody has told of it."""
    agent = Agent(Counters())
    agent.copied(0)
    agent.from_client(segment(guest=False, seq=C_ISS, ack=0, flags=SYN), 0)
    agent.from_secondary(segment(guest=True, seq=S_ISS, ack=C_ISS + 1, flags=SYN | ACK), 0)
    assert agent.output() == []
    return agent


def test_the_proxy_hears_of_an_opening_when_the_primarys_number_is_known_here() -> None:
    """What it releases then, a client lives with, and the primary's host may be lost in the next moment."""
    agent = answered_by_the_secondary()
    agent.observe_primary(0, head(SYN_ACK), 0)
    (said,) = agent.output()
    assert parsed(said).flags == SYN | ACK
    agent.fail_over(1)
    agent.from_client(segment(guest=False, seq=C_ISS + 1, ack=P_ISS + 1, flags=ACK), 2)
    assert parsed(agent.to_machine()[-1]).ack == S_ISS + 1


def test_an_opening_that_the_proxy_has_not_heard_of_is_the_clients_after_a_failover() -> None:
    agent = answered_by_the_secondary()
    agent.fail_over(1)
    said = [parsed(frame) for frame in agent.output()]
    assert [(packet.flags, packet.seq) for packet in said if packet.proto == PROTO_TCP] == [(SYN | ACK, S_ISS)]
    agent.from_client(segment(guest=False, seq=C_ISS + 1, ack=S_ISS + 1, flags=ACK), 2)
    assert parsed(agent.to_machine()[-1]).ack == S_ISS + 1


def test_an_opening_of_an_earlier_epoch_is_of_no_interest() -> None:
    """The machine is a copy, and has the primary's numbers; both repeat themselves at the same time."""
    agent = answered_by_the_secondary()
    agent.stopped()
    agent.copied(1)
    agent.from_secondary(segment(guest=True, seq=P_ISS, ack=C_ISS + 1, flags=SYN | ACK), 1)
    agent.observe_primary(1, head(SYN_ACK), 1)
    assert [parsed(frame).seq for frame in agent.output()] == [P_ISS]


def test_openings_that_wait_are_bounded() -> None:
    agent = Agent(Counters())
    agent.copied(0)
    for port in range(2000):
        frame = bytearray(segment(guest=True, seq=S_ISS, ack=C_ISS + 1, flags=SYN | ACK))
        frame[36:38] = port.to_bytes(2, "big")  # the checksum is nobody's concern here
        agent.from_secondary(bytes(frame), 0)
    assert agent.output() == []
    agent.fail_over(1)
    assert len(agent.output()) == 2000 - agent.counters["remote.syn_dropped"] == 1024


def test_the_numbers_outlive_the_primary() -> None:
    agent = opened()
    agent.fail_over(1)
    (woken,) = agent.to_machine()  # the client's last word
    assert parsed(woken).ack == S_ISS + 1
    agent.from_client(segment(guest=False, seq=C_ISS + 1, ack=P_ISS + 1, flags=ACK, payload=b"ask"), 2)
    agent.from_secondary(segment(guest=True, seq=S_ISS + 1, ack=C_ISS + 4, flags=ACK, payload=b"answer"), 3)
    assert parsed(agent.to_machine()[0]).ack == S_ISS + 1
    assert parsed(agent.output()[-1]).seq == P_ISS + 1


def test_what_comes_while_the_machine_stands_still_is_read_in_the_next_epoch() -> None:
    agent = opened()
    agent.stopped()
    agent.from_client(segment(guest=False, seq=C_ISS + 1, ack=P_ISS + 1, flags=ACK, payload=b"ask"), 0)
    assert agent.to_machine() == []
    agent.copied(0)
    (frame,) = agent.to_machine()
    assert parsed(frame).ack == P_ISS + 1  # the machine is a copy, and has the primary's numbers


def test_what_the_primary_said_in_an_earlier_epoch_comes_too_late() -> None:
    """The copy has said it, too; a connection that waits for its number would wait for ever."""
    agent = Agent(Counters())
    agent.copied(0)
    agent.stopped()
    agent.copied(0)
    agent.observe_primary(0, head(SYN_ACK), 0)
    assert agent.counters["remote.primary_late"] == 1
    client = segment(guest=False, seq=C_ISS + 1, ack=P_ISS + 1, flags=ACK)
    agent.from_client(client, 0)
    assert agent.to_machine() == [client]


def test_a_machine_that_stood_still_at_the_failover_goes_on_with_what_was_kept() -> None:
    agent = opened()
    agent.stopped()
    agent.from_client(segment(guest=False, seq=C_ISS + 1, ack=P_ISS + 1, flags=ACK, payload=b"ask"), 0)
    agent.fail_over(0)
    assert [parsed(frame).payload_bytes() for frame in agent.to_machine()] == [b"", b"ask"]


def test_the_addresses_that_were_seen_are_announced() -> None:
    agent = opened()
    agent.fail_over(0)
    frames = []
    for now in range(0, 5_000_000, 100_000):
        agent.tick(now)
        frames += agent.output()
    assert frames == [arp.build_request(sha=GUEST_MAC, spa=GUEST, tpa=GUEST)] * 2


def test_the_recorder_tells_of_syns_and_of_clocks_that_move() -> None:
    told: list[tuple[int, bytes]] = []
    recorder = Recorder()
    recorder.observe_primary(parsed(SYN_ACK), 0)
    recorder.begin(lambda epoch, frame: told.append((epoch, frame)))
    recorder.observe_primary(parsed(SYN_ACK), 0)
    assert told == []  # no copy was made yet
    recorder.checkpoint()
    recorder.observe_primary(parsed(SYN_ACK), 0)
    recorder.observe_primary(parsed(SYN_ACK), 0)
    assert told == [(0, head(SYN_ACK))] * 2
    for tsval in (5, 5, 6):
        frame = stamped(tsval)
        recorder.observe_primary(parsed(frame), 0)
    assert [parsed(frame).payload_len for _, frame in told[2:]] == [0, 0]
    recorder.checkpoint()
    recorder.observe_primary(parsed(stamped(6)), 0)
    assert told[-1][0] == 1
    recorder.end()
    recorder.observe_primary(parsed(SYN_ACK), 0)
    assert len(told) == 5


def stamped(tsval: int) -> bytes:
    """A data segment of the guest with a timestamp."""
    options = tcp.build_options(timestamps=(tsval, 0))
    return segment(guest=True, seq=P_ISS + 1, ack=C_ISS + 1, flags=ACK, payload=b"data", options=options)
