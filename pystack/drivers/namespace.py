"""Namespaces whose only way out is a TAP that the parent process serves.

Two ways in: `CommandGuest` starts a command in user, mount and network namespaces of its own; `enter_namespace` makes
a TAP in a network namespace that exists. Both fork a child before anything heavy is imported, make the TAP inside and
hand its descriptor back over a UNIX socket (SCM_RIGHTS), so that the parent never leaves its own namespaces.

Read before editing: namespaces(7), user_namespaces(7) (who may write a uid_map), mount_namespaces(7), unix(7).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Final, NoReturn, Self, final

from pystack.drivers import linux
from pystack.drivers.child import Channel, fork, reap
from pystack.drivers.interface import Interface
from pystack.errors import PystackError, UsageError

_RESOLV_CONF: Final = "/etc/resolv.conf"
_NS_GET_USERNS: Final = 0xB701  # ioctl_ns(2)
_NS_GET_NSTYPE: Final = 0xB703

# The kinds of messages between parent and child.
_UNSHARED: Final = b"U"
_MAPPED: Final = b"M"
_TAP: Final = b"T"
_READY: Final = b"R"
_GO: Final = b"G"
_NO_EXEC: Final = b"X"

NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126


class CommandError(PystackError):
    """The command itself cannot be executed; ``status`` is what env(1) and shells exit with: 126 or 127."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestNetwork:
    """How the interface inside is made and configured.

    Attributes:
        name: of the interface.
        tun_device: the device node to make it with.
        offload: whether large segments and checksums are left to the other side, see `TapLink.open`.
        mtu: in bytes.
        address, gateway: the default route goes through ``gateway``. Without an address the interface is left down and
            unconfigured.
        queue_frames: length of the queue between the guest's kernel and us. The kernel drops what does not fit, so it
            must hold the windows of several connections in frames.
        mac: the Ethernet address inside, 6 bytes; None for one that the kernel draws.
    """

    name: str = "tap0"
    tun_device: str = "/dev/net/tun"
    offload: bool = True
    mtu: int = 1500
    address: IPv4Interface | None = None
    gateway: IPv4Address | None = None
    queue_frames: int = 4096
    mac: bytes | None = None


# ----------------------------------------------------------------------------------------------------- the TAP inside


def _send_tap(channel: Channel, network: GuestNetwork) -> None:
    """Make the TAP in the network namespace that we are in and send its descriptor, which then keeps it alive."""
    from pystack.link.tap import TapLink  # noqa: PLC0415 - the parent loads it meanwhile, on another processor

    link = TapLink.open(network.name, offload=network.offload, mtu=network.mtu, device=network.tun_device)
    channel.send(_TAP, fd=link.fileno())
    link.close()


def _configure(network: GuestNetwork) -> None:
    """Loopback up; the TAP up with its address and default route, and silent about IPv6."""
    try:
        with Interface("lo") as loopback:
            loopback.bring_up()
        with Interface(network.name) as tap:
            tap.set_queue(network.queue_frames)
            if network.mac is not None:
                tap.set_mac(network.mac)
            if network.address is None or network.gateway is None:
                return
            tap.silence_ipv6()
            tap.bring_up()
            tap.add_address(network.address)
            tap.add_default_route(network.gateway.packed)
    except OSError as error:
        raise UsageError(f"The interface {network.name} cannot be configured: {error.strerror}.") from None


# ------------------------------------------------------------------------------------------ a command in its namespaces


