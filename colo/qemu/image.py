"""The small guest that `colo launch` boots by default, made from what the system has: a kernel and a static busybox.

It has a fixed address on its first network card and serves

    80/tcp         HTTP: /index.html, /1k, /1m and /8m, whose content `file_bytes` tells
    81/tcp         HTTP: index.html, whatever is asked for, and always the same bytes: no Date in its header
    7/tcp, 7/udp   echo
    9/tcp          a line of 16 bytes from /dev/urandom in hex, for each connection: no two machines say the same

It says `READY` on its serial console when all of them listen, and stays up.

The kernel is an installed one that may be read, or one from the cache, into which `fetch_kernel` downloads Debian's.
Nothing else in here uses a network.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import subprocess  # noqa: TID251 - apt, dpkg-deb and zstd are programs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import shake_128
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path
from types import MappingProxyType
from typing import Final, final

from pystack import UsageError

READY: Final = "COLO-READY"
APPEND: Final = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check tsc=reliable"
"""The kernel's command line. The last two spare it checks of the clock that fail on a busy host without KVM."""

CARDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"virtio-net-pci": ("virtio_pci", "virtio_net"), "e1000": ("e1000",), "rtl8139": ("8139cp",)}
)
"""The cards of QEMU that the guest can have, and the modules that drive each. It loads all that its kernel has."""

NEEDED: Final = CARDS["virtio-net-pci"]
"""What a kernel must have by default; Debian's cloud kernel has just that."""

INITRD: Final = "initrd.cpio"
"""The file that `default_guest` writes."""

FILES: Final[Mapping[str, int]] = MappingProxyType({"index.html": 11, "1k": 1 << 10, "1m": 1 << 20, "8m": 8 << 20})
"""What the guest serves, and how many bytes each has."""

_CLOUD: Final = "linux-image-cloud-amd64"
_FULL: Final = "linux-image-amd64"
_OR_GIVE: Final = "or give --kernel and --initrd"
_SYSTEM: Final = Path("/")

Entry = tuple[str, int, bytes]
"""A file of an archive: its path without a leading slash, st_mode and content."""


# ------------------------------------------------------------------------------------------------------- the kernel


@final
@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel and the folder of its modules."""

    image: Path
    modules: Path

    @staticmethod
    def find(cache: Path | None = None, *, needs: Iterable[str] = NEEDED) -> Kernel:
        """The newest installed kernel that may be read and has the modules ``needs``, or else of those in ``cache``.

        A cloud kernel, which is small, goes before all others. ``cache`` is by default where `fetch_kernel` puts them.

        Raises:
            UsageError: there is none.
        """
        wanted = tuple(needs)
        for roots in ([_SYSTEM], (cache or _cache()).glob("linux-image-*")):
            for kernel in sorted(_kernels(roots), key=lambda kernel: _age(kernel.image.name), reverse=True):
                if os.access(kernel.image, os.R_OK) and all(kernel.has(name) for name in wanted):
                    return kernel
        modules, package = " and ".join(wanted), _package(wanted)
        raise UsageError(f"No readable kernel with {modules} is in /boot: install {package}, {_OR_GIVE}.")

    def has(self, name: str) -> bool:
        """Whether the module ``name`` is there, or built in."""
        return _plain(name) in _modules(self.modules) or _plain(name) in _built_in(self.modules)

    def module_files(self, names: Iterable[str]) -> list[Path]:
        """The modules of ``names`` and what they depend on, in an order in which insmod takes them.

        Raises:
            UsageError: one of them is not there.
        """
        found: list[Path] = []
        for name in names:
            path = _modules(self.modules).get(_plain(name))
            if path is None:
                if self.has(name):
                    continue
                raise UsageError(f"{self.modules} has no module {name}: take another kernel, {_OR_GIVE}.")
            needed = re.search(rb"\0depends=([^\0]*)\0", _module_bytes(path))
            names_needed = needed[1].decode().split(",") if needed and needed[1] else []
            found += [path for path in [*self.module_files(names_needed), path] if path not in found]
        return found


def _kernels(roots: Iterable[Path]) -> Iterator[Kernel]:
    for root in roots:
        for image in root.glob("boot/vmlinuz-*"):
            release = image.name.removeprefix("vmlinuz-")
            folders = (root / "lib/modules" / release, root / "usr/lib/modules" / release)
            yield from (Kernel(image, folder) for folder in folders if folder.is_dir())


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "colo"


def _package(needs: Sequence[str]) -> str:
    """The smallest of Debian's that has these modules."""
    return _CLOUD if set(needs) <= set(NEEDED) else _FULL


