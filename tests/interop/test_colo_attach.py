"""`colo compare --qmp`: inside a set-up of QEMU's own COLO, in place of the object colo-compare alone."""

from __future__ import annotations

import contextlib
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from colo.qemu.image import CARDS, Kernel, fetch_kernel
from pystack import UsageError
from pystack.testing.frames import Crafter
from tests.interop.attach_fakes import Monitor, Stream
from tests.interop.attach_pair import Pair, asked
from tests.interop.colo_sockets import Command, End, counters, eventually, running
from tests.interop.lab import Lab

UDP = Crafter("10.0.0.2", "10.0.0.1")
HEARTBEAT = "x-colo-lost-heartbeat"


def datagram(number: int) -> bytes:
    return UDP.udp(53, 6000, struct.pack("!I", number))


# --------------------------------------------------------------------------------------------------- without machines


class Faked(NamedTuple):
    """A `colo compare` with everything that it needs but machines."""

    command: Command
    primary: End
    secondary: End
    out: End
    directory: Path
    qmp: Monitor
    secondary_qmp: Monitor
    ends: contextlib.ExitStack

    def stream(self) -> Stream:
        stream = Stream(self.directory / "through", self.directory / "state")
        self.ends.callback(stream.close)
        return stream

    def until_said(self, text: str) -> None:
        while text not in (line := self.command.line()):
            assert line, f"it has ended without {text!r}"


def options(directory: Path, *, secondary: bool = True) -> list[str]:
    words = [word for name in ("primary-in", "secondary-in", "out") for word in option(directory, name, ",server")]
    words += option(directory, "qmp")
    words += option(directory, "secondary-qmp") if secondary else []
    words += ["--migration-in", f"unix:{directory / 'through'}", "--migration-out", f"unix:{directory / 'state'}"]
    return words


def option(directory: Path, name: str, more: str = "") -> list[str]:
    return [f"--{name}", f"unix:{directory / name}{more}"]


@pytest.fixture
def faked(tmp_path: Path) -> Iterator[Faked]:
    with (
        Monitor(tmp_path / "qmp") as qmp,
        Monitor(tmp_path / "secondary-qmp") as secondary_qmp,
        running("compare", "--stats", *options(tmp_path)) as command,
        contextlib.ExitStack() as ends,
    ):
        primary, secondary, out = (End(tmp_path / name) for name in ("primary-in", "secondary-in", "out"))
        for end in (primary, secondary, out):
            ends.callback(end.close)
        yield Faked(command, primary, secondary, out, tmp_path, qmp, secondary_qmp, ends)


def test_checkpoints_go_through_the_stream(faked: Faked) -> None:
    """Alone everything passes; under COLO a difference asks for a checkpoint, and leaves when it was loaded."""
    faked.primary.send(datagram(1))
    assert faked.out.receive() == [datagram(1)]
    stream = faked.stream()
    stream.enter()
    faked.until_said("under COLO")
    faked.primary.send(datagram(2))
    assert faked.out.silent()
    faked.secondary.send(datagram(2))
    assert faked.out.receive() == [datagram(2)]
    faked.primary.send(datagram(3))
    faked.secondary.send(datagram(4))
    eventually("asked for", lambda: "migrate-set-parameters" in faked.qmp.names())
    assert ("migrate-set-parameters", {"x-checkpoint-delay": 12_345}) in faked.qmp.told  # the period that it had
    stream.stop_both()
    assert faked.out.silent()
    faked.primary.send(datagram(5))  # not before the primary was told that it may go on, but sockets are no clocks
    stream.load()
    assert faked.out.receive() == [datagram(3)]
    assert faked.out.silent()
    faked.secondary.send(datagram(5))
    assert faked.out.receive() == [datagram(5)]
    stats = counters(faked.command.stop())
    assert stats["checkpoint.completed"] == 2
    assert stats["engine.joined"] == stats["engine.copied"] == 1


