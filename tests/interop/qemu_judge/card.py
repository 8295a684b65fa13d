"""A network card that has told its netdev how long a virtio_net_hdr is, in a machine without a guest.

QEMU's filters take the length of a frame's header from their netdev, which has one only if a card asked for it. e1000e
does as soon as it is there, if a TAP is behind it. Frames that a filter hands on wait until the card can receive; as
nobody runs on this machine, the registers that say so are written through qtest.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tests.interop.qemu_judge.oracle import OracleError, connected

VNET_HDR_LEN: Final = 10
"""What e1000e asks for: `struct virtio_net_hdr`."""

_HLT: Final = b"\xf4"
_PCI_ADDRESS: Final = 0xCF8
_PCI_DATA: Final = 0xCFC
_SLOT: Final = 2
_BASE: Final = 0xE000_0000
_COMMAND: Final = 0x04
_BAR0: Final = 0x10
_MEMORY_AND_MASTER: Final = 6
_READY: Final = (  # 82574's registers: a ring of descriptors of which some are free, and receiving enabled
    (0x2800, 0x10_0000),  # RDBAL
    (0x2804, 0),  # RDBAH
    (0x2808, 4096),  # RDLEN
    (0x2810, 0),  # RDH
    (0x2818, 100),  # RDT
    (0x0100, 2),  # RCTL: EN
)


def machine(directory: Path) -> list[str]:
    """The command line of QEMU in a network namespace of its own, with a TAP ``n0`` and the card."""
    bios = directory / "bios"
    bios.write_bytes(_HLT * 65_536)
    return [
        *("unshare", "--user", "--map-root-user", "--net", "qemu-system-x86_64"),
        *("-M", "q35", "-m", "32", "-nodefaults", "-display", "none", "-serial", "none", "-monitor", "none"),
        *("-bios", os.fspath(bios), "-qtest-log", "/dev/null"),
        *("-qtest", f"unix:{directory / 'qtest'},server=on,wait=off"),
        *("-netdev", "tap,id=n0,ifname=card0,script=no,downscript=no,vnet_hdr=on"),
        *("-device", f"e1000e,netdev=n0,romfile=,addr={_SLOT}"),
    ]


def make_ready(directory: Path) -> None:
    """Let the card receive.

    Raises:
        OracleError: qtest did not take a command.
    """
    with connected(directory / "qtest") as sock, sock.makefile("rw") as file:

        def write(command: str) -> None:
            file.write(command + "\n")
            file.flush()
            if (answer := file.readline().strip()) != "OK":
                raise OracleError(f"qtest, {command}: {answer}")

        for register, value in ((_BAR0, _BASE), (_COMMAND, _MEMORY_AND_MASTER)):
            write(f"outl {_PCI_ADDRESS:#x} {1 << 31 | _SLOT << 11 | register:#x}")
            write(f"outl {_PCI_DATA:#x} {value:#x}")
        for register, value in _READY:
            write(f"writel {_BASE + register:#x} {value:#x}")
