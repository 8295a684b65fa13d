"""The guest that `colo launch` boots by default: how its kernel is found, what is packed, and what a person is told."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import struct
import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path

import pytest

from colo.qemu import image
from colo.qemu.image import APPEND, FILES, READY, Kernel, cpio, default_guest, fetch_kernel, file_bytes
from pystack import UsageError

CLOUD = "6.9.0-1-cloud-amd64"
ADDRESS = IPv4Interface("192.0.2.15/24")
STATIC = image._udp_echo(ipv6=False)  # any static program


def module(*needed: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(needed).encode() + b"\0name=x\0"


MODULES = {
    "virtio_pci.ko": module(),
    "virtio_net.ko": module("net_failover"),
    "net_failover.ko": module("failover"),
    "failover.ko": module(),
    "e1000.ko": module(),
}


def install(root: Path, release: str, modules: dict[str, bytes] = MODULES, builtin: str = "") -> Kernel:
    """Make a kernel as a package would below `root`."""
    boot, folder = root / "boot", root / "lib/modules" / release
    drivers = folder / "kernel/drivers/net"
    for directory in (boot, drivers):
        directory.mkdir(parents=True, exist_ok=True)
    (boot / f"vmlinuz-{release}").write_bytes(b"a kernel")
    (folder / "modules.builtin").write_text(builtin)
    for name, content in modules.items():
        (drivers / name).write_bytes(content)
    return Kernel(boot / f"vmlinuz-{release}", folder)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root folder in place of /, and a user's cache without anything in it."""
    root = tmp_path / "system"
    root.mkdir()
    monkeypatch.setattr(image, "_SYSTEM", root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


@pytest.fixture
def busybox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is found for busybox: a static program."""
    path = tmp_path / "busybox"
    path.write_bytes(STATIC)
    monkeypatch.setattr(shutil, "which", {"busybox": str(path)}.get)
    return path


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content of what is in a cpio archive, by path."""
    files: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + 110 + fields[11] + 3 & ~3
        if name == "TRAILER!!!":
            return files
        files[name] = (fields[1], archive[start : start + fields[6]])
        at = start + fields[6] + 3 & ~3


# ------------------------------------------------------------------------------------------------------ which kernel


def test_a_cloud_kernel_goes_before_a_newer_one(system: Path) -> None:
    install(system, "6.12.1-amd64")
    cloud = install(system, CLOUD)
    assert Kernel.find() == cloud


def test_the_newest_kernel_is_found_by_number(system: Path) -> None:
    install(system, CLOUD)
    newest = install(system, "6.10.0-1-cloud-amd64")
    assert Kernel.find() == newest


def test_a_kernel_without_what_is_needed_is_passed_over(system: Path) -> None:
    install(system, CLOUD)
    able = install(system, "6.1.0-1-amd64", MODULES | {"8139cp.ko": module("mii"), "mii.ko": module()})
    assert Kernel.find(needs=["virtio_net", "8139cp"]) == able


def test_a_kernel_that_may_not_be_read_is_passed_over(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readable = install(system, CLOUD)
    install(system, "6.10.0-1-cloud-amd64")
    monkeypatch.setattr("os.access", lambda path, _: path == readable.image)
    assert Kernel.find() == readable


def test_a_kernel_without_its_modules_is_passed_over(system: Path) -> None:
    kernel = install(system, CLOUD)
    kernel.modules.rename(system / "elsewhere")
    with pytest.raises(UsageError, match="No readable kernel"):
        Kernel.find()


def test_what_is_built_in_counts(system: Path) -> None:
    builtin = "kernel/drivers/net/virtio_net.ko\nkernel/drivers/virtio/virtio_pci.ko\n"
    kernel = install(system, CLOUD, {}, builtin)
    assert Kernel.find() == kernel
    assert kernel.module_files(["virtio_net"]) == []


def test_the_cache_comes_after_the_system(system: Path, tmp_path: Path) -> None:
    cached = install(tmp_path / "cache/colo/linux-image-6.10.0-1-cloud-amd64", "6.10.0-1-cloud-amd64")
    assert Kernel.find() == cached
    installed = install(system, "6.1.0-1-amd64")
    assert Kernel.find() == installed


def test_a_cache_may_be_named(system: Path, tmp_path: Path) -> None:
    cached = install(tmp_path / "here/linux-image-6.10", "6.10")
    assert Kernel.find(tmp_path / "here") == cached


def test_a_person_is_told_what_to_do_without_a_kernel(system: Path) -> None:
    with pytest.raises(UsageError) as raised:
        Kernel.find()
    assert str(raised.value) == (
        "No readable kernel with virtio_pci and virtio_net is in /boot: install linux-image-cloud-amd64, "
        "or give --kernel and --initrd."
    )


def test_a_kernel_for_other_cards_is_another_package(system: Path) -> None:
    install(system, CLOUD)
    with pytest.raises(UsageError, match=r"^No readable kernel with 8139cp is in /boot: install linux-image-amd64, or"):
        Kernel.find(needs=image.CARDS["rtl8139"])


# ----------------------------------------------------------------------------------------------------------- modules


def test_modules_come_after_what_they_depend_on(system: Path) -> None:
    paths = install(system, CLOUD).module_files(["virtio_net", "failover", "e1000"])
    assert [path.name for path in paths] == ["failover.ko", "net_failover.ko", "virtio_net.ko", "e1000.ko"]


def test_a_dash_in_the_name_of_a_module_is_an_underscore(system: Path) -> None:
    kernel = install(system, CLOUD, {"virtio-net.ko": module("net_failover"), "net-failover.ko": module()})
    assert [path.name for path in kernel.module_files(["virtio_net"])] == ["net-failover.ko", "virtio-net.ko"]


def test_a_module_that_is_missing_is_named(system: Path) -> None:
    kernel = install(system, CLOUD)
    with pytest.raises(
        UsageError, match=r"has no module 8139cp: take another kernel, or give --kernel and --initrd\.$"
    ):
        kernel.module_files(["8139cp"])


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=content, capture_output=True, check=True).stdout


def test_compressed_modules_are_packed_as_insmod_takes_them(system: Path, busybox: Path) -> None:
    compressed = {
        "virtio_net.ko.xz": lzma.compress(module("net_failover")),
        "net_failover.ko.gz": gzip.compress(module("failover")),
        "failover.ko": module(),
    }
    files = unpack(image.initramfs("", kernel=install(system, CLOUD, compressed), drivers=["virtio_net"]))
    assert files["modules/virtio_net.ko"][1] == module("net_failover")
    assert files["modules/net_failover.ko"][1] == module("failover")
    assert b"for module in failover net_failover virtio_net; do" in files["init"][1]


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd")
def test_modules_that_zstd_compressed_are_unpacked(system: Path) -> None:
    compressed = {"virtio_net.ko.zst": zstd(module("failover")), "failover.ko.zst": zstd(module())}
    paths = install(system, CLOUD, compressed).module_files(["virtio_net"])
    assert [path.name for path in paths] == ["failover.ko.zst", "virtio_net.ko.zst"]


def test_a_person_is_told_that_zstd_is_missing(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = install(system, CLOUD, {"virtio_net.ko.zst": b"?"})
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match=r"install zstd, or give --kernel and --initrd\.$"):
        kernel.module_files(["virtio_net"])


# ----------------------------------------------------------------------------------------------------- the initramfs


@pytest.mark.requires("busybox")
def test_busybox_lists_and_unpacks_the_archive(tmp_path: Path) -> None:
    content = {"file": b"abc", "folder/other": b"", "folder/big": bytes(range(256)) * 33}
    entries = [("folder", stat.S_IFDIR | 0o755, b"")]
    entries += [(name, stat.S_IFREG | 0o644, data) for name, data in content.items()]
    archive = cpio(entries)
    listed = subprocess.run(["busybox", "cpio", "-t"], input=archive, capture_output=True, check=True, timeout=20)
    assert listed.stdout.decode().split() == ["folder", "file", "folder/other", "folder/big"]
    subprocess.run(["busybox", "cpio", "-i"], input=archive, capture_output=True, check=True, timeout=20, cwd=tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in content} == content


def test_the_guest_has_what_it_is_to_serve(system: Path, busybox: Path, tmp_path: Path) -> None:
    kernel = install(system, CLOUD)
    guest = default_guest(tmp_path, address=ADDRESS, gateway=None)
    assert (guest.kernel, guest.append) == (kernel.image, APPEND)
    files = unpack(guest.initrd.read_bytes())
    assert {name.removeprefix("www/") for name in files if name.startswith("www/")} == set(FILES)
    for name, size in FILES.items():
        assert files[f"www/{name}"] == (stat.S_IFREG | 0o644, file_bytes(name))
        assert len(file_bytes(name)) == size
    assert files["bin/busybox"] == files["bin/udp-echo"] == (stat.S_IFREG | 0o755, STATIC)
    assert {name for name in files if name.startswith("modules/")} == {f"modules/{name}" for name in MODULES}


def init_of(tmp_path: Path, gateway: IPv4Address | None = None, address6: IPv6Interface | None = None) -> list[str]:
    guest = default_guest(tmp_path, address=ADDRESS, gateway=gateway, address6=address6)
    mode, content = unpack(guest.initrd.read_bytes())["init"]
    assert mode == stat.S_IFREG | 0o755
    return content.decode().splitlines()


def test_the_guest_takes_its_addresses_and_its_route(system: Path, busybox: Path, tmp_path: Path) -> None:
    install(system, CLOUD)
    lines = init_of(tmp_path, IPv4Address("192.0.2.2"), IPv6Interface("2001:db8::15/64"))
    assert "ip address add 192.0.2.15/24 broadcast + dev eth0" in lines
    assert "ip address add 2001:db8::15/64 dev eth0" in lines
    assert "ip route add default via 192.0.2.2 dev eth0" in lines
    assert f"echo {READY}" in lines


def test_the_guest_has_neither_route_nor_ipv6_unless_told(system: Path, busybox: Path, tmp_path: Path) -> None:
    install(system, CLOUD)
    lines = init_of(tmp_path)
    assert not [line for line in lines if "route" in line]
    assert [line for line in lines if "disable_ipv6" in line]
    assert [line for line in lines if line.startswith("ip address")] == [
        "ip address add 192.0.2.15/24 broadcast + dev eth0"
    ]


def test_a_person_is_told_that_busybox_is_missing(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(system, CLOUD)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError) as raised:
        default_guest(tmp_path, address=ADDRESS, gateway=None)
    assert str(raised.value) == "busybox was not found: install busybox-static, or give --kernel and --initrd."


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(STATIC[:64] + struct.pack("<I", 3) + STATIC[68:], id="with a loader"),
        pytest.param(STATIC[:18] + b"\xb7" + STATIC[19:], id="for arm64"),
        pytest.param(b"#!/bin/sh\n", id="a script"),
        pytest.param(b"\x7fELF\x02\x01", id="cut"),
    ],
)
def test_a_person_is_told_that_busybox_cannot_run_in_a_guest(
    system: Path, busybox: Path, tmp_path: Path, program: bytes
) -> None:
    install(system, CLOUD)
    busybox.write_bytes(program)
    with pytest.raises(UsageError, match=r"is not a static program for x86-64: install busybox-static, or give"):
        default_guest(tmp_path, address=ADDRESS, gateway=None)