def test_a_checkpoint_that_qemu_takes_by_itself_is_followed(faked: Faked) -> None:
    stream = faked.stream()
    stream.enter()
    faked.primary.send(datagram(1))
    assert faked.out.silent()
    stream.stop_both()
    stream.load()
    assert faked.out.receive() == [datagram(1)]
    assert counters(faked.command.stop())["checkpoint.unasked"] == 2


@pytest.mark.parametrize("undecided", [False, True])
def test_the_secondary_is_lost(faked: Faked, *, undecided: bool) -> None:
    """The primary is told before anything leaves; then everything does."""
    stream = faked.stream()
    stream.enter()
    faked.primary.send(datagram(1))
    assert faked.out.silent()
    if undecided:
        stream.stop_both()
    stream.secondary.close()
    assert faked.out.receive() == [datagram(1)]
    assert faked.qmp.names()[-1] == HEARTBEAT
    assert HEARTBEAT not in faked.secondary_qmp.names()
    faked.primary.send(datagram(2))
    assert faked.out.receive() == [datagram(2)]
    assert counters(faked.command.stop())["checkpoint.lost_secondary"] == 1


def test_the_primary_is_lost(faked: Faked) -> None:
    """The secondary is told; nothing that it does not cover leaves, whatever comes yet."""
    stream = faked.stream()
    stream.enter()
    faked.primary.send(datagram(1))
    assert faked.out.silent()
    faked.qmp.end()
    stream.primary.close()
    eventually("told", lambda: HEARTBEAT in faked.secondary_qmp.names())
    faked.primary.send(datagram(2))
    faked.secondary.send(datagram(2))
    assert faked.out.silent()
    assert counters(faked.command.stop())["checkpoint.lost_primary"] == 1


def test_a_migration_without_colo_may_be_tried_again(faked: Faked) -> None:
    stream = faked.stream()
    stream.from_primary(b"memory")
    stream.close()
    faked.until_said("set the capability x-colo on both machines")
    (faked.directory / "state").unlink()
    stream = faked.stream()
    stream.enter()
    faked.until_said("under COLO")
    assert counters(faked.command.stop())["engine.joined"] == 1


def test_what_is_not_colo_is_not_followed(faked: Faked) -> None:
    stream = faked.stream()
    stream.enter()
    with contextlib.suppress(AssertionError, OSError):
        stream.from_primary(b"what is this")
    faked.until_said("is not QEMU's COLO")
    faked.until_said("The secondary is lost")
    assert HEARTBEAT in faked.qmp.names()


def refused(directory: Path, *more: str, **how: Any) -> str:
    """What `colo compare` says before it ends with status 2."""
    argv = [sys.executable, "-m", "colo", "compare", *options(directory, **how), *more]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        (None, "there is no QMP"),
        ("SSH-2.0-OpenSSH", "is no QMP"),
        ("", "give the machine a -qmp of its own"),
    ],
)
def test_a_monitor_that_is_none(tmp_path: Path, greeting: str | None, says: str) -> None:
    with contextlib.ExitStack() as stack:
        if greeting is not None:
            stack.enter_context(Monitor(tmp_path / "qmp", greeting))
        assert says in refused(tmp_path, secondary=False)


@pytest.mark.parametrize("lacks", ["query-migrate-capabilities", "query-commands"])
def test_a_qemu_without_colo(tmp_path: Path, lacks: str) -> None:
    """Since 8.1 one may be built with neither, or with the capability and not with the command."""
    with Monitor(tmp_path / "qmp", answers={lacks: []}):
        assert "built without COLO" in refused(tmp_path, secondary=False)


