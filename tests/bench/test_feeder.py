"""The feeder is an instrument: its streams are those of two machines, and it notices what a comparator does wrong."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pystack import Counters
from pystack.link.qemu_framing import FrameDecoder, encode
from pystack.wire import checksum
from pystack.wire.packet import SYN, Packet, parse_untrusted
from tests.bench.compare_rig import ask, compile_feeder

ON_CI = os.environ.get("CI", "").lower() == "true"
pytestmark = pytest.mark.skipif(not ON_CI and shutil.which("cc") is None, reason="cc: install the package gcc")

Release = Callable[[list[bytes], list[bytes]], list[bytes]]
"""What to release of a batch of the primary's frames and the secondary's."""


@pytest.fixture(scope="module")
def feeder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_feeder(tmp_path_factory.mktemp("feeder"))


class Fake:
    """A comparator that believes everything: as soon as both machines' frames are there, `release` says what leaves."""

    def __init__(self, release: Release, *, vnet: bool) -> None:
        self.release = release
        self.vnet = vnet
        self.primary: list[bytes] = []
        self.secondary: list[bytes] = []
        pairs = [socket.socketpair() for _ in range(3)]
        self.theirs = [pair[0] for pair in pairs]
        self.mine = [pair[1] for pair in pairs]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        decoders = [FrameDecoder(vnet_hdr=self.vnet) for _ in range(2)]
        waiting: tuple[list[bytes], list[bytes]] = ([], [])
        while True:
            for sock in select.select(self.mine[:2], [], [])[0]:
                data = sock.recv(1 << 20)
                if not data:
                    return
                side = self.mine.index(sock)
                waiting[side].extend(frame for _, frame in decoders[side].feed(data))
            both = min(map(len, waiting))
            if both:
                self._answer(waiting[0][:both], waiting[1][:both])
                del waiting[0][:both], waiting[1][:both]

    def _answer(self, primary: list[bytes], secondary: list[bytes]) -> None:
        self.primary += primary
        self.secondary += secondary
        out = [encode(frame, 12 if self.vnet else None) for frame in self.release(primary, secondary)]
        self.mine[2].sendall(b"".join(out))

    def close(self) -> None:
        for sock in self.theirs:
            sock.close()
        self._thread.join(10)
        for sock in self.mine:
            sock.close()


class Feeder:
    """The feeder, and the fake that it feeds."""

    def __init__(self, program: Path, release: Release, *, vnet: bool, shape: tuple[int, ...]) -> None:
        self.fake = Fake(release, vnet=vnet)
        fds = [sock.fileno() for sock in self.fake.theirs]
        argv = [os.fspath(program), *map(str, (*fds, *shape))]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds)

    def ask(self, command: str) -> dict[str, Any]:
        return ask(self.process, command, 30)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.fake.close()


Start = Callable[..., Feeder]


