"""A protected machine that writes to its disk: what it has stored is there whichever machine dies, and afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from colo.qemu.image import NEEDED
from tests.interop.guest import GuestImage
from tests.interop.launched import PATIENCE, Launched, colo, launched, leftover, pids

pytestmark = [pytest.mark.requires("qemu", "qemu-img", "busybox"), pytest.mark.timeout(240), pytest.mark.alone]

_BLOCK = 512
_DISK_BYTES = 8 << 20

# One request a connection: "put BLOCK TEXT" is answered when it is on the disk, "get BLOCK" from the disk, not a cache.
_GUEST = r"""
ip link set eth0 up; ip address add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
cat >/bin/store <<'END'
read -r verb block text
case $verb in
put) printf '%-512s' "$text" | dd of=/dev/vda bs=512 seek="$block" conv=fsync,notrunc 2>/dev/null
     echo "stored $block" ;;
get) echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=512 skip="$block" count=1 2>/dev/null ;;
esac
END
nc -{l} -p 7 -e sh /bin/store &
until grep -qs ":0007 0*:0000 " /proc/net/tcp /proc/net/tcp6; do usleep 10000; done
echo SERVES
while :; do sleep 86400; done
""".replace("{l}", "l" * 128)


class Place:
    """A disk image, and how to launch a guest that has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "disks"
        self.folder.mkdir()
        self.image, self.overlay = self.folder / "image.raw", self.folder / "written.qcow2"
        self.image.write_bytes(b"of the image".ljust(_DISK_BYTES, b"\0"))
        guest = GuestImage.build(folder, _GUEST, drivers=[*NEEDED, "virtio_blk"])
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        self.words = (
            "--kernel", str(guest.kernel), "--initrd", str(guest.initrd), "--append", guest.append, "--ready", "SERVES",
            "--disk", str(self.image), "--overlay", str(self.overlay),
        )  # fmt: skip

    def stored(self) -> dict[int, bytes]:
        """What is in the overlay now that nobody has it open, by block; what qemu-img makes of it."""
        raw = self.folder / "raw"
        subprocess.run(["qemu-img", "check", "-q", self.overlay], check=True, capture_output=True)
        subprocess.run(["qemu-img", "convert", "-O", "raw", self.overlay, raw], check=True, capture_output=True)
        data = raw.read_bytes()
        raw.unlink()
        assert len(data) == _DISK_BYTES
        blocks = {at // _BLOCK: data[at : at + _BLOCK].strip(b"\0 ") for at in range(0, len(data), _BLOCK)}
        return {block: text for block, text in blocks.items() if text}

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def asked(pair: Launched, request: str) -> str:
    with socket.create_connection(("127.0.0.1", pair.echo), PATIENCE) as sock:
        sock.sendall(f"{request}\n".encode())
        answer = b""
        while data := sock.recv(4096):
            answer += data
    return answer.decode().strip("\0 \n")


def put(pair: Launched, block: int, text: str) -> None:
    assert asked(pair, f"put {block} {text}") == f"stored {block}"


def got(pair: Launched, *blocks: int) -> list[str]:
    return [asked(pair, f"get {block}") for block in blocks]


def test_what_was_stored_is_there_whichever_machine_dies(place: Place, tmp_path: Path) -> None:
    before = place.image.read_bytes()
    with launched(place.env, *place.words) as pair:
        pair.until(state="protected", engine="stop-copy")
        assert got(pair, 0) == ["of the image"]
        put(pair, 1, "one")
        put(pair, 15_000, "two, far behind")
        assert colo("ctl", "checkpoint", env=place.env).returncode == 0
        put(pair, 3, "three, since the checkpoint")
        assert place.files() == ["image.raw", "written.qcow2", "written.qcow2.colo", "written.qcow2.colo.lock"]
        other = colo("launch", *place.words, "--name", "other", env=place.env)
        assert other.returncode == 2
        assert other.stderr == f"colo: A pair writes to {place.overlay} already: name another --overlay.\n"

        # The primary is killed: the survivor has read what the other one wrote, and its overlay is the one now.
        (victim,) = pids(tmp_path, pair.status()["primary"])
        os.kill(victim, signal.SIGKILL)
        everything = ["one", "two, far behind", "three, since the checkpoint"]
        assert got(pair, 1, 15_000, 3) == everything
        put(pair, 4, "four, alone")
        pair.until(state="protected")
        put(pair, 5, "five")
        status = pair.status()
        assert colo("ctl", "failover", env=place.env).returncode == 0
        pair.until(primary=status["secondary"])
        assert got(pair, 1, 15_000, 3, 4, 5) == [*everything, "four, alone", "five"]

        # The secondary is killed, and another one joins.
        secondary = pair.until(state="protected")["secondary"]
        (victim,) = pids(tmp_path, secondary)
        os.kill(victim, signal.SIGKILL)
        put(pair, 6, "six")
        deadline = time.monotonic() + PATIENCE
        while pair.until(state="protected")["secondary"] == secondary:
            assert time.monotonic() < deadline
        said = pair.end()
        assert pair.process.returncode == 0, said
    assert leftover(tmp_path) == []
    assert place.files() == ["image.raw", "written.qcow2"]
    assert place.image.read_bytes() == before
    told = {0: "of the image", 1: "one", 3: everything[2], 4: "four, alone", 5: "five", 6: "six", 15_000: everything[1]}
    assert place.stored() == {block: text.encode() for block, text in told.items()}

    # It is there when the machine is launched again, and a launch that is killed leaves nothing else.
    with launched(place.env, *place.words) as pair:
        pair.until(state="protected")
        assert got(pair, 0, 1, 6) == ["of the image", "one", "six"]
        put(pair, 7, "seven")
        pair.process.kill()
        deadline = time.monotonic() + PATIENCE
        while leftover(tmp_path) or len(place.files()) > 2:
            assert time.monotonic() < deadline, (leftover(tmp_path), place.files())
            time.sleep(0.05)
    assert place.stored() == {block: text.encode() for block, text in {**told, 7: "seven"}.items()}


def test_an_overlay_that_is_of_no_use(place: Place, tmp_path: Path) -> None:
    """One sentence each, and nothing is left but what was there."""
    other = place.folder / "other.raw"
    other.write_bytes(bytes(_DISK_BYTES))
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(other), str(place.overlay)]

    def refused(*words: str) -> str:
        done = colo("launch", *place.words, *words, env=place.env)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert leftover(tmp_path) == []
        return done.stderr.splitlines()[-1]

    boots_not = refused("--ready", "never", "--boot-timeout", "0.5")
    assert boots_not.startswith("colo: The guest does not boot within 0.5 s")
    assert place.files() == ["image.raw", "other.raw"], "the overlay that it had made is gone too"
    assert refused("--engine", "x-colo") == (
        "colo: The engine x-colo does not work here: it does not copy what the machine writes to its disk; "
        "use --engine stop-copy, or auto."
    )
    subprocess.run(create, check=True, capture_output=True)
    assert refused() == (f"colo: {place.overlay} is no overlay of {place.image}: name another file, or one to be made.")
    place.overlay.write_bytes(b"QFI\xfb and nothing more")
    assert refused().startswith(f"colo: {place.overlay} is of no use as an overlay: ")
    assert refused("--overlay", str(place.image)) == (
        f"colo: {place.image} is no overlay of {place.image}: name another file, or one to be made."
    )
    assert refused("--overlay", "/nowhere/new") == (
        "colo: /nowhere/new.colo.lock cannot be made: no such file or directory."
    )
    assert place.files() == ["image.raw", "other.raw", "written.qcow2"]
