"""The gateway on real host sockets: loopback only, one process, no privileges."""

from __future__ import annotations

import hashlib
import os
import resource
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from pystack.counters import Counters
from pystack.drivers import resolvers
from pystack.errors import UsageError
from pystack.frame import LinkInfo
from pystack.net.icmp import Echo, IcmpError
from pystack.slirp.forwards import Publish
from pystack.slirp.plan import packed
from pystack.tcp.config import TcpConfig
from pystack.tcp.events import TcpError
from pystack.wire import dns
from tests.interop.live import HOST, LARGE, Live, Socket, free_port, listening

LOOPBACK = packed("127.0.0.1")
DATA = os.urandom(3_000_000)


@contextmanager
def connected(live: Live) -> Iterator[tuple[Socket, socket.socket]]:
    """A guest's connection and the host program's end of it."""
    listener, port = listening()
    with closing(listener):
        guest = live.connect(port)
        live.until(guest.is_open)
        server, _ = listener.accept()
        server.settimeout(10)
        with closing(server):
            yield guest, server


def in_background(work: threading.Thread) -> threading.Thread:
    work.start()
    return work


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while data := sock.recv(1 << 20):
        pieces.append(data)
    return b"".join(pieces)


# ----------------------------------------------------------------------------------------------------------------- TCP


@pytest.mark.parametrize("info", [LARGE, LinkInfo()], ids=["large segments", "plain"])
def test_bulk_data_both_ways_arrives_unchanged(info: LinkInfo) -> None:
    with Live(info=info) as live, connected(live) as (guest, server):
        got: list[bytes] = []
        writer = in_background(threading.Thread(target=send_all, args=(server, DATA)))
        reader = in_background(threading.Thread(target=lambda: got.append(read_all(server))))
        left = memoryview(DATA)

        def done() -> bool:
            nonlocal left
            left = left[guest.conn.write(left) :]
            if not left:
                guest.conn.shutdown()
            return guest.conn.eof and bool(got)

        live.until(done)
        writer.join()
        reader.join()
        assert hashlib.sha256(got[0]).digest() == hashlib.sha256(DATA).digest()
        assert hashlib.sha256(guest.got).digest() == hashlib.sha256(DATA).digest()
        live.until(lambda: not live.gateway.flows())


def test_a_refused_port_is_refused() -> None:
    with Live() as live:
        guest = live.connect(free_port())
        live.until(guest.is_over)
        assert guest.conn.error is TcpError.REFUSED


def test_the_guest_closes_its_direction_first() -> None:
    with Live() as live, connected(live) as (guest, server):
        guest.conn.write(b"question")
        guest.conn.shutdown()
        live.until(lambda: live.gateway.tcp.flows()[0].guest_eof)
        assert read_all(server) == b"question"
        server.sendall(b"answer")
        server.shutdown(socket.SHUT_WR)
        live.until(lambda: guest.conn.eof)
        assert guest.got == b"answer"
        live.until(lambda: not live.gateway.flows())


def test_the_host_closes_its_direction_first() -> None:
    with Live() as live, connected(live) as (guest, server):
        server.sendall(b"banner")
        server.shutdown(socket.SHUT_WR)
        live.until(lambda: guest.conn.eof)
        guest.conn.write(b"last words")
        guest.conn.shutdown()
        live.until(lambda: not live.gateway.flows())
        assert guest.got == b"banner"
        assert read_all(server) == b"last words"


def test_the_hosts_rst_reaches_the_guest() -> None:
    with Live() as live, connected(live) as (guest, server):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        live.until(guest.is_over)
        assert guest.conn.error is TcpError.RESET
        live.until(lambda: not live.gateway.flows())


