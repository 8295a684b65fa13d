"""A person's mistakes, and a system that refuses: one sentence that says what to do, and no traceback."""

from __future__ import annotations

import subprocess

import pytest

from tests.interop import servers
from tests.interop.conftest import ROOT, Pystack
from tests.interop.lab import SERVER, Lab

pytestmark = pytest.mark.requires("netns", "userns", "tap", "setpriv", "nsenter", "ip")


def assert_one_sentence(done: subprocess.CompletedProcess[bytes], *words: str, status: int = 2) -> None:
    said = done.stderr.decode()
    assert done.returncode == status, said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1, said
    for word in words:
        assert word.lower() in said.lower()


def without_device(lab: Lab, spoil: str, *, as_user: bool) -> subprocess.CompletedProcess[bytes]:
    """`pystack run -- true` in a mount namespace whose /dev/net was spoilt by a line of shell."""
    drop = lab.drop if as_user else []
    command = [*drop, *Pystack.argv("run", "--", "true")]
    return lab.run(["unshare", "--mount", "sh", "-c", f'{spoil} && exec "$@"', "sh", *command], cwd=ROOT)


@pytest.mark.parametrize("as_user", [False, True], ids=["root", "user"])
def test_no_tun_device(lab: Lab, *, as_user: bool) -> None:
    done = without_device(lab, "umount /dev/net/tun; mount -t tmpfs none /dev/net", as_user=as_user)
    assert_one_sentence(done, "/dev/net/tun")


@pytest.mark.requires("root")
def test_no_permission_to_open_the_tun_device(lab: Lab) -> None:
    spoil = "mount -t tmpfs none /mnt && mknod -m 600 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun"
    assert_one_sentence(without_device(lab, spoil, as_user=True), "/dev/net/tun", "permission")


def test_a_user_may_not_attach_to_anothers_process(lab: Lab) -> None:
    done = Pystack(lab, as_user=True)("attach", "1")
    assert_one_sentence(done, "permi")


def test_unknown_process(pystack: Pystack) -> None:
    assert_one_sentence(pystack("attach", "99999999"), "99999999")


def test_a_path_that_is_no_network_namespace(pystack: Pystack) -> None:
    assert_one_sentence(pystack("attach", "/etc/hostname"), "/etc/hostname")


@pytest.mark.parametrize("cidr", ["10.0.2.0/99", "nonsense", "10.0.2.0/31", "127.0.0.0/8", "fd00::/64"])
def test_bad_cidr(pystack: Pystack, cidr: str) -> None:
    assert_one_sentence(pystack("run", "--cidr", cidr, "--", "true"), cidr)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--mtu", "12"),
        ("--mtu", "70000"),
        ("--publish", "80"),
        ("--publish", "0:80"),
        ("--publish", "8080:80/sctp"),
        ("--publish", "8080:99999"),
        ("--impair", "loss=300%"),
        ("--impair", "luck=1%"),
        ("--dns", "nobody"),
    ],
)
def test_bad_values_of_options(pystack: Pystack, option: str, value: str) -> None:
    done = pystack("run", option, value, "--", "true")
    assert_one_sentence(done, value if option == "--impair" else option)


@pytest.mark.parametrize("kind", ["", "/udp"])
def test_port_taken(pystack: Pystack, kind: str) -> None:
    port = servers.UDP_ECHO if kind else servers.HTTP
    assert_one_sentence(pystack("run", f"--publish={SERVER}:{port}:80{kind}", "--", "true"), str(port))


def test_command_not_found(pystack: Pystack) -> None:
    assert_one_sentence(pystack("run", "--", "no-such-command"), "no-such-command", status=127)


def test_command_not_executable(pystack: Pystack) -> None:
    assert_one_sentence(pystack("run", "--", "/etc/hostname"), "/etc/hostname", status=126)


def test_path_too_long_for_a_socket(pystack: Pystack) -> None:
    assert_one_sentence(pystack("vm", "--socket", "/tmp/" + "long" * 30), "107")


def test_socket_in_a_folder_that_is_not_there(pystack: Pystack) -> None:
    assert_one_sentence(pystack("vm", "--socket", "/nowhere/socket"), "/nowhere")
