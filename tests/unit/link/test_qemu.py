"""QEMU's stream link: peers that come and go, stall, or send nonsense; and the sentences for a bad address."""

from __future__ import annotations

import select
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pystack.errors import LinkClosed, UsageError
from pystack.frame import LinkInfo
from pystack.link import qemu_framing
from pystack.link.qemu import QemuLink

_FRAME = bytes(range(60))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[QemuLink]:
    with closing(QemuLink.listen(tmp_path / "qemu.sock")) as link:
        yield link


def _client(server: QemuLink) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect(str(server.address))
    return client


def _readable(link: QemuLink) -> bool:
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def test_frames_cross_in_qemus_framing(server: QemuLink) -> None:
    with _client(server) as client:
        client.sendall(b"\0\0\0\x3c" + _FRAME)
        assert server.recv(0) == [_FRAME]
        assert server.send([(_FRAME[:20], memoryview(_FRAME)[20:])], 0) == 1
        assert client.recv(100) == b"\0\0\0\x3c" + _FRAME


def test_a_frame_cut_anywhere_arrives_once_its_last_byte_has(server: QemuLink) -> None:
    with _client(server) as client:
        stream = qemu_framing.encode(_FRAME)
        for n in range(len(stream) - 1):
            client.sendall(stream[n : n + 1])
            assert server.recv(0) == []
        client.sendall(stream[-1:])
        assert server.recv(0) == [_FRAME]


def test_what_is_sent_without_a_peer_is_dropped_and_counted(server: QemuLink) -> None:
    assert server.send([(_FRAME,)] * 3, 0) == 3
    assert server.counters.snapshot() == {"qemu.tx_no_peer": 3}


def test_server_takes_the_next_peer_when_one_is_gone(server: QemuLink) -> None:
    fd = server.fileno()
    for _ in range(3):
        with _client(server) as client:
            client.sendall(qemu_framing.encode(_FRAME))
            assert _readable(server)
            assert server.recv(0) == [_FRAME]
        assert _readable(server), "the end of a connection must wake the driver"
        assert server.recv(0) == []
        assert not server.connected
    assert server.fileno() == fd
    assert server.counters.snapshot() == {"qemu.connected": 3, "qemu.disconnected": 3}


def test_half_a_frame_of_one_peer_does_not_reach_the_next(server: QemuLink) -> None:
    with _client(server) as client:
        client.sendall(qemu_framing.encode(_FRAME)[:30])
        server.recv(0)
    server.recv(0)
    with _client(server) as client:
        client.sendall(qemu_framing.encode(b"\xff" * 60))
        assert server.recv(0) == [b"\xff" * 60]


def test_a_second_peer_does_not_spin_the_driver_while_it_waits(server: QemuLink) -> None:
    with _client(server) as first:
        server.recv(0)
        with _client(server) as second:
            assert not _readable(server)
            first.close()
            second.sendall(qemu_framing.encode(_FRAME))
            assert _readable(server)
            assert server.recv(0) == []
            assert server.recv(0) == [_FRAME]