def test_the_guests_rst_reaches_the_host() -> None:
    with Live() as live, connected(live) as (guest, server):
        guest.conn.abort()
        live.until(lambda: not live.gateway.flows())
        with pytest.raises(ConnectionResetError):
            server.recv(1)


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends"])
def test_a_host_that_speaks_before_the_dial_was_noticed_is_heard(ends: bool) -> None:
    """One edge says both that the socket is connected and that there is something to read."""
    listener, port = listening()
    with closing(listener), Live() as live:
        guest = live.connect(port)
        live._carry(live.guest, live.gateway, live.now())  # ARP
        live._carry(live.gateway, live.guest, live.now())
        live._carry(live.guest, live.gateway, live.now())  # the SYN
        live.hostio.perform(live.gateway.requests(), live.now())
        server, _ = listener.accept()
        with closing(server):
            server.sendall(b"SSH-2.0-banner")
            if ends:
                server.shutdown(socket.SHUT_WR)
            live.until(lambda: guest.got)
            assert guest.got == b"SSH-2.0-banner"
            if ends:
                live.until(lambda: guest.conn.eof)


def test_what_the_host_said_before_it_hung_up_is_read_although_writing_failed() -> None:
    with Live() as live, connected(live) as (guest, server):
        server.sendall(b"413 too large")
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        guest.conn.write(b"more of it")
        live._carry(live.guest, live.gateway, live.now())
        live.hostio.perform(live.gateway.requests(), live.now())  # before anything was read
        live.until(guest.is_over)
        assert guest.got == b"413 too large"
        assert guest.conn.error is TcpError.RESET
        live.until(lambda: not live.gateway.flows())


def test_a_closed_window_holds_the_host_back_without_spinning() -> None:
    small = TcpConfig(send_buffer=100_000, nagle=False)
    with Live(tcp=small, guest_tcp=TcpConfig(receive_buffer=50_000)) as live, connected(live) as (guest, server):
        guest.reads = False
        server.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            for _ in range(100_000):
                sent += server.send(DATA[:10_000])
                live.turn()
        server.setblocking(True)
        server.close()  # it hangs up as well, which must not wake anybody up for ever
        live.settle()
        before = live.turns
        live.wait(0.05)
        live.wait(0.05)
        assert not select.select([live.hostio.fileno()], [], [], 0)[0]
        assert live.turns == before
        guest.reads = True
        guest.read()
        live.until(lambda: guest.conn.eof)
        assert len(guest.got) == sent


def test_a_host_that_does_not_read_holds_the_guest_back() -> None:
    with Live(tcp=TcpConfig(receive_buffer=100_000, nagle=False)) as live, connected(live) as (guest, server):
        left = memoryview(DATA * 4)

        def stuck() -> bool:
            nonlocal left
            left = left[guest.conn.write(left) :]
            return not live.turn()

        live.until(stuck)
        assert len(left) > 0
        assert not select.select([live.hostio.fileno()], [], [], 0)[0]
        got: list[bytes] = []
        reader = in_background(threading.Thread(target=lambda: got.append(read_all(server))))

        def done() -> bool:
            nonlocal left
            left = left[guest.conn.write(left) :]
            if not left:
                guest.conn.shutdown()
            return bool(got)

        live.until(done)
        reader.join()
        assert got[0] == DATA * 4


def test_urgent_data_is_carried_as_the_byte_that_it_is() -> None:
    with Live() as live, connected(live) as (guest, server):
        server.send(b"before")
        server.send(b"!", socket.MSG_OOB)
        server.send(b"after")
        live.until(lambda: len(guest.got) == 12)
        assert guest.got == b"before!after"


def test_two_hundred_connections_at_once() -> None:
    listener, port = listening()
    with closing(listener), Live() as live:
        guests = [live.connect(port) for _ in range(200)]
        for number, guest in enumerate(guests):
            guest.conn.write(number.to_bytes(4, "big"))
            guest.conn.shutdown()

        def echo_all() -> None:
            for _ in guests:
                server, _peer = listener.accept()
                with closing(server):
                    server.settimeout(10)
                    server.sendall(read_all(server) * 1000)

        server = in_background(threading.Thread(target=echo_all))
        live.until(lambda: all(guest.conn.eof for guest in guests))
        server.join()
        assert [bytes(guest.got) for guest in guests] == [n.to_bytes(4, "big") * 1000 for n in range(200)]
        live.until(lambda: not live.gateway.flows())
        assert live.gateway.stats().tcp_opened == 200


