"""Everything that broke other stacks, one row each, against a whole gateway with a flow beside it.

For every row: nothing is raised, the counter that names the reason moves, every table stays within its bound, what is
sent in return is bounded, and a connection of somebody else in the same gateway goes on as if nothing had happened.

Numbers in names are the rows of the project's list of what broke other stacks. Rows about the bytes of one header come
from `tests.unit.wire.bad_input_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest

from pystack.frame import LinkInfo
from pystack.slirp.nat import MAX_TCP_FLOWS, MAX_UDP_FLOWS
from pystack.testing.frames import Crafter, packed
from pystack.wire import arp, checksum, dhcp, icmp, udp
from pystack.wire.packet import (
    ACK,
    ETHERTYPE_ARP,
    FIN,
    IP_MF,
    PROTO_ICMP,
    PROTO_UDP,
    PSH,
    RST,
    SYN,
    URG,
    Packet,
    parse_untrusted,
    verify_untrusted,
)
from pystack.wire.tcp import build_options
from tests.unit.slirp.fake_host import FakeSocket, GuestSocket, Rig
from tests.unit.wire.bad_input_rows import ROWS as WIRE_ROWS
from tests.unit.wire.bad_input_rows import Row as WireRow

ATTACKER = "10.0.2.77"
ATTACKER_MAC = b"\x02\0\0\0\0\x77"
GATEWAY_MAC = b"\x52\x55\x0a\x00\x02\x02"
SERVER = "198.51.100.7"
EVERYBODY = b"\xff" * 6

# Who reads these is not part of the gateway: it has no TFTP server, and IPv6 is a later step.
NOT_READ = {"tftp": "slirp.udp_refused_by_policy", "ndp": "ipv6.unsupported"}
# Refused before its reason in the wire's list comes up.
EARLIER = {
    "DNS with 65,535 questions": "dns.bad_question_count",
    "24: UDP over IPv6 without checksum": "ipv6.unsupported",
}

MAX_SIZES = {
    "connections": 2 * MAX_TCP_FLOWS,
    "tcp_flows": MAX_TCP_FLOWS,
    "udp_flows": MAX_UDP_FLOWS,
    "timers": 4 * MAX_TCP_FLOWS,
    "neighbours": 1024,
    "datagrams_in_reassembly": 64,
    "bytes_in_reassembly": 4 << 20,
    "queued_frames": 1024,
    "path_mtus": 256,
    "packets_waiting_for_neighbours": 16 * 1024,
}


class Bench:
    """A gateway, a guest with an open connection, and an attacker on the same link who makes frames by hand."""

    def __init__(self) -> None:
        self.rig = Rig(info=LinkInfo())
        self.wire = Crafter(ATTACKER, SERVER, src_mac=ATTACKER_MAC, dst_mac=GATEWAY_MAC)
        self.to_gateway = self.wire.but(dst="10.0.2.2")
        self.beside: GuestSocket = self.rig.connect()
        self.rig.settle()
        self.remote: FakeSocket = self.rig.sockets[0]
        self.answers: list[Packet] = []
        self.frames_in = 0
        self._seen = len(self.rig.to_guest)
        self.check_beside()

    def send(self, *frames: bytes) -> list[Packet]:
        """The attacker sends ``frames``; returns what the gateway sent to the attacker."""
        for frame in frames:
            self.frames_in += 1
            self.rig.gateway.receive(frame, self.rig.now)
        self.rig.settle()
        return self._take()

    def run(self, seconds: float) -> list[Packet]:
        """Let time go by; returns what the gateway sent to the attacker."""
        self.rig.run(seconds)
        return self._take()

    def _take(self) -> list[Packet]:
        frames = self.rig.to_guest[self._seen :]
        self._seen = len(self.rig.to_guest)
        answers = []
        for frame in frames:
            packet = parse_untrusted(frame, 0, self.rig.counters)
            assert packet is not None, "what we send can be parsed"
            assert verify_untrusted(packet, self.rig.counters, rx_checksum=False), "what we send is right"
            if packet.dst == packed(ATTACKER):
                answers.append(packet)
        self.answers += answers
        return answers

    def check_beside(self) -> None:
        """The flow beside works, both ways."""
        assert self.beside.conn.write(b"ping") == 4
        self.remote.got.clear()
        self.beside.got.clear()
        self.rig.settle()
        self.remote.send(b"pong")
        self.rig.settle()
        self.rig.run(0.05)
        assert self.remote.got == b"ping"
        assert self.beside.got == b"pong"

    def check_bounds(self) -> None:
        """No table is larger than it may be."""
        for name, size in self.rig.gateway.sizes().items():
            assert size <= MAX_SIZES.get(name, 4096), f"{name} holds {size}"

    def dial(self, sport: int = 4000, *, options: bytes = b"", window: int = 65_535) -> Handmade:
        """A connection of the attacker's own, made by hand."""
        seq = 1_000_000
        (answer,) = self.send(self.wire.tcp(sport=sport, dport=80, flags=SYN, seq=seq, options=options, window=window))
        assert answer.flags == SYN | ACK
        conn = Handmade(self, sport, seq + 1, answer.seq + 1)
        conn.send(ACK, window=window)
        return conn

    @property
    def hosts(self) -> list[FakeSocket]:
        """The host's ends of the attacker's connections."""
        return self.rig.sockets[1:]


