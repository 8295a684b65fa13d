"""QEMU's colo-compare and filters in a process of their own, without a guest (``-M none``), fed one frame at a time.

QEMU answers on one socket what it was told on three, and says nothing at all about what it merely keeps; so after each
frame both sides send one UDP datagram of a flow that no case uses. When it comes out, everything before it on either
socket has been dealt with: what came out before it, and whether DO_CHECKPOINT was said, is the answer to that frame.

`compare_command` drives `colo compare`, whose sockets and bytes are the same, in the same way.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from pystack.link.qemu_framing import FrameDecoder, encode
from pystack.testing.frames import Crafter

ROOT: Final = Path(__file__).resolve().parents[3]
PATIENCE: Final = 20.0
"""Seconds after which an answer that does not come is an error."""

_BARRIER: Final = Crafter("192.0.2.254", "192.0.2.253")
_GREETED: Final = b"COLO_COMPARE_GET_XEN_INIT"
_DO_CHECKPOINT: Final = b"DO_CHECKPOINT"
QUIET_MACHINE: Final = ("-M", "none", "-nodefaults", "-display", "none", "-serial", "none", "-monitor", "none")

Framed = tuple[int, bytes]
"""The length of the virtio_net_hdr, and the frame that starts with it."""


class OracleError(Exception):
    """The judge did not answer, or has ended."""


def connected(path: Path) -> socket.socket:
    """A connection to ``path``, where a program has made its socket and may not listen yet."""
    deadline = time.monotonic() + PATIENCE
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            if not isinstance(error, ConnectionRefusedError) or time.monotonic() > deadline:
                raise OracleError(f"{path.name}: {error}") from None
            time.sleep(0.002)
        else:
            return sock


class Wire:
    """One end of a stream socket with QEMU's framing."""

    def __init__(self, path: Path, *, vnet: bool) -> None:
        self.vnet = vnet
        self._decoder = FrameDecoder(vnet_hdr=vnet)
        self.frames: deque[Framed] = deque()
        self.sock = connected(path)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self.sock.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        self._poll = select.poll()
        self._poll.register(self.sock, select.POLLIN)

    def send(self, frame: bytes, vnet_hdr_len: int = 0) -> None:
        """Write one frame with its prefix."""
        self.sock.sendall(encode(frame, vnet_hdr_len if self.vnet else None))

    def receive(self) -> Framed:
        """The next frame, waited for.

        Raises:
            OracleError: it does not come.
        """
        while not self.frames:
            try:
                data = self.sock.recv(1 << 18)
            except TimeoutError:
                raise OracleError("no answer") from None
            if not data:
                raise OracleError("the judge has closed the connection")
            self.frames.extend(self._decoder.feed(data))
        return self.frames.popleft()

    def waiting(self, seconds: float = 0.0) -> list[Framed]:
        """What is there, or what comes first within ``seconds``."""
        while self._poll.poll(0 if self.frames else seconds * 1000):
            data = self.sock.recv(1 << 18)
            if not data:
                raise OracleError("the judge has closed the connection")
            self.frames.extend(self._decoder.feed(data))
        found = list(self.frames)
        self.frames.clear()
        return found

    def raw(self, size: int) -> bytes:
        """The next ``size`` bytes as they come, prefixes included. Not to be mixed with frames."""
        data = b""
        while len(data) < size:
            try:
                part = self.sock.recv(size - len(data))
            except TimeoutError:
                raise OracleError(f"{len(data)} of {size} bytes") from None
            if not part:
                raise OracleError("the judge has closed the connection")
            data += part
        return data

    def close(self) -> None:
        """Release the socket."""
        self.sock.close()


