"""TCP: see `tests.unit.test_bad_input`."""

from __future__ import annotations

from pystack.wire.packet import (
    ACK,
    FIN,
    PSH,
    RST,
    SYN,
    URG,
)
from pystack.wire.tcp import build_options
from tests.unit.bad_input.bench import Bench, Handmade, Program, Row, frames, no_answer, resets


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


ROWS = [
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
]