class Handmade:
    """The attacker's end of a connection: numbers and nothing more."""

    def __init__(self, bench: Bench, sport: int, seq: int, ack: int) -> None:
        self.bench = bench
        self.sport = sport
        self.seq = seq
        self.ack = ack

    def frame(self, flags: int, payload: bytes = b"", *, at: int = 0, acks: int = 0, **fields: object) -> bytes:
        """A segment ``at`` bytes behind what was sent so far, acknowledging ``acks`` bytes more than we know of."""
        return self.bench.wire.tcp(
            sport=self.sport,
            dport=80,
            flags=flags,
            seq=(self.seq + at) & 0xFFFF_FFFF,
            ack=(self.ack + acks) & 0xFFFF_FFFF,
            payload=payload,
            **fields,
        )

    def send(self, flags: int, payload: bytes = b"", **fields: object) -> list[Packet]:
        return self.bench.send(self.frame(flags, payload, **fields))  # type: ignore[arg-type]


Program = Callable[[Bench], object]


class Row(NamedTuple):
    """One case: what is done, and which counters must move (one of several names separated by a bar)."""

    name: str
    program: Program
    counter: str


def frames(make: Callable[[Bench], bytes | Iterable[bytes]]) -> Program:
    """A program that only sends what ``make`` makes."""

    def program(bench: Bench) -> None:
        made = make(bench)
        bench.send(*([made] if isinstance(made, bytes) else made))

    return program


def fragment(bench: Bench, offset: int, data: bytes, *, more: bool, ident: int = 1, options: bytes = b"") -> bytes:
    """One fragment of a UDP datagram to the gateway."""
    field = offset >> 3 | (IP_MF if more else 0)
    return bench.to_gateway.ipv4(PROTO_UDP, data, fragment=field, ident=ident, options=options)


def spoofed(source: str) -> Program:
    """UDP from ``source``, and from port 0."""
    return no_answer(lambda bench: bench.wire.but(src=source).udp(0, 53))


def datagram(size: int) -> bytes:
    """A UDP datagram with its header, from the attacker to a closed port of the gateway."""
    return udp.build(src=packed(ATTACKER), dst=packed("10.0.2.2"), sport=1, dport=9, payload=bytes(size))


# -------------------------------------------------------------------------------------------------- programs for IPv4


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


# --------------------------------------------------------------------------------------------------- programs for TCP


def no_answer(make: Callable[[Bench], bytes]) -> Program:
    """A frame that gets no answer at all."""

    def program(bench: Bench) -> None:
        assert bench.send(make(bench)) == []

    return program


