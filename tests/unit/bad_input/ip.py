"""Ethernet, IPv4 and its fragments, ICMP: see `tests.unit.test_bad_input`."""

from __future__ import annotations

from pystack.testing.frames import Crafter
from pystack.wire import icmp
from pystack.wire.packet import (
    ACK,
    PROTO_ICMP,
    SYN,
)
from tests.unit.bad_input.bench import (
    EVERYBODY,
    GATEWAY_MAC,
    SERVER,
    Bench,
    Program,
    Row,
    datagram,
    fragment,
    frames,
    no_answer,
    spoofed,
)


def overlap(first: tuple[int, int], second: tuple[int, int]) -> Program:
    """Two fragments, each as (offset, length), whose bytes differ where they meet."""

    def program(bench: Bench) -> None:
        bench.send(fragment(bench, first[0], b"A" * first[1], more=True))
        bench.send(fragment(bench, second[0], b"B" * second[1], more=True))
        bench.send(fragment(bench, 4000, b"C" * 8, more=False))
        assert bench.answers == []

    return program


def many_out_of_order(bench: Bench) -> None:
    whole = datagram(1600)
    pieces = [fragment(bench, at, whole[at : at + 8], more=at + 8 < len(whole)) for at in range(0, len(whole), 8)]
    bench.send(*pieces[::2], *reversed(pieces[1::2]))
    assert bench.rig.counters["ipv4.reassembled"] == 1


def tiny_first_then_large(bench: Bench) -> None:
    whole = datagram(2000)
    pieces = ((0, 8), (8, 1400), (1408, 600))
    bench.send(*(fragment(bench, at, whole[at : at + size], more=at + size < len(whole)) for at, size in pieces))


def options_before_the_rest(bench: Bench) -> None:
    """8: fragment zero has the longest header there is, the others have none."""
    whole = datagram(1000)
    bench.send(
        fragment(bench, 504, whole[504:], more=False), fragment(bench, 0, whole[:504], more=True, options=b"\1" * 40)
    )


def fragment_flood(bench: Bench) -> None:
    for ident in range(5000):
        bench.rig.gateway.receive(fragment(bench, 0, bytes(1400), more=True, ident=ident), bench.rig.now)
    bench.rig.settle()
    assert bench.rig.gateway.sizes()["datagrams_in_reassembly"] == 64


