"""A stack fed any frames raises nothing, sends only valid frames to single hosts, stays small and comes to rest.

Input: one byte that chooses the stack (bit 0: it accepts every address; bit 1: virtio_net_hdr), then records: a byte
that says what, two bytes of length (big-endian), and as many bytes:

    0 a frame as it is     1 a frame that is repaired first (see `fuzz.repair`)     2 time: a number of milliseconds
    3 the application does something with its newest connection: the first byte says what, the second how much
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Interface
from typing import Any

from fuzz import harness
from fuzz.repair import repair
from pystack.clock import MILLISECOND, SECOND, Micros
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.frame import LinkInfo
from pystack.net import neighbours, reassembly
from pystack.net.endpoint import Endpoint
from pystack.stack import Stack, StackConfig
from pystack.tcp.config import TcpConfig
from pystack.tcp.listener import Listener
from pystack.tcp.tcb import Connection
from pystack.testing.frames import Crafter, packed
from pystack.wire import ethernet, icmp
from pystack.wire.packet import ACK, ETHERTYPE_ARP, FIN, PSH, RST, SYN, URG, parse_untrusted, verify_untrusted
from pystack.wire.tcp import build_options

MAX_LEN = 4096

_MAC = b"\x02\0\0\0\0\x01"
_PEER = packed("10.0.0.9")
_PORT = 80
_WRITE_MAX = 16_384
_PLAIN = LinkInfo()
_OFFLOAD = LinkInfo(vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True)
_MAX_TICKS = 3000

_LIMITS = {
    "connections": 16,
    "neighbours": 8,
    "packets_waiting_for_neighbours": 8 * 4,
    "datagrams_in_reassembly": 4,
    "bytes_in_reassembly": (32 << 10) + 65_535,
    "queued_frames": 64,
    "udp_endpoints": 4,
    "pings": 4,
    "path_mtus": 8,
    "timers": 256,
}


def _config(*, accept_any: bool) -> StackConfig:
    return StackConfig(
        mac=_MAC,
        addresses=(IPv4Interface("10.0.0.1/24"),),
        accept_any=accept_any,
        tcp=TcpConfig(receive_buffer=16_384, send_buffer=_WRITE_MAX),
        max_connections=_LIMITS["connections"],
        max_udp_endpoints=_LIMITS["udp_endpoints"],
        max_pings=_LIMITS["pings"],
        max_path_mtus=_LIMITS["path_mtus"],
        max_queued_frames=_LIMITS["queued_frames"],
        neighbours=neighbours.Limits(neighbours=_LIMITS["neighbours"], waiting=4),
        reassembly=reassembly.Limits(datagrams=_LIMITS["datagrams_in_reassembly"], fragments=16, bytes=32 << 10),
    )


class _Run:
    """One stack, its application, and what goes in and out."""

    def __init__(self, choice: int) -> None:
        self.info = _OFFLOAD if choice & 2 else _PLAIN
        self.stack = Stack(_config(accept_any=bool(choice & 1)), self.info, seed=1)
        self.now: Micros = 0
        self.connections: list[Connection] = []
        self.endpoints: list[Endpoint] = []
        self.bytes_in = self.bytes_out = self.written = self.ticks = 0
        self.reading = True
        self.stack.listen(_PORT, backlog=8)
        self.stack.udp_bind(7)
        if choice & 1:
            self.stack.listen_any(backlog=8)
            self.stack.udp_any()
            self.stack.icmp_any()

    def frame(self, frame: bytes) -> None:
        self.bytes_in += len(frame) + 64
        self.stack.receive(frame, self.now)

    def wait(self, milliseconds: int) -> None:
        end = self.now + milliseconds * MILLISECOND
        for _ in range(_MAX_TICKS):
            due = self.stack.next_timeout()
            if due is None or due > end:
                break
            self.tick(due)
        self.now = max(self.now, end)

    def tick(self, due: Micros) -> None:
        self.now = max(self.now, due)
        self.ticks += 1 + len(self.stack._connections)
        self.stack.tick(self.now)
        self.drain()

    def act(self, what: int, amount: int) -> None:
        """What an application may do; a `UsageError` is its own fault."""
        connection = self.connections[-1] if self.connections else None
        try:
            if what == 0 and connection is not None:
                self.written += connection.write(bytes(amount * 64))
            elif what == 1 and connection is not None:
                connection.shutdown()
            elif what == 2 and connection is not None:
                connection.close()
            elif what == 3 and connection is not None:
                connection.abort()
            elif what == 4:
                self.connections.append(self.stack.connect((_PEER, 80), self.now, local_port=40_000 + amount))
            elif what == 5:
                self.reading = not self.reading
            elif what == 6:
                self.stack.udp_bind().send(bytes(amount * 16), self.now, to=(_PEER, 9))
                self.written += amount * 16 + 2000
            elif what == 7:
                self.stack.ping_open().send_echo(_PEER, 1, bytes(amount), self.now)
                self.written += amount
            elif what == 8 and connection is not None:
                connection.read(amount)
            elif what == 9 and connection is not None:
                connection.refuse()
        except UsageError:
            pass

    def drain(self) -> None:
        """Everything that the stack has to say, looked at."""
        for _ in range(64):
            batch = self.stack.frames(self.now)
            for frame in batch:
                data = b"".join(frame)
                self.bytes_out += len(data)
                _check_sent(data, self.info)
            happened = self.stack.events()
            for endpoint, _flags in happened:
                self._on_event(endpoint)
            if not batch and not happened:
                break
        else:
            raise AssertionError("the stack does not stop sending")
        for name, size in self.stack.sizes().items():
            assert size <= _LIMITS[name], f"{name} holds {size}"
        # What comes in, what the application wrote (and may have to be repeated at each timeout) bounds what goes out.
        bound = 60 * self.bytes_in + 4 * self.written + self.ticks * 4000 + 4096
        assert self.bytes_out <= bound, f"{self.bytes_out} bytes sent, {self.bytes_in} received"
        for connection in self.stack._connections.values():
            connection._check()

    def _on_event(self, endpoint: Connection | Listener | Endpoint) -> None:
        if isinstance(endpoint, Listener):
            while (connection := endpoint.take()) is not None:
                connection.accept()
                self.connections.append(connection)
        elif isinstance(endpoint, Connection):
            if self.reading:
                endpoint.read(endpoint.readable)
        elif hasattr(endpoint, "take"):
            while endpoint.take() is not None:
                pass


def _check_sent(data: bytes, info: LinkInfo) -> None:
    counters = Counters()
    packet = parse_untrusted(data, info.vnet_hdr_len, counters)
    assert packet is not None, counters.snapshot()
    assert packet.src_mac() == _MAC
    if packet.ethertype == ETHERTYPE_ARP:
        return
    assert verify_untrusted(packet, counters, rx_checksum=info.rx_checksum), counters.snapshot()
    assert packet.gso_type or len(data) <= info.vnet_hdr_len + 14 + info.mtu
    assert not ethernet.is_group(packet.dst_mac()), "nothing goes to a group"
    assert 0 < packet.dst[0] < 224, "nothing goes to a group"
    assert packet.dst[0] != 127
    assert packet.dst != packed("10.0.0.255")


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 1
    while at + 3 <= len(data):
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        yield data[at] & 3, data[at + 3 : at + 3 + length]
        at += 3 + length


def target(data: bytes) -> None:
    """Play the records, then let the peer fall silent until nothing happens any more."""
    run = _Run(data[0] if data else 0)
    for what, body in _records(data):
        if what == 0:
            run.frame(body)
        elif what == 1:
            run.frame(repair(body, run.info.vnet_hdr_len, run.stack._connections))
        elif what == 2:
            run.wait(int.from_bytes(body[:2], "big"))
        elif body:
            run.act(body[0] % 10, body[1] if len(body) > 1 else 1)
        run.drain()
    for _ in range(_MAX_TICKS):
        due = run.stack.next_timeout()
        if due is None or due > 100_000 * SECOND:
            return
        run.tick(due)
    raise AssertionError(f"it does not come to rest: {run.stack.sizes()}, {run.stack.counters.snapshot()}")


# ---------------------------------------------------------------------------------------------------------- the seeds

_WIRE = Crafter("10.0.0.9", "10.0.0.1")
_ANY = _WIRE.but(dst="192.0.2.1")
_OPTIONS = build_options(mss=1460, window_scale=7, sack_permitted=True, timestamps=(1, 0))


def _seed(choice: int, *records: tuple[int, bytes]) -> bytes:
    return bytes((choice,)) + b"".join(struct.pack("!BH", what, len(body)) + body for what, body in records)


def _segments(wire: Crafter, *segments: dict[str, Any]) -> list[tuple[int, bytes]]:
    return [(1, wire.tcp(**{"sport": 1000, "dport": _PORT, **fields})) for fields in segments]


_LATER = (2, (1000).to_bytes(2, "big"))
_HELLO: dict[str, Any] = {"flags": ACK | PSH, "payload": b"hello"}
_SACKED: dict[str, Any] = {"flags": ACK, "options": build_options(sack=[(100, 200), (300, 400)])}
_CLOSING: list[dict[str, Any]] = [{"flags": SYN}, {"flags": ACK}, _HELLO, {"flags": ACK | FIN}]

SEEDS = [
    _seed(0, (0, _WIRE.arp_request()), *_segments(_WIRE, *_CLOSING), (3, b"\2\0"), *_segments(_WIRE, {"flags": ACK})),
    _seed(
        0,
        (0, _WIRE.arp_request()),
        *_segments(_WIRE, {"flags": SYN, "options": _OPTIONS}, {"flags": ACK}),
        (3, b"\0\xff"),
        *_segments(_WIRE, {"flags": ACK, "ack": 0xFC00}, _SACKED),
        _LATER,
        *_segments(_WIRE, {"flags": ACK, "seq": 5, "payload": b"ahead"}, {"flags": ACK, "payload": b"there"}),
        (3, b"\1\0"),
        _LATER,
        *_segments(_WIRE, {"flags": ACK}, {"flags": RST}),
    ),
    _seed(
        1,
        *_segments(_ANY, {"flags": SYN, "dport": 443}, {"flags": ACK, "dport": 443}),
        *_segments(_ANY, {"flags": ACK | URG, "dport": 443, "urgent": 0xFFFF, "payload": b"urgent"}),
        (0, _ANY.udp(5, 53, b"?")),
        (0, _ANY.echo()),
    ),
    _seed(0, (0, _WIRE.arp_reply()), (3, b"\4\1"), (0, _WIRE.arp_reply()), *_segments(_WIRE, {"flags": SYN | ACK})),
    _seed(
        0,
        (0, _WIRE.arp_request()),
        (3, b"\4\1"),
        (1, _WIRE.tcp(sport=80, dport=40_001, flags=SYN | ACK)),
        (3, b"\0\2"),
        (1, _WIRE.tcp(sport=80, dport=40_001, flags=ACK, window=0)),
        _LATER,
        (1, _WIRE.icmp_error(icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, _WIRE.tcp(sport=1, dport=80)[14:], 600)),
    ),
    _seed(0, *((0, frame) for frame in _WIRE.fragments(17, _WIRE.udp(5, 7, bytes(200))[34:], 64, 64)), _LATER),
    _seed(0, (0, _WIRE.udp(5, 9)), (3, b"\6\xff"), (3, b"\7\x10"), (0, _WIRE.arp_reply())),
    _seed(
        2,
        (0, _WIRE.but(vnet_hdr_len=10).arp_request()),
        *((what, bytes(10) + body) for what, body in _segments(_WIRE, *_CLOSING)),
        (3, b"\0\xff"),
    ),
]

if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