def resets(make: Callable[[Bench], bytes]) -> Program:
    """A frame that is answered by one RST and nothing else."""

    def program(bench: Bench) -> None:
        (answer,) = bench.send(make(bench))
        assert answer.flags & RST

    return program


def urgent(flags: int, pointer: int, payload: bytes) -> Program:
    """30: an urgent pointer beyond the data: what the host gets is the data and not a byte more."""

    def program(bench: Bench) -> None:
        conn = bench.dial()
        conn.send(ACK | URG | flags, payload, urgent=pointer)
        conn.send(ACK | PSH, b"more", at=len(payload) + bool(flags & FIN))
        assert bench.hosts[0].got == payload + (b"" if flags & FIN else b"more")

    return program


def passes_unchanged(port: int, text: bytes) -> Program:
    """9, 10, 16, 18: what other gateways rewrote is only bytes here."""

    def program(bench: Bench) -> None:
        sport = 5000
        (answer,) = bench.send(bench.wire.tcp(sport=sport, dport=port, flags=SYN, seq=7))
        bench.send(bench.wire.tcp(sport=sport, dport=port, flags=ACK, seq=8, ack=answer.seq + 1, payload=text))
        assert bench.hosts[0].got == text

    return program


def tiny_segments_far_ahead(bench: Bench) -> None:
    """SegmentSmack: one byte each, every other one missing."""
    conn = bench.dial()
    for number in range(20_000):
        bench.rig.gateway.receive(conn.frame(ACK, b"x", at=2 + 2 * number), bench.rig.now)
    bench.rig.settle()
    bench._take()
    gateway_end = bench.hosts[0].flow.conn
    assert gateway_end.assembler is not None
    assert gateway_end.assembler.pieces <= gateway_end.config.max_out_of_order


def sack_panic(bench: Bench) -> None:
    """CVE-2019-11477: the least MSS with SACK, then SACK blocks that cut what is in flight to pieces."""
    conn = bench.dial(options=build_options(mss=48, sack_permitted=True))
    bench.hosts[0].send(bytes(200_000))
    bench.rig.settle()
    bench._take()
    for start in range(1, 2000, 16):
        conn.send(ACK, options=build_options(sack=[(conn.ack + start, conn.ack + start + 8)]))
    assert len(bench.answers) <= 125 + 20, "each ACK brings about one segment at most, and a first window"


def odd_sacks(bench: Bench) -> None:
    """Blocks reversed, empty, beyond what was sent, around the whole sequence space."""
    conn = bench.dial(options=build_options(mss=1460, sack_permitted=True))
    bench.hosts[0].send(bytes(8000))
    bench.rig.settle()
    ack = conn.ack
    for left, right in ((ack + 3000, ack + 1000), (ack, ack), (ack + 1, ack + (1 << 31)), (ack - 500, ack - 100)):
        conn.send(ACK, options=build_options(sack=[(left & 0xFFFF_FFFF, right & 0xFFFF_FFFF)]))
    # It still gets everything.
    bench.run(5)
    assert sum(packet.payload_len for packet in bench.answers) >= 8000


def data_in_syn(bench: Bench) -> None:
    syn = bench.wire.tcp(sport=4000, dport=80, flags=SYN, seq=99, payload=b"early")
    (answer,) = bench.send(syn)
    assert answer.flags == SYN | ACK
    assert answer.ack in (100, 105)
    conn = Handmade(bench, 4000, 100, answer.seq + 1)
    conn.send(ACK, b"early and late")
    assert bench.hosts[0].got == b"early and late"


def data_after_fin(bench: Bench) -> None:
    conn = bench.dial()
    conn.send(ACK | FIN, b"last")
    conn.send(ACK, b"words", at=5)
    assert bench.hosts[0].got == b"last"
    assert bench.hosts[0].shutdown


def ack_of_what_was_not_sent(bench: Bench) -> None:
    conn = bench.dial()
    for ahead in (1, 1000, 1 << 30):
        (answer,) = conn.send(ACK, acks=ahead)
        assert (answer.flags, answer.ack) == (ACK, conn.seq)


