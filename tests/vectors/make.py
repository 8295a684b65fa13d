"""Make the captures in this directory: `python -m tests.vectors.make` (as root for the ones of Linux).

`crafted.pcap` and `broken.pcap` are made of scapy's builders, an implementation that is not ours, and come out the
same each time. `linux.pcap` and `linux.pcapng` are what the Linux kernel, busybox, dig and ping say to each other over
a veth pair between two network namespaces that this script makes and removes; nothing else is on that wire.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRRSRV
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert, IPOption_RR, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDNSSL,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    RouterAlert,
    in6_chksum,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.tftp import TFTP, TFTP_ACK, TFTP_DATA, TFTP_ERROR, TFTP_OACK, TFTP_RRQ, TFTP_Option

from tests.vectors import HERE, frames, write_pcap

GUEST_MAC, GATEWAY_MAC = "02:00:00:00:00:64", "52:55:0a:00:02:02"
GUEST, GATEWAY, DNS_SERVER = "10.0.2.100", "10.0.2.2", "10.0.2.3"
GUEST6, GATEWAY6 = "fe80::ff:fe00:64", "fe80::5055:aff:fe00:202"


# ---------------------------------------------------------------------------------------------------- made with scapy


def crafted() -> list[bytes]:
    """Whole frames of every format, some with rare parts that no program at hand sends."""
    return [bytes(packet) for maker in (_tcp, _udp, _icmp, _other4, _ipv6, _icmpv6, _tags) for packet in maker()]


def broken() -> list[bytes]:
    """Frames that lie about a length or are cut, each made from a good one."""
    good = [bytes(packet) for packet in [*_tcp()][:2] + [*_udp()][:2] + [*_icmpv6()][:2] + [*_tags()][:1]]
    cut = [frame[:length] for frame in good for length in (14, 20, 33, 41, len(frame) - 1)]
    lies = []
    for frame in good[:4]:
        for at in (14, 16, 23, 46):
            damaged = bytearray(frame)
            damaged[at] ^= 0x4F
            lies.append(bytes(damaged))
    return cut + lies


def _eth() -> Any:
    return Ether(src=GUEST_MAC, dst=GATEWAY_MAC)


def _ip(**fields: Any) -> Any:
    return _eth() / IP(src=GUEST, dst=GATEWAY, **fields)


def _ip6(**fields: Any) -> Any:
    return _eth() / IPv6(src=GUEST6, dst=GATEWAY6, **fields)


def _tcp() -> Iterator[Any]:
    syn = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (123456, 0)), ("NOP", None), ("WScale", 7)]
    ends: dict[str, Any] = {"sport": 40000, "dport": 5001}
    yield _ip() / TCP(**ends, seq=0xFFFFFFF0, flags="S", window=64240, options=syn)
    yield _ip() / TCP(**ends, seq=0xFFFFFFF1, ack=77, flags="PA", window=502) / (b"across the wrap of 2**32")
    yield _ip() / TCP(**ends, seq=9, ack=77, flags="FA", options=[("Timestamp", (5, 6)), ("NOP", None), ("NOP", None)])
    sack = [("NOP", None), ("NOP", None), ("SAck", (100, 200, 300, 400))]
    yield _ip() / TCP(**ends, seq=9, ack=77, flags="A", options=sack)
    yield _ip() / TCP(**ends, seq=10, ack=0, flags="R", window=0)
    yield _ip() / TCP(**ends, seq=10, ack=78, flags="RA", window=0)
    yield _ip() / TCP(**ends, seq=10, ack=78, flags="UPA", urgptr=3) / b"urgent"
    yield _ip() / TCP(**ends, seq=10, ack=78, flags="SEC")
    yield _ip() / TCP(**ends, seq=10, ack=78, flags=0)
    yield _ip() / TCP(**ends, seq=10, flags="S", options=[("MSS", 536), ("EOL", None)])
    yield _ip() / TCP(**ends, seq=10, flags="S", options=[(253, b"\x12\x34"), ("MSS", 9000)])


def _udp() -> Iterator[Any]:
    name = "www.example.com."
    yield _ip() / UDP(sport=40000, dport=9999) / b"datagram"
    yield _ip() / UDP(sport=40000, dport=53) / DNS(id=7, rd=1, qd=DNSQR(qname=name))
    yield _ip() / UDP(sport=40000, dport=53) / DNS(id=8, rd=1, qd=DNSQR(qname=name, qtype="AAAA"))
    answers = [
        DNSRR(rrname=name, type="CNAME", ttl=60, rdata="example.com."),
        DNSRR(rrname="example.com.", type="A", ttl=60, rdata="192.0.2.1"),
    ]
    back = Ether(src=GATEWAY_MAC, dst=GUEST_MAC) / IP(src=DNS_SERVER, dst=GUEST) / UDP(sport=53, dport=40000)
    yield back / DNS(id=7, qr=1, rd=1, ra=1, qd=DNSQR(qname=name), an=answers)
    yield back / DNS(id=7, qr=1, rd=1, ra=1, rcode=3, qd=DNSQR(qname="nowhere.example."))
    mail = [DNSRRMX(rrname="example.com.", preference=10, exchange="mail.example.com.")]
    yield back / DNS(id=9, qr=1, aa=1, ra=1, qd=DNSQR(qname="example.com.", qtype="MX"), an=mail)
    service = [DNSRRSRV(rrname="_sip._udp.example.com.", priority=1, weight=2, port=5060, target="sip.example.com.")]
    yield back / DNS(id=10, qr=1, ra=1, qd=DNSQR(qname="_sip._udp.example.com.", qtype="SRV"), an=service)
    yield from _dhcp()
    yield from _tftp()
    yield _ip(frag=0, flags="MF", id=77) / UDP(sport=1, dport=2, len=3008, chksum=0) / bytes(1472)
    yield _ip(frag=185, id=77, proto=17) / bytes(1528)


def _dhcp() -> Iterator[Any]:
    chaddr = bytes.fromhex(GUEST_MAC.replace(":", ""))
    ask = Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / IP(src="0.0.0.0", dst="255.255.255.255")
    ask /= UDP(sport=68, dport=67)
    discover = [("message-type", "discover"), ("param_req_list", [1, 3, 6]), ("hostname", b"guest"), "end"]
    yield ask / BOOTP(xid=0x1234, flags="B", chaddr=chaddr) / DHCP(options=discover)
    request = [("message-type", "request"), ("requested_addr", "10.0.2.15"), ("server_id", GATEWAY), "end"]
    yield ask / BOOTP(xid=0x1234, chaddr=chaddr) / DHCP(options=request)
    answer = Ether(src=GATEWAY_MAC, dst=GUEST_MAC) / IP(src=GATEWAY, dst="10.0.2.15") / UDP(sport=67, dport=68)
    given: list[Any] = [("server_id", GATEWAY), ("lease_time", 86400), ("subnet_mask", "255.255.255.0")]
    given += [("router", GATEWAY), ("name_server", DNS_SERVER), "end", "pad", "pad"]
    boot = BOOTP(op=2, xid=0x1234, yiaddr="10.0.2.15", siaddr=GATEWAY, chaddr=chaddr)
    yield answer / boot / DHCP(options=[("message-type", "ack"), *given])
    yield answer / BOOTP(op=2, xid=0x1234, chaddr=chaddr) / DHCP(options=[("message-type", "nak"), "end"])


def _tftp() -> Iterator[Any]:
    base = _ip() / UDP(sport=40000, dport=69)
    yield base / TFTP() / TFTP_RRQ(filename="boot/kernel", mode="octet")
    yield base / (b"\0\1boot/kernel\0octet\0blksize\0001400\0tsize\0000\0")
    yield base / TFTP() / TFTP_DATA(block=1) / (b"x" * 512)
    yield base / TFTP() / TFTP_ACK(block=1)
    yield base / TFTP() / TFTP_ERROR(errorcode=1, errormsg="File not found")
    yield base / TFTP(op=6) / TFTP_OACK() / TFTP_Option(oname=b"blksize", value=b"1400")


def _icmp() -> Iterator[Any]:
    yield _ip() / ICMP(type=8, id=1, seq=2) / (b"p" * 56)
    yield _ip() / ICMP(type=0, id=1, seq=2) / (b"p" * 56)
    asked = IP(src=GATEWAY, dst=GUEST, id=5) / UDP(sport=53, dport=33434) / b"12345678"
    for code in (0, 1, 3, 9, 10, 13):
        yield _ip() / ICMP(type=3, code=code) / asked
    yield _ip() / ICMP(type=3, code=4, nexthopmtu=1400) / asked
    yield _ip() / ICMP(type=11, code=0) / asked
    yield _ip() / ICMP(type=11, code=1) / asked
    yield _ip() / ICMP(type=5, code=1, gw="10.0.2.9") / asked
    yield _ip() / ICMP(type=12, ptr=20) / asked
    yield _ip() / ICMP(type=13, id=3, seq=4, ts_ori=1, ts_rx=2, ts_tx=3)


def _other4() -> Iterator[Any]:
    yield Ether(src=GUEST_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(op=1, hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY)
    yield _eth() / ARP(op=2, hwsrc=GUEST_MAC, psrc=GUEST, hwdst=GATEWAY_MAC, pdst=GATEWAY)
    yield _eth() / ARP(op=1, hwsrc=GUEST_MAC, psrc="0.0.0.0", pdst=GUEST)
    yield _ip(options=[IPOption_RR(routers=["10.0.2.9", "0.0.0.0"], pointer=8)]) / ICMP(id=1, seq=1)
    yield _ip(options=[IPOption_Router_Alert()]) / ICMP(id=1, seq=2)
    yield _ip(options=[IPOption_Timestamp(flg=0, timestamp=1)]) / ICMP(id=1, seq=3)
    yield _ip(proto=253) / b"an experiment"
    yield _eth() / IP(src=GUEST, dst=GATEWAY) / UDP(sport=1, dport=2) / b"" / (b"\0" * 18)  # padded to 60 bytes


def _ipv6() -> Iterator[Any]:
    ends: dict[str, Any] = {"sport": 40000, "dport": 5001}
    yield _ip6() / TCP(**ends, seq=1, flags="S", options=[("MSS", 1440)])
    yield _ip6(tc=0xB8, fl=0x12345) / UDP(sport=40000, dport=9999) / b"datagram"
    yield _ip6() / IPv6ExtHdrHopByHop(options=[RouterAlert(), PadN(optdata=b"")]) / UDP(sport=1, dport=2) / b"x"
    yield _ip6() / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))]) / TCP(**ends, flags="A")
    yield _ip6() / IPv6ExtHdrRouting(type=0, segleft=0, addresses=[]) / TCP(**ends, flags="A")
    yield _ip6() / IPv6ExtHdrFragment(offset=0, m=0, id=9) / UDP(sport=1, dport=2) / b"atomic"
    yield _ip6() / IPv6ExtHdrFragment(offset=0, m=1, id=9, nh=17) / bytes(1232)
    yield _ip6() / IPv6ExtHdrFragment(offset=154, m=0, id=9, nh=17) / bytes(100)
    inner = UDP(sport=1, dport=2, chksum=0) / b"authenticated"  # scapy does not compute the checksum behind an AH
    inner.chksum = in6_chksum(17, IPv6(src=GUEST6, dst=GATEWAY6), bytes(inner))
    yield _ip6() / AH(nh=17, spi=1, seq=1, payloadlen=4, icv=bytes(12)) / bytes(inner)
    yield _ip6(nh=59)


def _icmpv6() -> Iterator[Any]:
    near = IPv6(src=GUEST6, dst=GATEWAY6, hlim=255)
    link = ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)
    yield _eth() / near / ICMPv6ND_NS(tgt=GATEWAY6) / link
    yield _eth() / near / ICMPv6ND_NA(tgt=GUEST6, R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=GUEST_MAC)
    yield _eth() / near / ICMPv6ND_RS() / link
    prefix = ICMPv6NDOptPrefixInfo(prefix="fd00::", prefixlen=64, L=1, A=1, validlifetime=86400, preferredlifetime=3600)
    names = ICMPv6NDOptRDNSS(dns=["fd00::3"], lifetime=600) / ICMPv6NDOptDNSSL(searchlist=["example.com"], lifetime=600)
    yield _eth() / near / ICMPv6ND_RA(routerlifetime=1800) / link / ICMPv6NDOptMTU(mtu=1500) / prefix / names
    yield _eth() / near / ICMPv6ND_Redirect(tgt="fe80::9", dst="fd00::7")
    yield _ip6() / ICMPv6EchoRequest(id=1, seq=2, data=b"p" * 56)
    yield _ip6() / ICMPv6EchoReply(id=1, seq=2, data=b"p" * 56)
    asked = IPv6(src=GATEWAY6, dst=GUEST6) / UDP(sport=53, dport=33434) / b"12345678"
    for code in (0, 1, 3, 4):
        yield _ip6() / ICMPv6DestUnreach(code=code) / asked
    yield _ip6() / ICMPv6PacketTooBig(mtu=1280) / asked
    yield _ip6() / ICMPv6TimeExceeded(code=0) / asked
    yield _ip6() / ICMPv6ParamProblem(code=1, ptr=6) / asked


def _tags() -> Iterator[Any]:
    inner = IP(src=GUEST, dst=GATEWAY) / TCP(sport=40000, dport=5001, flags="S")
    yield _eth() / Dot1Q(vlan=5, prio=3) / inner
    yield _eth() / Dot1AD(vlan=100) / Dot1Q(vlan=5, prio=3, dei=1) / inner
    yield _eth() / Dot1Q(vlan=7) / ARP(op=1, hwsrc=GUEST_MAC, psrc=GUEST, pdst=GATEWAY)


# ------------------------------------------------------------------------------------------------- recorded from Linux

A, B = f"vectors-a{os.getpid()}", f"vectors-b{os.getpid()}"


def linux(path: Path) -> None:
    """Record what two Linux kernels and the programs on them say; needs root."""
    with _namespaces(), tempfile.TemporaryDirectory() as scratch:
        capture = subprocess.Popen(
            ["ip", "netns", "exec", A, "tcpdump", "-i", "wire", "-U", "-s", "0", "-w", str(path)],
            stderr=subprocess.PIPE,
        )
        try:
            assert capture.stderr
            capture.stderr.readline()  # "listening on"
            _bring_up()
            _talk(Path(scratch))
            time.sleep(0.5)  # what is still in the air
        finally:
            capture.send_signal(signal.SIGINT)
            capture.communicate(timeout=10)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30)


def _inside(namespace: str, *command: str) -> None:
    _run("ip", "netns", "exec", namespace, *command, check=False)


@contextmanager
def _namespaces() -> Iterator[None]:
    try:
        for name in (A, B):
            _run("ip", "netns", "add", name)
        _run("ip", "-n", A, "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", B)
        for name in (A, B):
            _run("ip", "netns", "exec", name, sys.executable, "-c", _NO_OFFLOAD)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", A, "link", "set", "wire", "up")
        yield
    finally:
        for name in (A, B):
            _run("ip", "netns", "del", name, check=False)


# ETHTOOL_STXCSUM, _STSO and _SGSO off: the frames carry whole checksums and are no longer than the MTU.
_NO_OFFLOAD = """
import ctypes, fcntl, socket, struct
with socket.socket() as s:
    for command in (0x17, 0x1F, 0x24):
        value = ctypes.create_string_buffer(struct.pack("II", command, 0))
        fcntl.ioctl(s, 0x8946, struct.pack("16sP", b"wire", ctypes.addressof(value)) + bytes(16))