@final
class CommandGuest:
    """A command in namespaces of its own. Made by `start`, then `tap`, `execute`; `close` at any time.

    Attributes:
        pid: of the process that becomes the command.
    """

    def __init__(self, pid: int, channel: Channel) -> None:
        self.pid = pid
        self._channel = channel
        self._reaped = False

    @classmethod
    def start(
        cls, command: Sequence[str], network: GuestNetwork, *, nameservers: Sequence[str], user_namespace: bool = True
    ) -> Self:
        """Fork the process that is going to be ``command``; it sets up its namespaces while the caller goes on.

        What the command leaves behind becomes a child of the caller's process.

        Args:
            nameservers: what its resolv.conf names; empty: no resolver.
            user_namespace: False leaves the user namespace as it is, which only root can do.

        Raises:
            UsageError: the system refuses, with what to do about it.
        """
        parent = os.getpid()
        linux.adopt_orphans()
        pid, channel = fork(lambda end: _be_command(end, parent, command, network, nameservers, user_namespace))
        guest = cls(pid, channel)
        try:
            channel.expect(_UNSHARED)
            if user_namespace:
                try:
                    _map_users(pid)
                except OSError as error:
                    raise UsageError(f"Users cannot be mapped into the namespace: {error}{_apparmor_hint()}.") from None
            channel.send(_MAPPED)
        except BaseException:
            guest.close()
            raise
        return guest

    def tap(self) -> int:
        """The descriptor of the TAP inside; waits until it exists. The caller owns it."""
        return self._channel.expect(_TAP)

    def execute(self) -> None:
        """Wait until the network inside is configured, then let the command run.

        Raises:
            CommandError: it cannot be executed.
        """
        self._channel.expect(_READY)
        self._channel.send(_GO)
        kind, text, _ = self._channel.recv()
        if kind == _NO_EXEC:
            status, _, sentence = text.partition(" ")
            raise CommandError(sentence, int(status))

    def send_signal(self, number: int) -> None:
        """Send a signal to the command, if it still runs."""
        if not self._reaped:
            os.kill(self.pid, number)

    def reaped(self) -> None:
        """Note that its end was seen by waitpid(2): the process id may belong to another one from now on."""
        self._reaped = True

    def close(self) -> None:
        """End the process if it still runs, and reap it."""
        self._channel.close()
        if not self._reaped:
            self._reaped = True
            reap(self.pid, kill=True)


def _be_command(
    channel: Channel,
    parent: int,
    command: Sequence[str],
    network: GuestNetwork,
    nameservers: Sequence[str],
    user_namespace: bool,
) -> None:
    """The child of `CommandGuest.start`, from the fork to the exec."""
    kinds = linux.CLONE_NEWNS | linux.CLONE_NEWNET | (linux.CLONE_NEWUSER if user_namespace else 0)
    try:
        linux.unshare(kinds)
    except OSError as error:
        raise UsageError(_why_no_namespace(error, user_namespace=user_namespace)) from None
    channel.send(_UNSHARED)
    channel.expect(_MAPPED)
    # Only now: new credentials clear it. The parent may have died before it was set.
    linux.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        return
    try:
        _replace_resolv_conf("".join(f"nameserver {address}\n" for address in nameservers))
    except OSError as error:
        raise UsageError(f"{_RESOLV_CONF} cannot be replaced in the namespace ({error}){_apparmor_hint()}.") from None
    _send_tap(channel, network)
    _configure(network)
    channel.send(_READY)
    channel.expect(_GO)
    _execute(channel, command)


def _execute(channel: Channel, command: Sequence[str]) -> NoReturn:
    # Python ignores these for itself; a command expects to be ended by them.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    name = command[0]
    try:
        os.execvp(name, list(command))  # noqa: S606 - a command without a shell is what was asked for
    except FileNotFoundError:
        channel.send(_NO_EXEC, f"{NOT_FOUND} The command {name!r} was not found.")
    except OSError as error:
        channel.send(_NO_EXEC, f"{NOT_EXECUTABLE} The command {name!r} cannot be executed: {error.strerror}.")
    os._exit(NOT_FOUND)


def _map_users(pid: int) -> None:
    """Write the child's maps, as the parent: everybody as outside when we may, else our own user as root inside."""
    proc = Path(f"/proc/{pid}")
    if os.geteuid() == 0:
        users, groups = (_identity(Path(f"/proc/self/{kind}_map").read_text()) for kind in ("uid", "gid"))
        with contextlib.suppress(PermissionError):
            (proc / "uid_map").write_text(users)
            (proc / "gid_map").write_text(groups)
            return
    (proc / "setgroups").write_text("deny")
    (proc / "uid_map").write_text(f"0 {os.geteuid()} 1\n")
    (proc / "gid_map").write_text(f"0 {os.getegid()} 1\n")


def _identity(outer_map: str) -> str:
    ranges = [line.split() for line in outer_map.splitlines()]
    return "".join(f"{first} {first} {count}\n" for first, _, count in ranges)


