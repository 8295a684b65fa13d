"""A QEMU guest made from Debian's packages: the cloud kernel, a few of its modules and a busybox initramfs.

    image = GuestImage.build(directory, script="udhcpc ...; echo done")
    with boot(image, ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"]) as guest:
        guest.expect(r"done", timeout=60)

The kernel is the newest cloud kernel in /boot that we may read, and else the package, downloaded through apt and kept
in the user's cache. Emulation is TCG, so that it runs where there is no /dev/kvm.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_META_PACKAGE = "linux-image-cloud-amd64"
_DRIVERS = ("virtio_pci", "virtio_net")
_APPLETS = ("/bin", "/sbin", "/usr/bin", "/usr/sbin")

_INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys /tmp /etc {applets}
/bin/busybox --install -s
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in {modules}; do insmod /modules/$module.ko; done
ip link set lo up
echo GUEST-UP
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


# ------------------------------------------------------------------------------------------------------- the kernel


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel and the folder of its modules."""

    image: Path
    modules: Path

    @classmethod
    def find(cls, cache: Path | None = None) -> Self:
        """The installed cloud kernel, or the packaged one, downloaded once into `cache`."""
        for image in sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), reverse=True):
            modules = Path("/lib/modules", image.name.removeprefix("vmlinuz-"))
            if os.access(image, os.R_OK) and modules.is_dir():
                return cls(image, modules)
        if cache is None:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pystack-tests"
        return cls._packaged(cache)

    @classmethod
    def _packaged(cls, cache: Path) -> Self:
        package = _kernel_package()
        root = cache / package
        if not root.is_dir():
            _download(package, root)
        (image,) = (root / "boot").glob("vmlinuz-*")
        (modules,) = (root / "lib" / "modules").iterdir()
        return cls(image, modules)

    def module_files(self, names: Iterable[str]) -> list[Path]:
        """The modules of `names` and what they depend on, in an order in which insmod takes them."""
        found: list[Path] = []
        for name in names:
            paths = list(self.modules.rglob(f"{name}.ko"))
            if not paths:
                if _is_builtin(self.modules, name):
                    continue
                raise GuestError(f"no module {name} in {self.modules}")
            needed = re.search(rb"\0depends=([^\0]*)\0", paths[0].read_bytes())
            names_needed = needed[1].decode().split(",") if needed and needed[1] else []
            found += [path for path in [*self.module_files(names_needed), paths[0]] if path not in found]
        return found


def _is_builtin(modules: Path, name: str) -> bool:
    return f"/{name}.ko" in (modules / "modules.builtin").read_text(encoding="ascii")


def _kernel_package() -> str:
    try:
        told = subprocess.run(
            ["apt-cache", "depends", _META_PACKAGE], capture_output=True, text=True, timeout=60, check=False
        ).stdout
    except OSError as error:
        raise GuestError(f"apt-cache does not run ({error}): the guest's kernel comes from Debian") from None
    depends = re.search(r"Depends: (linux-image-\S+)", told)
    if depends is None:
        raise GuestError(f"apt knows no {_META_PACKAGE}: run apt-get update, on Debian amd64")
    return depends[1]


def _download(package: str, root: Path) -> None:
    work = root.with_name(f"{package}.{os.getpid()}")
    work.mkdir(parents=True)
    try:
        for command in (["apt-get", "download", package], ["dpkg-deb", "-x", "PACKAGE", "tree"]):
            command = [next(map(str, work.glob("*.deb"))) if word == "PACKAGE" else word for word in command]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode:
                raise GuestError(f"{' '.join(command)}: {done.stderr.strip()}")
        with contextlib.suppress(FileExistsError, OSError):  # another process was faster
            (work / "tree").rename(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------- the initramfs


def cpio(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive in the "new ASCII" format (cpio(5), newc) of (path, mode, content)."""
    archive = bytearray()
    for inode, (path, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], start=1):
        name = path.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


@dataclass(frozen=True)
class GuestImage:
    """What QEMU's -kernel and -initrd take."""

    kernel: Path
    initrd: Path

    @classmethod
    def build(cls, directory: Path, script: str, *, drivers: Sequence[str] = _DRIVERS) -> Self:
        """Write an initramfs into `directory` that loads `drivers`, runs `script` in busybox' shell and powers off."""
        busybox = shutil.which("busybox")
        if busybox is None:
            raise GuestError("busybox is missing: apt install busybox-static")
        kernel = Kernel.find()
        modules = kernel.module_files(drivers)
        init = _INIT.format(applets=" ".join(_APPLETS), modules=" ".join(path.stem for path in modules), script=script)
        executable, folder = stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755
        files = [
            *((name, folder, b"") for name in ("bin", "modules", "etc")),
            ("bin/busybox", executable, Path(busybox).read_bytes()),
            ("init", executable, init.encode()),
            (UDHCPC.lstrip("/"), executable, _UDHCPC.encode()),
            *((f"modules/{path.name}", stat.S_IFREG | 0o644, path.read_bytes()) for path in modules),
        ]
        initrd = directory / "initrd.cpio"
        initrd.write_bytes(cpio(files))
        return cls(kernel.image, initrd)


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


def qemu_argv(image: GuestImage, options: Sequence[str] = (), *, memory_mib: int = 256) -> list[str]:
    """The command line of a guest without any device but its console and those of `options`."""
    return [
        "qemu-system-x86_64",
        *("-machine", "q35,accel=tcg", "-cpu", "max", "-m", str(memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", "console=ttyS0 panic=-1 mitigations=off quiet"),
        *options,
    ]


def _start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@contextlib.contextmanager
def boot(
    image: GuestImage,
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