@pytest.mark.parametrize("length", [qemu_framing.MAX_FRAME_BYTES + 1, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_declared_length_beyond_the_cap_ends_the_connection(server: QemuLink, length: int) -> None:
    with _client(server) as client:
        client.sendall(qemu_framing.encode(_FRAME) + length.to_bytes(4, "big") + bytes(1000))
        assert server.recv(0) == [_FRAME], "what came before is not lost"
        assert not server.connected
        assert server.counters["qemu.too_long"] == 1


def test_the_longest_frame_passes(server: QemuLink) -> None:
    frame = bytes(qemu_framing.MAX_FRAME_BYTES)
    with _client(server) as client:
        client.sendall(qemu_framing.encode(frame))
        assert server.recv(0) == [frame]


def test_empty_frames_are_counted_and_dropped(server: QemuLink) -> None:
    with _client(server) as client:
        client.sendall(bytes(4) * 5 + qemu_framing.encode(_FRAME))
        assert server.recv(0) == [_FRAME]
        assert server.counters["qemu.empty"] == 5


def test_a_frame_too_long_to_send_is_dropped_and_its_neighbours_pass(server: QemuLink) -> None:
    with _client(server) as client:
        server.recv(0)
        too_long = bytes(qemu_framing.MAX_FRAME_BYTES + 1)
        assert server.send([(_FRAME,), (too_long,), (_FRAME,)], 0) == 3
        assert client.recv(1000) == qemu_framing.encode(_FRAME) * 2
        assert server.counters["qemu.tx_too_long"] == 1


def test_a_frame_of_more_pieces_than_one_call_takes_arrives_whole(server: QemuLink) -> None:
    with _client(server) as client:
        server.recv(0)
        assert server.send([tuple(b"x" for _ in range(5000)), (_FRAME,)], 0) == 2
        expected = qemu_framing.encode(b"x" * 5000) + qemu_framing.encode(_FRAME)
        assert client.recv(len(expected), socket.MSG_WAITALL) == expected


def test_a_stalled_peer_is_held_at_most_one_frame(server: QemuLink) -> None:
    frame = bytes(range(256)) * 200
    with _client(server) as client:
        server.recv(0)
        frames = [(frame,)] * 100
        accepted = server.send(frames, 0)
        assert 0 < accepted < 100
        assert server.send(frames[accepted:], 0) == 0
        assert not _readable(server), "a full socket must not wake the driver"
        decoder = qemu_framing.FrameDecoder()
        got = 0
        for _ in range(10_000):
            got += len([1 for _, data in decoder.feed(client.recv(1 << 20)) if data == frame])
            if got == 100:
                break
            assert _readable(server), "room in the socket must wake the driver"
            server.recv(0)
            accepted += server.send(frames[accepted:], 0)
        assert got == 100
        server.recv(0)
        assert not server.wants_write()
        assert not _readable(server)


def test_what_a_peer_sent_before_it_went_is_read_although_sending_fails(server: QemuLink) -> None:
    with _client(server) as client:
        server.recv(0)
        client.sendall(qemu_framing.encode(_FRAME))
    assert server.send([(_FRAME,)], 0) == 1
    assert server.recv(0) == [_FRAME]
    assert server.recv(0) == []
    assert not server.connected


def test_client_ends_with_its_connection(server: QemuLink) -> None:
    assert not isinstance(server.address, tuple)
    with closing(QemuLink.connect(server.address)) as client:
        server.recv(0)
        server.close()
        assert _readable(client)
        with pytest.raises(LinkClosed):
            client.recv(0)


def test_frames_beyond_the_limit_are_announced_by_a_timeout(server: QemuLink) -> None:
    with _client(server) as client:
        client.sendall(qemu_framing.encode(_FRAME) * 5)
        assert len(server.recv(0, 2)) == 2
        assert server.next_timeout() == 0
        assert len(server.recv(0, 64)) == 3
        assert server.next_timeout() is None


def test_vnet_framing_carries_the_headers_length(tmp_path: Path) -> None:
    with closing(QemuLink.listen(tmp_path / "s", info=LinkInfo(vnet_hdr_len=12))) as server, _client(server) as client:
        client.sendall(bytes.fromhex("00000048 0000000c") + bytes(12) + _FRAME)
        assert server.recv(0) == [bytes(12) + _FRAME]
        server.send([(bytes(12) + _FRAME,)], 0)
        assert client.recv(1000) == bytes.fromhex("00000048 0000000c") + bytes(12) + _FRAME


def test_vnet_framing_refuses_a_header_of_another_length(tmp_path: Path) -> None:
    with closing(QemuLink.listen(tmp_path / "s", info=LinkInfo(vnet_hdr_len=12))) as server, _client(server) as client:
        client.sendall(qemu_framing.encode(bytes(10) + _FRAME, 10))
        assert server.recv(0) == []
        assert not server.connected
        assert server.counters["qemu.bad_vnet_hdr_len"] == 1


# ----------------------------------------------------------------------------------------------------------- addresses


def test_socket_file_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "qemu.sock"
    with closing(QemuLink.listen(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "qemu.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with closing(QemuLink.listen(path)) as link:
        assert link.address == path
        QemuLink.connect(path).close()  # somebody serves it now


def test_a_socket_in_use_is_left_alone(server: QemuLink) -> None:
    assert not isinstance(server.address, tuple)
    with pytest.raises(UsageError, match="served by another program already"):
        QemuLink.listen(server.address)
    with _client(server):
        assert server.recv(0) == []


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(UsageError, match="is not a socket"):
        QemuLink.listen(path)
    assert path.read_text() == "data"


@pytest.mark.parametrize("make", [QemuLink.listen, QemuLink.connect])
def test_a_path_too_long_for_a_unix_socket_is_said_to_be(tmp_path: Path, make: Callable[[Path], QemuLink]) -> None:
    path = tmp_path / ("x" * (108 - len(str(tmp_path)) - 1))
    assert len(str(path)) == 108
    with pytest.raises(UsageError, match=r"1 to 107 bytes long, and this one is 108: give a shorter one\.$"):
        make(path)


def test_a_path_of_107_bytes_is_fine(tmp_path: Path) -> None:
    path = tmp_path / ("x" * (107 - len(str(tmp_path)) - 1))
    with closing(QemuLink.listen(path)):
        assert path.is_socket()


def test_nobody_listening_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the other side listening"):
        QemuLink.connect(tmp_path / "nobody")
    with pytest.raises(UsageError, match=r"Cannot connect to 127\.0\.0\.1:1: connection refused"):
        QemuLink.connect(("127.0.0.1", 1))


def test_a_port_in_use_is_one_sentence() -> None:
    with (
        closing(QemuLink.listen(("127.0.0.1", 0))) as first,
        pytest.raises(UsageError, match=r"Cannot listen at .*address already in use"),
    ):
        QemuLink.listen(first.address)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_a_port_out_of_range_is_one_sentence(port: int) -> None:
    with pytest.raises(UsageError, match="no port number"):
        QemuLink.listen(("127.0.0.1", port))


def test_a_mark_ends_what_the_peer_had_sent_by_then_and_reads_nothing_more(server: QemuLink) -> None:
    with _client(server) as client:
        client.sendall(qemu_framing.encode(b"old 1") + qemu_framing.encode(b"old 2"))
        assert server.recv(0, 1) == [b"old 1"]  # the other one was read as well
        client.sendall(qemu_framing.encode(b"old 3"))
        server.mark()
        client.sendall(qemu_framing.encode(b"new"))
        assert server.recv_to_mark(drop_cut=True) == [b"old 2", b"old 3"]
        assert server.recv_to_mark(drop_cut=True) == []
        assert server.recv(0) == [b"new"]


@pytest.mark.parametrize("drop", [False, True])
def test_a_frame_that_the_mark_cuts_is_behind_it_or_dropped(server: QemuLink, drop: bool) -> None:
    with _client(server) as client:
        stream = qemu_framing.encode(b"cut")
        client.sendall(qemu_framing.encode(b"old") + stream[:5])
        server.mark()
        client.sendall(stream[5:] + qemu_framing.encode(b"new"))
        assert server.recv_to_mark(drop_cut=drop) == [b"old"]
        assert server.recv(0) == ([b"new"] if drop else [b"cut", b"new"])
        assert server.counters["qemu.cut"] == drop


def test_a_mark_on_a_full_socket_leaves_it_full(server: QemuLink) -> None:
    with _client(server) as client:
        client.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += client.send(qemu_framing.encode(_FRAME)) // 64
        server.mark()
        with pytest.raises(BlockingIOError):
            client.send(qemu_framing.encode(_FRAME))
        assert server.recv_to_mark(drop_cut=False) == [_FRAME] * sent