"""


def _bring_up() -> None:
    _run("ip", "-n", B, "link", "set", "wire", "up")
    for name, host in ((A, 1), (B, 2)):
        _run("ip", "-n", name, "addr", "add", f"10.9.0.{host}/24", "dev", "wire")
        _run("ip", "-n", name, "addr", "add", f"fd09::{host}/64", "dev", "wire")
    time.sleep(2.5)  # duplicate address detection


def _talk(scratch: Path) -> None:
    ping = ("ping", "-c", "2", "-i", "0.2", "-W", "1")
    _inside(A, *ping, "10.9.0.2")
    _inside(A, *ping, "-R", "10.9.0.2")
    _inside(A, *ping, "-s", "3000", "10.9.0.2")
    _inside(A, *ping, "fd09::2")
    _inside(A, *ping, "-s", "3000", "fd09::2")
    config = scratch / "udhcpd.conf"
    config.write_text(
        f"start 10.9.0.50\nend 10.9.0.60\ninterface wire\nlease_file {scratch}/leases\npidfile {scratch}/pid\n"
        "option subnet 255.255.255.0\noption router 10.9.0.2\noption dns 10.9.0.2\noption lease 3600\n"
        "option domain example.com\n"
    )
    (scratch / "leases").touch()
    with _servers((sys.executable, "-m", "tests.vectors.make", "--serve"), ("busybox", "udhcpd", "-f", str(config))):
        _inside(A, sys.executable, "-m", "tests.vectors.make", "--ask")
        _inside(A, "dig", "+tries=1", "+time=2", "@10.9.0.2", "www.example.com")
        _inside(A, "dig", "+tries=1", "+time=2", "@10.9.0.2", "www.example.com", "AAAA")
        for name in ("file", "missing"):
            _inside(A, "busybox", "tftp", "-b", "1400", "-g", "-r", name, "-l", str(scratch / "got"), "10.9.0.2")
        _inside(A, "busybox", "udhcpc", "-i", "wire", "-n", "-q", "-t", "2", "-s", "/bin/true", "-x", "hostname:guest")


@contextmanager
def _servers(*commands: tuple[str, ...]) -> Iterator[None]:
    """Programs in B; the first one says when it is ready."""
    running = [
        subprocess.Popen(
            ["ip", "netns", "exec", B, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        assert running[0].stdout
        running[0].stdout.readline()
        yield
    finally:
        for process in running:
            process.kill()
            process.communicate(timeout=10)


def _serve() -> None:
    """In B: an echo server on TCP 5001 (IPv4 and IPv6), and scapy's idea of a DNS server and of a TFTP server."""
    stream = socket.create_server(("::", 5001), family=socket.AF_INET6, dualstack_ipv6=True)
    answers: dict[socket.socket, Callable[[bytes], bytes]] = {}
    for port, answer in ((53, _dns_answer), (69, _tftp_answer)):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("10.9.0.2", port))
        answers[datagrams] = answer
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for ready in select.select([stream, *answers], [], [])[0]:
            if ready in answers:
                question, client = ready.recvfrom(2000)
                ready.sendto(answers[ready](question), client)
            else:
                _echo(stream.accept()[0])


