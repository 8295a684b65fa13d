"""TCP through the gateway, against a host whose every answer the test chooses."""

from __future__ import annotations

import errno

import pytest

from pystack.clock import SECOND
from pystack.frame import LinkInfo
from pystack.slirp import nat
from pystack.tcp.config import TcpConfig
from pystack.tcp.events import TcpError
from pystack.testing.frames import Crafter
from pystack.wire.packet import ACK, RST, SYN
from tests.unit.slirp.fake_host import GUEST, GUEST_MAC, HOLD, REMOTE, FakeSocket, GuestSocket, Rig

GATEWAY_MAC = b"\x52\x55\x0a\x00\x02\x02"
WIRE = Crafter(GUEST, "198.51.100.7", src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC)
TSO = LinkInfo(vnet_hdr_len=12, rx_checksum=True, tx_checksum=True, tso4=True)


def opened(rig: Rig, local_port: int = 0) -> tuple[GuestSocket, FakeSocket]:
    guest = rig.connect(local_port=local_port)
    rig.settle()
    assert guest.opened
    return guest, rig.sockets[-1]


def tcp_flags(frames: list[bytes]) -> list[int]:
    return [frame[47] for frame in frames if frame[12:14] == b"\x08\0" and frame[23] == 6]


# ------------------------------------------------------------------------------------------------------------ opening


def test_the_handshake_is_completed_only_when_the_host_is_connected() -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: HOLD
    guest = rig.connect(REMOTE, 8080)
    rig.run(0.5)
    assert rig.host.dialled == [(REMOTE, 8080)]
    assert guest.happened == 0
    assert tcp_flags(rig.to_guest) == []
    rig.host.decide(rig.sockets[0].flow, 0)
    rig.settle()
    assert guest.opened
    assert tcp_flags(rig.to_guest)[0] == SYN | ACK
    assert rig.counters["slirp.tcp_opened"] == 1


def test_a_refused_port_is_refused_at_once() -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: errno.ECONNREFUSED
    guest = rig.connect()
    rig.settle()
    assert guest.conn.error is TcpError.REFUSED
    assert tcp_flags(rig.to_guest) == [RST | ACK]
    assert len(rig.gateway.tcp) == 0
    assert rig.counters["slirp.dial_refused"] == 1
    assert rig.gateway.stats().tcp_refused == 1


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EHOSTUNREACH, 1), (errno.ENETUNREACH, 0), (errno.EACCES, 13)],
)
def test_no_route_becomes_the_icmp_error_that_says_so(number: int, code: int) -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: number
    guest = rig.connect(port=81, local_port=40_000)
    rig.settle()
    assert tcp_flags(rig.to_guest) == []
    (message,) = [frame[34:] for frame in rig.to_guest if frame[23] == 1]
    assert (message[0], message[1]) == (3, code)
    quoted = message[8:]
    assert quoted[12:16] == guest.conn.local_addr
    assert quoted[16:20] == REMOTE
    assert quoted[20:24] == (40_000).to_bytes(2, "big") + (81).to_bytes(2, "big")
    assert int.from_bytes(quoted[24:28], "big") == guest.conn.iss & 0xFFFF_FFFF
    assert rig.counters["slirp.dial_unreachable"] == 1
    assert rig.stack.counters["tcp.icmp_not_ours"] == 0
    assert len(rig.gateway.tcp) == 0


def test_a_dial_that_times_out_is_silence_for_the_guest_too() -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: errno.ETIMEDOUT
    guest = rig.connect()
    rig.settle()
    assert tcp_flags(rig.to_guest) == []
    assert not guest.over
    assert rig.counters["slirp.dial_timed_out"] == 1


def test_a_retransmitted_syn_does_not_dial_again() -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: HOLD
    guest = rig.connect()
    rig.run(8)
    assert tcp_flags(rig.to_gateway).count(SYN) > 2
    assert len(rig.host.dialled) == 1
    rig.host.decide(rig.sockets[0].flow, 0)
    rig.settle()
    assert guest.opened


