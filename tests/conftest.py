"""What every test shares: what a test requires of the system, hypothesis' profile for CI, and a check for leaks.

`@pytest.mark.requires("tap", "curl")` names what a test needs. On a user's machine a missing one skips the test with a
reason that says what to install; with CI=true in the environment it fails it, so that CI never passes by skipping.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ON_CI = os.environ.get("CI", "").lower() == "true"

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("user", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ci" if ON_CI else "user")


# ------------------------------------------------------------------------------------------- what a test may require


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _program(name: str, package: str) -> Callable[[], str]:
    def missing() -> str:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        return "" if shutil.which(name, path=path) else f"the program {name}: install the package {package}"

    return missing


def _missing_root() -> str:
    return "" if os.geteuid() == 0 else "root: run the tests with sudo"


def _missing_netns() -> str:
    if _runs("unshare", "--net", "true"):
        return ""
    return "a network namespace of its own: run as root, in a container with CAP_SYS_ADMIN"


def _missing_userns() -> str:
    if _runs("unshare", "--user", "--map-root-user", "--net", "true"):
        return ""
    return "unprivileged user namespaces: sysctl kernel.unprivileged_userns_clone=1 (or user.max_user_namespaces > 0)"


def _missing_tap() -> str:
    # In a namespace of its own, so that the probe leaves nothing behind in the host's.
    probe = (
        "import fcntl, os, struct;"
        "fd = os.open('/dev/net/tun', os.O_RDWR);"
        "fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', b'probe0', 0x1002))"
    )
    unshare = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--net")
    if _runs(*unshare, sys.executable, "-c", probe):
        return ""
    return "TAP devices: modprobe tun, and read and write access to /dev/net/tun"


_MISSING: dict[str, Callable[[], str]] = {
    "root": _missing_root,
    "netns": _missing_netns,
    "userns": _missing_userns,
    "tap": _missing_tap,
    "cc": _program("cc", "gcc libc6-dev"),
    "busybox": _program("busybox", "busybox-static"),
    "curl": _program("curl", "curl"),
    "dig": _program("dig", "dnsutils (dig)"),
    "ip": _program("ip", "iproute2"),
    "iperf3": _program("iperf3", "iperf3"),
    "nc": _program("nc", "netcat-openbsd"),
    "nslookup": _program("nslookup", "dnsutils (nslookup)"),
    "nsenter": _program("nsenter", "util-linux"),
    "pasta": _program("pasta", "passt"),
    "ping": _program("ping", "iputils-ping"),
    "qemu": _program("qemu-system-x86_64", "qemu-system-x86"),
    "qemu-img": _program("qemu-img", "qemu-utils"),
    "setpriv": _program("setpriv", "util-linux"),
    "slirp4netns": _program("slirp4netns", "slirp4netns"),
    "tcpdump": _program("tcpdump", "tcpdump"),
    "tshark": _program("tshark", "tshark"),
    "unshare": _program("unshare", "util-linux"),
}


@cache
def missing(need: str) -> str:
    """The sentence that says what to do to have `need`, or "" when the system offers it."""
    return _MISSING[need]()


def pytest_configure() -> None:
    """What a shell runs in the background ignores SIGINT and SIGQUIT, and so would everything that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long comes first. An unknown need is refused: a typing mistake must not look like a passing test."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)
    for item in items:
        for mark in item.iter_markers("requires"):
            for need in mark.args:
                if need not in _MISSING:
                    raise pytest.UsageError(
                        f"{item.nodeid}: requires({need!r}) is unknown; there are {sorted(_MISSING)}"
                    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip (or, on CI, fail) a test whose needs the system does not meet."""
    for mark in item.iter_markers("requires"):
        for need in mark.args:
            if reason := missing(need):
                if ON_CI:
                    pytest.fail(f"CI must offer {reason}", pytrace=False)
                pytest.skip(f"needs {reason}")


# ---------------------------------------------------------------------------------------------------- nothing is left


def _children() -> set[int]:
    """Process ids of this process' children, zombies included."""
    children: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that ended meanwhile: its children are the process' now
            children |= {int(pid) for pid in (task / "children").read_text().split()}
    return children


def _named_namespaces() -> set[str]:
    folder = Path("/run/netns")
    # Another worker's namespaces are not this test's.
    if "PYTEST_XDIST_WORKER" in os.environ or not folder.is_dir():
        return set()
    return {path.name for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a child process or a named network namespace.

    Function-scoped and automatic, so fixtures of wider scope are set up before it and may own processes of their own.
    """
    children, namespaces = _children(), _named_namespaces()
    yield
    left = [f"process {pid}: {_command_line(pid)}" for pid in sorted(_children() - children)]
    left += [f"network namespace {name}" for name in sorted(_named_namespaces() - namespaces)]
    if left:
        pytest.fail("the test left behind " + "; ".join(left), pytrace=False)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") or "(a zombie)"
    except OSError:
        return "(gone since)"