def _age(name: str) -> tuple[bool, list[str | int]]:
    """What sorts kernels: cloud kernels last, and 6.10 behind 6.9."""
    return "cloud" in name, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


@lru_cache(maxsize=8)
def _modules(folder: Path) -> dict[str, Path]:
    return {_plain(path.name): path for path in folder.rglob("*.ko*")}


@lru_cache(maxsize=8)
def _built_in(folder: Path) -> frozenset[str]:
    listed = folder / "modules.builtin"
    lines = listed.read_text(encoding="ascii").splitlines() if listed.is_file() else []
    return frozenset(_plain(Path(line).name) for line in lines)


def _plain(name: str) -> str:
    """The module's name without the file's suffixes; the kernel takes - and _ in it for the same."""
    return name.partition(".ko")[0].replace("-", "_")


def _module_bytes(path: Path) -> bytes:
    """The module as insmod takes it: distributions compress them in several ways."""
    packed = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(packed)
    if path.suffix == ".xz":
        return lzma.decompress(packed)
    return _unzstd(packed) if path.suffix == ".zst" else packed


def _unzstd(packed: bytes) -> bytes:
    try:
        return subprocess.run(["zstd", "-dcq"], input=packed, capture_output=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        raise UsageError(f"The kernel's modules cannot be read without zstd: install zstd, {_OR_GIVE}.") from None


# ------------------------------------------------------------------------------------------------- Debian's package


def fetch_kernel(cache: Path | None = None, *, needs: Iterable[str] = NEEDED) -> Kernel:
    """Debian's newest kernel, downloaded with apt and unpacked in ``cache``, unless it is there already. Not installed.

    Args:
        cache: a folder that will be made; that of the user, from XDG_CACHE_HOME or in ~/.cache, by default.
        needs: modules. The kernel that has `NEEDED` takes 110 MB there, the one that has everything takes 400 MB.

    Raises:
        UsageError: it cannot be had.
    """
    package = _package(tuple(needs))
    depends = re.search(r"Depends: (linux-image-\S+)", _run(["apt-cache", "depends", package], _SYSTEM))
    if depends is None:
        raise UsageError(f"apt knows no {package}: run apt-get update on Debian for amd64, {_OR_GIVE}.")
    root = (cache or _cache()) / depends[1]
    if not root.is_dir():
        _download(depends[1], root)
    kernel = next(_kernels([root]), None)
    if kernel is None:
        raise UsageError(f"There is no kernel in {root}: remove that folder, and try again.")
    return kernel


def _download(package: str, root: Path) -> None:
    work = root.with_name(f".{package}.{os.getpid()}")
    try:
        work.mkdir(parents=True)
        _run(["apt-get", "download", package], work)
        _run(["dpkg-deb", "-x", *(path.name for path in work.glob("*.deb")), "tree"], work)
        if not root.is_dir():  # another process may have been faster
            (work / "tree").rename(root)
    except OSError as error:
        if not root.is_dir():
            raise UsageError(f"{root} cannot be written ({error.strerror}): set XDG_CACHE_HOME, {_OR_GIVE}.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: Sequence[str], folder: Path) -> str:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True).stdout
    except FileNotFoundError:
        raise UsageError(f"{command[0]} was not found: fetch a kernel on Debian, {_OR_GIVE}.") from None
    except subprocess.CalledProcessError as error:
        said = (str(error.stderr).strip().splitlines() or [f"status {error.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        said = "not done within 300 s"
    raise UsageError(f"{' '.join(command)} failed ({said}): run apt-get update and try again, {_OR_GIVE}.")


# ---------------------------------------------------------------------------------------------------- the initramfs

_FOLDER: Final = stat.S_IFDIR | 0o755
_FILE: Final = stat.S_IFREG | 0o644
_PROGRAM: Final = stat.S_IFREG | 0o755
_FOLDERS: Final = ("bin", "sbin", "usr", "usr/bin", "usr/sbin", "dev", "proc", "sys", "tmp", "etc", "modules")

_INIT: Final = """#!/bin/busybox sh
/bin/busybox --install -s
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in {modules}; do insmod /modules/$module.ko; done
ip link set lo up
"""


def cpio(files: Iterable[Entry]) -> bytes:
    """An archive in the "new ASCII" format (cpio(5), newc)."""
    archive = bytearray()
    for inode, (path, mode, content) in enumerate([*files, ("TRAILER!!!", 0, b"")], start=1):
        name = path.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def initramfs(script: str, *, kernel: Kernel, drivers: Iterable[str], files: Iterable[Entry] = ()) -> bytes:
    """An archive whose /init mounts the usual, loads ``drivers`` and runs ``script``, all in busybox' shell.

    Args:
        files: what else there is; the folders of `_FOLDERS` are there.

    Raises:
        UsageError: there is no static busybox, or a driver is missing.
    """
    modules = {_plain(path.name): _module_bytes(path) for path in kernel.module_files(drivers)}
    return cpio(
        [
            *((name, _FOLDER, b"") for name in _FOLDERS),
            ("bin/busybox", _PROGRAM, _busybox()),
            ("init", _PROGRAM, (_INIT.format(modules=" ".join(modules)) + script).encode()),
            *((f"modules/{name}.ko", _FILE, content) for name, content in modules.items()),
            *files,
        ]
    )


def _busybox() -> bytes:
    path = shutil.which("busybox")
    if path is None:
        raise UsageError(f"busybox was not found: install busybox-static, {_OR_GIVE}.")
    program = Path(path).read_bytes()
    if not _is_static(program):
        raise UsageError(f"{path} is not a static program for x86-64: install busybox-static, {_OR_GIVE}.")
    return program


def _is_static(program: bytes) -> bool:
    """Whether it is an ELF file for x86-64 that names no loader (elf(5): EM_X86_64, PT_INTERP)."""
    if program[:6] != b"\x7fELF\x02\x01" or len(program) < 64 or program[18] != 62:
        return False
    (offset,), (size, count) = struct.unpack_from("<Q", program, 32), struct.unpack_from("<HH", program, 54)
    return all(program[at : at + 4] != b"\3\0\0\0" for at in range(offset, offset + size * count, size or 1))


# ------------------------------------------------------------------------------------------------------- the guest

_NC: Final = f"nc -{'l' * 128}"  # two l or more: serve for ever, and as many clients may wait to be accepted
_TIME_WAITS: Final = 16_384  # of a guest this small the kernel keeps 512; beyond that it resets, each machine others

# The first who reads from /dev/urandom waits for the kernel to gather its seed, a second or two: be that no client.
_SERVICES: Final = f"""
echo {_TIME_WAITS} > /proc/sys/net/ipv4/tcp_max_tw_buckets
xxd -l 1 /dev/urandom > /dev/null &
{_NC} -p 80 -e httpd -i -h /www &
{_NC} -p 81 -e sh /bin/answer &
{_NC} -p 7 -e cat &
{_NC} -p 9 -e xxd -p -l 16 /dev/urandom &
udp-echo &
listens() {{ until grep -qs ":$2 0*:0000 " /proc/net/$1 /proc/net/${{1}}6; do usleep 10000; done; }}
listens tcp 0050; listens tcp 0051; listens tcp 0007; listens tcp 0009; listens udp 0007
echo {READY}
while :; do sleep 86400; done
"""

# The answer to a request that was read to the end: what is left unread would reset the connection.
_ANSWER: Final = b"""#!/bin/busybox sh
while read -r line && [ ${#line} -gt 1 ]; do :; done
cat /answer
"""

# Debian's busybox has no udpsvd, and its nc no UDP, so that this is a program of our own. edi is the socket throughout.
_UDP_ECHO: Final = bytes.fromhex(
    "6a29 58 6a02 5f 6a02 5e 31d2 0f05 89c7"  # edi = socket(AF_INET, SOCK_DGRAM, 0)
    "488d3541000000 6a1c 5a 6a31 58 0f05"  # bind(edi, the address at the end, 28)
    "4881ec00010100"  # rsp: the length of the peer's address; +16: that address; +256: 64 KiB for the datagram
    "c704241c000000 6a2d 58 488db42400010000 ba00000100 4531d2 4c8d442410 4989e1 0f05"  # rax = recvfrom(edi, ...)
    "4889c2 6a2c 58 448b0c24 0f05"  # sendto(edi, rsp + 256, rax, 0, rsp + 16, *rsp)
    "ebce"  # and again with recvfrom
    "02000007" + "00" * 24  # sockaddr_in or sockaddr_in6: the family, port 7, any address
)
_FAMILY_OFFSETS: Final = (4, 87)
_AF_INET6: Final = 10


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """What QEMU's -kernel, -initrd and -append take."""

    kernel: Path
    initrd: Path
    append: str


def default_guest(
    directory: Path,
    *,
    address: IPv4Interface,
    gateway: IPv4Address | None,
    address6: IPv6Interface | None = None,
    kernel: Kernel | None = None,
) -> GuestFiles:
    """Write the guest's initramfs into ``directory``, and tell how to boot it.

    Args:
        address: of its card, with the length of the prefix. address6: likewise; without it, IPv6 is off.
        kernel: what to boot; by default what `Kernel.find` finds.

    Raises:
        UsageError: something is missing that a person can install, or ``directory`` cannot be written.
    """
    kernel = Kernel.find() if kernel is None else kernel
    archive = initramfs(
        _network(address, gateway, address6) + _SERVICES,
        kernel=kernel,
        drivers=[name for names in CARDS.values() for name in names if kernel.has(name)],
        files=[
            ("bin/udp-echo", _PROGRAM, _udp_echo(ipv6=address6 is not None)),
            ("bin/answer", _PROGRAM, _ANSWER),
            ("answer", _FILE, b"HTTP/1.0 200 OK\r\nContent-Length: 11\r\n\r\n" + file_bytes("index.html")),
            ("www", _FOLDER, b""),
            *((f"www/{name}", _FILE, file_bytes(name)) for name in FILES),
        ],
    )
    initrd = directory / INITRD
    try:
        initrd.write_bytes(archive)
    except OSError as error:
        raise UsageError(f"{initrd} cannot be written ({error.strerror}): give another folder.") from None
    return GuestFiles(kernel.image, initrd, APPEND)


def file_bytes(name: str) -> bytes:
    """What the guest serves as ``/name``: always the same, and except for index.html nothing that compresses.

    Raises:
        UsageError: it is none of `FILES`.
    """
    if name not in FILES:
        raise UsageError(f"The guest serves no {name!r}: take one of {', '.join(FILES)}.")
    return b"hello colo\n" if name == "index.html" else shake_128(f"colo {name}".encode()).digest(FILES[name])


def _network(address: IPv4Interface, gateway: IPv4Address | None, address6: IPv6Interface | None) -> str:
    ipv6 = "/proc/sys/net/ipv6/conf/eth0"
    lines = [f"test ! -d {ipv6} || echo 1 >{ipv6}/disable_ipv6"]
    if address6 is not None:  # usable at once, and the only one
        lines = [f"echo 0 >{ipv6}/accept_dad", f"echo 0 >{ipv6}/autoconf"]
    lines += [
        "ip link set eth0 up",
        # e1000 takes 2 s; Linux forgets the solicited-node group of an address that was there before the carrier.
        "for _ in $(seq 250); do grep -qs 1 /sys/class/net/eth0/carrier && break; usleep 20000; done",
        f"ip address add {address} broadcast + dev eth0",
    ]
    if address6 is not None:
        lines += [f"ip address add {address6} dev eth0"]
    if gateway is not None:
        lines += [f"ip route add default via {gateway} dev eth0"]
    return "\n".join(lines)


def _udp_echo(*, ipv6: bool) -> bytes:
    """A program (elf(5)) of one segment that answers on both families, or, where IPv6 may be missing, on IPv4."""
    code = bytearray(_UDP_ECHO)
    if ipv6:
        for offset in _FAMILY_OFFSETS:
            code[offset] = _AF_INET6
    base, size = 0x400000, 64 + 56 + len(code)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, base + 64 + 56, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096)  # PT_LOAD, readable and executable
    return header + segment + code
