"""What can be known to be wrong with a machine before QEMU is asked: a person is told in one sentence.

Sources: Documentation/arch/x86/boot.rst, arch/arm64/booting.rst, arch/riscv/boot-image-header.rst of Linux; elf(5).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from pystack import UsageError

OLDEST_QEMU: Final = (7, 2)
"""The first that has ``-netdev stream``."""

_PC_MACHINES: Final = frozenset({"x86_64", "i386"})
_ELF_PC: Final = {3, 62}  # EM_386, EM_X86_64
_ELF_NAMES: Final = {8: "MIPS", 20: "PowerPC", 21: "PowerPC", 22: "S/390", 40: "ARM", 183: "ARM", 243: "RISC-V"}
_HEADER_BYTES: Final = 0x206
_MAC: Final = re.compile(r"[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){5}")
_QCOW2: Final = b"QFI\xfb"


def check_readable(path: Path) -> None:
    """See that ``path`` is a file, or a device, that may be read.

    Raises:
        UsageError: it is not.
    """
    if not os.access(path, os.R_OK):
        raise UsageError(f"{path} cannot be read: give a file that is there.")
    if path.is_dir():
        raise UsageError(f"{path} is a directory: give a file.")


def check_kernel(path: Path) -> None:
    """See that ``path`` may be read, and is not known for the kernel of another architecture.

    What has none of the marks that are known is left to QEMU.

    Raises:
        UsageError: it is one that a PC cannot boot.
    """
    check_readable(path)
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    if foreign := _foreign(header):
        raise UsageError(f"{path} is {foreign}: give a kernel for x86, such as /boot/vmlinuz of a PC.")


def _foreign(header: bytes) -> str:
    """What a kernel is that begins like this, if it is not for a PC; "" if it may be."""
    if header[0x202:0x206] == b"HdrS":
        return ""
    if header[:4] == b"\x7fELF" and len(header) > 20:
        machine = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
        return "" if machine in _ELF_PC else f"a program for {_ELF_NAMES.get(machine, 'another architecture')}"
    if header[56:60] == b"ARM\x64" or header[36:40] == b"\x18\x28\x6f\x01":
        return "a kernel for ARM"
    if header[48:53] == b"RISCV":
        return "a kernel for RISC-V"
    if header[4:8] == b"zimg":
        return "a compressed kernel for UEFI of another architecture"
    return "compressed with gzip, as kernels for ARM are" if header[:2] == b"\x1f\x8b" else ""


def check_program(name: str) -> None:
    """See that a program that calls itself ``qemu-system-ARCHITECTURE`` is one that makes PCs.

    Raises:
        UsageError: it is not.
    """
    before, _, architecture = Path(name).name.partition("qemu-system-")
    if not before and architecture and architecture not in _PC_MACHINES:
        raise UsageError(f"{name} makes machines of {architecture}, and colo makes PCs: give qemu-system-x86_64.")


def check_version(version: tuple[int, ...]) -> None:
    """See that this QEMU has what is needed.

    Raises:
        UsageError: it is too old.
    """
    if version < OLDEST_QEMU:
        said, oldest = (".".join(map(str, numbers)) for numbers in (version, OLDEST_QEMU))
        raise UsageError(f"QEMU {said} is too old, as it has no -netdev stream: install {oldest} or newer.")


def check_mac(mac: str) -> None:
    """See that a card can have this address.

    Raises:
        UsageError: it cannot.
    """
    if not _MAC.fullmatch(mac):
        raise UsageError(f"The card's address is {mac!r}: write six pairs of digits, like 52:54:00:12:34:56.")
    if int(mac[:2], 16) & 1:
        raise UsageError(f"The card's address is {mac}, that of a group: its first pair must be even.")


def image_format(path: Path) -> str:
    """``qcow2`` or ``raw``: what QEMU takes the disk image for, of the two that matter.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return "qcow2" if file.read(4) == _QCOW2 else "raw"
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