def optimistic_acks(bench: Bench) -> None:
    """ACK splitting: one byte at a time does not make the sender any faster."""
    conn = bench.dial()
    bench.hosts[0].send(bytes(400_000))
    bench.rig.settle()
    bench._take()
    before = len(bench.answers)
    for acks in range(1, 1400):
        conn.send(ACK, acks=acks)
    # RFC 3465: an ACK counts for what it acknowledges; 1,400 bytes are one segment.
    assert len(bench.answers) - before <= 20


def zero_window_hold(bench: Bench) -> None:
    """Sockstress: the window stays closed, on many connections."""
    for number in range(50):
        conn = bench.dial(sport=4000 + number, window=0)
        bench.hosts[number].send(bytes(100_000))
        conn.send(ACK, window=0)
    bench.run(30)
    assert len(bench.answers) < 50 * 30
    sizes = bench.rig.gateway.sizes()
    assert sizes["connections"] == 51


def window_is_taken_back(bench: Bench) -> None:
    conn = bench.dial(window=60_000)
    bench.hosts[0].send(bytes(50_000))
    bench.rig.settle()
    bench._take()
    conn.send(ACK, window=10)
    bench.run(20)
    probes = [answer for answer in bench.answers if answer.payload_len]
    assert probes
    conn.send(ACK, acks=0, window=60_000)
    bench.run(60)


def syn_then_rst(bench: Bench) -> None:
    """Nothing is left of a connection that was reset before it was one."""
    for number in range(200):
        sport = 10_000 + number
        bench.send(bench.wire.tcp(sport=sport, dport=80, flags=SYN, seq=5))
        bench.send(bench.wire.tcp(sport=sport, dport=80, flags=RST, seq=6))
    bench.run(5)
    assert bench.rig.gateway.sizes()["tcp_flows"] == 1


def syn_flood(bench: Bench) -> None:
    bench.rig.host.outcome = lambda _address, _port: -1  # the host never answers
    for number in range(20_000):
        frame = bench.wire.but(src=f"10.0.2.{16 + number % 80}").tcp(
            sport=1 + number % 60_000, dport=80, flags=SYN, seq=5
        )
        bench.rig.gateway.receive(frame, bench.rig.now)
        if not number % 500:
            bench.rig.host.serve()
    bench.rig.settle()


def blind_reset(bench: Bench) -> None:
    conn = bench.dial()
    answers = bench.send(*(conn.frame(RST, at=at) for at in (1, 100, 20_000)))
    assert all(answer.flags == ACK for answer in answers)
    conn.send(ACK, b"alive")
    assert bench.hosts[0].got == b"alive"


def blind_syn(bench: Bench) -> None:
    conn = bench.dial()
    answers = bench.send(*(conn.frame(SYN, at=at) for at in (0, 5, -100_000)))
    assert answers
    assert all(answer.flags == ACK for answer in answers)
    conn.send(ACK, b"alive")
    assert bench.hosts[0].got == b"alive"


def challenge_storm(bench: Bench) -> None:
    """CVE-2016-5696: challenge ACKs are limited for each connection, not for all of them together."""
    conn = bench.dial()
    answers = bench.send(*(conn.frame(SYN, at=at) for at in range(1000)))
    assert len(answers) <= 20
    other = bench.dial(sport=4001)
    assert other.send(SYN, at=7), "the limit of one connection says nothing about another"


def closed_with_frames_queued(bench: Bench) -> None:
    """6: the flow is reset while its frames wait for a slow link."""
    conn = bench.dial()
    bench.hosts[0].send(bytes(300_000))
    pulled = bench.rig.gateway.frames(bench.rig.now, 2)
    assert pulled
    conn.send(RST)
    bench.run(5)
    assert bench.rig.gateway.sizes()["tcp_flows"] == 1
    assert all(bytes(part) for frame in pulled for part in frame)