@pytest.fixture
def start(feeder: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(
            release: Release = lambda primary, _: primary,
            *,
            connections: int = 3,
            payload: int = 100,
            window: int = 64,
            chunk: int = 16,
            vnet: bool = False,
            timestamps: bool = False,
            request_every: int = 0,
        ) -> Feeder:
            shape = (connections, payload, window, chunk, int(vnet), int(timestamps), request_every)
            made = Feeder(feeder, release, vnet=vnet, shape=shape)
            stack.callback(made.close)
            return made

        yield begin


def parsed(frame: bytes, vnet: bool) -> Packet:
    packet = parse_untrusted(frame, 12 if vnet else 0, Counters())
    assert packet is not None
    return packet


def body(packet: Packet) -> bytes:
    return bytes(packet.frame[packet.payload : packet.end])


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize(("payload", "vnet"), [(100, False), (60_000, True)])
def test_the_streams_are_equal_and_the_frames_are_not(start: Start, payload: int, vnet: bool, timestamps: bool) -> None:
    feeding = start(payload=payload, vnet=vnet, timestamps=timestamps)
    feeding.ask("open")
    told = feeding.ask("run 50")
    assert told["released"] == told["sent"] > 0
    assert (told["disorder"], told["altered"], told["uneven"], told["stalled"]) == (0, 0, 0, False)
    bodies = set()
    expected: dict[int, int] = {}
    for mine, other in zip(feeding.fake.primary[:300], feeding.fake.secondary[:300], strict=True):
        p, s = parsed(mine, vnet), parsed(other, vnet)
        assert (p.key, p.seq, p.ack, p.flags, p.window) == (s.key, s.seq, s.ack, s.flags, s.window)
        assert body(p) == body(s)
        assert p.ident != s.ident
        start_of_ip = (12 if vnet else 0) + 14
        assert all(checksum.valid(frame[start_of_ip : start_of_ip + 20]) for frame in (mine, other))
        tcp_header = start_of_ip + 20
        differs = mine[tcp_header:] != other[tcp_header:]
        assert differs == timestamps
        if p.flags & SYN:
            assert len(body(p)) == 0
        else:
            assert p.seq == expected[p.dport]
            assert len(body(p)) == payload
            bodies.add(body(p))
        expected[p.dport] = (p.seq + len(body(p)) + (1 if p.flags & SYN else 0)) % (1 << 32)
    assert len(expected) == 3
    assert len(bodies) == min(300, len(feeding.fake.primary)) - 3  # no two packets carry the same


def test_acknowledgements_grow_when_told_to(start: Start) -> None:
    feeding = start(connections=1, request_every=4)
    feeding.ask("open")
    feeding.ask("run 20")
    acks = [parsed(frame, False).ack for frame in feeding.fake.primary[:9]]
    assert [(ack - acks[0]) % (1 << 32) for ack in acks] == [0, 0, 0, 0, 100, 100, 100, 100, 200]


def test_sequence_numbers_wrap(start: Start) -> None:
    feeding = start(connections=1, payload=1400)
    feeding.ask("open")
    told = feeding.ask("run 100")
    seqs = [parsed(frame, False).seq for frame in feeding.fake.primary]
    assert seqs[0] > max(seqs[100:])
    assert (told["released"], told["altered"], told["disorder"]) == (told["sent"], 0, 0)


def test_one_at_a_time(start: Start) -> None:
    batches = []

    def release(primary: list[bytes], _: list[bytes]) -> list[bytes]:
        batches.append(len(primary))
        return primary

    feeding = start(release, connections=2)
    feeding.ask("open")
    batches.clear()
    told = feeding.ask("ping 100")
    assert told["released"] == told["sent"] == len(batches)
    assert set(batches) == {1}
    assert 0 < told["median_ns"] <= told["p99_ns"] < told["seconds"] * 1e9


def test_the_secondarys_frames_are_noticed(start: Start) -> None:
    told = start(lambda _, secondary: secondary).ask("open")
    assert told["altered"] == told["released"] == 3


def test_a_changed_byte_is_noticed(start: Start) -> None:
    def release(primary: list[bytes], _: list[bytes]) -> list[bytes]:
        return [frame[:-1] + bytes([frame[-1] ^ 1]) for frame in primary]

    feeding = start(release)
    feeding.ask("open")
    told = feeding.ask("run 20")
    assert told["altered"] == told["released"] > 0


def test_disorder_is_noticed(start: Start) -> None:
    feeding = start(lambda primary, _: primary[::-1], connections=1, window=16)
    feeding.ask("open")
    told = feeding.ask("run 50")
    assert told["released"] == told["sent"]
    assert told["disorder"] > told["released"] // 2
    assert (told["altered"], told["uneven"]) == (0, 0)


def test_one_twice_in_place_of_another_is_noticed(start: Start) -> None:
    def release(primary: list[bytes], _: list[bytes]) -> list[bytes]:
        return [primary[0], primary[0], *primary[2:]] if len(primary) > 1 else primary

    feeding = start(release, connections=1)
    feeding.ask("open")
    told = feeding.ask("run 50")
    assert told["released"] == told["sent"]
    assert told["uneven"] == 1


def test_what_cannot_be_followed_ends_the_run(start: Start) -> None:
    feeding = start(lambda _, __: [])
    feeding.fake.mine[2].sendall(struct.pack("!I", 1 << 30) + bytes(64))
    told = feeding.ask("open")
    assert told["stalled"] is True
    assert told["released"] == 0
