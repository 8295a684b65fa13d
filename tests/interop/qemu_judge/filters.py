"""QEMU's filter-rewriter, filter-mirror and filter-redirector on netdevs without a guest, and `colo mirror`."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.interop.qemu_judge import card
from tests.interop.qemu_judge.oracle import PATIENCE, QUIET_MACHINE, OracleError, Process, Qmp, Wire


class Filters:
    """filter-rewriter between redirectors: a frame goes in at one side and comes out at the other.

    Attributes:
        header: the virtio_net_hdr in front of each frame; none: vnet_hdr_support is off.
    """

    def __init__(self, directory: Path, process: Process, header: bytes = b"") -> None:
        self.process = process
        self.header = header
        for name in ("qmp", "cin", "cout", "gin", "gout"):
            process.wait_for(directory / name)
        self.qmp = Qmp(directory / "qmp")
        self._wires = {name: Wire(directory / name, vnet=bool(header)) for name in ("cin", "cout", "gin", "gout")}
        self.qmp.execute("query-status")

    def close(self) -> None:
        """Release the sockets."""
        self.qmp.close()
        for wire in self._wires.values():
            wire.close()

    def to_guest(self, frame: bytes) -> bytes:
        """What the guest gets when the client sends ``frame``."""
        return self._through("cin", "gout", frame)

    def from_guest(self, frame: bytes) -> bytes:
        """What the client's side gets when the guest sends ``frame``."""
        return self._through("gin", "cout", frame)

    def _through(self, way_in: str, way_out: str, frame: bytes) -> bytes:
        self._wires[way_in].send(self.header + frame, len(self.header))
        length, got = self._wires[way_out].receive()
        if length != len(self.header) or not got.startswith(self.header):
            raise OracleError(f"{self.header.hex()} came back as {got[:length].hex()}")
        return got[length:]

    def checkpoint(self) -> None:
        """Make all offsets zero."""
        self.qmp.execute("xen-colo-do-checkpoint")


def _netdevs(directory: Path) -> list[str]:
    """Two datagram netdevs on one hub: with one only, frames toward the guest would wait in the filters' queue."""
    argv = []
    for index, name in enumerate(("near", "far")):
        local, remote = directory / name, directory / f"{name}-peer"
        argv += [
            "-netdev",
            f"dgram,id=n{index},local.type=unix,local.path={local},remote.type=unix,remote.path={remote}",
        ]
        argv += ["-netdev", f"hubport,id=h{index},hubid=0,netdev=n{index}"]
    return argv


def _machine(directory: Path, *, vnet: bool) -> list[str]:
    """One without a guest, and netdevs n0 and, without virtio_net_hdr, n1."""
    start = card.machine(directory) if vnet else ["qemu-system-x86_64", *QUIET_MACHINE, *_netdevs(directory)]
    return [*start, "-qmp", f"unix:{directory / 'qmp'},server=on,wait=off"]


def _chardev(directory: Path, name: str) -> list[str]:
    return ["-chardev", f"socket,id={name},path={directory / name},server=on,wait=off"]


def _objects(options: Sequence[str], *, vnet: bool) -> list[str]:
    support = ",vnet_hdr_support=on" if vnet else ""
    return [word for option in options for word in ("-object", option + support)]


@contextlib.contextmanager
def qemu_rewriter(header: bytes = b"") -> Iterator[Filters]:
    """QEMU's filter-rewriter on a netdev without a guest.

    Args:
        header: the virtio_net_hdr, of `card.VNET_HDR_LEN` bytes, in front of all frames; none: without support for it.
    """
    vnet = bool(header)
    with tempfile.TemporaryDirectory(prefix="judge") as name:
        directory = Path(name)
        argv = _machine(directory, vnet=vnet)
        for chardev in ("cin", "cout", "gin", "gout"):
            argv += _chardev(directory, chardev)
        argv += _objects(
            (
                "filter-redirector,id=f-cin,netdev=n0,queue=tx,indev=cin",
                "filter-redirector,id=f-cout,netdev=n0,queue=rx,outdev=cout",
                "filter-rewriter,id=rew0,netdev=n0,queue=all",
                "filter-redirector,id=f-gin,netdev=n0,queue=rx,indev=gin",
                "filter-redirector,id=f-gout,netdev=n0,queue=tx,outdev=gout",
            ),
            vnet=vnet,
        )
        process = Process(argv, directory)
        try:
            filters = Filters(directory, process, header)
            try:
                if vnet:
                    card.make_ready(directory)
                yield filters
            finally:
                filters.close()
        except OracleError as error:
            raise OracleError(f"{error}; QEMU said: {process.said()[-2000:]}") from error
        finally:
            process.end()