def rst_for_rst(bench: Bench) -> None:
    assert bench.send(bench.wire.tcp(sport=9, dport=9, flags=RST, seq=1)) == []
    assert bench.send(bench.wire.tcp(sport=9, dport=9, flags=RST | ACK, seq=1, ack=1)) == []


def window_scale_without_end(bench: Bench) -> None:
    conn = bench.dial(options=b"\x03\x03\xff\x00")
    conn.send(ACK, b"fine", window=1)
    assert bench.hosts[0].got == b"fine"


def least_mss(mss: int) -> Program:
    """MSS 0 and 1: a handful of bytes do not become a handful of frames."""

    def program(bench: Bench) -> None:
        bench.dial(options=build_options(mss=mss))
        bench.hosts[0].send(bytes(10_000))
        bench.rig.settle()
        bench._take()
        sizes = [answer.payload_len for answer in bench.answers if answer.payload_len]
        assert sizes
        assert max(sizes) >= 48

    return program


# --------------------------------------------------------------------------------------------------- programs for UDP


def empty_datagram_from_the_host(bench: Bench) -> None:
    """11: delivered once, and nothing spins."""
    bench.send(bench.wire.udp(7, 53, b"?"))
    flow = bench.rig.host.udp[-1][0]
    bench.rig.gateway.udp.received(flow, b"", (packed(SERVER), 53), bench.rig.now)
    bench.rig.settle()
    (answer,) = bench._take()
    assert (answer.proto, answer.payload_len) == (PROTO_UDP, 0)
    bench.run(1)
    assert len(bench.answers) == 1


def many_udp_flows(bench: Bench) -> None:
    for number in range(20_000):
        bench.rig.gateway.receive(bench.wire.udp(1 + number, 53, b"?"), bench.rig.now)
        if not number % 200:
            bench.rig.settle()
    bench.rig.settle()
    assert bench.rig.gateway.sizes()["udp_flows"] <= 4096


def udp_faster_than_it_is_taken(bench: Bench) -> None:
    for _ in range(3000):
        bench.rig.gateway._stack.receive(bench.wire.udp(7, 53, bytes(1400)), bench.rig.now)
    bench.rig.settle()


# --------------------------------------------------------------------------------------------------- programs for ARP


def arp_scan(bench: Bench) -> None:
    for number in range(16, 255):
        frame = bench.to_gateway.but(src=f"10.0.2.{number}").arp_request()
        bench.rig.gateway.receive(frame, bench.rig.now)
    bench.rig.settle()
    assert bench.rig.gateway.sizes()["neighbours"] <= 256


def arp_from_a_group(bench: Bench) -> bytes:
    message = arp.build(arp.REQUEST, sha=EVERYBODY, spa=packed(ATTACKER), tha=bytes(6), tpa=packed("10.0.2.2"))
    return bench.wire.ethernet(ETHERTYPE_ARP, message)


