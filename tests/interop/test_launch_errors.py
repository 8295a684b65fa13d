"""A person's mistakes and a system that refuses, met by `colo launch` itself: one sentence, status 2, nothing left.

What stands in test_colo_pair.py is not repeated: programs, files and cards that there are not, a port and a name taken.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from colo.qemu.image import Kernel, fetch_kernel
from pystack import UsageError

pytestmark = pytest.mark.timeout(120)

COLO = (sys.executable, "-m", "colo")
_PATIENCE = 60.0
_TOLD = ("  ",)  # what happened before, each with its time


class Place:
    """A folder for a test's files, and another for what its pairs have while they run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "r"
        self.run.mkdir()

    def file(self, name: str, content: bytes | str, *, mode: int = 0o644) -> str:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return str(path)

    def program(self, name: str, script: str) -> str:
        return self.file(name, f"#!/bin/sh\n{script}\n", mode=0o755)

    def launch(self, *words: str, before: Sequence[str] = (), run: Path | None = None) -> str:
        """Run it to its end, which is a mistake's; returns the sentence, of which there is one."""
        env = {**os.environ, "XDG_RUNTIME_DIR": str(run or self.run)}
        command = [*before, *COLO, "launch", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, env=env, check=False)
        assert (done.returncode, done.stdout) == (2, ""), done.stdout + done.stderr
        *told, sentence = done.stderr.splitlines()
        assert all(line.startswith(_TOLD) for line in told), done.stderr
        assert sentence.startswith("colo: ")
        assert "Traceback" not in done.stderr
        assert self.left() == []
        return sentence.removeprefix("colo: ")

    def left(self) -> list[str]:
        """What a pair has left on disk, and every process whose command line has our folder in it."""
        found = [str(path) for path in self.run.glob("colo/*")]
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes()
                if str(self.folder).encode() in words and int(folder.name) != os.getpid():
                    found.append(words.replace(b"\0", b" ").decode()[:200])
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# ------------------------------------------------------------------------------------------------------------- QEMU

_VERSION = '[ "$1" = --version ] && { echo "QEMU emulator version %s (Debian)"; exit; }\n'


def test_qemu_that_is_too_old(place: Place) -> None:
    script = _VERSION % "6.2.0" + "echo \"$0: Parameter 'type' expects a netdev backend type\" >&2; exit 1"
    kernel = place.file("kernel", bytes(4096))
    assert place.launch("--kernel", kernel, "--qemu", place.program("old", script)) == (
        "QEMU 6.2.0 is too old, as it has no -netdev stream: install 7.2 or newer."
    )


@pytest.mark.requires("qemu")
@pytest.mark.parametrize("version", ["10.0.3", "10.1.2"])
def test_qemu_that_never_enters_colo(place: Place, version: str) -> None:
    """Refused where QEMU's own COLO is asked for."""
    program = place.program("never", _VERSION % version + 'exec qemu-system-x86_64 "$@"')
    said = place.launch("--kernel", place.file("kernel", bytes(4096)), "--qemu", program, "--engine", "x-colo")
    assert said.startswith(f"The engine x-colo does not work here: QEMU {version} never enters COLO")


@pytest.mark.requires("qemu")
def test_qemu_that_never_enters_colo_is_good_enough_for_auto(place: Place) -> None:
    program = place.program("never", _VERSION % "10.0.3" + 'exec qemu-system-x86_64 "$@"')
    kernel = place.file("kernel", bytes(4096))
    said = place.launch("--kernel", kernel, "--qemu", program, "--ready", "never", "--boot-timeout", "2")
    assert said == "The guest does not boot within 2 s; it has printed nothing."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("#!/bin/sh\nexit 0\n", "PROGRAM is no QEMU: it does not say its version."),
        ("#!/nowhere/sh\n", "PROGRAM does not run: no such file or directory."),
        ("no program at all", "PROGRAM does not run: exec format error."),
        ("#!/bin/sh\necho one >&2; echo 'the last word' >&2; exit 1\n", "PROGRAM does not run: the last word."),
    ],
)
def test_a_program_that_is_no_qemu(place: Place, content: str, said: str) -> None:
    program = place.file("other", content, mode=0o755)
    sentence = place.launch("--kernel", place.file("kernel", bytes(4096)), "--qemu", program)
    assert sentence.startswith(said.replace("PROGRAM", program))