def _replace_resolv_conf(text: str) -> None:
    """Put a private file over /etc/resolv.conf, or over what that links to, in our own mount namespace.

    The file lives on a tmpfs that is detached at once: nothing is left on a disk, and it goes with the namespace.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    scratch = "/tmp"  # noqa: S108 - covered for a moment, in this mount namespace only
    linux.mount("tmpfs", scratch, "tmpfs", 0, "size=64k,mode=755")
    try:
        source = Path(scratch, "resolv.conf")
        source.write_text(text)
        if not Path(_RESOLV_CONF).exists():
            _make_resolv_conf_possible(scratch)
        linux.mount(str(source), _RESOLV_CONF, None, linux.MS_BIND)
    finally:
        linux.unmount(scratch, linux.MNT_DETACH)


def _make_resolv_conf_possible(scratch: str) -> None:
    """Where the file is missing or a dangling link: an overlay over /etc in which it is a plain empty file."""
    upper, work = Path(scratch, "upper"), Path(scratch, "work")
    upper.mkdir()
    work.mkdir()
    (upper / Path(_RESOLV_CONF).name).touch()
    etc = Path(_RESOLV_CONF).parent
    linux.mount("overlay", str(etc), "overlay", 0, f"lowerdir={etc},upperdir={upper},workdir={work}")


def _why_no_namespace(error: OSError, *, user_namespace: bool) -> str:
    if not user_namespace:
        return (
            f"A network namespace cannot be made ({error.strerror}): be root with CAP_SYS_ADMIN, "
            "or leave --no-userns out."
        )
    for switch, wanted in (("kernel/unprivileged_userns_clone", "1"), ("user/max_user_namespaces", "10000")):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", switch).read_text().strip() == "0":
                return (
                    "This system lets no ordinary user make a namespace: run as root with --no-userns, or set "
                    f"sysctl {switch.replace('/', '.')}={wanted}."
                )
    return (
        f"A user namespace cannot be made ({error.strerror}): run as root with --no-userns, or, in a container, let it "
        "have namespaces (docker run --security-opt seccomp=unconfined)."
    )


def _apparmor_hint() -> str:
    with contextlib.suppress(OSError):
        if Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").read_text().strip() == "1":
            return ", as AppArmor restricts user namespaces: set sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    return ""


# -------------------------------------------------------------------------------------- a namespace that exists already


def open_namespace(target: str) -> tuple[int, int]:
    """Open the network namespace of a process id or of a path such as /run/netns/NAME.

    Returns:
        A descriptor of the namespace, and one of the process (pidfd, readable once it has ended; -1 for a path).

    Raises:
        UsageError: there is none, or it may not be opened.
    """
    if not target.isdecimal():
        try:
            namespace = os.open(target, os.O_RDONLY)
        except OSError as error:
            raise UsageError(f"The network namespace {target} cannot be opened: {error.strerror}.") from None
        if not _is_network_namespace(namespace):
            os.close(namespace)
            raise UsageError(f"{target} is no network namespace: give a process id or a path such as /run/netns/NAME.")
        return namespace, -1
    pid = int(target)
    try:
        process = os.pidfd_open(pid)
    except (OSError, OverflowError):
        raise UsageError(f"There is no process {pid}.") from None
    try:
        return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY), process
    except OSError as error:
        os.close(process)
        raise UsageError(
            f"You may not enter the namespace of process {pid} ({error.strerror}): run as its user or as root."
        ) from None


def _is_network_namespace(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == linux.CLONE_NEWNET
    except OSError:  # no namespace at all
        return False


def enter_namespace(namespace: int, network: GuestNetwork) -> int:
    """Make a TAP in the network namespace that the descriptor ``namespace`` names, and configure it.

    Returns:
        The TAP's descriptor. Closing it removes the interface.

    Raises:
        UsageError: the system refuses, with the reason.
    """
    pid, channel = fork(lambda end: _make_tap_within(end, namespace, network))
    try:
        tap = channel.expect(_TAP)
        try:
            channel.expect(_READY)
        except BaseException:
            os.close(tap)
            raise
        return tap
    finally:
        channel.close()
        reap(pid, kill=False)


def _make_tap_within(channel: Channel, namespace: int, network: GuestNetwork) -> None:
    try:
        with contextlib.suppress(PermissionError):  # an ancestor's, which cannot be entered and need not be
            owner = fcntl.ioctl(namespace, _NS_GET_USERNS)
            if not os.path.sameopenfile(owner, os.open("/proc/self/ns/user", os.O_RDONLY)):
                linux.setns(owner, linux.CLONE_NEWUSER)
        linux.setns(namespace, linux.CLONE_NEWNET)
    except OSError as error:
        raise UsageError(
            f"The network namespace cannot be entered ({error.strerror}): name one that is yours, or run as root."
        ) from None
    _send_tap(channel, network)
    _configure(network)
    channel.send(_READY)
