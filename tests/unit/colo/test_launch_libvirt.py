"""libvirt's XML says what QEMU's command line says: it is translated back as libvirt does, and compared."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from colo.cli import main
from colo.launch.checks import image_format
from colo.launch.libvirt import NAMESPACE, domain, print_domains
from colo.launch.plan import Plan
from colo.qemu.machine import Guest
from pystack import UsageError

DIRECTORY = Path("/run/user/1000/colo/web")
QCOW2 = b"QFI\xfb" + bytes(100)

GUESTS = {
    "kernel": Guest(kernel=Path("/boot/vmlinuz"), initrd=Path("/boot/initrd"), append="console=ttyS0 a=\"<&>'", cpus=2),
    "kvm": Guest(accel="kvm", kernel=Path("/boot/vmlinuz"), memory_mib=4096, nic="e1000"),
    "more": Guest(
        kernel=Path("/boot/vmlinuz"),
        extra=("-device", "virtio-rng-pci", "-m", "64", "-usb"),
        environment={"LD_PRELOAD": "/opt/tcgcolo.so", "EMPTY": ""},
        mac="52:54:00:00:00:01",
    ),
}


def pairs(argv: list[str]) -> list[tuple[str, ...]]:
    """The options of a command line, each with its values."""
    found: list[list[str]] = []
    for word in argv:
        if word.startswith("-"):
            found.append([word])
        else:
            found[-1].append(word)
    return sorted(map(tuple, found))


def text(root: ET.Element, path: str) -> str:
    found = root.findtext(path)
    assert found is not None, path
    return found


def translated(root: ET.Element) -> list[tuple[str, ...]]:
    """What libvirt 9.0 makes of a domain, as far as `Guest.argv` has a word for it, and in its words.

    Seen of it (virt-qemu-run): ``-m``, ``-smp`` and ``-machine`` are given with more detail, the disk and the serial
    line as ``-blockdev`` or ``-chardev`` and ``-device``; every machine gets the first three of the list.
    """
    kind = root.get("type")
    argv = ["-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-name", text(root, "name").rpartition("-")[2]]
    system = root.find("os/type")
    assert system is not None
    assert (system.text, system.get("arch")) == ("hvm", "x86_64")
    assert root.find("features/acpi") is not None  # else -no-acpi
    argv += ["-machine", str(system.get("machine"))]
    argv += ["-accel", {"qemu": "tcg", "kvm": "kvm"}[str(kind)]]
    cpu = root.find("cpu")
    if cpu is not None:
        argv += ["-cpu", {"host-passthrough": "host"}[str(cpu.get("mode"))]]
    memory = root.find("memory")
    assert memory is not None
    assert memory.get("unit") == "MiB"
    argv += ["-m", str(memory.text), "-smp", text(root, "vcpu")]
    for tag, option in (("kernel", "-kernel"), ("initrd", "-initrd"), ("cmdline", "-append")):
        found = root.findtext(f"os/{tag}")
        argv += [option, found] if found is not None else []
    devices = root.find("devices")
    assert devices is not None
    for device in devices:
        argv += device_words(device)
    for word in root.iterfind(f"{{{NAMESPACE}}}commandline/{{{NAMESPACE}}}arg"):
        argv.append(str(word.get("value")))
    return pairs(argv)


def device_words(device: ET.Element) -> list[str]:
    source = device.find("source")
    match device.tag:
        case "serial":
            assert source is not None
            assert device.get("type") == "file"
            return ["-serial", f"file:{source.get('path')}"]
        case "disk":
            target = device.find("target")
            assert source is not None
            assert target is not None
            read_only = "on" if device.find("readonly") is not None else "off"
            return ["-drive", f"file={source.get('file')},if={target.get('bus')},readonly={read_only},file.locking=off"]
        case "emulator":
            return []
        case "controller" | "memballoon":
            assert device.get("model") == "none"  # what libvirt else adds
            return []
    raise AssertionError(device.tag)


@pytest.mark.parametrize("incoming", [False, True])
@pytest.mark.parametrize("name", GUESTS)
def test_the_arguments_are_those_of_the_command_line(name: str, incoming: bool) -> None:
    guest = GUESTS[name]
    assert_same(guest, incoming)


def assert_same(guest: Guest, incoming: bool) -> None:
    root = ET.fromstring(ET.tostring(domain(guest, "web", "vm2", DIRECTORY, incoming=incoming)))
    argv = guest.argv("vm2", DIRECTORY, incoming=incoming)
    assert root.findtext("devices/emulator") == argv[0]
    # TCG's thread=single is what libvirt has no word for.
    wanted = [tuple(word.replace(",thread=single", "") for word in option) for option in pairs(argv[1:])]
    assert translated(root) == wanted
    assert root.findtext("name") == "web-vm2"
    variables = root.iterfind(f"{{{NAMESPACE}}}commandline/{{{NAMESPACE}}}env")
    assert {variable.get("name"): variable.get("value") for variable in variables} == guest.environment


@pytest.mark.parametrize(("content", "kind"), [(QCOW2, "qcow2"), (bytes(512), "raw"), (b"", "raw")])
def test_a_disk_has_the_format_that_it_has(tmp_path: Path, content: bytes, kind: str) -> None:
    image = tmp_path / "disk of a <kind>"
    image.write_bytes(content)
    guest = Guest(disk=image)
    root = domain(guest, "web", "vm1", DIRECTORY, incoming=False)
    driver = root.find("devices/disk/driver")
    assert driver is not None
    assert driver.get("type") == image_format(image) == kind
    assert_same(guest, incoming=True)


def test_both_machines_differ_in_what_waits_and_in_their_sockets() -> None:
    printed = print_domains(Plan(guest=GUESTS["more"], name="web"))
    first, second = (f"<domain {part}" for part in printed.split("<domain ")[1:])
    assert "-incoming" not in first
    assert (
        second.replace("vm2", "vm1")
        .replace('    <qemu:arg value="-incoming" />\n    <qemu:arg value="defer" />\n', "")
        .rstrip()
        == first.rstrip()
    )
    assert print_domains(Plan(guest=GUESTS["more"], name="web"), which="vm2") == second


def test_the_command_prints_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bytes(1000))
    words = ["launch", "--kernel", str(kernel), "--qemu", "true", "--accel", "tcg", "--name", "web"]
    both = CliRunner().invoke(main, [*words, "--print=libvirt"])
    parts = [CliRunner().invoke(main, [*words, "--print", f"libvirt-{one}"]).stdout for one in ("primary", "secondary")]
    assert both.stdout == "\n".join(parts)
    roots = [ET.fromstring(part) for part in parts]
    assert [root.findtext("name") for root in roots] == ["web-vm1", "web-vm2"]
    assert f"{tmp_path}/colo/web/vm1.qmp,server=on,wait=off" in parts[0]
    for part in parts:
        assert_valid(part, tmp_path)


def assert_valid(text: str, folder: Path) -> None:
    """The schema of libvirt takes it, where its program for that is installed."""
    program = shutil.which("virt-xml-validate")
    if program is None:
        return
    path = folder / "domain.xml"
    path.write_text(text)
    done = subprocess.run([program, str(path), "domain"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guest_that_is_not_there_yet_cannot_be_printed() -> None:
    with pytest.raises(UsageError, match="give --kernel or --disk"):
        print_domains(Plan())
