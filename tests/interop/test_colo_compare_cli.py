"""`colo compare` on real sockets, as QEMU's filters and its checkpointer see it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.address import parse_all
from colo.aio import CompareServer
from colo.cli.compare import command as compare_command
from colo.compare import CompareConfig, Mode
from colo.policy import Policy, PolicyConfig
from pystack.counters import Counters
from pystack.drivers.aio import monotonic
from pystack.link.qemu_framing import encode
from pystack.testing.frames import Crafter
from tests.colo_guests import Guest
from tests.interop.colo_sockets import PATIENCE, Command, End, counters, eventually, running

UDP = Crafter("10.0.0.2", "10.0.0.1")


def datagram(number: int, size: int = 8) -> bytes:
    """A frame that both guests send alike."""
    return UDP.udp(53, 6000, struct.pack("!I", number).ljust(size, b"."))


class Pair:
    """A running `colo compare` with everybody connected."""

    def __init__(self, command: Command, ends: dict[str, End]) -> None:
        self.command = command
        self.primary, self.secondary, self.out = ends["primary-in"], ends["secondary-in"], ends["out"]
        self.notify = ends.get("notify")

    def release(self, *frames: bytes) -> None:
        """Have both send the same, and see it leave."""
        self.primary.send(*frames)
        self.secondary.send(*frames)
        assert self.out.receive(len(frames)) == list(frames)


@contextlib.contextmanager
def compare(
    directory: Path, *options: str, notify: bool = False, vnet_hdr_len: int | None = None, tcp: bool = False
) -> Iterator[Pair]:
    """A comparator that listens on all its sockets, and an end for each."""
    names = ["primary-in", "secondary-in", "out", *(["notify"] if notify else [])]
    arguments = ["compare", "--stats", *options, *(["--vnet-hdr"] if vnet_hdr_len is not None else [])]
    for name in names:
        arguments += [f"--{name}", "tcp:127.0.0.1:0,server" if tcp else f"unix:{directory / name},server"]
    with running(*arguments) as command:
        listening = command.greeting.partition("listening at ")[2].partition(";")[0].split(", ")
        with contextlib.ExitStack() as ends:
            made = {}
            for name, where in zip(names, listening, strict=True):
                host, _, port = where.removeprefix("tcp:").rpartition(":")
                address = (host, int(port)) if tcp else Path(where.removeprefix("unix:"))
                # What QEMU says on notify_dev has the second length when the frames have it.
                made[name] = End(
                    address, vnet_hdr_len=0 if vnet_hdr_len is not None and name == "notify" else vnet_hdr_len
                )
                ends.callback(made[name].close)
            yield Pair(command, made)


# ---------------------------------------------------------------------------------------------------- what may leave


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("vnet_hdr_len", [None, 0, 10, 12, 20])
def test_what_both_send_leaves_and_nothing_else(tmp_path: Path, vnet_hdr_len: int | None, *, tcp: bool) -> None:
    one, other = Guest(vnet_hdr_len=vnet_hdr_len or 0), Guest(vnet_hdr_len=vnet_hdr_len or 0)
    with compare(tmp_path, vnet_hdr_len=vnet_hdr_len, tcp=tcp) as pair:
        pair.primary.send(one.syn_ack(), whole := one.data(0, b"hello, world"))
        assert pair.out.silent()
        pair.secondary.send(other.syn_ack())
        assert len(pair.out.receive()) == 1
        pair.secondary.send(other.data(0, b"hello,"))
        assert pair.out.silent()
        pair.secondary.send(other.data(6, b" world"))
        assert pair.out.receive() == [whole]
        pair.primary.send(one.data(12, b"A"))
        pair.secondary.send(other.data(12, b"B"))
        assert "the streams differ: TCP 10.0.0.2:80 > 10.0.0.1:5000, offset 12" in pair.command.line()
        assert pair.out.silent()
        said = counters(pair.command.stop())
    assert said["compare.difference.payload"] == 1


def test_frames_that_come_byte_by_byte(tmp_path: Path) -> None:
    with compare(tmp_path) as pair:
        frame = datagram(1)
        for end in (pair.primary, pair.secondary):
            for byte in struct.pack("!I", len(frame)) + frame:
                end.sock.sendall(bytes([byte]))
        assert pair.out.receive() == [frame]


def test_many_frames_keep_their_order(tmp_path: Path) -> None:
    frames = [datagram(number, 8 + number % 1400) for number in range(3000)]
    with compare(tmp_path, "--max-queue-size", "5000") as pair:
        for low in range(0, len(frames), 100):
            pair.primary.send(*frames[low : low + 100])
            pair.secondary.send(*frames[low : low + 100])
            assert pair.out.receive(100) == frames[low : low + 100]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_removes_the_sockets(tmp_path: Path, number: signal.Signals) -> None:
    with compare(tmp_path) as pair:
        pair.command.stop(number)
        assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("vnet_hdr_len", [None, 12])
def test_the_handshake_of_notify_dev(tmp_path: Path, vnet_hdr_len: int | None) -> None:
    with compare(tmp_path, notify=True, vnet_hdr_len=vnet_hdr_len) as pair:
        assert pair.notify is not None
        # The answers never have the second length, whatever the frames have.
        reader = End(pair.notify.sock)
        pair.notify.send(b"COLO_USERSPACE_PROXY_INIT")
        assert reader.receive() == [b"COLO_COMPARE_GET_XEN_INIT"]
        wire = UDP.but(vnet_hdr_len=vnet_hdr_len or 0)
        mine, its = wire.udp(53, 6000, b"mine"), wire.udp(53, 6000, b"its")
        pair.primary.send(mine)
        pair.secondary.send(its)
        assert reader.receive() == [b"DO_CHECKPOINT"]
        assert pair.out.silent()
        pair.notify.send(b"COLO_CHECKPOINT")
        assert pair.out.receive() == [mine]
        pair.release(wire.udp(53, 6000, b"both"))
        said = counters(pair.command.stop())
    assert said["checkpoint.completed"] == said["notify.asked"] == 1


def test_what_was_sent_before_a_checkpoint_is_covered_by_it(tmp_path: Path) -> None:
    """Also when it and the message are read in one wake-up, whichever comes first: the sockets are drained."""
    with compare(tmp_path, notify=True) as pair:
        assert pair.notify is not None
        for number in range(50):
            held = [datagram(number * 100 + index, 1400) for index in range(50)]
            os.kill(pair.command.process.pid, signal.SIGSTOP)
            pair.notify.send(b"COLO_CHECKPOINT")
            pair.primary.send(*held)
            pair.secondary.send(datagram(number, 1399))
            os.kill(pair.command.process.pid, signal.SIGCONT)
            assert pair.out.receive(50) == held
        assert pair.out.silent()
        pair.release(datagram(7))


def test_a_checkpointer_that_goes_and_comes_again(tmp_path: Path) -> None:
    with compare(tmp_path, notify=True) as pair:
        assert pair.notify is not None
        pair.notify.sock.sendall(struct.pack("!I", 15) + b"COLO_CHE")
        pair.notify.close()
        pair.primary.send(mine := UDP.udp(53, 6000, b"mine"))
        pair.secondary.send(UDP.udp(53, 6000, b"its"))
        again = End(tmp_path / "notify")
        try:
            again.send(b"COLO_USERSPACE_PROXY_INIT")
            heard = again.receive(2)  # the request is repeated until there is a checkpoint
            assert sorted(heard) == [b"COLO_COMPARE_GET_XEN_INIT", b"DO_CHECKPOINT"]
            again.send(b"COLO_CHECKPOINT")
            assert pair.out.receive() == [mine]
        finally:
            again.close()


def test_a_checkpointer_that_talks_nonsense_is_parted_with(tmp_path: Path) -> None:
    with compare(tmp_path, notify=True) as pair:
        assert pair.notify is not None
        pair.notify.send(b"NONSENSE")
        pair.notify.sock.sendall(b"\xff\xff\xff\xff")
        assert pair.notify.is_closed()
        pair.release(datagram(1))
        said = counters(pair.command.stop())
    assert said["notify.unknown"] == 1
    assert said["notify.too_long"] == 1


def test_a_command_makes_the_checkpoint(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"echo paused; read word; echo $COLO_REASON $word >> {told}; echo completed"
    with compare(tmp_path, "--checkpoint-command", script) as pair:
        pair.primary.send(mine := UDP.udp(53, 6000, b"mine"))
        pair.secondary.send(UDP.udp(53, 6000, b"its"))
        assert pair.out.receive() == [mine]
        assert "the datagrams differ" in pair.command.line()
        pair.release(datagram(1))
        said = counters(pair.command.stop())
    assert told.read_text() == "datagram drained\n"
    assert said["checkpoint.completed"] == 1


@pytest.mark.parametrize(
    "script", ["exit 1", "true", "echo completed", "echo paused", "echo paused; echo failed", "kill $$"]
)
def test_a_command_that_makes_none_releases_nothing(tmp_path: Path, script: str) -> None:
    with compare(tmp_path, "--checkpoint-command", script) as pair:
        pair.primary.send(UDP.udp(53, 6000, b"mine"))
        pair.secondary.send(UDP.udp(53, 6000, b"its"))
        assert "the datagrams differ" in pair.command.line()
        assert pair.out.silent(0.5)
        said = counters(pair.command.stop())
    assert said["checkpoint.failed"] >= 2  # and was tried again
    assert "checkpoint.completed" not in said


def test_a_command_that_never_ends_is_ended_with_us(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    with compare(tmp_path, "--checkpoint-command", f"sleep 600 & echo $! > {mark}; wait") as pair:
        pair.primary.send(UDP.udp(53, 6000, b"mine"))
        pair.secondary.send(UDP.udp(53, 6000, b"its"))
        eventually("the command starts", lambda: mark.exists() and mark.read_text().endswith("\n"))
        child = int(mark.read_text())
        pair.command.stop()

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    eventually("its child is ended too", is_gone)


def test_differences_are_told_and_not_without_end(tmp_path: Path) -> None:
    with compare(tmp_path) as pair:
        for port in range(300):
            pair.primary.send(UDP.udp(53, 7000 + port, b"mine"))
            pair.secondary.send(UDP.udp(53, 7000 + port, b"its"))
        pair.release(datagram(1))
        said = pair.command.stop()
    assert counters(said)["compare.difference.datagram"] == 300
    assert 10 <= said.count("the datagrams differ") <= 60


# -------------------------------------------------------------------------------------------------------------- modes


def is_compared(pair: Pair, frame: bytes) -> bool:
    """Have both send ``frame``: whether it leaves without a checkpoint. One that is asked for before that is made."""
    assert pair.notify is not None
    pair.primary.send(frame)
    pair.secondary.send(frame)
    spoke, _, _ = select.select([pair.out.sock, pair.notify.sock], [], [], PATIENCE)
    compared = pair.out.sock in spoke
    if not compared:
        assert pair.notify.receive() == [b"DO_CHECKPOINT"]
        pair.notify.send(b"COLO_CHECKPOINT")
    assert pair.out.receive() == [frame]
    return compared


def differ(pair: Pair, number: int) -> None:
    """Have both send what is not the same, and make the checkpoint that this leads to."""
    assert pair.notify is not None
    pair.primary.send(mine := UDP.udp(53, 6000, b"mine %d" % number))
    pair.secondary.send(UDP.udp(53, 6000, b"its %d" % number))
    assert pair.notify.receive() == [b"DO_CHECKPOINT"]
    pair.notify.send(b"COLO_CHECKPOINT")
    assert pair.out.receive() == [mine]


def test_in_periodic_mode_what_is_equal_waits_for_a_checkpoint(tmp_path: Path) -> None:
    """Which is asked for when it is due, whether anything comes or not."""
    with compare(tmp_path, "--mode", "periodic", "--period", "300", notify=True) as pair:
        assert pair.notify is not None
        for low in (0, 100, 200):
            frames = [datagram(low + number) for number in range(100)]
            for number in range(0, 100, 10):
                pair.primary.send(*frames[number : number + 10])
                pair.secondary.send(*frames[number : number + 10])
            assert pair.notify.receive() == [b"DO_CHECKPOINT"]
            assert pair.out.silent()
            pair.notify.send(b"COLO_CHECKPOINT")
            assert pair.out.receive(100) == frames
        said = counters(pair.command.stop())
    assert said["policy.to_periodic.choice"] == 1
    assert said["checkpoint.completed"] == 3
    assert said["compare.secondary_ignored"] == 300
    assert "policy.to_compare" not in said


def test_nobody_is_asked_for_a_periodic_checkpoint_before_somebody_is_there(tmp_path: Path) -> None:
    arguments = ["compare", "--stats", "--mode", "periodic"]
    for name in ("primary-in", "secondary-in", "out", "notify"):
        arguments += [f"--{name}", f"unix:{tmp_path / name},server"]
    with running(*arguments) as command, contextlib.ExitStack() as ends:
        primary, out = (ends.enter_context(contextlib.closing(End(tmp_path / name))) for name in ("primary-in", "out"))
        primary.send(datagram(1))
        assert out.silent(0.5)
        notify = ends.enter_context(contextlib.closing(End(tmp_path / "notify")))
        assert notify.receive() == [b"DO_CHECKPOINT"]
        notify.send(b"COLO_CHECKPOINT")
        assert out.receive() == [datagram(1)]
        said = counters(command.stop())
    assert "notify.no_peer" not in said
    assert "checkpoint.failed" not in said


def test_in_periodic_mode_a_command_makes_the_checkpoints(tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"echo paused; read word; echo $COLO_REASON $word >> {told}; echo completed"
    with compare(tmp_path, "--mode", "periodic", "--period", "50", "--checkpoint-command", script) as pair:
        for number in range(5):
            pair.primary.send(datagram(number))
            assert pair.out.receive() == [datagram(number)]
        said = counters(pair.command.stop())
    assert set(told.read_text().splitlines()) == {"periodic drained"}
    assert said["checkpoint.requested"] <= said["checkpoint.completed"] + 1


def test_a_periodic_checkpoint_is_made_although_nobody_has_connected(tmp_path: Path) -> None:
    arguments = ["compare", "--mode", "periodic", "--checkpoint-command", f"touch {tmp_path / 'made'}"]
    for name in ("primary-in", "secondary-in", "out"):
        arguments += [f"--{name}", f"unix:{tmp_path / name},server"]
    with running(*arguments):
        eventually("the command is run", (tmp_path / "made").exists)


def test_in_periodic_mode_a_secondary_that_is_lost_holds_nothing_up(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    script = f"[ -e {lost} ] && echo lost secondary || exit 1"
    with compare(tmp_path, "--mode", "periodic", "--period", "50", "--checkpoint-command", script) as pair:
        pair.primary.send(datagram(1))
        assert pair.out.silent(0.3)
        lost.touch()
        assert pair.out.receive() == [datagram(1)]
        for number in range(2, 50):
            pair.primary.send(datagram(number))
            assert pair.out.receive() == [datagram(number)]
        said = counters(pair.command.stop())
    assert said["checkpoint.lost_secondary"] == 1
    assert "checkpoint.ignored" not in said


def test_in_auto_mode_differences_without_end_lead_to_periodic_checkpoints_and_back(tmp_path: Path) -> None:
    with compare(tmp_path, "--mode", "auto", notify=True) as pair:
        number = 0
        while is_compared(pair, datagram(number)):
            differ(pair, number)
            number += 1
            assert number < 1000
        until = time.monotonic() + PATIENCE
        while not is_compared(pair, datagram(number)):
            number += 1
            assert time.monotonic() < until
        pair.release(*map(datagram, range(100)))
        said = counters(pair.command.stop())
    assert said["policy.to_periodic.differences"] == said["policy.to_compare"] == 1
    assert said["checkpoint.completed"] == said["notify.asked"] == said["notify.checkpoint"]


def test_without_a_mode_differences_without_end_change_nothing(tmp_path: Path) -> None:
    with compare(tmp_path, notify=True) as pair:
        for number in range(2 * PolicyConfig().max_rate):
            differ(pair, number)
            assert is_compared(pair, datagram(number))
        said = counters(pair.command.stop())
    assert not [name for name in said if name.startswith("policy.")]


@contextlib.contextmanager
def in_process(policy: PolicyConfig, config: CompareConfig) -> Iterator[tuple[CompareServer, Policy]]:
    """A server in this process to which nobody connects: for what no option says and no peer sees."""

    async def make() -> CompareServer:
        where = "tcp:127.0.0.1:0,server"
        addresses = parse_all(primary_in=where, secondary_in=where, out=where, notify=where)
        return CompareServer(config, addresses, None, Counters(), print, policy)

    with asyncio.Runner() as runner:
        server = runner.run(make())
        try:
            assert server.policy is not None
            yield server, server.policy
        finally:
            server.close()


def test_periodic_mode_holds_the_very_first_frame() -> None:
    with in_process(PolicyConfig(forced="periodic"), CompareConfig(framed=True)) as (server, _):
        assert server.comparator.mode is Mode.PERIODIC


def test_a_table_that_was_full_is_tried_again() -> None:
    with in_process(PolicyConfig(), CompareConfig(framed=True, max_flows=4)) as (server, policy):
        server._notify_changed(True)
        for port in range(5):
            server._from_primary(encode(UDP.udp(53, 6000 + port, b"answer")))
        now = monotonic()
        server._after(now)
        assert (policy.why, server.comparator.mode) == ("table", Mode.PERIODIC)
        for later in (1, policy.hold, policy.hold + 1):  # the last one is asked for by the return
            server._from_notify(encode(b"COLO_CHECKPOINT"))
            server._after(now + later)
        assert (policy.why, server.comparator.mode) == ("", Mode.COMPARE)
        assert server.comparator.held_frames == 0
        assert server.counters["policy.to_periodic.table"] == server.counters["policy.to_compare"] == 1


@pytest.mark.parametrize("mode", ["auto", "periodic"])
def test_a_mode_that_needs_checkpoints_needs_somebody_who_makes_them(tmp_path: Path, mode: str) -> None:
    arguments = ["compare", "--mode", mode]
    for name in ("primary-in", "secondary-in", "out"):
        arguments += [f"--{name}", f"unix:{tmp_path / name},server"]
    done = subprocess.run(
        [sys.executable, "-m", "colo", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"colo: --mode {mode} needs somebody who makes checkpoints: give --notify, --checkpoint-command or --qmp.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_period_is_the_policy_s_own_unless_another_is_given() -> None:
    (option,) = [option for option in compare_command.params if option.name == "period"]
    assert option.default == PolicyConfig().periodic_interval // 1000


# ------------------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("side", ["primary", "secondary"])
def test_a_peer_that_goes_in_the_middle_of_a_frame(tmp_path: Path, side: str) -> None:
    with compare(tmp_path) as pair:
        pair.release(datagram(1))
        going: End = getattr(pair, side)
        going.sock.sendall(struct.pack("!I", 60) + bytes(30))
        going.close()
        setattr(pair, side, again := End(tmp_path / f"{side}-in"))
        try:
            pair.release(datagram(2))
            said = counters(pair.command.stop())
        finally:
            again.close()
    assert said[f"channel.{side}_in.gone"] == 1
    assert said[f"channel.{side}_in.connected"] == 2


def test_a_second_peer_waits_for_the_first_to_go(tmp_path: Path) -> None:
    with compare(tmp_path) as pair:
        waiting = End(tmp_path / "primary-in")
        try:
            waiting.send(datagram(2))
            pair.release(datagram(1))
            pair.secondary.send(datagram(2))
            assert pair.out.silent()
            pair.primary.close()
            assert pair.out.receive() == [datagram(2)]
        finally:
            waiting.close()


@pytest.mark.parametrize("side", ["primary", "secondary"])
@pytest.mark.parametrize(
    ("vnet_hdr_len", "prefix", "reason"),
    [
        (None, struct.pack("!I", 69_633), "compare.too_long"),
        (None, b"\xff\xff\xff\xff", "compare.too_long"),
        (12, struct.pack("!II", 60, 61), "compare.bad_vnet_hdr_len"),
    ],
)  # fmt: skip
def test_a_prefix_that_cannot_be_parts_with_the_peer(
    tmp_path: Path, side: str, vnet_hdr_len: int | None, prefix: bytes, reason: str
) -> None:
    with compare(tmp_path, vnet_hdr_len=vnet_hdr_len) as pair:
        wrong: End = getattr(pair, side)
        wrong.sock.sendall(prefix + bytes(100))
        assert wrong.is_closed()
        setattr(pair, side, again := End(tmp_path / f"{side}-in", vnet_hdr_len=vnet_hdr_len))
        try:
            pair.release(bytes(vnet_hdr_len or 0) + datagram(1))
            said = counters(pair.command.stop())
        finally:
            again.close()
    assert said[reason] == 1


def test_the_longest_frame_that_qemu_knows(tmp_path: Path) -> None:
    with compare(tmp_path) as pair:
        frame = Crafter("10.0.0.2", "10.0.0.1").ethernet(0x88B5, b"")
        frame += bytes(69_632 - len(frame))
        pair.primary.send(frame)  # not IP: the primary's passes
        assert pair.out.receive() == [frame]


def test_an_empty_frame_is_left_out(tmp_path: Path) -> None:
    """QEMU would end itself on one."""
    with compare(tmp_path) as pair:
        pair.primary.send(b"")
        pair.secondary.send(b"", b"")
        pair.release(datagram(1))
        said = counters(pair.command.stop())
    assert said["compare.empty"] == 3


def test_a_reader_that_stalls_costs_frames_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    total, size = 150 << 20, 60_000
    frame = UDP.ethernet(0x88B5, bytes(size))  # not IP: released at once
    with compare(tmp_path) as pair:
        for _ in range(total // size):
            pair.primary.send(frame)  # would block here if nobody read
        status = Path(f"/proc/{pair.command.process.pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) << 10
        assert resident < 200 << 20
        before = len(frame)
        got = 0
        while not pair.out.silent(0.5):
            got += len(pair.out.receive(1))
            got += len(pair.out._frames)
            assert all(len(one) == before for one in pair.out._frames)
            pair.out._frames.clear()
        assert (60 << 20) // size < got < (100 << 20) // size
        pair.release(datagram(1))
        said = counters(pair.command.stop())
    assert said["channel.out.dropped"] == total // size - got
    assert said["channel.out.stalled"] >= 1


def test_what_is_released_while_nobody_reads_is_dropped_and_counted(tmp_path: Path) -> None:
    with compare(tmp_path) as pair:
        pair.out.close()
        time.sleep(0.1)
        pair.primary.send(datagram(1))
        pair.secondary.send(datagram(1))
        time.sleep(0.1)
        pair.out = End(tmp_path / "out")
        pair.release(datagram(2))
        said = counters(pair.command.stop())
        pair.out.close()
    assert said["channel.out.dropped"] == 1


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
def test_a_client_reaches_its_server_again(tmp_path: Path, *, tcp: bool) -> None:
    with contextlib.ExitStack() as undo:
        listeners, arguments = {}, ["compare", "--stats"]
        for name in ("primary-in", "secondary-in", "out"):
            listeners[name] = listener = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
            undo.callback(listener.close)
            listener.bind(("127.0.0.1", 0) if tcp else str(tmp_path / name))
            listener.listen(4)
            listener.settimeout(PATIENCE)
            where = f"tcp:127.0.0.1:{listener.getsockname()[1]}" if tcp else f"unix:{tmp_path / name}"
            arguments += [f"--{name}", where]
        command = undo.enter_context(running(*arguments))
        ends = {name: End(listener.accept()[0]) for name, listener in listeners.items()}
        pair = Pair(command, ends)
        pair.release(datagram(1))
        pair.primary.close()
        pair.primary = End(listeners["primary-in"].accept()[0])
        pair.release(datagram(2))
        said = counters(command.stop())
        for end in (pair.primary, pair.secondary, pair.out):
            end.close()
    assert said["channel.primary_in.connected"] == 2