def test_no_edge_is_missed_in_a_crowd_of_stops_and_starts() -> None:
    """Small buffers everywhere and a server that echoes in odd pieces: every flow stops and starts many times."""
    random = Random(5)
    payloads = [random.randbytes(random.randrange(1, 400_000)) for _ in range(30)]
    listener, port = listening()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)

    def echo(server: socket.socket, chunk: int) -> None:
        with closing(server):
            while data := server.recv(chunk):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def accept_all() -> None:
        echoes = []
        for chunk in range(100, 3100, 100):
            server, _ = listener.accept()
            server.settimeout(20)
            echoes.append(in_background(threading.Thread(target=echo, args=(server, chunk * 3))))
        for thread in echoes:
            thread.join()

    small = TcpConfig(receive_buffer=30_000, send_buffer=70_000, nagle=False)
    with closing(listener), Live(tcp=small, guest_tcp=TcpConfig(receive_buffer=20_000)) as live:
        guests = [live.connect(port) for _ in payloads]
        left = [memoryview(payload) for payload in payloads]
        acceptor = in_background(threading.Thread(target=accept_all))

        def done() -> bool:
            for number, guest in enumerate(guests):
                if left[number]:
                    left[number] = left[number][guest.conn.write(left[number]) :]
                    if not left[number]:
                        guest.conn.shutdown()
            return all(guest.conn.eof for guest in guests)

        live.until(done, patience=60)
        acceptor.join()
        assert [bytes(guest.got) for guest in guests] == payloads
        live.until(lambda: not live.gateway.flows())


def test_a_thousand_connections_leave_no_descriptor_behind() -> None:
    listener, port = listening()
    with closing(listener), Live() as live:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(1000):
            guest = live.connect(port)
            live.until(guest.is_open)
            server, _ = listener.accept()
            server.close()
            guest.conn.close()
            live.until(lambda: not live.gateway.flows())
        assert len(os.listdir("/proc/self/fd")) == before


def test_want_of_descriptors_refuses_new_connections_and_spares_the_others() -> None:
    with Live() as live, connected(live) as (guest, server):
        listener, port = listening()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
        spare = []
        try:
            while True:
                try:
                    spare.append(os.dup(0))
                except OSError:
                    break
            refused = live.connect(port)
            live.until(refused.is_over)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in spare:
                os.close(fd)
            listener.close()
        assert refused.conn.error is TcpError.REFUSED
        assert live.gateway.counters["slirp.dial_exhausted"] == 1
        guest.conn.write(b"alive")
        live.settle()
        assert server.recv(5) == b"alive"


# ----------------------------------------------------------------------------------------------------------------- UDP


def test_datagrams_both_ways_an_empty_one_too() -> None:
    server, port = listening(socket.SOCK_DGRAM)
    with closing(server), Live() as live:
        endpoint = live.guest.udp_bind(5000)
        for payload in (b"question", b"", b"x" * 9000):
            endpoint.send(payload, live.now(), to=(HOST, port))
            live.settle()
            data, peer = server.recvfrom(65_535)
            assert data == payload
            server.sendto(payload[::-1], peer)
            live.until(lambda: len(endpoint))
            datagram = endpoint.take()
            assert datagram is not None
            assert (datagram.source, datagram.payload) == ((HOST, port), payload[::-1])
        live.settle()
        assert not select.select([live.hostio.fileno()], [], [], 0)[0]


def test_a_closed_port_of_the_host_is_an_icmp_error_in_the_guest() -> None:
    with Live() as live:
        endpoint = live.guest.udp_bind(5000)
        port = free_port(socket.SOCK_DGRAM)
        endpoint.send(b"anybody?", live.now(), to=(HOST, port))
        error = None

        def told() -> bool:
            nonlocal error
            error = endpoint.take_error()
            return error is not None

        live.until(told)
        assert error is not None
        assert (error.kind, error.code, error.offender) == (3, 3, HOST)


def test_after_an_error_the_flow_goes_on() -> None:
    server, port = listening(socket.SOCK_DGRAM)
    with closing(server), Live() as live:
        endpoint = live.guest.udp_bind(5000)
        closed = free_port(socket.SOCK_DGRAM)
        for _ in range(3):
            endpoint.send(b"anybody?", live.now(), to=(HOST, closed))
            endpoint.send(b"hello", live.now(), to=(HOST, port))
            live.settle()
            assert server.recv(100) == b"hello"
        assert live.gateway.stats().udp_active == 1