def fragment_smack(bench: Bench) -> None:
    for number in range(8000):
        frame = fragment(bench, 16 * (number % 4000), bytes(8), more=True, ident=number // 4000)
        bench.rig.gateway.receive(frame, bench.rig.now)
    bench.rig.settle()


def never_completed(bench: Bench) -> None:
    bench.send(fragment(bench, 0, datagram(2000)[:1400], more=True))
    bench.run(30)
    bench.send(bench.to_gateway.arp_request())  # or the gateway would have to ask where to send the error
    bench.run(31)
    assert [answer.payload_bytes()[:2] for answer in bench.answers] == [b"\x0b\x01"]
    assert bench.rig.gateway.sizes()["bytes_in_reassembly"] == 0


def foreign_quote(bench: Bench) -> None:
    """An error that quotes a connection of somebody else, sent by who is no party to it."""
    conn = bench.beside.conn
    forged = Crafter("198.51.100.7", "10.0.2.15").tcp(sport=80, dport=conn.local_port, seq=1, flags=ACK)
    bench.send(bench.to_gateway.icmp_error(icmp.UNREACHABLE, 2, forged[14:]))


def quote_of_our_connection(bench: Bench, kind: int, code: int, extra: int = 0) -> None:
    """The attacker forges an error about the flow beside; it does not know the sequence numbers."""
    conn = bench.beside.conn
    quoted = Crafter(SERVER, "10.0.2.15").tcp(sport=80, dport=conn.local_port, seq=0x1234_5678, flags=ACK)
    bench.send(bench.wire.but(dst=SERVER).icmp_error(kind, code, quoted[14:], extra))


def error_storm(bench: Bench) -> None:
    for _ in range(3000):
        bench.rig.gateway.receive(bench.to_gateway.ipv4(132, bytes(64)), bench.rig.now)
    bench.rig.settle()
    bench._take()
    assert len(bench.answers) <= 60


ROWS = [
    # Ethernet and framing
    Row("1: frame above the MTU", frames(lambda b: b.wire.udp(1, 2, bytes(2000))), "ethernet.oversize"),
    Row("12: giant first fragment", frames(lambda b: fragment(b, 0, bytes(60_000), more=True)), "ethernet.oversize"),
    Row("15: NC-SI, and any EtherType, empty", frames(lambda b: b.wire.ethernet(0x88F8, b"")), "ethernet.unknown_type"),
    Row("15: NC-SI of odd length", frames(lambda b: b.wire.ethernet(0x88F8, bytes(33))), "ethernet.unknown_type"),
    Row("source is a group", frames(lambda b: b.wire.but(src_mac=EVERYBODY).echo()), "ethernet.bad_source"),
    Row("our own frame comes back", frames(lambda b: b.wire.but(src_mac=GATEWAY_MAC).echo()), "ethernet.bad_source"),
    # IPv4 addresses
    *(
        Row(f"2, 3: source {source}", spoofed(source), "ipv4.bad_source")
        for source in ("0.0.0.0", "0.0.0.1", "127.0.0.1", "224.0.0.5", "240.0.0.1", "255.255.255.255", "10.0.2.255")
    ),
    Row(
        "LAND: source is destination",
        no_answer(lambda b: b.to_gateway.but(src="10.0.2.2").tcp(sport=80, dport=80, flags=SYN)),
        "ipv4.bad_source",
    ),
    Row(
        "SYN from the unspecified address",
        no_answer(lambda b: b.wire.but(src="0.0.0.0").tcp(sport=1, dport=80, flags=SYN)),
        "ipv4.bad_source",
    ),
    Row(
        "SYN to a broadcast address",
        no_answer(lambda b: b.wire.but(dst="10.0.2.255", dst_mac=EVERYBODY).tcp(sport=1, dport=80, flags=SYN)),
        "ipv4.broadcast_ignored",
    ),
    Row(
        "SYN to a multicast address",
        no_answer(lambda b: b.wire.but(dst="224.0.0.1").tcp(sport=1, dport=80, flags=SYN)),
        "ipv4.multicast_ignored",
    ),
    Row(
        "SYN to one host in a frame to all",
        no_answer(lambda b: b.wire.but(dst_mac=EVERYBODY).tcp(sport=1, dport=80, flags=SYN)),
        "ipv4.group_frame",
    ),
    Row(
        "UDP to a multicast group", no_answer(lambda b: b.wire.but(dst="239.1.2.3").udp(5, 6)), "ipv4.multicast_ignored"
    ),
    Row(
        "source off the network",
        no_answer(lambda b: b.wire.but(src="192.0.2.9").tcp(sport=1, dport=80, flags=SYN)),
        "ipv4.no_route",
    ),
    Row(
        "source route",
        no_answer(lambda b: b.to_gateway.ipv4(PROTO_ICMP, bytes(8), options=b"\x83\x07\x04\x0a\0\2\2\0")),
        "ipv4.source_route|icmp.bad_checksum",
    ),
    # Fragments
    Row("7: tiny first fragment, large rest", tiny_first_then_large, "ipv4.reassembled"),
    Row("8: fragment zero with the longest header", options_before_the_rest, "ipv4.reassembled"),
    Row("13: overlap at the head", overlap((16, 32), (0, 24)), "ipv4.fragment_overlap"),
    Row("13: overlap at the tail", overlap((0, 32), (24, 32)), "ipv4.fragment_overlap"),
    Row("13: a piece engulfs another", overlap((16, 16), (0, 64)), "ipv4.fragment_overlap"),
    Row("13: a piece within another", overlap((0, 64), (16, 16)), "ipv4.fragment_overlap"),
    Row("13: the same piece with other bytes", overlap((0, 64), (0, 64)), "ipv4.fragment_overlap"),
    Row(
        "13: the same piece again",
        frames(lambda b: [fragment(b, 0, bytes(64), more=True)] * 3),
        "ipv4.fragment_duplicate",
    ),
    Row("14: many fragments out of order", many_out_of_order, "ipv4.reassembled"),
    Row(
        "ping of death",
        frames(lambda b: fragment(b, 65_528, bytes(1000), more=False)),
        "ipv4.fragment_too_big",
    ),
    Row("fragment of no bytes", frames(lambda b: fragment(b, 8, b"", more=True)), "ipv4.fragment_empty"),
    Row("fragment of 9 bytes", frames(lambda b: fragment(b, 0, bytes(9), more=True)), "ipv4.fragment_misaligned"),
    Row(
        "two last fragments",
        frames(lambda b: [fragment(b, 64, bytes(8), more=False), fragment(b, 32, bytes(8), more=False)]),
        "ipv4.fragment_inconsistent",
    ),
    Row("fragments of thousands of datagrams", fragment_flood, "ipv4.reassembly_evicted"),
    Row("FragmentSmack", fragment_smack, "ipv4.fragment_too_many"),
    Row("a datagram that is never complete", never_completed, "ipv4.reassembly_timeout"),
    # ICMP
    Row("error about a flow of somebody else", foreign_quote, "icmp.foreign_quote"),
    Row("forged port unreachable", lambda b: quote_of_our_connection(b, 3, 3), "icmp.foreign_quote|tcp.icmp_not_ours"),
    Row("forged MTU of 68", lambda b: quote_of_our_connection(b, 3, 4, 68), "icmp.foreign_quote|tcp.icmp_not_ours"),
    Row("source quench", lambda b: quote_of_our_connection(b, 4, 0), "icmp.source_quench_ignored"),
    Row("redirect", lambda b: quote_of_our_connection(b, 5, 1), "icmp.redirect_ignored"),
    Row("type that nobody knows", no_answer(lambda b: b.to_gateway.ipv4(1, icmp.build(99, 0, 0))), "icmp.unknown_type"),
    Row("reply that nobody waits for", no_answer(lambda b: b.to_gateway.echo(kind=0)), "icmp.reply_unexpected"),
    Row(
        "echo to everybody",
        no_answer(lambda b: b.wire.but(dst="10.0.2.255", dst_mac=EVERYBODY).echo()),
        "ipv4.broadcast_ignored",
    ),
    Row("a storm of what asks for errors", error_storm, "icmp.error_rate_limited"),
]
