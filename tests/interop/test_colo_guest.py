"""The guest that `colo launch` boots by default, with each card that it has a driver for."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface
from pathlib import Path
from typing import NamedTuple

import pytest

from colo.qemu.image import CARDS, FILES, READY, default_guest, file_bytes
from pystack import AioStack, QemuLink, Stack, StackConfig
from pystack.wire import ethernet, ipv6, ndp, udp
from pystack.wire.packet import ETHERTYPE_IPV6, PROTO_ICMPV6, PROTO_UDP
from tests.interop.guest import boot, find_kernel

pytestmark = [pytest.mark.requires("qemu", "busybox"), pytest.mark.timeout(240)]

ADDRESS = IPv4Interface("10.0.2.15/24")
GATEWAY = IPv4Address("10.0.2.2")
_BOOT = 90.0  # of TCG on a busy machine
_PATIENCE = 30.0


class Ports(NamedTuple):
    """Where the guest's services are on 127.0.0.1."""

    http: int
    fixed: int
    echo: int
    random: int
    udp_echo: int


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def forwarded() -> tuple[Ports, str]:
    """Free ports, and QEMU's network with the guest behind them."""
    tcp, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    ports = Ports(free_port(tcp), free_port(tcp), free_port(tcp), free_port(tcp), free_port(datagram))
    rules = [
        ("tcp", ports.http, 80),
        ("tcp", ports.fixed, 81),
        ("tcp", ports.echo, 7),
        ("tcp", ports.random, 9),
        ("udp", ports.udp_echo, 7),
    ]
    return ports, "user,id=n0" + "".join(f",hostfwd={kind}:127.0.0.1:{ours}-:{its}" for kind, ours, its in rules)


@pytest.fixture(params=list(CARDS))
def ports(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ports]:
    """A guest that is ready."""
    ports, netdev = forwarded()
    image = default_guest(tmp_path, address=ADDRESS, gateway=GATEWAY, kernel=find_kernel(CARDS[request.param]))
    with boot(image, ["-netdev", netdev, "-device", f"{request.param},netdev=n0"]) as guest:
        guest.expect(READY, _BOOT)
        yield ports
        assert guest.process.poll() is None, guest.tail()


def test_the_guest_serves(ports: Ports) -> None:
    for name in FILES:
        assert get(ports.http, f"/{name}") == (200, file_bytes(name))
    assert get(ports.http, "/") == (200, b"hello colo\n")
    assert get(ports.http, "/absent")[0] == 404
    for path in ("/", "/whatever"):
        assert get(ports.fixed, path) == (200, b"hello colo\n")
    assert_tcp_echo(ports.echo)
    assert_udp_echo(ports.udp_echo)
    said = {asyncio.run(asyncio.wait_for(exchange(ports.random), _PATIENCE)) for _ in range(3)}
    assert len(said) == 3
    assert all(re.fullmatch(rb"[0-9a-f]{32}\n", line) for line in said)


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


