"""A plan as libvirt's domains: what libvirt has an element for in that, everything else as arguments for QEMU.

Written against https://libvirt.org/formatdomain.html and https://libvirt.org/drvqemu.html#pass-through-of-arbitrary-qemu-commands
of libvirt 9.0. Libvirt knows no ``-netdev stream`` to a UNIX socket, and starts no machine that waits for the state of
another one that it has not sent itself, so that the card, ``-incoming`` and a monitor for us go past it.

What libvirt cannot say: ``thread=single`` of TCG, which means nothing to a machine with one processor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from colo.launch.checks import image_format
from colo.launch.plan import Plan, run_directory
from colo.launch.printing import PRIMARY, SECONDARY, with_guest_of
from colo.qemu.machine import Guest
from pystack import UsageError

NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"

_TYPES: Final = {"kvm": "kvm", "tcg": "qemu"}
_ELEMENTS: Final = frozenset(
    ("-name", "-machine", "-accel", "-cpu", "-m", "-smp", "-serial", "-kernel", "-initrd", "-append", "-drive")
)
"""What `domain` says with elements."""
_ALWAYS: Final = frozenset(("-nodefaults", "-no-user-config", "-display", "-S"))
"""What libvirt gives every machine; it lets them run with ``cont``."""


def print_domains(plan: Plan, *, which: str = "") -> str:
    """Both machines of ``plan`` as libvirt's XML, or the one that ``which`` names, `PRIMARY` or `SECONDARY`.

    Their sockets and logs are in a directory of the pair's name, which does not change.

    Raises:
        UsageError: the machines boot nothing that is there before they run, or write to a disk.
    """
    if plan.guest.overlay is not None:
        raise UsageError(
            "What a machine writes to its disk is copied by colo launch alone: leave --overlay out for libvirt."
        )
    if plan.guest.kernel is None and plan.guest.disk is None:
        raise UsageError("The guest that is built at the start is not there for libvirt: give --kernel or --disk.")
    plan, _ = with_guest_of(plan)
    directory = run_directory() / plan.name
    names = [name for name in (PRIMARY, SECONDARY) if which in ("", name)]
    domains = [domain(plan.guest, plan.name, name, directory, incoming=name == SECONDARY) for name in names]
    return "\n\n".join(_text(root) for root in domains)


def domain(guest: Guest, pair: str, name: str, directory: Path, *, incoming: bool) -> ET.Element:
    """The domain of the machine ``name`` of the pair ``pair``; the arguments are those of `Guest.argv`."""
    root = ET.Element("domain", type=_TYPES[guest.accel])
    _leaf(root, "name", f"{pair}-{name}")
    _leaf(root, "memory", str(guest.memory_mib), unit="MiB")
    _leaf(root, "vcpu", str(guest.cpus), placement="static")
    system = ET.SubElement(root, "os")
    _leaf(system, "type", "hvm", arch="x86_64", machine="pc")
    for tag, value in (("kernel", guest.kernel), ("initrd", guest.initrd), ("cmdline", guest.append)):
        if value:
            _leaf(system, tag, str(value))
    ET.SubElement(ET.SubElement(root, "features"), "acpi")
    if guest.accel == "kvm":
        ET.SubElement(root, "cpu", mode="host-passthrough", check="none")
    devices = ET.SubElement(root, "devices")
    _leaf(devices, "emulator", guest.qemu)
    if guest.disk is not None:
        _disk(devices, guest.disk)
    ET.SubElement(devices, "controller", type="usb", model="none")
    serial = ET.SubElement(devices, "serial", type="file")
    ET.SubElement(serial, "source", path=f"{directory / name}.console")
    ET.SubElement(serial, "target", type="isa-serial", port="0")
    ET.SubElement(devices, "memballoon", model="none")
    ET.SubElement(root, "seclabel", type="none")
    _past(root, guest, name, directory, incoming=incoming)
    return root


def _disk(devices: ET.Element, image: Path) -> None:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(disk, "driver", name="qemu", type=image_format(image))
    ET.SubElement(disk, "source", file=str(image.absolute()))
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    ET.SubElement(disk, "readonly")


def _past(root: ET.Element, guest: Guest, name: str, directory: Path, *, incoming: bool) -> None:
    """The arguments and the environment that go past libvirt."""
    commands = ET.SubElement(root, f"{{{NAMESPACE}}}commandline")
    plain = replace(guest, extra=()).argv(name, directory, incoming=incoming)
    for option, values in _options(plain[1:]):
        if option not in _ELEMENTS and option not in _ALWAYS:
            for word in (option, *values):
                ET.SubElement(commands, f"{{{NAMESPACE}}}arg", value=word)
    for word in guest.extra:
        ET.SubElement(commands, f"{{{NAMESPACE}}}arg", value=word)
    for variable, value in guest.environment.items():
        ET.SubElement(commands, f"{{{NAMESPACE}}}env", name=variable, value=value)


def _options(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with what follows it, up to the next one."""
    starts = [at for at, word in enumerate(words) if word.startswith("-")]
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        yield words[start], words[start + 1 : end]


def _leaf(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _text(root: ET.Element) -> str:
    ET.register_namespace("qemu", NAMESPACE)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode")