def test_a_stranger_on_the_loopback_cannot_reach_the_guest_unless_allowed() -> None:
    """The guest's socket is bound to a port of the host that any local process could send to."""
    with Live(allow_host_loopback=False) as live:
        endpoint = live.guest.udp_bind(5000)
        endpoint.send(b"x", live.now(), to=(packed("192.0.2.1"), 9))
        live.settle()
        flow = live.gateway.udp.flows()[0]
        assert flow.host is not None
        port = flow.host._sock.getsockname()[1]  # type: ignore[attr-defined]
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as stranger:
            stranger.sendto(b"hello", ("127.0.0.1", port))
        live.until(lambda: live.gateway.counters["slirp.udp_unwanted_source"])
        assert len(endpoint) == 0


def test_an_expired_flow_closes_its_socket() -> None:
    server, port = listening(socket.SOCK_DGRAM)
    with closing(server), Live() as live:
        before = len(os.listdir("/proc/self/fd"))
        endpoint = live.guest.udp_bind(5000)
        endpoint.send(b"x", live.now(), to=(HOST, port))
        live.settle()
        assert len(os.listdir("/proc/self/fd")) == before + 1
        live.gateway.udp.tick(live.now() + 300_000_000)
        live.turn()
        assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------------------------------------------------------- ping


def test_a_ping_goes_through_a_ping_socket_or_the_guest_is_told_why_not() -> None:
    """Where net.ipv4.ping_group_range lets us, the answer comes from the address that was pinged."""
    allowed = True
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    except PermissionError:
        allowed = False
    own = _own_address()
    with Live() as live:
        ping = live.guest.ping_open()
        ping.send_echo(own or packed("192.0.2.1"), 7, b"hello", live.now())
        items: list[Echo | IcmpError | None] = []

        def told() -> bool:
            items.append(ping.take())
            return items[-1] is not None

        live.until(told)
        item = items[-1]
        if allowed and own:
            assert isinstance(item, Echo)
            assert (item.source, item.seq, item.payload) == (own, 7, b"hello")
        else:
            assert isinstance(item, IcmpError)
            assert (item.kind, item.code) == ((3, 0) if allowed else (3, 13))