@pytest.mark.requires("qemu")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--qemu-arg", "-nonsense"], "-nonsense: invalid option"),
        (["--qemu-arg", "-device", "--qemu-arg", "nonsense"], "'nonsense' is not a valid device model name"),
        (["--qemu-env", "LD_PRELOAD=/nowhere/library.so", "--qemu-arg", "-nonsense"], "-nonsense: invalid option"),
    ],
)
def test_arguments_that_qemu_refuses(place: Place, words: list[str], said: str) -> None:
    sentence = place.launch("--kernel", place.file("kernel", bytes(4096)), *words)
    assert sentence.startswith("QEMU does not start: ")
    assert sentence.endswith(said)


# ------------------------------------------------------------------------------------------------- what it is to boot


def test_a_program_for_another_architecture(place: Place) -> None:
    """It is not even started."""
    program = place.program("qemu-system-aarch64", f"touch {place.folder}/started; exit 1")
    assert place.launch("--qemu", program) == (
        f"{program} makes machines of aarch64, and colo makes PCs: give qemu-system-x86_64."
    )
    assert not (place.folder / "started").exists()


def test_a_kernel_for_another_architecture(place: Place) -> None:
    kernel = place.file("Image", bytes(56) + b"ARM\x64" + bytes(4096))
    said = place.launch("--kernel", kernel, "--qemu", place.program("qemu", "exit 1"))
    assert said == f"{kernel} is a kernel for ARM: give a kernel for x86, such as /boot/vmlinuz of a PC."


@pytest.mark.requires("qemu")
def test_a_disk_image_that_is_damaged(place: Place) -> None:
    said = place.launch("--disk", place.file("disk.qcow2", b"QFI\xfb\0\0\0\3" + bytes(2000)))
    assert said.startswith("QEMU does not start: ")
    assert "disk.qcow2" in said


@pytest.mark.requires("setpriv")
@pytest.mark.parametrize("option", ["disk", "kernel"])
def test_a_file_that_may_not_be_read(place: Place, option: str) -> None:
    """As a flag and in the file."""
    path = place.file("secret", bytes(4096), mode=0)
    before = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    config = place.file("web.toml", f'[guest]\n{option} = "secret"\n')
    words = ["--qemu", place.program("qemu", "exit 1")]
    assert place.launch(f"--{option}", path, *words, before=before) == (
        f"Invalid value for '--{option}': File '{path}' is not readable."
    )
    assert place.launch("--config", config, *words, before=before) == (
        f"{config}, line 2: {path} cannot be read: give a file that is there."
    )


@pytest.mark.requires("qemu")
def test_a_kernel_that_panics(place: Place) -> None:
    """A real kernel that finds nothing to run: its own last words are told."""
    try:
        kernel = Kernel.find()
    except UsageError:
        kernel = fetch_kernel()
    said = place.launch(
        "--kernel", str(kernel.image), "--append", "console=ttyS0 quiet panic=0 no_timer_check",
        "--ready", "login:", "--boot-timeout", "12",
    )  # fmt: skip
    assert said.startswith("The guest does not boot within 12 s; its last words: ")
    assert "Kernel panic" in said


# ---------------------------------------------------------------------------------------------------- the network


@pytest.mark.requires("tap", "setpriv")
def test_no_permission_for_a_tap(place: Place) -> None:
    before = ["setpriv", "--bounding-set=-net_admin"] if os.geteuid() == 0 else []
    words = ["--tap", "colo-test-9", "--qemu", place.program("qemu", "exit 1")]
    said = place.launch("--kernel", place.file("kernel", bytes(4096)), *words, before=before)
    assert said == (
        "No permission for the TAP device colo-test-9: it takes CAP_NET_ADMIN in the network namespace."
    )  # fmt: skip


