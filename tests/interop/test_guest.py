"""A whole Linux in QEMU: its kernel, its DHCP client and its wget, behind QEMU's own network (the control) and ours."""

from __future__ import annotations

import functools
import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import servers
from tests.interop.conftest import Files, Pystack
from tests.interop.guest import UDHCPC, GuestImage, Machine, boot
from tests.interop.lab import SERVER, wait_for

pytestmark = [pytest.mark.requires("qemu", "busybox"), pytest.mark.timeout(240)]

SIZE = 20_000_000
_PATIENCE = 90.0  # of TCG on a busy machine


def lease_and_download(url: str) -> str:
    """The guest's script: an address by DHCP, then `url` through it; says GOT and the SHA-256."""
    return f"udhcpc -i eth0 -n -q -f -s {UDHCPC}; echo GOT $(wget -q -O - {url} | sha256sum)"


def assert_leased_and_downloaded(guest: Machine, digest: str) -> None:
    lease = guest.expect(r"LEASE ip=(\S+) router=(\S+) dns=(\S+) ", _PATIENCE)
    assert lease.groups() == (b"10.0.2.15/24", b"10.0.2.2", b"10.0.2.3")
    assert guest.expect(r"GOT ([0-9a-f]{64})", _PATIENCE)[1].decode() == digest
    assert guest.process.wait(_PATIENCE) == 0


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The port of a web server on the loopback, and the SHA-256 of its /file."""
    digest = servers.write_pattern(tmp_path / "file", SIZE)
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, digest
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Says nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def test_the_rig_works_behind_qemus_own_network(tmp_path: Path, web: tuple[int, str]) -> None:
    port, digest = web
    image = GuestImage.build(tmp_path, lease_and_download(f"http://10.0.2.2:{port}/file"))
    with boot(image, ["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0"]) as guest:
        assert_leased_and_downloaded(guest, digest)


@pytest.mark.requires("netns", "setpriv", "nsenter", "ip")
def test_a_guest_leases_and_downloads_through_pystack_vm(tmp_path: Path, pystack: Pystack, files: Files) -> None:
    image = GuestImage.build(tmp_path, lease_and_download(f"http://{SERVER}:{servers.HTTP}/middle"))
    socket = pystack.lab.directory / f"vm-{pystack.as_user}"
    netdev = f"stream,id=n0,server=off,addr.type=unix,addr.path={socket}"
    with pystack.started("vm", "--socket", str(socket)):
        wait_for(socket.is_socket, "pystack vm: its socket")
        with boot(image, ["-netdev", netdev, "-device", "virtio-net-pci,netdev=n0"]) as guest:
            assert_leased_and_downloaded(guest, files.middle)


def test_the_digest_of_a_pattern_is_that_of_its_file(tmp_path: Path) -> None:
    digest = servers.write_pattern(tmp_path / "file", 3_000_000)
    assert digest == hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
