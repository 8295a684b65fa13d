"""The file of `colo launch`: what it says is what is run, flags win, and whatever is wrong is told with its line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from colo.cli import main
from colo.launch.config import load, parse
from colo.launch.keys import KEYS
from colo.launch.plan import Plan
from colo.launch.setup import plan_of
from pystack import Publish, UsageError
from tests.docs.blocks import read_blocks

ROOT = Path(__file__).resolve().parents[3]
ALL = """\
name = "web"
engine = "stop-copy"
placing = false
ready = "login:"
boot-timeout = 90
heartbeat = 0.5
patience = 2.5

[guest]
kernel = "vmlinuz"
initrd = "boot/initrd.img"
append = "console=ttyS0 root=/dev/ram0"
memory = 256
cpus = 2
nic = "e1000"
mac = "52:54:00:00:00:01"

[network]
publish = [
    "127.0.0.1:8080:80", # the web
    "5353:53/udp",
]

[qemu]
program = "./qemu"
accel = "tcg"
arguments = ["-device", "virtio-rng-pci"]
environment = { LD_PRELOAD = "/opt/tcgcolo.so", G_SLICE = "" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with all that `ALL` names."""
    (tmp_path / "boot").mkdir()
    for name in ("vmlinuz", "boot/initrd.img", "disk"):
        (tmp_path / name).write_bytes(bytes(1000))
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\nexit 1\n")
    qemu.chmod(0o755)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "web.toml"
    path.write_text(text)
    return path


def launch(*words: str) -> Result:
    return CliRunner().invoke(main, ["launch", *words])


def printed(*words: str) -> str:
    done = launch(*words, "--print")
    assert done.exit_code == 0, done.stderr
    return done.stdout


def plan(path: Path, *flags: str, **options: Any) -> Plan:
    usual = {
        "kernel": None, "initrd": None, "append": "", "disk": None, "memory": 128, "nic": "virtio-net-pci",
        "mac": "52:54:00:12:34:56", "accel": "auto", "qemu": "true",
    }  # fmt: skip
    return plan_of({**usual, **options, **load(path, flags).options})


def test_everything_that_it_says_is_in_the_plan(folder: Path) -> None:
    made = plan(written(folder, ALL))
    assert (made.name, made.engine, made.ready, made.boot) == ("web", "stop-copy", "login:", 90.0)
    assert (made.heartbeat, made.patience, made.tap, made.placing) == (0.5, 2.5, "", False)
    assert made.publish == (Publish.parse("127.0.0.1:8080:80"), Publish.parse("5353:53/udp"))
    guest = made.guest
    assert (guest.kernel, guest.initrd) == (folder / "vmlinuz", folder / "boot/initrd.img")
    assert (guest.append, guest.memory_mib, guest.cpus) == ("console=ttyS0 root=/dev/ram0", 256, 2)
    assert (guest.nic, guest.mac, guest.accel) == ("e1000", "52:54:00:00:00:01", "tcg")
    assert (guest.qemu, guest.extra) == (str(folder / "qemu"), ("-device", "virtio-rng-pci"))
    assert guest.environment == {"LD_PRELOAD": "/opt/tcgcolo.so", "G_SLICE": ""}


def test_every_key_is_tried_above() -> None:
    said = parse(ALL.encode(), Path("x")).options
    assert {key.option for keys in KEYS.values() for key in keys.values()} - set(said) == {"tap", "disk", "overlay"}


def test_dotted_keys_and_inline_tables_say_the_same(folder: Path) -> None:
    tables = written(
        folder,
        '[guest]\nmemory = 64\ndisk = "disk"\noverlay = "new"\n[network]\ntap = "tap7"\n[qemu]\nprogram = "true"',
    )
    one = plan(tables)
    dotted = plan(
        written(folder, 'guest.memory = 64\nguest."disk"="disk"\nguest.overlay = "new"\nnetwork = { tap = "tap7" }')
    )
    assert one == dotted
    assert (one.guest.memory_mib, one.guest.disk, one.tap) == (64, folder / "disk", "tap7")
    assert one.guest.overlay == folder / "new", "which need not be there"


def test_an_empty_file_says_nothing(folder: Path) -> None:
    assert load(written(folder, "# nothing\n")).options == {}


def test_windows_line_ends(folder: Path) -> None:
    path = folder / "web.toml"
    path.write_bytes(b'name = "web"\r\n\r\n[guest]\r\nmemory = 1\r\n')
    with pytest.raises(UsageError, match=re.escape(f"{path}, line 4: guest.memory is 1: ")):
        load(path)


# ------------------------------------------------------------------------------------------------------ flags that win


def test_flags_win(folder: Path) -> None:
    path = str(written(folder, ALL))
    shell = printed("--config", path, "--memory", "512", "--nic", "rtl8139", "--qemu-arg=-usb", "--name", "other")
    assert "-m 512" in shell
    assert "-device rtl8139,netdev=net0,mac=52:54:00:00:00:01,romfile=" in shell
    assert "-usb" in shell
    assert "virtio-rng-pci" not in shell
    assert "-append 'console=ttyS0 root=/dev/ram0'" in shell
    assert "/other.d/" in shell


def test_a_flag_that_says_what_is_usual_wins_too(folder: Path) -> None:
    assert "-m 128" in printed("--config", str(written(folder, ALL)), "--memory", "128")


def test_what_a_flag_replaces_need_not_be_there(folder: Path) -> None:
    (folder / "vmlinuz").unlink()
    path = written(folder, ALL)
    with pytest.raises(UsageError, match=r"line 10: .*/vmlinuz cannot be read"):
        load(path)
    assert "kernel" not in load(path, {"kernel"}).options


def test_a_flag_replaces_what_goes_not_with_it(folder: Path) -> None:
    path = written(folder, ALL)
    assert "publish" not in load(path, {"tap"}).options
    assert "tap" not in load(written(folder, '[network]\ntap = "tap0"\n'), {"publish"}).options


def test_a_kernel_may_have_a_disk(folder: Path) -> None:
    path = written(folder, ALL)
    assert {"kernel", "initrd", "append"} <= set(load(path, {"disk"}).options)
    shell = printed("--config", str(path), "--disk", str(folder / "disk"))
    assert f"-drive file={folder / 'disk'},if=virtio,readonly=on,file.locking=off" in shell
    assert f"-kernel {folder / 'vmlinuz'}" in shell


def test_an_overlay_is_each_machines_own(folder: Path) -> None:
    image, overlay = folder / "disk", folder / "new, and odd"
    words = ("--disk", str(image), "--overlay", str(overlay), "--qemu", "true")
    shell = printed(*words)
    create = f"qemu-img \\\n    create \\\n    -q \\\n    -f qcow2 \\\n    -F raw \\\n    -b {image}"
    assert shell.count("qemu-img") == shell.count(create) == 2
    assert f"-drive 'file={folder / 'new,, and odd'},if=virtio,format=qcow2,file.locking=off'" in shell
    assert f"-drive 'file={folder / 'new,, and odd.colo/vm2.qcow2'},if=virtio,format=qcow2,file.locking=off'" in shell
    assert "-S" in shell, "it waits until its disk is there too"
    overlay.write_bytes(b"QFI\xfb")
    assert printed(*words).count("qemu-img") == 1, "the person's file is there"
    assert launch(*words, "--print=libvirt").stderr.startswith("colo: What a machine writes to its disk is copied by")


def test_flags_without_a_file(folder: Path) -> None:
    shell = printed("--kernel", str(folder / "vmlinuz"), "--qemu", str(folder / "qemu"), "--cpus", "3",
                    "--qemu-env", "A=b c", "--qemu-arg", "-usb", "--engine", "stop-copy")  # fmt: skip
    first, second = shell.split("\n\n")
    assert first.startswith(f"A='b c' {folder / 'qemu'} \\\n    -name vm1 ")
    assert "-smp 3" in first
    assert first.endswith("-usb")
    assert "-S" in second.split()


# -------------------------------------------------------------------------------------------------------- what is wrong

WRONG: list[tuple[str, int, str]] = [
    # Not TOML.
    ('name = "web"\nguest\n', 2, "this is no TOML: expected '=' after a key in a key/value pair."),
    ('\n\nname = "web', 3, "this is no TOML: unterminated string."),
    ('name = "a"\n[guest]\n[guest]\n', 3, "this is no TOML: cannot declare ('guest',) twice."),
    ('name = "a"\nname = "b"\n', 2, "this is no TOML: cannot overwrite a value."),
    ("\n[network]\npublish = [", 3, "this is no TOML: "),
    ("\nheartbeat = " + "9" * 5000, 2, "this number is too long: give one that is in its range."),
    ("\nx = " + "[" * 5000, 2, "this is nested too deeply: nothing in here needs that."),
    # Keys and tables that there are not.
    ("\nnmae = 'web'\n", 2, "there is no nmae: did you mean name?"),
    ("[guests]\nmemory = 1\n", 1, "there is no guests: did you mean guest?"),
    ("[guest]\n# memroy = 3\n\nmemroy = 1\n", 4, "there is no guest.memroy: did you mean memory?"),
    ("\nguest.memroy = 1\n", 2, "there is no guest.memroy: did you mean memory?"),
    ("\nmemory = 64\n", 2, "there is no memory: memory belongs in [guest]."),
    ("[guest]\nname = 'web'\n", 2, "there is no guest.name: name belongs above the first table."),
    ("[network]\nfrobnicate = 1", 2, "there is no network.frobnicate: there are publish, tap."),
    ('[guest]\n"" = 1', 2, "there is no guest.: there are "),
    # Values of the wrong type.
    ("guest = 1\n", 1, "guest is 1: it must be a table, [guest]."),
    ("[[guest]]\nmemory = 64\n", 1, "guest is [{'memory': 64}]: it must be a table, [guest]."),
    ("name = 1\n", 1, "name is 1: it must be letters, digits and hyphens."),
    ("\nname = { a = 1 }\n", 2, "name is a table with 'a': it must be letters, digits and hyphens."),
    ("[guest]\nmemory = '64' # = 64\n", 2, 'guest.memory is "64": it must be a whole number of MiB from 16 to'),
    ("[guest]\nmemory = true\n", 2, "guest.memory is true: it must be a whole number"),
    ("[guest]\nmemory = 64.0\n", 2, "guest.memory is 64.0: it must be a whole number"),
    ("heartbeat = true\n", 1, "heartbeat is true: it must be a number of seconds from 0.01 to 86400."),
    ("[network]\npublish = '80:80'\n", 2, 'network.publish is "80:80": it must be a list of texts like '),
    ("[qemu]\nenvironment = ['A=b']\n", 2, "qemu.environment is ['A=b']: it must be a table of texts."),
    ("[guest]\nappend = 1979-05-27\n", 2, "guest.append is 1979-05-27: it must be a text."),
    ('[guest]\nappend = "a\\u0000b"\n', 2, 'guest.append is "a?b": it must be a text.'),
    # Values out of range.
    ("[guest]\nmemory = 8\n", 2, "guest.memory is 8: it must be a whole number of MiB from 16 to 1048576."),
    ("[guest]\ncpus = 0\n", 2, "guest.cpus is 0: it must be a whole number from 1 to 64."),
    ("patience = 0\n", 1, "patience is 0: it must be a number of seconds from 0.01 to 86400."),
    ("boot-timeout = inf\n", 1, "boot-timeout is inf: it must be a number of seconds"),
    ("boot-timeout = nan\n", 1, "boot-timeout is nan: it must be a number of seconds"),
    ("heartbeat = 1e309\n", 1, "heartbeat is inf: it must be a number of seconds"),
    ("engine = 'fast'\n", 1, 'engine is "fast": it must be one of auto, x-colo, stop-copy.'),
    ("[guest]\nnic = 'ne2000'\n", 2, 'guest.nic is "ne2000": it must be one of virtio-net-pci, e1000, rtl8139.'),
    ("[guest]\nmac = '1'\n", 2, "The card's address is '1': write six pairs of digits, like 52:54:00:12:34:56."),
    ("[guest]\nmac = '53:54:00:12:34:56'\n", 2, "The card's address is 53:54:00:12:34:56, that of a group: "),
    ("name = 'a/b'\n", 1, "The name 'a/b' is no good: use letters, digits and hyphens."),
    ("name = ''\n", 1, "The name '' is no good: use letters, digits and hyphens."),
    ("[network]\ntap = 'a name'\n", 2, 'network.tap is "a name": it must be the name of a TAP device, of up to 15'),
    ("[qemu]\nprogram = ''\n", 2, 'qemu.program is "": it must be the name or the path of a program.'),
    ("[qemu]\nprogram = 'qemu-system-aarch64'\n", 2, "qemu-system-aarch64 makes machines of aarch64, and colo makes"),
    ("[qemu]\nenvironment = { 'A=B' = 'c' }\n", 2, "qemu.environment is a table with 'A=B': it must be a table of"),
    # An element in a line of its own.
    (
        '[network]\npublish = [\n    "8080:80", # "1:1"\n    "8080:eighty",\n]\n', 4,
        "publish '8080:eighty': 'eighty' is not a port, which is a number from 1 to 65535.",
    ),
    ("[network]\npublish = [ '1:1',\n\n  2 ]\n", 4, "network.publish is 2: it must be a list of texts like "),
    ("[qemu]\narguments = [\n'-usb',\n['=']]\n", 4, "qemu.arguments is ['=']: it must be a list of texts."),
    ("[qemu.environment]\nA = 'b'\nC = 1\n", 3, "qemu.environment is a table with 'C': it must be a table of texts."),
    # What goes not together.
    ("[guest]\noverlay = 'o'\n", 2, "overlay is nothing without a disk: say which, as guest.disk."),
    ("network.tap = 't'\nnetwork.publish = ['1:1']\n", 2, "publish goes not with tap (line 1): give one of them."),
    ("[guest]\ninitrd = 'i'\n", 2, "initrd is nothing without a kernel: say which, as guest.kernel."),
    # What is not there.
    ("[guest]\nkernel = '/nowhere/k'\n", 2, "/nowhere/k cannot be read: give a file that is there."),
    ("\n[guest]\ndisk = 'nothing'\n", 3, "FOLDER/nothing cannot be read: give a file that is there."),
    ("\n[guest]\ndisk = '.'\n", 3, "FOLDER is a directory: give a file."),
    ("[qemu]\nprogram = 'no-such-qemu'\n", 2, "no-such-qemu was not found: install qemu-system-x86, or name"),
    ("[qemu]\nprogram = './no-such'\n", 2, "FOLDER/no-such was not found: install qemu-system-x86, or name"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence_with_file_and_line(tmp_path: Path, text: str, line: int, sentence: str) -> None:
    path = written(tmp_path, text)
    done = launch("--config", str(path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"colo: {path}, line {line}: {sentence.replace('FOLDER', str(tmp_path))}")
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith((".\n", "?\n"))
    assert len(done.stderr) < 300 + 2 * len(str(tmp_path))


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "web.toml"
    path.write_bytes(b"# one\n\nname = '\xff'\n")
    with pytest.raises(UsageError, match=re.escape(f"{path}, line 3: this is not UTF-8: save the file as UTF-8.")):
        load(path)


def test_a_file_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/dev/zero, line 1: this has more than 1 MiB"):
        load(Path("/dev/zero"))


def assert_config_or_sentence(data: bytes) -> None:
    said = ""
    try:
        parse(data, Path("web.toml"))
    except UsageError as error:
        said = str(error)
    found = re.match(r"web\.toml, line (\d+): [^\n]+[.?]$", said)
    assert not said or (found and 1 <= int(found[1]) <= data.count(b"\n") + 1), said


@given(st.binary(max_size=200))
def test_whatever_the_file_holds_it_is_taken_or_told_of_by_its_line(data: bytes) -> None:
    assert_config_or_sentence(data)


_STRANGE = """
[guest.more]
[[network]]
[qemu.environment]
A = 'b'
guest.memory = 64
memory = 1
name = [1, [2,
]]
publish = [{}]
x = {y = {z = 1}}
'' = 1
name.x = 1
engine = "x-colo" # [
'''
"""
_LINES = st.sampled_from([*ALL.splitlines(), *_STRANGE.splitlines()])


@given(st.lists(_LINES, max_size=12))
def test_whatever_its_lines_are_they_are_taken_or_told_of(lines: list[str]) -> None:
    assert_config_or_sentence("\n".join(lines).encode())


@pytest.mark.parametrize(
    ("path", "sentence"),
    [("/nowhere/web.toml", "/nowhere/web.toml cannot be read: no such file or directory."), ("/", "directory")],
)
def test_a_file_that_is_not_there(path: str, sentence: str) -> None:
    done = launch("--config", path)
    assert done.exit_code == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--initrd", "/dev/null"], "--initrd and --append are nothing without a kernel: give --kernel too."),
        (["--append", "quiet"], "--initrd and --append are nothing without a kernel: give --kernel too."),
        (["--overlay", "/dev/null"], "--overlay is nothing without a disk: give --disk too."),
        (["--mac", "52:54"], "The card's address is '52:54': write six pairs of digits"),
        (["--qemu-env", "A"], "--qemu-env 'A' is not of the form NAME=VALUE: write for example"),
        (["--heartbeat", "0"], "Invalid value for '--heartbeat': 0.0 is not in the range"),
        (["--print=pictures"], "Invalid value for '--print': 'pictures' is not one of 'shell', 'libvirt'"),
        (["--qemu", "true", "--disk", "/dev/null", "--tap", "a", "--publish", "1:1"], "--publish is for the gateway"),
    ],
)
def test_flags_that_cannot_be(words: list[str], sentence: str) -> None:
    done = launch(*words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"colo: {sentence}")
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------- the documentation


def test_every_file_in_the_documentation_is_one() -> None:
    blocks = [
        block for page in (ROOT / "docs").rglob("*.md") for block in read_blocks(page) if block.language == "toml"
    ]
    assert len(blocks) > 2
    for block in blocks:
        assert parse(block.text.encode(), Path(os.path.relpath(block.page, ROOT))).options, block.where


def test_the_reference_lists_every_key_and_no_other() -> None:
    page = (ROOT / "docs/reference/launch-file.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z.-]+)` \|", page, re.MULTILINE)
    assert listed == [f"{table}.{key}" if table else key for table, keys in KEYS.items() for key in keys]
