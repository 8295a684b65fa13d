"""What can be known to be wrong before QEMU is asked: kernels of other architectures, programs, versions, addresses."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from colo.launch.checks import check_kernel, check_mac, check_program, check_readable, check_version
from pystack import UsageError


def at(offset: int, mark: bytes, begins: bytes = b"") -> bytes:
    header = bytearray(1024)
    header[offset : offset + len(mark)] = mark
    header[: len(begins)] = begins
    return bytes(header)


def elf(machine: int, order: str = "<") -> bytes:
    begins = b"\x7fELF\2" + (b"\1" if order == "<" else b"\2")
    return at(18, struct.pack(f"{order}H", machine), begins)


@pytest.mark.parametrize(
    "header",
    [
        at(0x202, b"HdrS"),
        at(0x202, b"HdrS", b"MZ"),  # with a stub for UEFI, as Debian's are
        at(0x202, b"HdrS", b"\x7fELF\2\1"),
        elf(62),
        elf(3),
        bytes(4096),
        b"",
        b"\x7fELF",
    ],
)
def test_a_kernel_for_a_pc_and_what_nobody_knows(tmp_path: Path, header: bytes) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(header)
    check_kernel(kernel)


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (at(56, b"ARM\x64"), "a kernel for ARM"),
        (at(56, b"ARM\x64", b"MZ"), "a kernel for ARM"),
        (at(36, b"\x18\x28\x6f\x01"), "a kernel for ARM"),
        (at(48, b"RISCV\0\0\0"), "a kernel for RISC-V"),
        (at(4, b"zimg", b"MZ\0\0"), "a compressed kernel for UEFI of another architecture"),
        (elf(183), "a program for ARM"),
        (elf(243), "a program for RISC-V"),
        (elf(22, ">"), "a program for S/390"),
        (elf(258), "a program for another architecture"),
        (at(0, b"\x1f\x8b\x08"), "compressed with gzip, as kernels for ARM are"),
    ],
)
def test_a_kernel_of_another_architecture(tmp_path: Path, header: bytes, what: str) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(header)
    with pytest.raises(UsageError) as error:
        check_kernel(kernel)
    assert str(error.value) == f"{kernel} is {what}: give a kernel for x86, such as /boot/vmlinuz of a PC."


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "cannot be read: give a file that is there."), (tmp_path, "is a directory")):
        with pytest.raises(UsageError, match=why):
            check_readable(path)
        with pytest.raises(UsageError, match=why):
            check_kernel(path)


@pytest.mark.parametrize("name", ["qemu-system-aarch64", "/usr/bin/qemu-system-arm", "qemu-system-riscv64"])
def test_a_program_for_another_architecture(name: str) -> None:
    with pytest.raises(UsageError, match=r"makes machines of .*, and colo makes PCs: give qemu-system-x86_64"):
        check_program(name)


@pytest.mark.parametrize("name", ["qemu-system-x86_64", "/x/qemu-system-i386", "kvm", "my-qemu-system-arm", "qemu"])
def test_a_program_for_a_pc(name: str) -> None:
    check_program(name)


@pytest.mark.parametrize("version", [(7, 2), (7, 2, 22), (8, 0, 0), (11, 0, 50)])
def test_a_version_that_is_new_enough(version: tuple[int, ...]) -> None:
    check_version(version)


@pytest.mark.parametrize("version", [(7, 1, 99), (6, 2, 0), (2, 11)])
def test_a_version_that_is_too_old(version: tuple[int, ...]) -> None:
    said = ".".join(map(str, version))
    with pytest.raises(UsageError, match=f"QEMU {said} is too old, as it has no -netdev stream: install 7.2 or newer"):
        check_version(version)


@pytest.mark.parametrize("mac", ["", "52:54:00:12:34", "52-54-00-12-34-56", "52:54:00:12:34:5g", "01:00:5e:00:00:01"])
def test_an_address_that_no_card_has(mac: str) -> None:
    with pytest.raises(UsageError, match="The card's address is "):
        check_mac(mac)


def test_an_address_of_a_card() -> None:
    check_mac("52:54:00:aB:Cd:eF")