class Mirrors:
    """filter-mirror and two filter-redirectors on a netdev: datagrams at one end, framed streams at the other.

    Attributes:
        mirror: gets a copy of what the netdev receives, framed. taken: gets, framed, what the second netdev receives
            and a redirector takes away. given: what is written here comes out of the first netdev.
    """

    def __init__(self, directory: Path, process: Process, netdevs: dict[str, socket.socket]) -> None:
        self.process = process
        self._directory = directory
        self._netdevs = netdevs
        for name in ("qmp", "mirror", "taken", "given"):
            process.wait_for(directory / name)
        self.qmp = Qmp(directory / "qmp")
        self.mirror, self.taken, self.given = (
            Wire(directory / name, vnet=False) for name in ("mirror", "taken", "given")
        )
        self.qmp.execute("query-status")

    def arrive(self, netdev: str, frame: bytes) -> None:
        """Let ``frame`` arrive at the netdev ``near`` or ``far``."""
        self._netdevs[netdev].sendto(frame, os.fspath(self._directory / netdev))

    def leaves(self, netdev: str, patience: float = PATIENCE) -> bytes:
        """The next frame that leaves a netdev.

        Raises:
            TimeoutError: none does.
        """
        self._netdevs[netdev].settimeout(patience)
        return self._netdevs[netdev].recv(1 << 17)

    def reconnect_given(self) -> None:
        """Leave the redirector's input, and come again."""
        self.given.close()
        self.given = Wire(self._directory / "given", vnet=False)
        self.qmp.execute("query-status")

    def close(self) -> None:
        """Release the sockets."""
        self.qmp.close()
        for wire in (self.mirror, self.taken, self.given):
            wire.close()


@contextlib.contextmanager
def qemu_mirrors() -> Iterator[Mirrors]:
    """QEMU's filter-mirror and filter-redirector."""
    with tempfile.TemporaryDirectory(prefix="judge") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        netdevs = {}
        for netdev in ("near", "far"):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            sock.settimeout(PATIENCE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            sock.bind(os.fspath(directory / f"{netdev}-peer"))
            netdevs[netdev] = sock
        argv = _machine(directory, vnet=False)
        for chardev in ("mirror", "taken", "given"):
            argv += _chardev(directory, chardev)
        argv += _objects(
            (
                "filter-mirror,id=m0,netdev=n0,queue=tx,outdev=mirror",
                "filter-redirector,id=r0,netdev=n0,queue=rx,indev=given",
                "filter-redirector,id=r1,netdev=n1,queue=tx,outdev=taken",
            ),
            vnet=False,
        )
        process = Process(argv, directory)
        try:
            mirrors = Mirrors(directory, process, netdevs)
            stack.callback(mirrors.close)
            yield mirrors
        finally:
            process.end()


@dataclass(slots=True)
class VnetMirrors:
    """The same filters in a row, with virtio_net_hdr: a redirector's input, a mirror's copy, a redirector's output."""

    given: Wire
    mirror: Wire
    taken: Wire


@contextlib.contextmanager
def qemu_vnet_mirrors() -> Iterator[VnetMirrors]:
    """QEMU's filter-redirector, filter-mirror and filter-redirector with vnet_hdr_support."""
    with tempfile.TemporaryDirectory(prefix="judge") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        argv = _machine(directory, vnet=True)
        names = ("given", "mirror", "taken")
        for chardev in names:
            argv += _chardev(directory, chardev)
        argv += _objects(
            (
                "filter-redirector,id=r0,netdev=n0,queue=tx,indev=given",
                "filter-mirror,id=m0,netdev=n0,queue=tx,outdev=mirror",
                "filter-redirector,id=r1,netdev=n0,queue=tx,outdev=taken",
            ),
            vnet=True,
        )
        process = Process(argv, directory)
        stack.callback(process.end)
        for path in ("qmp", *names):
            process.wait_for(directory / path)
        qmp = Qmp(directory / "qmp")
        stack.callback(qmp.close)
        wires = [Wire(directory / wire, vnet=True) for wire in names]
        for wire in wires:
            stack.callback(wire.close)
        qmp.execute("query-status")
        card.make_ready(directory)
        yield VnetMirrors(*wires)


@dataclass(slots=True)
class MirrorCommand:
    """`colo mirror`, its input and two outputs."""

    source: Wire
    out: Wire
    copy: Wire
    directory: Path

    def reconnect(self) -> None:
        """Leave the input, and come again."""
        self.source.close()
        self.source = Wire(self.directory / "in", vnet=False)


@contextlib.contextmanager
def mirror_command(*, vnet: bool = False) -> Iterator[MirrorCommand]:
    """`colo mirror` between sockets."""
    with tempfile.TemporaryDirectory(prefix="judge") as name:
        directory = Path(name)
        argv = [sys.executable, "-m", "colo", "mirror", *(["--vnet-hdr"] if vnet else [])]
        for option in ("in", "out", "copy"):
            argv += [f"--{option}", f"unix:{directory / option},server"]
        process = Process(argv, directory)
        try:
            for option in ("in", "out", "copy"):
                process.wait_for(directory / option)
            # The outputs first: who is not there misses frames.
            out, copy = Wire(directory / "out", vnet=False), Wire(directory / "copy", vnet=False)
            command = MirrorCommand(Wire(directory / "in", vnet=False), out, copy, directory)
            try:
                yield command
            finally:
                for wire in (command.source, out, copy):
                    wire.close()
        finally:
            process.end()
