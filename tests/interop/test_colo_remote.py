"""A pair on two hosts, which are network namespaces: `colo proxy` in one, `colo secondary` in the other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path

import pytest

from colo.qemu.image import CARDS, READY, GuestFiles, default_guest
from tests.interop import preload
from tests.interop.attach_pair import Said, asked
from tests.interop.guest import find_kernel
from tests.interop.lab import Guest, Lab, wait_for
from tests.interop.launched import FullHost

pytestmark = [
    pytest.mark.requires("qemu", "busybox", "cc", "tap", "ip", "nsenter", "unshare", "setpriv", "tcpdump"),
    pytest.mark.timeout(240),
    pytest.mark.alone,
]

ADDRESS = "10.77.0.2"
ADDRESS6 = "fd77::2"
MAC = "52:54:00:12:34:56"
PATIENCE = 60.0
ROOT = Path(__file__).resolve().parents[2]
_CLIENTS = """
set -e
ip link add br0 type bridge
ip link set br0 address 52:54:00:00:00:01 up
ip address add 10.77.0.1/24 dev br0
ip address add fd77::1/64 dev br0 nodad
ip link add a0 type veth peer name net0 netns {a}
ip link add b0 type veth peer name net0 netns {b}
for end in a0 b0; do ip link set $end master br0 up; done
"""
_HOST = """
set -e
ip link add br0 type bridge
ip tuntap add tap0 mode tap
for end in net0 tap0; do ip link set $end master br0; ip link set $end up; done
ip link set br0 up
ip address add 10.78.0.{number}/24 dev cross0
ip link set cross0 up
"""


class Site:
    """Two hosts and the clients' network."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.directory = lab, directory
        self.hosts = {"a": Guest(lab), "b": Guest(lab)}
        pids = {name: guest.pid for name, guest in self.hosts.items()}
        self._sh(None, _CLIENTS.format(**pids))
        self._sh("a", f"ip link add cross0 type veth peer name cross0 netns {pids['b']}")
        self._sh("a", _HOST.format(number=1))
        self._sh("b", _HOST.format(number=2))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.said: dict[str, Said] = {}
        self.image: GuestFiles = default_guest(
            directory,
            address=IPv4Interface(f"{ADDRESS}/24"),
            gateway=IPv4Address("10.77.0.1"),
            address6=IPv6Interface(f"{ADDRESS6}/64"),
            kernel=find_kernel(CARDS["virtio-net-pci"]),
        )

    def _sh(self, host: str | None, script: str) -> None:
        argv = ["sh", "-c", script]
        done = self.lab.run(argv if host is None else self.hosts[host].argv(argv))
        assert done.returncode == 0, done.stderr.decode()

    def at(self, name: str) -> Path:
        return self.directory / name

    def machine(self, host: str, *words: str) -> None:
        """Start one; its card and its monitor are named after the host."""
        argv = ["qemu-system-x86_64", "-name", host, "-machine", "pc", "-accel", "tcg,thread=single", "-m", "128"]
        argv += ["-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{self.at(host)}.console"]
        argv += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", self.image.append]
        argv += ["-qmp", f"unix:{self.at(host)}.qmp,server=on,wait=off"]
        argv += ["-netdev", f"stream,id=n0,server=off,addr.type=unix,addr.path={self.at(host)}.net"]
        argv += ["-device", f"virtio-net-pci,netdev=n0,mac={MAC},romfile=", *words]
        environment = {**os.environ, "LD_PRELOAD": str(preload.library())}
        with self.at(f"{host}.log").open("wb") as log:
            self.processes[f"vm-{host}"] = self.lab.popen(
                self.hosts[host].argv(argv), env=environment, stdout=log.fileno(), stderr=log.fileno()
            )

    def start(self, name: str, host: str, *words: str) -> None:
        self.at("run").mkdir(exist_ok=True)
        env = {**os.environ, "XDG_RUNTIME_DIR": str(self.at("run"))}
        argv = self.hosts[host].argv([sys.executable, "-m", "colo", *words, "--stats"])
        process = self.lab.popen(argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=ROOT, env=env)
        self.processes[name] = process
        self.said[name] = Said(process.stderr)

    def colo(self, name: str, host: str, *words: str) -> None:
        self.start(name, host, *words)
        wait_for(self.at(f"{host}.net").exists, f"the socket of {name}", PATIENCE)

    def proxy(self, *options: str) -> None:
        self.colo(
            "proxy", "a", "proxy", "--client", "tap:tap0", "--primary", f"unix:{self.at('a')}.net",
            "--qmp", f"unix:{self.at('a')}.qmp", "--secondary", "tcp:10.78.0.2:9000", *options,
        )  # fmt: skip

    def agent(self, *options: str) -> None:
        self.colo(
            "agent", "b", "secondary", "--client", "tap:tap0", "--machine", f"unix:{self.at('b')}.net",
            "--qmp", f"unix:{self.at('b')}.qmp", "--listen", "tcp:10.78.0.2:9000",
            "--incoming", f"unix:{self.at('b')}.state", *options,
        )  # fmt: skip
        self.machine("b", "-incoming", "defer")

    def guest_file(self, qemu: Path | str = "qemu-system-x86_64", preloaded: Path | None = None) -> Path:
        """What both hosts run themselves, in a file that both have."""
        image, path = self.image, self.at("pair.toml" if preloaded is None else "preloaded.toml")
        path.write_text(
            f"[guest]\nkernel = {str(image.kernel)!r}\ninitrd = {str(image.initrd)!r}\nappend = {image.append!r}\n"
            f"[qemu]\nprogram = {str(qemu)!r}\n"
            + ("" if preloaded is None else f"environment = {{ LD_PRELOAD = {str(preloaded)!r} }}\n")
        )
        return path

    def own_proxy(self, preloaded: Path | None = None) -> None:
        guest = self.guest_file(preloaded=preloaded)
        self.start(
            "proxy", "a", "proxy", "--client", "tap:tap0", "--guest", str(guest),
            "--secondary", "tcp:10.78.0.2:9000",
        )  # fmt: skip

    def own_agent(self, qemu: Path | str = "qemu-system-x86_64") -> None:
        self.start(
            "agent", "b", "secondary", "--client", "tap:tap0", "--guest", str(self.guest_file(qemu)),
            "--listen", "tcp:10.78.0.2:9000",
        )  # fmt: skip

    def own_protected(self, qemu: Path | str = "qemu-system-x86_64", preloaded: Path | None = None) -> None:
        """A pair whose machines are run by the two programs, the second one's by this QEMU.

        ``preloaded``: a library that the primary's has.
        """
        self.own_proxy(preloaded)
        wait_for(lambda: READY in self.own_console("primary", "vm1"), "the guest", PATIENCE)
        self.own_agent(qemu)
        self.until_said("proxy", "protected")

    def own_console(self, side: str, name: str) -> str:
        found = list(self.at("run").glob(f"colo/{side}-*.d/{name}.console"))
        return found[0].read_text(errors="replace") if found else ""

    def own_machines(self, side: str) -> list[int]:
        """The processes of the machines that a side runs, the last one that it has started at the end."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                text = (folder / "cmdline").read_bytes()
                words = text.decode().split("\0")
                if "qemu-system" in words[0] and f"{self.at('run')}/colo/{side}-" in text.decode():
                    found[int(words[words.index("-name") + 1].removeprefix("vm"))] = int(folder.name)
        return [found[number] for number in sorted(found)]

    def until_said(self, name: str, text: str, seconds: float = PATIENCE, times: int = 1) -> None:
        deadline = time.monotonic() + seconds
        while self.said[name].text.count(text) < times:
            told = {who: said.text for who, said in self.said.items()}
            assert time.monotonic() < deadline, f"{name} has not said {text!r}: {told}"
            time.sleep(0.01)

    def protected(self, *options: str) -> None:
        """A pair that serves."""
        self.proxy(*options)
        self.machine("a")
        wait_for(lambda: READY in self.console("a"), "the guest", PATIENCE)
        self.agent(*options[-2:] if "--witness" in options else ())
        self.until_said("proxy", "protected")

    def console(self, host: str) -> str:
        path = self.at(f"{host}.console")
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self, *names: str) -> None:
        for name in names:
            self.processes[name].kill()
        for name in names:
            self.processes[name].wait(PATIENCE)

    def cut(self) -> None:
        """Nothing goes from one host to the other any more, and neither is told."""
        self._sh("a", "ip link set cross0 down")

    def close(self) -> None:
        for process in self.processes.values():
            self.lab.end(process)
        for host in self.hosts.values():
            host.close()

    def traffic_begun(self, *words: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "tests.interop.attach_traffic", words[0], ADDRESS, *words[1:]]
        return self.lab.popen(argv, cwd=ROOT)

    def traffic(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        argv = [sys.executable, "-m", "tests.interop.attach_traffic", words[0], ADDRESS, *words[1:]]
        done = self.lab.run(argv, cwd=ROOT, timeout=2 * PATIENCE)
        assert done.returncode == 0, done.stderr.decode()
        return done

    def port_of_machine(self) -> str:
        """At which host the clients' bridge takes the machine to be."""
        shown = self.lab.run(["bridge", "fdb", "show", "br", "br0"]).stdout.decode()
        return next((line.split()[2] for line in shown.splitlines() if line.startswith(f"{MAC} ")), "")

    def watch(self) -> subprocess.Popen[bytes]:
        """What the clients' network hears of addresses, a line each."""
        watching = self.lab.popen(["tcpdump", "-lne", "-i", "br0", "arp or icmp6"], stderr=subprocess.PIPE)
        assert watching.stderr is not None
        while b"listening on" not in watching.stderr.readline():
            assert watching.poll() is None
        return watching

    def talk(self) -> subprocess.Popen[bytes]:
        """A client that keeps one connection."""
        argv = [sys.executable, "-m", "tests.interop.attach_traffic", "talk", ADDRESS]
        process = self.lab.popen(argv, cwd=ROOT, stdin=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        return process


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Lab() as lab:
        site = Site(lab, tmp_path)
        try:
            yield site
        finally:
            site.close()
            for name, said in site.said.items():  # pytest shows it of a test that failed
                print(f"--- {name} said:\n{said.text}")


def test_the_primarys_host_is_lost(site: Site) -> None:
    """Under traffic whose every byte is checked: the agent carries the connections on, and the client sees a pause."""
    site.protected()
    talking = site.talk()
    assert b'"wrong": []' in site.traffic("get", "1m", "3").stdout
    assert b'"wrong": []' in site.traffic("random", "3").stdout
    assert asked(talking, b"before\n") == ""
    assert site.lab.run(["ping", "-6", "-n", "-c", "1", "-W", "5", ADDRESS6]).returncode == 0
    assert site.port_of_machine() == "a0"
    watching = site.watch()
    under_way = [site.traffic_begun("get", "8m", "6"), site.traffic_begun("echo", "6")]
    time.sleep(2)
    site.cut()
    site.kill("vm-a", "proxy")
    began = time.monotonic()
    assert asked(talking, b"after\n") == ""
    print(f"the connection answers {time.monotonic() - began:.2f} s after the host was lost")
    for process in under_way:
        out, _ = process.communicate(timeout=PATIENCE)
        seen = json.loads(out)
        assert not seen["wrong"]
        print(f"{len(seen['ms'])} requests, the longest took {max(seen['ms']):.0f} ms")
    site.until_said("agent", "the secondary carries on")
    assert b'"wrong": []' in site.traffic("get", "1m", "2").stdout
    assert asked(talking, b"and on\n") == ""
    assert site.port_of_machine() == "b0"
    _assert_announced(watching)


def test_connections_that_are_opened_while_the_primarys_host_is_lost(site: Site) -> None:
    """The secondary has answered, and the primary does when the link is cut already, so that nobody hears of it."""
    site.protected()
    under_way = [site.traffic_begun("get", "1k", "5") for _ in range(8)]
    time.sleep(2)
    primary = _process_of(site.at("a.net"))
    os.kill(primary, signal.SIGSTOP)
    time.sleep(0.3)  # all of them wait for an answer by now
    site.cut()
    os.kill(primary, signal.SIGCONT)
    time.sleep(0.2)
    site.kill("vm-a", "proxy")
    for process in under_way:
        out, _ = process.communicate(timeout=PATIENCE)
        assert json.loads(out)["wrong"] == []
    site.until_said("agent", "the secondary carries on")


def _process_of(card: Path) -> int:
    """Of the QEMU whose card is connected there: what was started is the way to it."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"qemu-system" in words[0] and any(word.endswith(f"addr.path={card}".encode()) for word in words):
                return int(folder.name)
    raise AssertionError(f"no QEMU at {card}")


def _assert_announced(watching: subprocess.Popen[bytes]) -> None:
    """RFC 5227, section 2.3, and RFC 4861, section 7.2.6: from the machine's address, to everybody, unasked."""
    watching.terminate()
    heard = watching.communicate(timeout=PATIENCE)[0].decode().splitlines()
    announced = [line for line in heard if f" {MAC} > ff:ff:ff:ff:ff:ff," in line and f"tell {ADDRESS}" in line]
    assert any(f"who-has {ADDRESS} tell {ADDRESS}," in line for line in announced), heard
    advertised = [line for line in heard if f" {MAC} > 33:33:00:00:00:01," in line]
    assert any(f"neighbor advertisement, tgt is {ADDRESS6}" in line for line in advertised), heard


def test_the_secondarys_host_is_lost_and_another_one_joins(site: Site) -> None:
    """The client notices nothing but a pause, twice; and then the second one carries on."""
    site.protected()
    talking = site.talk()
    site.kill("vm-b", "agent")
    assert asked(talking, b"alone\n") == ""
    site.until_said("proxy", "goes on alone")
    assert b'"wrong": []' in site.traffic("get", "1m", "1").stdout
    site.agent()
    site.until_said("proxy", "protected", times=2)
    assert asked(talking, b"together\n") == ""
    assert b'"wrong": []' in site.traffic("random", "3").stdout
    site.kill("vm-a")  # its proxy sees it, and stands down
    assert asked(talking, b"handed over\n") == ""
    site.until_said("proxy", "was told to carry on")
    assert site.processes["proxy"].wait(PATIENCE) == 1
    seen = counted(site.said["proxy"])
    assert seen["engine.joined"] == 2
    assert seen["engine.copied"] >= 3


@pytest.mark.parametrize("winner", ["primary", "secondary"])
def test_a_witness_lets_one_side_go_on(site: Site, winner: str) -> None:
    """Only the link between the hosts is lost: both are there, and one serves."""
    site.protected("--witness", f'test "$1" = {winner}')
    talking = site.talk()
    assert asked(talking, b"before\n") == ""
    site.cut()
    names = {"primary": ("proxy", "goes on alone"), "secondary": ("agent", "the secondary carries on")}
    site.until_said(*names.pop(winner))
    (loser, words), *_ = names.values()
    site.until_said(loser, "the witness does not let")
    assert asked(talking, b"after\n") == ""
    assert words not in site.said[loser].text


def counted(said: Said) -> dict[str, int]:
    lines = [line.split() for line in said.rest().splitlines() if line.startswith(" ")]
    return {name: int(value.replace(",", "")) for value, name in lines}


def test_stop_and_copy_between_hosts(site: Site) -> None:
    """Both sides run their machines: checkpoints go over the link; the host is lost, and nothing of it is left."""
    site.own_protected()
    talking = site.talk()
    assert b'"wrong": []' in site.traffic("get", "1m", "2").stdout
    assert b'"wrong": []' in site.traffic("random", "3").stdout
    assert asked(talking, b"before\n") == ""
    assert len(site.own_machines("primary")) == 1
    under_way = [site.traffic_begun("get", "8m", "6"), site.traffic_begun("echo", "6")]
    time.sleep(2)
    site.cut()
    site.kill("proxy")  # and its machine with it, which ends with whoever started it
    began = time.monotonic()
    assert asked(talking, b"after\n") == ""
    print(f"the connection answers {time.monotonic() - began:.2f} s after the host was lost")
    for process in under_way:
        out, _ = process.communicate(timeout=PATIENCE)
        assert not json.loads(out)["wrong"]
    site.until_said("agent", "the secondary carries on")
    assert site.own_machines("primary") == []
    wait_for(lambda: len(site.own_machines("secondary")) == 1, "the machine that waited for a copy is ended", PATIENCE)
    assert b'"wrong": []' in site.traffic("get", "1m", "2").stdout
    assert asked(talking, b"and on\n") == ""
    assert site.port_of_machine() == "b0"
    site.processes["agent"].terminate()
    assert site.processes["agent"].wait(PATIENCE) == 0
    assert site.own_machines("secondary") == []
    assert list(site.at("run").glob("colo/*")) == []
    assert counted(site.said["agent"])["engine.copied"] >= 2, "one of them because random answers differ"


def test_a_primary_whose_migration_ends_late_goes_on(site: Site) -> None:
    """QEMU tells of the end, and refuses to go on until its thread is done with it: see lateend.c."""
    site.own_protected(preloaded=preload.library(preload.LATE_END))
    talking = site.talk()
    for number in range(3):
        assert asked(talking, b"line %d\n" % number) == ""
    site.processes["proxy"].terminate()
    assert site.processes["proxy"].wait(PATIENCE) == 0
    seen = counted(site.said["proxy"])
    assert (seen["engine.copied"] >= 1, seen.get("engine.not_continued", 0)) == (True, 0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_copy_that_fails_costs_nobody_anything(site: Site, how: signal.Signals) -> None:
    """The machine that waits for the next copy is dead when it comes, or hangs: all go on, and the next one works."""
    site.own_protected()
    talking = site.talk()
    wait_for(lambda: len(site.own_machines("secondary")) == 2, "a machine that waits", PATIENCE)
    time.sleep(1)  # it has started, and must have been counted on: that takes it 0.1 s
    os.kill(site.own_machines("secondary")[1], how)
    assert b'"wrong": []' in site.traffic("random", "3").stdout
    assert asked(talking, b"still\n") == ""
    site.processes["proxy"].terminate()
    assert site.processes["proxy"].wait(PATIENCE) == 0
    seen = counted(site.said["proxy"])
    assert seen["engine.failed"] >= 1
    assert seen["engine.copied"] >= 2


def test_a_secondary_that_hangs_is_replaced_after_a_pause(site: Site) -> None:
    """Nothing comes from it: a checkpoint is asked for, for which it does not stand still; its copy takes its place."""
    site.own_protected()
    talking = site.talk()
    wait_for(lambda: len(site.own_machines("secondary")) == 2, "a machine that waits", PATIENCE)
    os.kill(site.own_machines("secondary")[0], signal.SIGSTOP)
    assert asked(talking, b"still\n") == ""
    assert b'"wrong": []' in site.traffic("get", "1m", "1").stdout
    site.processes["proxy"].terminate()
    assert site.processes["proxy"].wait(PATIENCE) == 0
    assert "alone" not in site.said["proxy"].text.partition("protected")[2]
    assert counted(site.said["proxy"])["engine.copied"] >= 2


def test_clients_do_not_wait_for_an_agent_that_has_no_machine(site: Site) -> None:
    """None starts on its host any more: it is given up, the primary serves, and an agent that has one joins later."""
    host = FullHost(site.directory)
    site.own_protected(host.qemu)
    talking = site.talk()
    host.fill()
    deadline = time.monotonic() + PATIENCE
    while "the primary goes on alone" not in site.said["proxy"].text:
        done = json.loads(site.traffic("random", "1").stdout)
        assert not done["wrong"]
        assert time.monotonic() < deadline
    assert asked(talking, b"alone\n") == ""
    assert "its checkpoints fail" in site.said["proxy"].text
    assert site.processes["agent"].wait(PATIENCE) == 1
    host.free()
    site.own_agent(host.qemu)
    site.until_said("proxy", "protected", times=2)
    assert asked(talking, b"together\n") == ""
    site.processes["proxy"].terminate()
    assert site.processes["proxy"].wait(PATIENCE) == 0
    assert counted(site.said["proxy"])["engine.spare_failed"] >= 1


def test_another_agent_with_its_own_machines_joins(site: Site) -> None:
    """The secondary's machine dies, and its agent with it; the next one joins, and carries on when the primary dies."""
    site.own_protected()
    talking = site.talk()
    machines = site.own_machines("secondary")
    assert len(machines) >= 1
    for pid in machines:
        os.kill(pid, signal.SIGKILL)
    assert asked(talking, b"alone\n") == ""
    site.until_said("proxy", "goes on alone")
    assert site.processes["agent"].wait(PATIENCE) == 1
    site.own_agent()
    site.until_said("proxy", "protected", times=2)
    assert asked(talking, b"together\n") == ""
    (primary,) = site.own_machines("primary")
    os.kill(primary, signal.SIGKILL)
    assert asked(talking, b"handed over\n") == ""
    site.until_said("proxy", "was told to carry on")
    assert site.processes["proxy"].wait(PATIENCE) == 1
    assert counted(site.said["proxy"])["engine.joined"] == 2


def test_the_two_sides_must_be_of_one_kind(site: Site) -> None:
    site.own_proxy()
    site.agent()
    assert site.processes["proxy"].wait(PATIENCE) == 2
    site.until_said("proxy", "give both --guest, or neither.")