async def exchange(port: int, data: bytes = b"") -> bytes:
    """What a server says to `data` until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    if data:
        writer.write_eof()
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return said


def assert_tcp_echo(port: int) -> None:
    data = file_bytes("1m")[:200_000]
    assert asyncio.run(asyncio.wait_for(exchange(port, data), _PATIENCE)) == data


def assert_udp_echo(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(("127.0.0.1", port))
        client.settimeout(_PATIENCE)
        for datagram in (b"x", b"", file_bytes("1k"), file_bytes("8m")[:4000]):
            client.send(datagram)
            assert client.recv(65536) == datagram


# ------------------------------------------------------------------------- behind a socket: without QEMU's own network

OUR_MAC = b"\x02\0\0\0\0\x09"
OURS = IPv6Interface("2001:db8::1/64").packed
ITS = IPv6Interface("2001:db8::15/64")


@pytest.fixture
def link(tmp_path: Path) -> Iterator[QemuLink]:
    """The other end of the wire of a guest that is ready, which has an address of IPv6 too."""
    image = default_guest(tmp_path, address=ADDRESS, gateway=None, address6=ITS, kernel=find_kernel())
    netdev = f"stream,id=n0,server=off,addr.type=unix,addr.path={tmp_path / 'net'}"
    with contextlib.closing(QemuLink.listen(tmp_path / "net")) as link:
        with boot(image, ["-netdev", netdev, "-device", "virtio-net-pci,netdev=n0"]) as guest:
            guest.expect(READY, _BOOT)
            yield link


def test_a_hundred_clients_may_come_at_once(link: QemuLink) -> None:
    sizes = asyncio.run(asyncio.wait_for(crowds(link, 100), _PATIENCE))
    web = sizes.pop("web")
    assert sizes == {"echo": {2000}, "random": {33}}
    assert len(web) == 1
    assert min(web) > 1024


async def crowds(link: QemuLink, count: int) -> dict[str, set[int]]:
    """How many bytes each service says to `count` clients, who are on a stack of ours."""
    config = StackConfig(mac=OUR_MAC, addresses=(IPv4Interface(f"{GATEWAY}/24"),))
    async with AioStack(Stack(config, link.info, seed=1), link) as stack:

        async def client(port: int, data: bytes) -> int:
            reader, writer = await stack.open_connection(str(ADDRESS.ip), port)
            writer.write(data)
            if data:
                writer.write_eof()
            said = await reader.read()
            writer.close()
            return len(said)

        async def crowd(port: int, data: bytes = b"") -> set[int]:
            return set(await asyncio.gather(*[client(port, data) for _ in range(count)]))

        web = await crowd(80, b"GET /1k HTTP/1.0\r\n\r\n")
        return {"echo": await crowd(7, bytes(2000)), "random": await crowd(9), "web": web}


def test_the_guest_answers_at_its_ipv6_address(link: QemuLink) -> None:
    received(link, lambda _: False, seconds=0.1)  # accepts QEMU, and passes over what it sent while it booted
    mac = resolve(link)
    datagram = udp.build(src=OURS, dst=ITS.packed, sport=4000, dport=7, payload=b"over IPv6")
    send(link, mac, PROTO_UDP, ITS.packed, datagram)
    answer = received(link, lambda frame: frame[20:21] == bytes((PROTO_UDP,)))
    assert answer is not None
    assert answer[62:] == b"over IPv6"


def resolve(link: QemuLink) -> bytes:
    """The guest's MAC, by neighbour discovery."""
    group = ipv6.solicited_node(ITS.packed)
    asked = ndp.build_neighbour_solicitation(src=OURS, dst=group, target=ITS.packed, source_link=OUR_MAC)
    send(link, ethernet.ipv6_multicast_mac(group), PROTO_ICMPV6, group, asked)
    answer = received(link, lambda frame: frame[54:55] == bytes((ndp.NEIGHBOUR_ADVERTISEMENT,)))
    assert answer is not None
    assert answer[62:78] == ITS.packed
    return answer[6:12]


def send(link: QemuLink, mac: bytes, proto: int, dst: bytes, payload: bytes) -> None:
    header = ipv6.build_header(src=OURS, dst=dst, next_header=proto, payload_len=len(payload), hop_limit=255)
    frame = ethernet.build_header(mac, OUR_MAC, ETHERTYPE_IPV6) + header + payload
    assert link.send([(frame,)], 0) == 1


def received(link: QemuLink, wanted: Callable[[bytes], bool], seconds: float = _PATIENCE) -> bytes | None:
    """The first frame of IPv6 that is `wanted`, None when it does not come in time."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        select.select([link.fileno()], [], [], left)
        for frame in link.recv(0):
            if frame[12:14] == ETHERTYPE_IPV6.to_bytes(2, "big") and wanted(frame):
                return frame
    return None