def _own_address() -> bytes:
    """An address of this machine that is not a loopback one, b"" without one; no packet is sent to find it."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return b""
        return packed(sock.getsockname()[0])


# ----------------------------------------------------------------------------------------------------------------- DNS


def test_a_question_reaches_the_resolver_of_resolv_conf_and_the_answer_comes_back(tmp_path: Path) -> None:
    resolver, port = listening(socket.SOCK_DGRAM)
    with closing(resolver), Live(resolvers=((LOOPBACK, port),)) as live:
        endpoint = live.guest.udp_bind(5000)
        name = dns.name_from_text("host.example")
        endpoint.send(dns.build_query(99, name), live.now(), to=(packed("10.0.2.3"), 53))
        live.settle()
        query, peer = resolver.recvfrom(512)
        parsed = dns.parse_question_untrusted(query, Counters())
        assert parsed is not None
        header, question = parsed
        record = dns.Record(name, dns.A, dns.CLASS_IN, 60, packed("192.0.2.80"))
        resolver.sendto(dns.build_response(header, question, answers=(record,)), peer)
        live.until(lambda: len(endpoint))
        datagram = endpoint.take()
        assert datagram is not None
        answer = dns.parse_untrusted(datagram.payload, Counters())
        assert answer is not None
        assert (answer.header.ident, answer.answers) == (99, (record,))


def test_a_resolver_that_is_not_there_is_servfail_at_once() -> None:
    port = free_port(socket.SOCK_DGRAM)
    with Live(resolvers=((LOOPBACK, port),)) as live:
        endpoint = live.guest.udp_bind(5000)
        endpoint.send(dns.build_query(99, dns.name_from_text("a.b")), live.now(), to=(packed("10.0.2.3"), 53))
        live.until(lambda: len(endpoint))
        datagram = endpoint.take()
        assert datagram is not None
        assert datagram.payload[3] & 15 == dns.SERVFAIL
        assert live.gateway.counters["dns.resolver_unreachable"] == 1


def test_resolv_conf_is_read_as_the_c_library_reads_it() -> None:
    text = "# comment\nnameserver 127.0.0.53 # this one\nsearch lan\nnameserver x\n nameserver\t::1\n"
    text += "nameserver fe80::1%eth0\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n"
    v6 = bytes(15) + b"\x01"
    assert resolvers.parse_resolv_conf(text) == ((packed("127.0.0.53"), 53), (v6, 53), (packed("192.0.2.1"), 53))
    assert resolvers.parse_resolv_conf("") == ()


def test_resolv_conf_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    watched = resolvers.ResolvConf(path)
    assert watched.changed() == ()
    assert watched.changed() is None
    path.write_text("nameserver 192.0.2.1\n")
    assert watched.changed() == ((packed("192.0.2.1"), 53),)
    assert watched.changed() is None
    path.unlink()
    assert watched.changed() == ()


# ----------------------------------------------------------------------------------------------------- published ports


def test_a_published_tcp_port_leads_to_the_guests_server() -> None:
    port = free_port()
    with Live(publish=(Publish(address=LOOPBACK, host_port=port, guest_port=80),)) as live:
        live.listen(80)
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as client:
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            live.until(lambda: live.accepted and live.accepted[0].conn.eof)
            (server,) = live.accepted
            assert server.got == b"request"
            assert server.conn.remote_addr == HOST
            server.conn.write(b"response")
            server.conn.shutdown()
            live.until(lambda: not live.gateway.flows())
            assert read_all(client) == b"response"


def test_a_published_port_that_is_closed_in_the_guest_resets_the_client() -> None:
    port = free_port()
    with Live(publish=(Publish(address=LOOPBACK, host_port=port, guest_port=80),)) as live:
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as client:
            live.until(lambda: live.gateway.counters["slirp.inbound_accepted"] and not live.gateway.flows())
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_a_published_udp_port_leads_to_the_guests_server_and_back() -> None:
    port = free_port(socket.SOCK_DGRAM)
    with Live(publish=(Publish(host_port=port, guest_port=53, udp=True),)) as live:
        server = live.guest.udp_bind(53)
        clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(3)]
        for number, client in enumerate(clients):
            client.settimeout(10)
            client.connect(("127.0.0.1", port))
            client.send(bytes((number,)))
        live.until(lambda: len(server) == 3)
        while (datagram := server.take()) is not None:
            server.send(datagram.payload * 2, live.now(), to=datagram.source)
        live.settle()
        for number, client in enumerate(clients):
            assert client.recv(10) == bytes((number, number))
            client.close()


def test_a_port_that_is_taken_is_one_sentence() -> None:
    listener, port = listening()
    with closing(listener), pytest.raises(UsageError) as caught:
        Live(publish=(Publish(address=LOOPBACK, host_port=port, guest_port=80),))
    assert str(port) in str(caught.value)
    assert "taken" in str(caught.value)
    with pytest.raises(UsageError, match="does not have that address"):
        Live(publish=(Publish(address=packed("192.0.2.77"), host_port=port, guest_port=80),))


def test_a_listener_without_descriptors_turns_clients_away_and_does_not_spin() -> None:
    port = free_port()
    with Live(publish=(Publish(address=LOOPBACK, host_port=port, guest_port=80),)) as live:
        live.listen(80)
        clients = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(3)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), limits[1]))
        spare = []
        try:
            while True:
                try:
                    spare.append(os.dup(0))
                except OSError:
                    break
            live.until(lambda: live.gateway.counters["host.no_descriptors"])
            assert not select.select([live.hostio.fileno()], [], [], 0)[0]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in spare:
                os.close(fd)
        for client in clients:
            with closing(client), pytest.raises(ConnectionResetError):
                client.recv(1)
        with closing(socket.create_connection(("127.0.0.1", port), 10)):
            live.until(lambda: live.accepted)
