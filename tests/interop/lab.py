"""A "host" of our own: a private network and mount namespace in which servers, gateways and guests of a test live.

Nothing in here touches the machine's networks: the namespace has its own loopback (with SERVER on it) and an uplink
that ends in a veth nobody answers on. A user who is not root gets the same inside a user namespace.

/dev/net/tun: many machines let only root open it. With root's rights the lab binds a world-accessible node of its own
over it, visible in the lab's mount namespace alone, so that unprivileged gateways can be run without touching the
machine's device.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

SERVER = "198.18.0.1"  # the servers' address (RFC 2544's benchmark range): the lab's own, not a loopback one
UPLINK = "198.18.1.1"
UNANSWERED = "198.18.1.77"  # routed to the uplink, where nobody is
UNREACHABLE = "198.18.9.9"  # an unreachable route: the host's kernel says so at once
NOBODY = 65534

_SETUP = f"""
set -e
ip link set lo up
ip address add {SERVER}/32 dev lo
ip link add up0 type veth peer name up1
ip address add {UPLINK}/24 dev up0
ip link set up0 up
ip link set up1 up
ip route add default via 198.18.1.254
ip route add unreachable 198.18.9.0/24
echo '0 2147483647' >/proc/sys/net/ipv4/ping_group_range
echo '10240 65535' >/proc/sys/net/ipv4/ip_local_port_range
"""
_TUN = """
mount -t tmpfs -o mode=755 lab "$LAB_DIR"
mknod -m 666 "$LAB_DIR/tun" c 10 200
mount --bind "$LAB_DIR/tun" /dev/net/tun
"""
# $1: a folder that only root may enter, such as /root. An empty one covers it that shows nothing but $2... of it.
_EXPOSE = """
set -e
cover=$1; shift
for path; do mkdir -p "$LAB_DIR/kept$path"; mount --bind "$path" "$LAB_DIR/kept$path"; done
mount -t tmpfs -o mode=755 cover "$cover"
for path; do mkdir -p "$path"; mount --bind "$LAB_DIR/kept$path" "$path"; done
"""
_HOLD = "echo ready; exec cat >/dev/null"  # lives until its stdin is closed, also when we are killed


class LabError(Exception):
    """The system refuses what the lab needs; the message says what."""


def _start_holder(argv: list[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True
    )
    assert holder.stdout is not None
    assert holder.stderr is not None
    if holder.stdout.readline().strip() != b"ready":
        reason = holder.stderr.read().decode(errors="replace").strip()
        _reap(holder)
        raise LabError(f"cannot make a namespace with {argv[0]}: {reason or 'no reason given'}")
    return holder


def _reap(process: subprocess.Popen[bytes], patience: float = 3.0) -> None:
    """End a process that we started, with its group: SIGTERM, and SIGKILL when it does not listen."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        try:
            process.wait(patience)
            break
        except subprocess.TimeoutExpired:
            continue
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


