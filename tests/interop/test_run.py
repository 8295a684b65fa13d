"""Real programs behind `pystack run`, as root and as an ordinary user, against servers of the tests' own."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop import servers
from tests.interop.conftest import ROOT, Files, Pystack
from tests.interop.lab import SERVER, UNREACHABLE

pytestmark = pytest.mark.requires("netns", "userns", "tap", "setpriv", "nsenter", "ip")

WEB = f"http://{SERVER}:{servers.HTTP}"
GATEWAY = "10.0.2.2"


# ------------------------------------------------------------------------------------------------------ bulk transfers


@pytest.mark.requires("curl")
def test_downloads_200_megabytes_unchanged(pystack: Pystack, files: Files) -> None:
    assert pystack.shell(f"curl -sSf {WEB}/big | sha256sum").split()[0] == files.big


@pytest.mark.requires("curl")
def test_uploads_200_megabytes_unchanged(pystack: Pystack, files: Files) -> None:
    assert pystack.run("curl", "-sSf", "-T", str(files.directory / "big"), f"{WEB}/put") == files.big


@pytest.mark.requires("curl")
def test_transfers_unchanged_without_offload(pystack: Pystack, files: Files) -> None:
    big = files.directory / "big"
    script = f"curl -sSf {WEB}/big | sha256sum; curl -sSf -T {big} {WEB}/put"
    assert pystack.shell(script, options=["--no-offload"]).replace("  -\n", " ").split() == [files.big, files.big]


@pytest.mark.requires("curl")
def test_transfers_unchanged_with_the_largest_mtu(pystack: Pystack, files: Files) -> None:
    big = files.directory / "big"
    script = f"curl -sSf {WEB}/big | sha256sum; curl -sSf -T {big} {WEB}/put"
    assert pystack.shell(script, options=["--mtu", "65520"]).replace("  -\n", " ").split() == [files.big, files.big]


@pytest.mark.requires("curl")
def test_200_parallel_downloads_each_bring_their_own_file(pystack: Pystack) -> None:
    said = pystack.shell(
        "d=$(mktemp -d) && cd $d && curl -sSf --parallel --parallel-immediate --parallel-max 200 "
        f"'{WEB}/small/[1-200]' -o '#1' && sha256sum *; cd / && rm -r $d"
    )
    got = {int(name): digest for digest, name in (line.split() for line in said.splitlines())}
    assert got == {number: hashlib.sha256(servers.small(number)).hexdigest() for number in range(1, 201)}


# ------------------------------------------------------------------------------------------- ICMP, UDP, DNS and DHCP


@pytest.mark.requires("ping")
@pytest.mark.parametrize("address", [GATEWAY, SERVER])
def test_ping_is_answered(pystack: Pystack, address: str) -> None:
    said = pystack.run("ping", "-n", "-c", "3", "-i", "0.2", "-W", "5", address)
    assert "3 packets transmitted, 3 received, 0% packet loss" in said


@pytest.mark.parametrize("size", [0, 1, 1472, 20_000])
def test_a_datagram_is_echoed(pystack: Pystack, size: int) -> None:
    assert pystack.client("datagram", SERVER, servers.UDP_ECHO, size) == size


def test_a_datagram_to_a_closed_port_is_refused(pystack: Pystack) -> None:
    assert pystack.client("datagram", SERVER, servers.CLOSED, 10) == "ECONNREFUSED"


def test_a_datagram_without_a_route_is_answered_by_an_icmp_error(pystack: Pystack) -> None:
    assert pystack.client("datagram", UNREACHABLE, 9, 10) in ("EHOSTUNREACH", "ENETUNREACH")


@pytest.mark.requires("dig")
def test_dns_asks_the_resolver_of_the_host(pystack: Pystack) -> None:
    assert pystack.run("dig", "+short", "+tries=1", "+time=10", servers.NAME).split() == [servers.ADDRESS_OF_NAME]
    assert "NXDOMAIN" in pystack.run("dig", "+tries=1", "+time=10", "nothing.test")


def test_dns_can_be_turned_off(pystack: Pystack) -> None:
    done = pystack("run", "--no-dns", "--", "getent", "hosts", servers.NAME)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.requires("busybox")
def test_udhcpc_gets_a_lease(pystack: Pystack) -> None:
    script = pystack.lab.directory / "lease"  # pytest's folders are closed to the ordinary user
    script.write_text('#!/bin/sh\ntest "$1" != bound || echo "$ip/$mask by $router, $dns"\n')
    script.chmod(0o755)
    said = pystack.shell(
        "nic=$(ip -o link show | sed -n 's/^[0-9]*: \\([^:@]*\\).*/\\1/p' | grep -v '^lo$') && "
        f"busybox udhcpc -i $nic -n -q -f -s {shlex.quote(str(script))} 2>&1"
    )
    assert "10.0.2.15/24 by 10.0.2.2, 10.0.2.3" in said


# ---------------------------------------------------------------------------------------------- TCP's ends and refusals


def test_a_refused_port_is_refused_at_once(pystack: Pystack) -> None:
    told = pystack.client("connect", SERVER, servers.CLOSED)
    assert told["outcome"] == "ECONNREFUSED"
    assert told["seconds"] < 1  # before Linux would send its SYN again


def test_an_unreachable_host_is_told_to_the_guest(pystack: Pystack) -> None:
    told = pystack.client("connect", UNREACHABLE, 80)
    assert told["outcome"] in ("EHOSTUNREACH", "ENETUNREACH")


def test_a_reset_of_the_server_reaches_the_guest(pystack: Pystack) -> None:
    assert pystack.client("reset", SERVER, servers.ABORT) == "ECONNRESET"


@pytest.mark.requires("nc")
def test_the_guest_closing_its_half_first_still_receives_everything(pystack: Pystack, blob: Path) -> None:
    said = pystack.shell(f"nc -N {SERVER} {servers.AFTER_EOF} <{blob} | sha256sum")
    assert said.split()[0] == hashlib.sha256(servers.BLOB).hexdigest()


@pytest.mark.requires("nc")
def test_the_server_closing_its_half_first_still_receives_everything(
    pystack: Pystack, blob: Path, served: subprocess.Popen[bytes]
) -> None:
    said = pystack.shell(f"(sleep 0.3; cat {blob}) | nc -N {SERVER} {servers.BEFORE_EOF} | sha256sum")
    assert said.split()[0] == hashlib.sha256(servers.BLOB).hexdigest()
    assert served.stdout is not None
    assert served.stdout.readline().split() == [b"got", hashlib.sha256(servers.BLOB).hexdigest().encode()]


@pytest.mark.parametrize(("port", "outcome"), [(servers.ECHO, "echoed"), (servers.HANG_UP, "greeted")])
def test_a_thousand_connections_leave_an_empty_flow_table(pystack: Pystack, port: int, outcome: str) -> None:
    with pystack.stats() as (options, stats):
        assert pystack.client("many", SERVER, port, 1000, 100, options=options) == {outcome: 1000}
    assert (stats["tcp_opened"], stats["tcp_refused"], stats["tcp_active"]) == (1000, 0, 0)


# ----------------------------------------------------------------------------------------------- reaching in, and not


def test_the_hosts_loopback_is_reached_only_on_request(pystack: Pystack) -> None:
    listener = pystack.lab.popen(["nc", "-lk", "127.0.0.1", "8077"])
    try:
        assert pystack.client("connect", GATEWAY, 8077)["outcome"] in ("ECONNREFUSED", "ENETUNREACH")
        told = pystack.client("connect", GATEWAY, 8077, options=["--allow-host-loopback"])
        assert told["outcome"] == "connected"
    finally:
        pystack.lab.end(listener)


def test_published_ports_reach_a_server_in_the_guest(pystack: Pystack) -> None:
    tcp, udp = 9000, 9006
    publish = [f"--publish={SERVER}:{tcp}:{servers.AFTER_EOF}", f"--publish={SERVER}:{udp}:{servers.UDP_ECHO}/udp"]
    server = (sys.executable, "-m", "tests.interop.servers", "0.0.0.0", "/")
    with pystack.started("run", *publish, "--", *server) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert _in_the_lab(pystack, "many", SERVER, tcp, 50, 10) == {"echoed": 50}
        assert _in_the_lab(pystack, "datagram", SERVER, udp, 1400) == 1400


def _in_the_lab(pystack: Pystack, *arguments: object) -> object:
    command = [sys.executable, "-m", "tests.interop.clients", *map(str, arguments)]
    return json.loads(pystack.lab.run(command, cwd=ROOT).stdout)


# -------------------------------------------------------------------------------------------------- being a good parent


def test_the_status_of_the_command_is_the_status_of_run(pystack: Pystack) -> None:
    assert pystack("run", "--", "sh", "-c", "exit 37").returncode == 37


def test_input_and_both_outputs_are_the_commands(pystack: Pystack) -> None:
    done = pystack("run", "--", "sh", "-c", "cat; echo error >&2", stdin=b"input\n")
    assert (done.stdout, done.stderr) == (b"input\n", b"error\n")


def test_nothing_but_the_stack_is_in_the_namespace(pystack: Pystack) -> None:
    interfaces = pystack.run("ip", "-o", "link", "show").splitlines()
    assert len(interfaces) == 2
    assert ": lo: " in interfaces[0]
    assert pystack.run("cat", "/etc/resolv.conf").split() == ["nameserver", "10.0.2.3"]


# -------------------------------------------------------------------------------------------------------- a bad network


@pytest.mark.requires("curl")
@pytest.mark.parametrize("offload", [True, False], ids=["offload", "no offload"])
def test_transfers_unchanged_over_an_impaired_link(pystack: Pystack, files: Files, *, offload: bool) -> None:
    # NewReno moves 0.3 MB/s at this loss and delay, which is what bounds the size.
    impaired = ["--impair", "loss=3%,reorder=5%,duplicate=1%,corrupt=0.5%,delay=10ms"]
    if not offload:
        impaired.append("--no-offload")
    script = f"curl -sSf {WEB}/little | sha256sum; curl -sSf -T {files.directory}/little {WEB}/put"
    with pystack.stats() as (options, stats):
        said = pystack.shell(script, options=[*impaired, *options], timeout=120)
    assert said.replace("  -\n", " ").split() == [files.little, files.little]
    assert stats["retransmissions"] > 0
    assert stats["frames_bad"] > 0