class Process:
    """A program in a directory of its own. It ends with this one, come what may."""

    def __init__(self, argv: Sequence[str], directory: Path) -> None:
        self.log: IO[bytes] = (directory / "log").open("wb")
        guard = ["setpriv", "--pdeathsig=KILL"] if shutil.which("setpriv") else []
        self.popen = subprocess.Popen(
            [*guard, *argv], stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, cwd=ROOT
        )
        self._log_path = directory / "log"

    def said(self) -> str:
        """What the program has printed."""
        return self._log_path.read_text(errors="replace")

    def wait_for(self, path: Path) -> None:
        """Until there is a socket at ``path``."""
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            if self.popen.poll() is not None or time.monotonic() > deadline:
                raise OracleError(f"no socket {path.name}: {self.said()[-2000:]}")
            time.sleep(0.002)

    def end(self) -> None:
        """Kill it and wait."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(PATIENCE)
        self.log.close()


class Qmp:
    """QEMU's control socket."""

    def __init__(self, path: Path) -> None:
        self._sock = connected(path)
        self._file = self._sock.makefile("rb")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return what it returns.

        Raises:
            OracleError: it fails.
        """
        self._sock.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while line := self._file.readline():
            reply = json.loads(line)
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                raise OracleError(f"{command}: {reply['error']['desc']}")
        raise OracleError(f"{command}: QEMU has closed the connection")

    def close(self) -> None:
        """Release the socket."""
        self._file.close()
        self._sock.close()


@dataclass(slots=True)
class Answer:
    """What came of one frame, or of a checkpoint."""

    released: list[Framed] = field(default_factory=list)
    asked: int = 0


class Judge:
    """A comparator behind four sockets.

    Args:
        settles: seconds to wait for a request that may be delayed (`colo compare` limits their rate); QEMU's are there
            when the barrier is.
    """

    def __init__(self, directory: Path, process: Process, *, vnet: bool, settles: float = 0.0) -> None:
        self.process = process
        self._directory = directory
        self.vnet = vnet
        self._settles = settles
        self._serial = 0
        self.qmp: Qmp | None = None
        self._wires: dict[str, Wire] = {}
        try:
            for name in ("pri", "sec", "out", "notify"):
                process.wait_for(directory / name)
                # QEMU's words on notify_dev never carry the second length; those it reads do.
                self._wires[name] = Wire(directory / name, vnet=vnet and name != "notify")
            if (directory / "qmp").exists():
                self.qmp = Qmp(directory / "qmp")
                self.qmp.execute("query-status")  # the connections are accepted in the loop that answers this
            self.secondary, self.out, self.notify = (self._wires[name] for name in ("sec", "out", "notify"))
            self.greet()
        except BaseException:
            self.close()
            raise

    @property
    def primary(self) -> Wire:
        """The primary's socket."""
        return self._wires["pri"]

    def close(self) -> None:
        """Release the sockets."""
        for wire in self._wires.values():
            wire.close()
        if self.qmp is not None:
            self.qmp.close()

    def reconnect_primary(self) -> None:
        """Leave, and come again as the primary."""
        self.primary.close()
        self._wires["pri"] = Wire(self._directory / "pri", vnet=self.vnet)
        if self.qmp is not None:
            self.qmp.execute("query-status")

    def _tell(self, word: bytes) -> None:
        self.notify.sock.sendall(encode(word, 0 if self.vnet else None))

    def greet(self) -> int:
        """Say INIT and wait for the answer; returns how often DO_CHECKPOINT came before it."""
        self._tell(b"COLO_USERSPACE_PROXY_INIT")
        asked = 0
        while (message := self.notify.receive()[1]) != _GREETED:
            assert message == _DO_CHECKPOINT, message
            asked += 1
        return asked

    def _barrier(self) -> list[Framed]:
        """Wait until both sides' frames so far are dealt with; returns what was released."""
        self._serial += 1
        frame = bytes(12 if self.vnet else 0) + _BARRIER.udp(9, 9, struct.pack("!Q", self._serial))
        self.primary.send(frame, 12)
        self.secondary.send(frame, 12)
        released = []
        while (got := self.out.receive())[1] != frame:
            released.append(got)
        return released

    def feed(self, primary: bool, frame: bytes, vnet_hdr_len: int = 0) -> Answer:
        """Send one frame, and say what came of it."""
        (self.primary if primary else self.secondary).send(frame, vnet_hdr_len)
        released = self._barrier()
        return Answer(released, len(self.notify.waiting()))

    def flush_after(self, seconds: float) -> Answer:
        """Wait, and then `flush`: with what was asked for meanwhile, by a timeout."""
        time.sleep(seconds)
        return self.flush()

    def flush(self) -> Answer:
        """Say COLO_CHECKPOINT; what is released by it, and what was asked for until then."""
        late = len(self.notify.waiting(self._settles)) if self._settles else 0
        self._tell(b"COLO_CHECKPOINT")
        asked = late + self.greet()
        return Answer(self._barrier(), asked)


@contextlib.contextmanager
def qemu_compare(
    *,
    vnet: bool = False,
    compare_timeout: int = 600_000,
    scan_cycle: int = 600_000,
    max_queue_size: int | None = None,
) -> Iterator[Judge]:
    """QEMU's colo-compare; times in milliseconds."""
    with tempfile.TemporaryDirectory(prefix="judge") as name:
        directory = Path(name)
        sockets = [
            part
            for chardev in ("pri", "sec", "out", "notify")
            for part in ("-chardev", f"socket,id={chardev},path={directory / chardev},server=on,wait=off")
        ]
        options = (
            f"colo-compare,id=comp0,primary_in=pri,secondary_in=sec,outdev=out,notify_dev=notify,iothread=io1"
            f",compare_timeout={compare_timeout},expired_scan_cycle={scan_cycle}"
            + (f",max_queue_size={max_queue_size}" if max_queue_size else "")
            + (",vnet_hdr_support=on" if vnet else "")
        )
        argv = ["qemu-system-x86_64", *QUIET_MACHINE, "-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]
        argv += [*sockets, "-object", "iothread,id=io1", "-object", options]
        with _judge(argv, directory, vnet=vnet) as judge:
            yield judge


@contextlib.contextmanager
def compare_command(*, vnet: bool = False, options: Sequence[str] = ()) -> Iterator[Judge]:
    """`colo compare` on the same sockets."""
    with tempfile.TemporaryDirectory(prefix="judge") as name:
        directory = Path(name)
        argv = [sys.executable, "-m", "colo", "compare"]
        for option, chardev in (("primary-in", "pri"), ("secondary-in", "sec"), ("out", "out"), ("notify", "notify")):
            argv += [f"--{option}", f"unix:{directory / chardev},server"]
        argv += ["--compare-timeout", "600000", "--expired-scan-cycle", "600000", *options]
        with _judge([*argv, *(["--vnet-hdr"] if vnet else [])], directory, vnet=vnet, settles=0.03) as judge:
            yield judge


@contextlib.contextmanager
def _judge(argv: Sequence[str], directory: Path, *, vnet: bool, settles: float = 0.0) -> Iterator[Judge]:
    process = Process(argv, directory)
    try:
        judge = Judge(directory, process, vnet=vnet, settles=settles)
        try:
            yield judge
        finally:
            judge.close()
    except OracleError as error:
        raise OracleError(f"{error}; the program said: {process.said()[-2000:]}") from error
    finally:
        process.end()