def arp_for_special_addresses(bench: Bench) -> None:
    before = bench.rig.gateway.sizes()["neighbours"]
    for source in ("0.0.0.0", "0.0.0.9", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.2.255", "10.0.2.2"):
        spoofed = bench.to_gateway.but(src=source)
        for frame in (spoofed.arp_request("10.0.2.200"), spoofed.arp_reply(), spoofed.udp(1, 53)):
            bench.rig.gateway.receive(frame, bench.rig.now)
    bench.rig.settle()
    assert bench.rig.gateway.sizes()["neighbours"] == before


# --------------------------------------------------------------------------------------------------- programs for DHCP


def dhcp_exhaustion(bench: Bench) -> None:
    client = Crafter("0.0.0.0", "255.255.255.255", src_mac=ATTACKER_MAC, dst_mac=EVERYBODY)
    for number in range(2000):
        mac = b"\x02\1\1\1" + number.to_bytes(2, "big")
        message = dhcp.build(dhcp.request(mac, number, {dhcp.OPT_MESSAGE_TYPE: bytes((dhcp.DISCOVER,))}))
        frame = client.but(src_mac=mac).udp(dhcp.CLIENT_PORT, dhcp.SERVER_PORT, message)
        bench.rig.gateway.receive(frame, bench.rig.now)
    bench.rig.settle()


PADDED_DISCOVER = dhcp.build(dhcp.request(ATTACKER_MAC, 9, {dhcp.OPT_MESSAGE_TYPE: bytes((dhcp.DISCOVER,))}))


def dhcp_end_and_pad(bench: Bench) -> None:
    """As in passt 7d0c077: what follows the end is nothing, and a pad has no length."""
    client = Crafter("0.0.0.0", "255.255.255.255", src_mac=ATTACKER_MAC, dst_mac=EVERYBODY)
    message = PADDED_DISCOVER[:240] + b"\0\0\x35\x01\x01\0\xff\x40\x40\x40"
    before = len(bench.rig.to_guest)
    bench.send(client.udp(dhcp.CLIENT_PORT, dhcp.SERVER_PORT, message))
    assert len(bench.rig.to_guest) == before + 1, "it is a good message"


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
    # UDP
    Row("3: source port 0", no_answer(lambda b: b.wire.udp(0, 53, b"?")), "udp.zero_port"),
    Row("passt: destination port 0", no_answer(lambda b: b.wire.udp(53, 0, b"?")), "udp.zero_port"),
    Row("11: empty datagram from the host", empty_datagram_from_the_host, "slirp.udp_flows"),
    Row("UDP from thousands of ports", many_udp_flows, "slirp.udp_evicted|slirp.udp_table_full"),
    Row("UDP faster than it is taken", udp_faster_than_it_is_taken, "udp.queue_full"),
    # TCP
    Row("passt: port 0", frames(lambda b: b.wire.tcp(sport=5, dport=0, flags=SYN)), "tcp.port_zero"),
    Row("no flags", no_answer(lambda b: b.wire.tcp(sport=5, dport=80, flags=0)), "tcp.not_a_syn"),
    Row("SYN and FIN", no_answer(lambda b: b.wire.tcp(sport=5, dport=80, flags=SYN | FIN)), "tcp.not_a_syn"),
    Row("SYN and RST", no_answer(lambda b: b.wire.tcp(sport=5, dport=80, flags=SYN | RST)), "tcp.rst_ignored"),
    Row("all flags", no_answer(lambda b: b.wire.tcp(sport=5, dport=80, flags=0xFF)), "tcp.rst_ignored"),
    Row("ACK for no connection", resets(lambda b: b.wire.tcp(sport=5, dport=80, flags=ACK, ack=9)), "tcp.rst_sent"),
    Row("RST for no connection", rst_for_rst, "tcp.rst_ignored"),
    Row("data in a SYN", data_in_syn, "tcp.passive_open"),
    Row("data after a FIN", data_after_fin, "tcp.text_after_fin|tcp.outside_window"),
    Row("ACK for what was not sent", ack_of_what_was_not_sent, "tcp.ack_beyond_sent|tcp.ack_of_unsent|tcp.ack_too_new"),
    Row("ACK splitting", optimistic_acks, "tcp.established"),
    Row("window scale 255", window_scale_without_end, "tcp.bad_window_scale"),
    Row("MSS 0", least_mss(0), "tcp.tiny_mss"),
    Row("MSS 1", least_mss(1), "tcp.tiny_mss"),
    Row("SACK panic", sack_panic, "tcp.tiny_mss|tcp.established"),
    Row("SACK blocks that cannot be", odd_sacks, "tcp.bad_sack"),
    Row("28: SegmentSmack", tiny_segments_far_ahead, "tcp.out_of_order"),
    Row("30: urgent pointer beyond the data", urgent(0, 1000, b"data"), "tcp.urgent"),
    Row("30: urgent pointer 0xffff", urgent(PSH, 0xFFFF, b"data"), "tcp.urgent"),
    Row("30: urgent pointer 0xffff and a FIN", urgent(FIN, 0xFFFF, b"data"), "tcp.urgent"),
    Row("30: urgent pointer 0 without data", urgent(0, 0, b""), "tcp.urgent"),
    Row("30: urgent pointer without data and a FIN", urgent(FIN, 5, b""), "tcp.urgent"),
    Row("sockstress: windows that stay closed", zero_window_hold, "tcp.window_probe"),
    Row("a window that is taken back", window_is_taken_back, "tcp.window_probe|tcp.retransmission_timeout"),
    Row("SYN, then RST", syn_then_rst, "tcp.rst_received"),
    Row("SYN flood while the host is silent", syn_flood, "tcp.listen_overflow|slirp.tcp_table_full"),
    Row("RST in the window", blind_reset, "tcp.rst_challenged"),
    Row("SYN in a connection", blind_syn, "tcp.syn_in_synchronized_state"),
    Row("challenge ACKs on demand", challenge_storm, "tcp.challenge_ack_throttled"),
    Row("6: closed while frames are queued", closed_with_frames_queued, "tcp.rst_received"),
    Row("9: data for port 113", passes_unchanged(113, b"A" * 1400), "slirp.tcp_opened"),
    Row("10: malformed ident line", passes_unchanged(113, b"80,\r\n,,:\xff\r\n"), "slirp.tcp_opened"),
    Row("16: FTP PORT", passes_unchanged(21, b"PORT 10,0,2,15,255,999\r\n" + b"9" * 500), "slirp.tcp_opened"),
    Row("16: IRC DCC", passes_unchanged(6667, b"PRIVMSG x :\1DCC SEND f 99999999999 99999\1\r\n"), "slirp.tcp_opened"),
    # ARP
    Row("2, 22: ARP for addresses nobody has", arp_for_special_addresses, "arp.bad_sender"),
    Row("ARP from everybody", arp_scan, "arp.learned"),
    Row("ARP sender is a group", frames(arp_from_a_group), "arp.bad_sender"),
    Row(
        "ARP sender is us", frames(lambda b: b.wire.but(src="10.0.2.2").arp_request("10.0.2.2")), "arp.address_conflict"
    ),
    Row(
        "ARP reply that nobody asked for",
        frames(lambda b: b.to_gateway.but(src="10.0.2.99").arp_reply()),
        "arp.unsolicited",
    ),
    # DHCP
    Row("DHCP from thousands of clients", dhcp_exhaustion, "dhcp.pool_exhausted"),
    Row("DHCP with pad, end and bytes behind it", dhcp_end_and_pad, "dhcp.offer"),
]