class Lab:
    """The namespace, and everything that was started in it. A context manager: leaving it ends what still runs."""

    def __init__(self) -> None:
        for tool in ("unshare", "nsenter", "setpriv", "ip"):
            if shutil.which(tool) is None:
                raise LabError(f"{tool} is missing: install util-linux and iproute2")
        self.rootless = os.geteuid() != 0
        self.directory = Path(tempfile.mkdtemp(prefix="pystack-lab-"))
        self.directory.chmod(0o777)
        self._device = self.directory / "device"
        self._device.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        tun = "" if self.rootless else _TUN
        user = ["--user", "--map-root-user"] if self.rootless else []
        self._holder = _start_holder(
            ["unshare", *user, "--net", "--mount", "sh", "-c", _SETUP + tun + _HOLD],
            env={**os.environ, "LAB_DIR": str(self._device)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def let_users_read(self, *paths: str | Path) -> None:
        """Make `paths` readable to an ordinary user also where they lie in root's own folder."""
        if self.rootless:
            return
        covers: dict[Path, list[Path]] = {}
        for path in {Path(path).resolve() for path in paths}:
            closed = [parent for parent in reversed(path.parents) if not parent.stat().st_mode & stat.S_IXOTH]
            if closed:
                covers.setdefault(closed[0], []).append(path)
        for cover, kept in covers.items():
            outer = [path for path in kept if not any(path.is_relative_to(other) and path != other for other in kept)]
            environment = {**os.environ, "LAB_DIR": str(self._device)}
            done = self.run(["sh", "-c", _EXPOSE, "sh", cover, *outer], env=environment, cwd="/")
            if done.returncode:
                raise LabError(f"{cover}: {done.stderr.decode(errors='replace').strip()}")

    def use_resolver(self, address: str) -> None:
        """Make `address` the resolver of everything that is started in the lab from now on."""
        conf = self.directory / "resolv.conf"
        conf.write_text(f"nameserver {address}\n", encoding="ascii")
        done = self.run(["mount", "--bind", conf, "/etc/resolv.conf"])
        if done.returncode:
            raise LabError(f"/etc/resolv.conf: {done.stderr.decode(errors='replace').strip()}")

    def argv(self, command: Sequence[str | Path], *, as_user: bool = False, cwd: str | Path | None = None) -> list[str]:
        """The command line that runs `command` in the lab, execed in place (so a Popen's pid is the command's own)."""
        enter = ["nsenter", "--target", str(self._holder.pid), "--net", "--mount", f"--wd={cwd or Path.cwd()}"]
        if self.rootless:
            enter += ["--user", "--preserve-credentials"]
        if as_user:
            enter += self.drop
        # What we start ends with us, also when a test run is killed.
        return [*enter, "setpriv", "--pdeathsig=KILL", *map(str, command)]

    @property
    def drop(self) -> list[str]:
        """What to put before a command to run it without root's rights."""
        if self.rootless:
            return ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
        return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        as_user: bool = False,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = subprocess.DEVNULL,
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a process in the lab; the lab ends it at the latest when it is closed."""
        process = subprocess.Popen(
            self.argv(command, as_user=as_user, cwd=cwd),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def run(
        self,
        command: Sequence[str | Path],
        *,
        as_user: bool = False,
        timeout: float = 60.0,
        env: dict[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: bytes | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the lab to its end and return what it said; TimeoutExpired after `timeout` seconds."""
        process = self.popen(
            command,
            as_user=as_user,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.communicate(stdin, timeout)
        except subprocess.TimeoutExpired as late:
            self.end(process)
            raise subprocess.TimeoutExpired(command, timeout, late.stdout, late.stderr) from None
        self._processes.remove(process)
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """End one process of the lab."""
        _reap(process)
        if process in self._processes:
            self._processes.remove(process)

    def close(self) -> None:
        """End everything, newest first, and drop the namespace."""
        for process in reversed(self._processes.copy()):
            self.end(process)
        _reap(self._holder)
        shutil.rmtree(self.directory, ignore_errors=True)


class Guest:
    """An empty network namespace in a lab, for a gateway to attach to."""

    def __init__(self, lab: Lab, *, as_user: bool = False) -> None:
        self._lab = lab
        self.as_user = as_user and not lab.rootless  # within a rootless lab, its root is the ordinary user
        user = ["--user", "--map-root-user"] if self.as_user else []
        argv = ["unshare", *user, "--net", "sh", "-c", "ip link set lo up; " + _HOLD]
        self._holder = _start_holder(lab.argv(argv, as_user=self.as_user))
        self.pid = self._holder.pid

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command line, for use in the lab, that runs `command` in the guest."""
        user = ["--user", "--preserve-credentials"] if self.as_user else []
        return ["nsenter", "--target", str(self.pid), *user, "--net", *command]

    def run(self, command: Sequence[str], timeout: float = 60.0) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the guest."""
        return self._lab.run(self.argv(command), as_user=self.as_user, timeout=timeout)

    def close(self) -> None:
        """Drop the namespace."""
        _reap(self._holder)


def connect(sock: socket.socket, path: Path, timeout: float = 10.0) -> None:
    """Reach a UNIX socket that may be there a moment before anybody listens; LabError after `timeout` seconds."""
    for _ in pauses(timeout):
        with contextlib.suppress(ConnectionRefusedError):
            sock.connect(str(path))
            return
    raise LabError(f"nobody listens at {path} within {timeout:g} s")


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 10.0) -> None:
    """Poll `condition` until it holds; LabError naming `what` after `timeout` seconds."""
    for _ in pauses(timeout):
        if condition():
            return
    raise LabError(f"{what}: not within {timeout:g} s")


def pauses(timeout: float, interval: float = 0.02) -> Iterator[None]:
    """Yield now and then every `interval` seconds until `timeout` is over."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        yield
        time.sleep(interval)