def test_the_guests_rst_during_a_dial_ends_the_dial() -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: HOLD
    rig.inject(WIRE.tcp(sport=1000, dport=80, seq=7, flags=SYN))
    rig.settle()
    rig.inject(WIRE.tcp(sport=1000, dport=80, seq=8, flags=RST))
    rig.settle()
    (socket,) = rig.sockets
    assert socket.ends == "reset"
    assert len(rig.gateway.tcp) == 0
    rig.gateway.tcp.dialled(socket.flow, rig.now)  # the host's answer was under way already
    rig.gateway.tcp.dial_failed(socket.flow, errno.ECONNREFUSED, rig.now)
    rig.settle()
    assert SYN | ACK not in tcp_flags(rig.to_guest)


def test_many_dials_wait_side_by_side() -> None:
    rig = Rig()
    rig.host.outcome = lambda _address, port: HOLD if port == 81 else 0
    stuck = [rig.connect(port=81) for _ in range(500)]
    free = rig.connect(port=80)
    rig.settle()
    assert free.opened
    assert not any(guest.opened for guest in stuck)
    assert len(rig.gateway.tcp) == 501


def test_a_dial_that_the_host_never_decides_is_given_up() -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: HOLD
    rig.inject(WIRE.tcp(sport=1000, dport=80, seq=7, flags=SYN))
    rig.run(nat.TCP_DIAL / SECOND + nat.SWEEP_INTERVAL / SECOND + 1)
    assert rig.sockets[0].ends == "reset"
    assert len(rig.gateway.tcp) == 0


def test_at_the_tables_bound_a_new_connection_is_refused_and_the_others_go_on() -> None:
    rig = Rig(max_tcp_flows=2)
    first, _ = opened(rig)
    opened(rig)
    third = rig.connect()
    rig.settle()
    assert third.conn.error is TcpError.REFUSED
    assert rig.counters["slirp.tcp_table_full"] == 1
    first.conn.write(b"still here")
    rig.settle()
    assert rig.sockets[0].got == b"still here"


def test_want_of_descriptors_refuses_and_counts() -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: errno.EMFILE
    guest = rig.connect()
    rig.settle()
    assert guest.conn.error is TcpError.REFUSED
    assert rig.counters["slirp.dial_exhausted"] == 1


# --------------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize("info", [LinkInfo(), TSO], ids=["plain", "tso"])
def test_bytes_pass_both_ways_and_both_ends_close(info: LinkInfo) -> None:
    rig = Rig(info=info)
    guest, host = opened(rig)
    up, down = bytes(range(256)) * 2000, bytes(range(255)) * 2000
    guest.conn.write(up)
    host.send(down)
    guest.conn.shutdown()
    host.finish()
    rig.run(1)
    assert host.got == up
    assert guest.got == down
    assert host.ends == "closed"
    assert guest.over
    assert guest.conn.error is None
    assert len(rig.gateway.tcp) == 0
    stats = rig.gateway.stats()
    assert (stats.bytes_to_host, stats.bytes_to_guest) == (len(up), len(down))
    assert rig.counters["slirp.tcp_closed"] == 1


def test_data_that_comes_with_the_handshake_reaches_the_host() -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: HOLD
    guest = rig.connect()
    guest.conn.write(b"early")
    rig.settle()
    rig.host.decide(rig.sockets[0].flow, 0)
    rig.settle()
    assert rig.sockets[0].got == b"early"


def test_a_large_read_becomes_one_large_segment() -> None:
    rig = Rig(info=TSO)
    guest, host = opened(rig)
    host.send(bytes(1_000_000))  # until slow start is over
    rig.settle()
    before = len(rig.to_guest)
    host.send(bytes(65_160))  # 45 segments of 1,448 bytes
    rig.settle()
    assert [len(frame) - 12 - 14 - 20 - 32 for frame in rig.to_guest[before:]] == [65_160]
    assert len(guest.got) == 1_065_160


def test_the_guests_half_close_lets_the_host_answer() -> None:
    rig = Rig()
    guest, host = opened(rig)
    guest.conn.write(b"question")
    guest.conn.shutdown()
    rig.settle()
    assert host.got == b"question"
    assert host.shutdown
    assert host.ends == ""
    host.send(b"answer")
    rig.settle()
    assert guest.got == b"answer"
    host.finish()
    rig.run(1)
    assert host.ends == "closed"
    assert guest.over
    assert guest.conn.error is None