def test_a_person_is_told_that_the_folder_cannot_be_written(system: Path, busybox: Path, tmp_path: Path) -> None:
    install(system, CLOUD)
    with pytest.raises(UsageError, match=r"initrd.cpio cannot be written \(No such file or directory\): give another"):
        default_guest(tmp_path / "absent", address=ADDRESS, gateway=None)


def test_a_file_that_is_not_served_is_refused() -> None:
    with pytest.raises(UsageError, match=r"The guest serves no 'x': take one of index.html, 1k, 1m, 8m\."):
        file_bytes("x")


# --------------------------------------------------------------------------------------------------- Debian's package


class Apt:
    """In place of subprocess.run: an apt that has one kernel, and the commands that were given to it."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.commands: list[str] = []

    def __call__(self, command: Sequence[str], *, cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command[0])
        if command[0] == self.failing:
            raise subprocess.CalledProcessError(100, command, "", "W: hm\nE: no network\n")
        if command[0] == "apt-get":
            (cwd / f"{command[2]}.deb").touch()
        if command[0] == "dpkg-deb":
            assert (cwd / command[2]).is_file()
            install(cwd / "tree", CLOUD)
        told = f"{command[-1]}\n  Depends: linux-image-{CLOUD}\n" if command[0] == "apt-cache" else ""
        return subprocess.CompletedProcess(command, 0, told, "")


def test_a_kernel_is_downloaded_once(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = Apt()
    monkeypatch.setattr(subprocess, "run", apt)
    kernel = fetch_kernel()
    assert kernel.image == tmp_path / f"cache/colo/linux-image-{CLOUD}/boot/vmlinuz-{CLOUD}"
    assert apt.commands == ["apt-cache", "apt-get", "dpkg-deb"]
    assert fetch_kernel() == kernel
    assert apt.commands[3:] == ["apt-cache"]
    assert [path.name for path in (tmp_path / "cache/colo").iterdir()] == [f"linux-image-{CLOUD}"]
    assert Kernel.find() == kernel


def test_finding_a_kernel_starts_nothing(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = Apt()
    monkeypatch.setattr(subprocess, "run", apt)
    with pytest.raises(UsageError):
        Kernel.find()
    assert not apt.commands


def test_a_person_is_told_why_a_download_failed(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", Apt(failing="apt-get"))
    with pytest.raises(UsageError) as raised:
        fetch_kernel()
    assert str(raised.value) == (
        f"apt-get download linux-image-{CLOUD} failed (E: no network): run apt-get update and try again, "
        "or give --kernel and --initrd."
    )
    assert not list((tmp_path / "cache/colo").iterdir())


def test_a_person_is_told_that_there_is_no_apt(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UsageError, match=r"^apt-cache was not found: fetch a kernel on Debian, or give --kernel and"):
        fetch_kernel()


def test_a_person_is_told_that_apt_knows_no_such_package(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""))
    with pytest.raises(UsageError, match=r"^apt knows no linux-image-cloud-amd64: run apt-get update on Debian"):
        fetch_kernel()


def test_a_person_is_told_that_the_cache_cannot_be_written(
    system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_bytes(b"a file")
    monkeypatch.setattr(subprocess, "run", Apt())
    with pytest.raises(UsageError, match=r"cannot be written \(Not a directory\): set XDG_CACHE_HOME, or give"):
        fetch_kernel()
