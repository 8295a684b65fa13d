"""A QEMU guest that runs a script and powers off, and a QEMU whose serial console a test reads.

    image = GuestImage.build(directory, script="udhcpc ...; echo done")
    with boot(image, ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"]) as guest:
        guest.expect(r"done", timeout=60)

Kernel and initramfs are made as `colo.qemu.image` makes them. Where there is no kernel, Debian's is downloaded through
apt and kept in the user's cache. Emulation is TCG, so that it runs where there is no /dev/kvm.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from colo.qemu.image import APPEND, NEEDED, GuestFiles, Kernel, fetch_kernel, initramfs
from pystack import UsageError

_SCRIPT = """echo GUEST-UP
{script}
sync
poweroff -f
"""

# udhcpc(8): called with deconfig, bound, renew, nak or leasefail, and the lease in the environment.
_UDHCPC = """#!/bin/busybox sh
case "$1" in
deconfig) ip address flush dev "$interface"; ip link set "$interface" up ;;
bound|renew)
  ip address add "$ip/$mask" dev "$interface"
  test -z "$mtu" || ip link set mtu "$mtu" dev "$interface"
  for gateway in $router; do ip route add default via "$gateway"; break; done
  : >/etc/resolv.conf
  for server in $dns; do echo "nameserver $server" >>/etc/resolv.conf; done
  echo "LEASE ip=$ip/$mask router=$router dns=$dns seconds=$lease" ;;
esac
"""
UDHCPC = "/etc/udhcpc.script"


class GuestError(Exception):
    """The guest could not be built, or did not do what was expected; the message ends with its last words."""


# -------------------------------------------------------------------------------------------------------- the image


def find_kernel(needs: Sequence[str] = NEEDED) -> Kernel:
    """An installed kernel with the modules `needs`, or Debian's, downloaded once into the user's cache."""
    with contextlib.suppress(UsageError):
        return Kernel.find(needs=needs)
    return fetch_kernel(needs=needs)


class GuestImage(GuestFiles):
    """What QEMU's -kernel, -initrd and -append take."""

    @classmethod
    def build(cls, directory: Path, script: str, *, drivers: Sequence[str] = NEEDED) -> Self:
        """Write an initramfs into `directory` that loads `drivers`, runs `script` in busybox' shell and powers off."""
        try:
            kernel = find_kernel(drivers)
            udhcpc = (UDHCPC.lstrip("/"), stat.S_IFREG | 0o755, _UDHCPC.encode())
            archive = initramfs(_SCRIPT.format(script=script), kernel=kernel, drivers=drivers, files=[udhcpc])
        except UsageError as error:
            raise GuestError(str(error)) from error
        initrd = directory / "initrd.cpio"
        initrd.write_bytes(archive)
        return cls(kernel.image, initrd, APPEND)


# ------------------------------------------------------------------------------------------------------- the machine


class Machine:
    """A running QEMU and what its serial console said so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        self.console = b""
        self._read = 0  # of console: what expect() is done with

    def expect(self, pattern: str, timeout: float) -> re.Match[bytes]:
        """Wait until the console shows `pattern` behind the last match; GuestError after `timeout` seconds."""
        wanted = re.compile(pattern.encode())
        deadline = time.monotonic() + timeout
        while True:
            match = wanted.search(self.console, self._read)
            if match:
                self._read = match.end()
                return match
            left = deadline - time.monotonic()
            if left <= 0 or not self._more(left):
                why = f"not within {timeout:g} s" if left <= 0 else f"QEMU ended (status {self.process.wait()})"
                raise GuestError(f"no {pattern!r} on the console: {why}; it ends with:\n{self.tail()}")

    def _more(self, timeout: float) -> bool:
        stream = self.process.stdout
        assert stream is not None
        readable, _, _ = select.select([stream], [], [], timeout)
        if not readable:
            return True
        arrived = os.read(stream.fileno(), 65536)
        self.console += arrived
        return bool(arrived)

    def tail(self, lines: int = 25) -> str:
        """The console's last lines."""
        return "\n".join(self.console.decode(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """End QEMU, if it did not power off."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def qemu_argv(image: GuestFiles, options: Sequence[str] = (), *, memory_mib: int = 256) -> list[str]:
    """The command line of a guest without any device but its console and those of `options`."""
    return [
        "qemu-system-x86_64",
        *("-machine", "q35,accel=tcg", "-cpu", "max", "-m", str(memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", image.append),
        *options,
    ]


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@contextlib.contextmanager
def boot(
    image: GuestFiles,
    options: Sequence[str] = (),
    *,
    memory_mib: int = 256,
    start: Callable[[Sequence[str]], subprocess.Popen[bytes]] = _start,
) -> Iterator[Machine]:
    """Boot a guest; leaving the block ends it. `start` may start QEMU elsewhere, such as in another namespace."""
    machine = Machine(start(qemu_argv(image, options, memory_mib=memory_mib)))
    try:
        yield machine
    finally:
        machine.close()