def test_the_hosts_half_close_lets_the_guest_go_on() -> None:
    rig = Rig()
    guest, host = opened(rig)
    host.send(b"banner")
    host.finish()
    rig.settle()
    assert guest.got == b"banner"
    assert guest.conn.eof
    guest.conn.write(b"last words")
    rig.settle()
    assert host.got == b"last words"
    assert not host.shutdown
    guest.conn.shutdown()
    rig.settle()
    assert host.ends == "closed"
    assert len(rig.gateway.tcp) == 0


def test_the_fin_waits_for_a_host_that_takes_slowly() -> None:
    rig = Rig()
    guest, host = opened(rig)
    host.room = 3
    guest.conn.write(b"slowly now")
    guest.conn.shutdown()
    rig.settle()
    assert host.got == b"slo"
    assert not host.shutdown
    host.take(4)
    rig.settle()
    assert not host.shutdown
    host.take(None)
    rig.settle()
    assert host.got == b"slowly now"
    assert host.shutdown


def test_a_host_that_takes_nothing_closes_the_guests_window() -> None:
    rig = Rig(tcp=TcpConfig(receive_buffer=20_000, nagle=False))
    guest, host = opened(rig)
    host.room = 0
    data = bytes(range(200)) * 500
    guest.conn.write(data)
    rig.run(5)
    assert host.got == b""
    assert guest.conn.unsent_or_unacked >= len(data) - 20_000
    assert rig.sockets[0].flow.conn.readable <= 20_000
    host.take(None)
    rig.run(30)
    assert host.got == data


def test_a_guest_that_reads_nothing_stops_the_reading_of_the_host() -> None:
    rig = Rig(tcp=TcpConfig(send_buffer=80_000, nagle=False), guest_tcp=TcpConfig(receive_buffer=30_000))
    guest, host = opened(rig)
    guest.reads = False
    data = bytes(range(250)) * 2000
    host.send(data)
    rig.run(2)
    assert len(host.incoming) >= len(data) - 80_000 - 65_536
    assert rig.sockets[0].flow.conn.unsent_or_unacked <= 80_000
    for _ in range(200):
        guest.read()
        rig.run(1)
    assert guest.got == data


def test_guests_that_read_nothing_hold_no_more_together_than_the_bound() -> None:
    bound = 2 << 20
    rig = Rig(max_read_ahead=bound, guest_tcp=TcpConfig(receive_buffer=20_000))
    data = bytes(range(250)) * 4000
    pairs = [opened(rig) for _ in range(10)]
    for guest, host in pairs:
        guest.reads = False
        host.send(data)
    rig.run(5)
    held = sum(host.flow.conn.unsent_or_unacked for _, host in pairs)
    # Every flow may hold one segment whatever the others do.
    assert held <= bound + len(pairs) * 65_536
    assert rig.counters["slirp.read_ahead_full"] == 1
    for guest, _ in pairs:
        guest.reads = True
        guest.read()
    rig.run(60, max_steps=200_000)
    assert all(guest.got == data for guest, _ in pairs)


def test_what_is_unread_when_the_guests_side_is_over_still_reaches_the_host() -> None:
    rig = Rig()
    guest, host = opened(rig)
    host.room = 0
    host.finish()
    rig.settle()
    guest.conn.write(b"all of it")
    guest.conn.shutdown()
    rig.run(1)
    assert guest.over
    assert host.ends == ""
    host.take(None)
    rig.settle()
    assert host.got == b"all of it"
    assert host.ends == "closed"
    assert len(rig.gateway.tcp) == 0


# --------------------------------------------------------------------------------------------------------------- ends


def test_the_guests_rst_resets_the_host() -> None:
    rig = Rig()
    guest, host = opened(rig)
    guest.conn.abort()
    rig.settle()
    assert host.ends == "reset"
    assert len(rig.gateway.tcp) == 0
    assert rig.counters["slirp.tcp_reset_by_guest"] == 1


def test_the_hosts_rst_resets_the_guest() -> None:
    rig = Rig()
    guest, host = opened(rig)
    host.reset()
    rig.settle()
    assert guest.conn.error is TcpError.RESET
    assert len(rig.gateway.tcp) == 0
    assert rig.counters["slirp.tcp_reset_by_host"] == 1