def test_a_migration_that_goes_past(tmp_path: Path) -> None:
    with Monitor(tmp_path / "qmp", answers={"query-migrate": {"status": "colo"}}):
        assert "goes past this program" in refused(tmp_path, secondary=False)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--notify", "unix:/n"], "--notify and --qmp both make checkpoints"),
        (["--checkpoint-command", "true"], "--checkpoint-command and --qmp both make checkpoints"),
        (["--qmp", "unix:/q,server"], "leave ',server' out"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, more: list[str], says: str) -> None:
    assert says in refused(tmp_path, *more)


def test_an_option_that_needs_another(tmp_path: Path) -> None:
    words = [word for name in ("primary-in", "secondary-in", "out") for word in option(tmp_path, name, ",server")]
    argv = [sys.executable, "-m", "colo", "compare", *words, *option(tmp_path, "qmp")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--qmp needs --migration-in and --migration-out as well" in done.stderr


# ------------------------------------------------------------------------------------------------------ real machines

MEMORY_MIB = 200  # an interpreter, asyncio, and what is held


def with_machines(test: Any) -> Any:
    for mark in (
        pytest.mark.alone,
        pytest.mark.timeout(240),
        pytest.mark.requires("qemu", "busybox", "cc", "tap", "ip"),
    ):
        test = mark(test)
    return test


@contextlib.contextmanager
def pair(directory: Path, nic: str) -> Iterator[Pair]:
    """A pair under COLO."""
    needs = CARDS[nic]
    try:
        Kernel.find(needs=needs)
    except UsageError:
        fetch_kernel(needs=needs)
    with Lab() as lab, Pair(lab, directory, nic, vnet=nic == "virtio-net-pci") as made:
        made.protect()
        yield made


def until_random_bytes_differ(made: Pair) -> None:
    """Both kernels' generators are in the same state after a checkpoint, until something stirs one of them."""
    assert made.said is not None
    for _ in range(20):
        found = made.traffic("random", "2")
        assert found["wrong"] == []
        assert found["ms"]
        if "the streams differ: TCP 10.77.0.2:9" in made.said.text:
            return
    raise AssertionError(f"random bytes have not differed: {made.said.text}")


@with_machines
@pytest.mark.parametrize("nic", ["rtl8139", "virtio-net-pci"])
def test_a_pair_under_qemu_s_own_colo(tmp_path: Path, nic: str) -> None:
    """Traffic without a failure, checkpoints with a reason; then the secondary carries on with the same connection."""
    with pair(tmp_path, nic) as made:
        for words in (("get", "1k", "3"), ("get", "1m", "3"), ("echo", "2")):
            found = made.traffic(*words)
            assert found["wrong"] == [], words
            assert found["ms"], words
        until_random_bytes_differ(made)
        assert made.memory_mib() < MEMORY_MIB
        with made.talking() as client:
            assert asked(client, b"before\n") == ""
            made.processes["primary"].send_signal(signal.SIGKILL)
            made.until_said("the secondary was told", 5)
            made.take_over()
            assert asked(client, b"after\n") == ""
            assert made.traffic("get", "1m", "1")["wrong"] == []
        for name in ("primary", "secondary"):
            assert "panic" not in made.console(name)
        said = made.stop_compare()
        stats = counters(said)
        assert stats["engine.copied"] == stats["checkpoint.completed"] - 1 > 0
        assert stats["checkpoint.lost_primary"] == 1
        assert "checkpoint.failed" not in stats


@with_machines
def test_the_secondary_machine_is_killed(tmp_path: Path) -> None:
    """The primary carries on with every connection."""
    with pair(tmp_path, "virtio-net-pci") as made, made.talking() as client:
        assert asked(client, b"before\n") == ""
        made.processes["secondary"].send_signal(signal.SIGKILL)
        assert asked(client, b"after\n") == ""
        made.until_said("The secondary is lost", 5)
        for words in (("get", "1m", "1"), ("random", "1")):
            assert made.traffic(*words)["wrong"] == []
        assert made.qmp["primary"]("query-status")["status"] == "running"
        assert counters(made.stop_compare())["checkpoint.lost_secondary"] == 1