@pytest.mark.requires("tap", "unshare")
def test_no_tap_at_all(place: Place) -> None:
    """In a container that was not given the device."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    before = [*unshare, "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
    words = ["--tap", "tap9", "--qemu", place.program("qemu", "exit 1")]
    said = place.launch("--kernel", place.file("kernel", bytes(4096)), *words, before=before)
    assert said.startswith("There is no /dev/net/tun: load the kernel's tun module")


@pytest.mark.requires("tap", "unshare")
def test_a_tap_that_another_program_has(place: Place) -> None:
    """In a network namespace of its own."""
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    hold = "from pystack import TapLink; import subprocess, sys; tap = TapLink.open('tap9', offload=False);"
    hold += "sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    before = [*unshare, sys.executable, "-c", hold]
    words = ["--tap", "tap9", "--qemu", place.program("qemu", "exit 1")]
    said = place.launch("--kernel", place.file("kernel", bytes(4096)), *words, before=before)
    assert said == "The TAP device tap9 is in use by another program: choose another name, or end that one."


@pytest.mark.parametrize(
    ("publish", "said"),
    [
        (["192.0.2.1:8080:80"], "Cannot publish port 8080/tcp of 192.0.2.1: this host does not have that address"),
        (["127.0.0.1:PORT:80", "127.0.0.1:PORT:81"], "Cannot publish port PORT/tcp of 127.0.0.1: it is taken"),
        (["127.0.0.1:PORT:7/udp", "127.0.0.1:PORT:8/udp"], "Cannot publish port PORT/udp of 127.0.0.1: it is taken"),
        (["http:80"], "--publish 'http:80': 'http' is not a port, which is a number from 1 to 65535."),
    ],
)
def test_ports_that_cannot_be_had(place: Place, publish: list[str], said: str) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])
    words = [word for text in publish for word in ("--publish", text.replace("PORT", port))]
    words += ["--kernel", place.file("kernel", bytes(4096)), "--qemu", place.program("qemu", "exit 1")]
    assert place.launch(*words).startswith(said.replace("PORT", port))


# ------------------------------------------------------------------------------------------- its directory and sockets


def test_a_path_that_is_too_long_for_a_socket(place: Place) -> None:
    words = ["--kernel", place.file("kernel", bytes(4096)), "--qemu", place.program("qemu", "exit 1")]
    advice = "set XDG_RUNTIME_DIR to a directory nearer to the root, or give a shorter --name."
    for name in ("n" * 80, "n" * 300):
        assert place.launch("--name", name, *words).endswith(advice)
    deep = place.folder / ("d" * 100)
    deep.mkdir()
    said = place.launch(*words, run=deep)
    assert said.startswith(f"The path of a socket in {deep}/colo would have ")
    assert said.endswith(f" bytes, and it may have 107: {advice}")
    assert list(deep.glob("colo/*")) == []


@pytest.mark.parametrize("served", [False, True])
def test_something_else_at_the_path_of_its_socket(place: Place, served: bool) -> None:
    """It stays where it is."""
    words = ["--kernel", place.file("kernel", bytes(4096)), "--qemu", place.program("qemu", "exit 1")]
    folder = place.run / "colo"
    folder.mkdir(mode=0o700)
    path = folder / "pair.ctl"
    env = {**os.environ, "XDG_RUNTIME_DIR": str(place.run)}
    with socket.socket(socket.AF_UNIX) as sock:
        if served:
            sock.bind(str(path))
            sock.listen()
        else:
            path.write_text("mine")
        command = [*COLO, "launch", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, env=env, check=False)
    what = "is served by another program: end that" if served else "is in the way, and is no socket: remove it"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"colo: {path} {what}, or give another --name.\n"
    assert place.left() == [str(path)]


def test_a_run_directory_that_cannot_be_used(place: Place) -> None:
    words = ["--kernel", place.file("kernel", bytes(4096)), "--qemu", place.program("qemu", "exit 1")]
    none = place.folder / "none"
    assert place.launch(*words, run=none) == f"{none}/colo cannot be made: no such file or directory."
    (place.run / "colo").mkdir()
    (place.run / "colo").chmod(0o755)
    said = place.launch(*words)
    assert said == f"{place.run}/colo is open to others or not ours: remove it, or set XDG_RUNTIME_DIR."


# ------------------------------------------------------------------------------------------------------------ the file


def test_a_mistake_in_the_file(place: Place) -> None:
    """Before anything is made."""
    config = place.file(
        "web.toml", '[guest]\nkernel = "kernel" # = "none"\n\n[network]\npublish = [\n    "80:80:80:80",\n]\n'
    )
    place.file("kernel", bytes(4096))
    said = place.launch("--config", config)
    assert said.startswith(f"{config}, line 6: publish '80:80:80:80'")
    assert not (place.run / "colo").exists()


@pytest.mark.requires("qemu")
def test_what_goes_wrong_later_with_a_file(place: Place) -> None:
    place.file("kernel", bytes(4096))
    text = 'ready = "login:"\nboot-timeout = 1.5\nengine = "stop-copy"\n[guest]\nkernel = "kernel"\nmemory = 32\n'
    begun = time.monotonic()
    assert place.launch("--config", place.file("web.toml", text)) == (
        "The guest does not boot within 1.5 s; it has printed nothing."
    )
    assert 1.5 <= time.monotonic() - begun < _PATIENCE