def test_what_the_host_sent_before_its_rst_arrives_before_it() -> None:
    rig = Rig()
    guest, host = opened(rig)
    host.send(b"error: go away")
    host.reset()
    rig.run(0.1)
    assert guest.got == b"error: go away"
    assert guest.conn.error is TcpError.RESET


@pytest.mark.parametrize("said", [b"", b"go away"])
def test_a_host_that_resets_right_away_is_not_taken_for_one_that_refuses(said: bytes) -> None:
    rig = Rig()
    rig.host.outcome = lambda *_: HOLD
    guest = rig.connect()
    rig.settle()
    (host,) = rig.sockets
    rig.host.decide(host.flow, 0)
    if said:
        host.send(said)
    host.reset()
    rig.run(0.1)
    assert guest.opened
    assert guest.got == said
    assert guest.conn.error is TcpError.RESET
    assert len(rig.gateway.tcp) == 0


def test_a_guest_that_acknowledges_nothing_gets_the_hosts_rst_after_a_while() -> None:
    rig = Rig()
    guest, host = opened(rig)
    rig.cut = True
    host.send(b"nobody hears this")
    host.reset()
    rig.run(2)
    assert len(rig.gateway.tcp) == 0
    rig.cut = False
    guest.conn.write(b"?")
    rig.run(2)
    assert guest.conn.error is TcpError.RESET


def test_an_rst_after_the_hosts_half_close_still_ends_it() -> None:
    rig = Rig()
    guest, host = opened(rig)
    host.finish()
    rig.settle()
    guest.conn.abort()
    rig.settle()
    assert host.ends == "reset"
    assert len(rig.gateway.tcp) == 0


def test_a_connection_without_a_byte_for_too_long_is_reaped() -> None:
    rig = Rig()
    _, host = opened(rig)
    rig.run(nat.TCP_IDLE / SECOND - 10)
    assert host.ends == ""
    rig.run(10 + nat.SWEEP_INTERVAL / SECOND)
    assert host.ends == "reset"
    assert len(rig.gateway.tcp) == 0
    assert rig.counters["slirp.tcp_reaped"] == 1


def test_a_half_closed_connection_is_reaped_sooner() -> None:
    rig = Rig()
    guest, host = opened(rig)
    guest.conn.shutdown()
    rig.run(nat.TCP_HALF_CLOSED_IDLE / SECOND + nat.SWEEP_INTERVAL / SECOND)
    assert host.ends == "reset"
    assert len(rig.gateway.tcp) == 0


def test_a_guest_that_vanished_with_data_under_way_is_noticed() -> None:
    rig = Rig()
    _, host = opened(rig)
    rig.cut = True
    host.send(b"hello?")
    rig.run(180)
    assert host.ends == "reset"
    assert rig.counters["slirp.tcp_guest_silent"] == 1
    assert len(rig.gateway.tcp) == 0


def test_a_thousand_connections_leave_nothing_behind() -> None:
    rig = Rig()
    for number in range(1000):
        guest, host = opened(rig, 10_000 + number)  # time stands still, so a port used twice would be too early
        guest.conn.write(b"x")
        rig.settle()
        if number & 1:
            guest.conn.shutdown()
            rig.settle()
            host.finish()
        else:
            host.finish()
            rig.settle()
            guest.conn.shutdown()
        rig.settle()
        assert host.ends == "closed"
    rig.run(120)
    assert rig.gateway.sizes()["tcp_flows"] == 0
    assert rig.gateway.sizes()["connections"] == 0
    assert rig.gateway.next_timeout() is None or rig.gateway.sizes()["neighbours"] > 0


def test_an_idle_flow_costs_what_the_module_says() -> None:
    import tracemalloc

    rig = Rig()
    for number in range(50):
        rig.inject(WIRE.tcp(sport=1000 + number, dport=80, seq=7, flags=SYN))
    rig.settle()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(500):
            rig.gateway.receive(WIRE.tcp(sport=2000 + number, dport=80, seq=7, flags=SYN), rig.now)
            for operation, flow, _ in rig.gateway.requests():
                assert operation == 1
                rig.gateway.tcp.dialled(flow, rig.now)
            rig.gateway.frames(rig.now)
        each = (tracemalloc.get_traced_memory()[0] - before) / 500
    finally:
        tracemalloc.stop()
    assert each < 6_500, each
