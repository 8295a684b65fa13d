"""What `pystack run` and `pystack attach` do with processes and namespaces, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.conftest import ROOT, Pystack
from tests.interop.lab import NOBODY, SERVER, Guest, Lab, wait_for

pytestmark = pytest.mark.requires("netns", "userns", "tap", "setpriv", "nsenter", "ip")


_PATIENCE = 30.0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------------------------------------------- the command's end


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)])
def test_the_exit_status_is_the_commands(pystack: Pystack, script: str, status: int) -> None:
    assert pystack("run", "--", "sh", "-c", script).returncode == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on_to_the_command(pystack: Pystack, number: signal.Signals) -> None:
    script = f"trap 'echo caught; exit 5' {number.name[3:]}; echo ready; while :; do sleep 0.01; done"
    with pystack.started("run", "--", "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        readable, _, _ = select.select([process.stdout], [], [], _PATIENCE)
        assert readable, "\n".join(_told_of(process.pid))
        assert process.stdout.readline() == b"caught\n"
        assert process.wait(10) == 5


def _told_of(pid: int) -> list[str]:
    """What Linux says of a process and its children, to see where a signal has got to: proc_pid_status(5)."""
    folder = Path(f"/proc/{pid}")
    try:
        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        status = re.findall(r"^(?:State|SigQ|\w*Pnd|Sig\w+):.*$", (folder / "status").read_text(), re.MULTILINE)
        waits = (folder / "wchan").read_text()
        children = (folder / f"task/{pid}/children").read_text().split()
    except OSError:
        return [f"{pid}: gone"]
    told = [f"{pid}: {words}; waits in {waits}", *(f"    {line}" for line in status)]
    return told + [line for child in children for line in _told_of(int(child))]


def test_what_the_command_left_running_ends_with_it(pystack: Pystack) -> None:
    stubborn = "trap '' TERM HUP; exec sleep 1000"
    said = pystack.shell(f'setsid sh -c "{stubborn}" >&- 2>&- & echo $!; sleep 1000 >&- 2>&- & echo $!')
    pids = [int(word) for word in said.split()]
    assert len(pids) == 2
    assert not any(_alive(pid) for pid in pids)


def test_the_command_dies_with_a_gateway_that_is_killed(pystack: Pystack) -> None:
    with pystack.started("run", "--", "sh", "-c", "echo $$; exec sleep 1000") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert _alive(pid)
        process.kill()
        process.wait(10)
        wait_for(lambda: not _alive(pid), "the command's death")


@pytest.mark.requires("nc")
def test_the_last_words_of_a_command_are_delivered(pystack: Pystack) -> None:
    listener = pystack.lab.popen(["nc", "-u", "-l", SERVER, "9"])
    try:
        bound = ["ss", "-Hlun", "sport = :9"]
        wait_for(lambda: bool(pystack.lab.run(bound).stdout), "nc: listening")
        pystack.run("bash", "-c", f"echo farewell >/dev/udp/{SERVER}/9")
        assert listener.stdout is not None
        assert listener.stdout.readline() == b"farewell\n"
    finally:
        pystack.lab.end(listener)


def test_the_default_command_is_the_shell(pystack: Pystack) -> None:
    done = pystack("run", stdin=b"echo $((6 * 7))\n")
    assert (done.returncode, done.stdout) == (0, b"42\n")


# ------------------------------------------------------------------------------------------------------- what is inside


def test_the_command_is_root_inside_and_who_it_was_outside(pystack: Pystack) -> None:
    assert pystack.run("id", "-u").strip() == "0"
    mapped = pystack.run("cat", "/proc/self/uid_map").split()
    if not pystack.as_user:
        assert mapped == Path("/proc/self/uid_map").read_text().split()
    elif not pystack.lab.rootless:
        assert mapped == ["0", str(NOBODY), "1"]


def test_root_may_stay_in_its_user_namespace(lab: Lab, served: object) -> None:
    pystack = Pystack(lab, as_user=False)
    inside = pystack.run("readlink", "/proc/self/ns/user", options=["--no-userns"])
    assert inside == lab.run(["readlink", "/proc/self/ns/user"]).stdout.decode()
    assert pystack.run("readlink", "/proc/self/ns/user") != inside


def test_the_interface_has_its_address_route_and_resolver(pystack: Pystack) -> None:
    options = ["--cidr", "192.168.77.0/24", "--mtu", "9000", "--ifname", "pt0"]
    said = pystack.shell("ip -j -4 address show pt0; ip -j route; cat /etc/resolv.conf", options=options)
    link, routes, resolver = said.splitlines()
    (interface,) = json.loads(link)
    assert interface["mtu"] == 9000
    (address,) = interface["addr_info"]
    assert (address["local"], address["prefixlen"]) == ("192.168.77.100", 24)
    assert {(route["dst"], route.get("gateway")) for route in json.loads(routes)} == {
        ("default", "192.168.77.2"),
        ("192.168.77.0/24", None),
    }
    assert resolver == "nameserver 192.168.77.3"


def test_without_dns_resolv_conf_names_nobody(pystack: Pystack) -> None:
    assert pystack.run("cat", "/etc/resolv.conf", options=["--no-dns"]) == ""


@pytest.mark.parametrize("kind", ["link", "dangling link", "missing"])
def test_resolv_conf_is_replaced_whatever_it_is(pystack: Pystack, kind: str) -> None:
    make = {
        "link": "echo 'nameserver 192.0.2.53' >$d/real && ln -s $d/real $d/etc/resolv.conf",
        "dangling link": "ln -s $d/nowhere $d/etc/resolv.conf",
        "missing": ":",
    }[kind]
    script = (
        "set -e; d=$(mktemp -d); mount -t tmpfs -o mode=755 none $d; mkdir $d/etc; cp /etc/passwd /etc/group $d/etc/; "
        f"{make}; mount --bind $d/etc /etc; cd {ROOT}; "
        f"{' '.join(pystack.lab.drop) if pystack.as_user else ''} "
        f"{' '.join(pystack.argv('run', '--', 'cat', '/etc/resolv.conf'))}; test ! -f $d/real || cat $d/real; "
        "umount -l $d; rmdir $d"
    )
    done = pystack.lab.run(["unshare", "--mount", "sh", "-c", script])
    outside = b"nameserver 192.0.2.53\n" if kind == "link" else b""
    assert (done.stdout, done.stderr) == (b"nameserver 10.0.2.3\n" + outside, b"")


def test_the_rest_of_the_file_system_is_the_hosts(pystack: Pystack, blob: Path) -> None:
    assert (
        pystack.run("cksum", str(blob))
        == subprocess.run(["cksum", str(blob)], capture_output=True, text=True, check=True).stdout
    )


# --------------------------------------------------------------------------------------------------------------- attach


@pytest.fixture
def guest(pystack: Pystack) -> Iterator[Guest]:
    made = Guest(pystack.lab, as_user=pystack.as_user)
    yield made
    made.close()


def _addresses(guest: Guest) -> dict[str, list[str]]:
    said = json.loads(guest.run(["ip", "-j", "address"]).stdout)
    return {link["ifname"]: [info["local"] for info in link["addr_info"] if info["family"] == "inet"] for link in said}


def test_attach_serves_until_it_is_told_to_stop(pystack: Pystack, guest: Guest) -> None:
    with pystack.started("attach", str(guest.pid)) as process:
        wait_for(lambda: _addresses(guest).get("tap0") == ["10.0.2.100"], "the interface")
        assert guest.run(["ping", "-n", "-c1", "-W5", "10.0.2.2"]).returncode == 0
        process.terminate()
        assert process.wait(10) == 0
    assert "tap0" not in _addresses(guest)


def test_attach_ends_with_the_process_whose_namespace_it_serves(pystack: Pystack, guest: Guest) -> None:
    with pystack.started("attach", str(guest.pid)) as process:
        wait_for(lambda: "tap0" in _addresses(guest), "the interface")
        guest.close()
        assert process.wait(10) == 0


def test_attach_can_leave_the_configuration_to_others(pystack: Pystack, guest: Guest) -> None:
    with pystack.started("attach", "--no-configure", "--ifname", "bare0", str(guest.pid)):
        wait_for(lambda: "bare0" in _addresses(guest), "the interface")
        assert _addresses(guest)["bare0"] == []
        (link,) = json.loads(guest.run(["ip", "-j", "link", "show", "bare0"]).stdout)
        assert "UP" not in link["flags"]


def test_attach_takes_the_path_of_a_namespace(lab: Lab, served: object) -> None:
    guest = Guest(lab)
    try:
        with Pystack(lab, as_user=False).started("attach", f"/proc/{guest.pid}/ns/net") as process:
            wait_for(lambda: "tap0" in _addresses(guest), "the interface")
            process.terminate()
            assert process.wait(10) == 0
    finally:
        guest.close()


# ------------------------------------------------------------------------------------------------- captures and figures


def test_a_capture_and_the_figures_are_written(pystack: Pystack) -> None:
    directory = pystack.lab.directory / f"written-{os.getpid()}-{pystack.as_user}"
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    capture, figures = directory / "all.pcapng", directory / "figures.json"
    options = ["--capture", str(capture), "--stats-json", str(figures)]
    pystack.run("ping", "-n", "-c2", "-i0.2", "10.0.2.2", options=options)
    told = json.loads(figures.read_text())
    assert told["counters"]["icmp.echo_replied"] == 2
    assert told["sizes"]["tcp_flows"] == 0
    assert told["frames_moved"] == told["counters"]["capture.frames"]
    lines = subprocess.run(
        [sys.executable, "-m", "pystack.cli", "trace", capture], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    assert len(lines) == told["frames_moved"]
    assert sum("ICMP echo reply" in line for line in lines) == 2


def test_an_interface_can_be_traced_from_inside(pystack: Pystack) -> None:
    trace = " ".join(pystack.argv("trace", "-i", "tap0", "-c", "4"))
    said = pystack.shell(f"ping -n -i 0.2 -w 20 10.0.2.2 >/dev/null & {trace}; kill $!", timeout=30)
    assert "ICMP echo request" in said
    assert "ICMP echo reply" in said