def _echo(connection: socket.socket) -> None:
    with connection, suppress(ConnectionResetError):
        while data := connection.recv(65536):
            connection.sendall(data)


def _tftp_answer(message: bytes) -> bytes:
    if message[:2] == b"\0\4" or b"missing" in message:
        return bytes(TFTP() / TFTP_ERROR(errorcode=1, errormsg="File not found"))
    return bytes(TFTP() / TFTP_DATA(block=1) / (b"short file"))


def _dns_answer(query: bytes) -> bytes:
    asked = DNS(query)
    name, qtype = asked.qd[0].qname, asked.qd[0].qtype
    rdata = {1: "192.0.2.1", 28: "2001:db8::1"}[qtype]
    answer = DNSRR(rrname=name, type=qtype, ttl=60, rdata=rdata)
    return bytes(DNS(id=asked.id, qr=1, rd=1, ra=1, qd=asked.qd, an=[answer]))


def _ask() -> None:
    """In A: connections that carry data and end in every way, and datagrams to a port where nobody is."""
    for host, family in (("10.9.0.2", socket.AF_INET), ("fd09::2", socket.AF_INET6)):
        with socket.socket(family, socket.SOCK_STREAM) as stream:
            stream.connect((host, 5001))
            stream.sendall(b"some data" * 500)
            stream.send(b"!", socket.MSG_OOB)
            stream.shutdown(socket.SHUT_WR)  # half-closed: the echo comes back after our FIN
            while stream.recv(65536):
                pass
        with socket.socket(family, socket.SOCK_STREAM) as stream:
            stream.connect((host, 5001))
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by RST
        with socket.socket(family, socket.SOCK_STREAM) as stream:
            stream.connect_ex((host, 5002))  # refused
        with socket.socket(family, socket.SOCK_DGRAM) as datagram:
            datagram.sendto(b"is anybody there?", (host, 5003))
            time.sleep(0.2)


def main() -> None:
    """Write every capture."""
    write_pcap(HERE / "crafted.pcap", crafted())
    write_pcap(HERE / "broken.pcap", broken())
    if os.geteuid():
        sys.exit("linux.pcap needs root: it records in network namespaces")
    with tempfile.TemporaryDirectory() as scratch:
        recorded = Path(scratch) / "recorded.pcap"
        linux(recorded)
        contents = frames(recorded)
    write_pcap(HERE / "linux.pcap", contents)
    # The same frames in the other format, cut to the first hundred, written by Wireshark's own tool.
    few = HERE / "linux.pcapng"
    _run("tshark", "-r", str(HERE / "linux.pcap"), "-c", "100", "-F", "pcapng", "-w", str(few))
    few.chmod(0o644)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        _serve()
    elif sys.argv[1:] == ["--ask"]:
        _ask()
    else:
        main()