def whole(row: str) -> Program:
    """A program that sends the frame of a row of the wire's list."""
    (found,) = (candidate for candidate in WIRE_ROWS if candidate.name == row)
    return frames(lambda _bench: found.build())


def reason(row: WireRow) -> str:
    """The counter that a row of the wire's list moves in a gateway."""
    return EARLIER.get(row.name) or NOT_READ.get(row.reader) or row.counter


ALL = [*ROWS, *(Row(row.name, whole(row.name), reason(row)) for row in WIRE_ROWS)]


@pytest.mark.parametrize("row", ALL, ids=[row.name for row in ALL])
def test_bad_input(row: Row) -> None:
    bench = Bench()
    before = bench.rig.counters.snapshot()
    row.program(bench)
    changed = bench.rig.counters.since(before)
    assert any(name in changed for name in row.counter.split("|")), f"{row.counter} did not move, but {changed}"
    bench.check_bounds()
    bench.check_beside()
    # And in the end everything of the attacker's goes by itself.
    bench.run(1)
    bench.check_beside()


def test_names_are_unique() -> None:
    assert len({row.name for row in ALL}) == len(ALL)


def test_checksums_of_rows_are_meant() -> None:
    """A row that is dropped for a checksum it did not mean to break tests nothing."""
    bench = Bench()
    for frame in (bench.wire.udp(1, 2, b"x"), bench.to_gateway.echo(), fragment(bench, 0, bytes(8), more=True)):
        assert checksum.valid(frame[14:34])
