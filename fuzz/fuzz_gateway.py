"""Whatever guest and host do, a gateway raises nothing, keeps its bounds and its policy, and forgets it all in the end.

The input is a list of steps: a byte that says what happens, then what it needs. A frame is completed to one that the
gateway looks at (its Ethernet addresses, the checksum of its IPv4 header), because random ones would all end there.
"""

from __future__ import annotations

import errno
from typing import final

from fuzz import harness
from pystack.clock import SECOND
from pystack.counters import Counters
from pystack.frame import LinkInfo
from pystack.slirp import requests as op
from pystack.slirp.forwards import Publish
from pystack.slirp.gateway import Gateway, GatewayConfig
from pystack.testing.frames import Crafter, packed
from pystack.wire import checksum, dhcp, dns
from pystack.wire.packet import ACK, FIN, PSH, RST, SYN, VNET_DATA_VALID, parse_untrusted, verify_untrusted
from tests.unit.slirp.fake_host import HOLD, FakeHost

MAX_LEN = 3000

_LINK = LinkInfo(vnet_hdr_len=12, rx_checksum=True, tx_checksum=True, tso4=True)
_VNET = bytes((VNET_DATA_VALID,)) + bytes(11)
_GUEST_MAC = b"\x02\0\0\0\0\x15"
_GATEWAY_MAC = b"\x52\x55\x0a\x00\x02\x02"
_ERRNOS = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.EMFILE, errno.EACCES, errno.ENETUNREACH)
_TCP_PORT = Publish(host_port=8080, guest_port=80)
_UDP_PORT = Publish(host_port=5353, guest_port=53, udp=True)
_MAX_STEPS = 200
_LONG: int = 3 * 3600 * SECOND
_BOUNDS = {"tcp_flows": 8, "udp_flows": 8, "ping_flows": 2, "dns_questions": 512, "connections": 16}


@final
class _Input:
    """Bytes, taken from the front; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def take(self) -> bytes:
        """As many bytes as the next two say."""
        n = self.byte() << 8 | self.byte()
        self._at += n
        return self._data[self._at - n : self._at]


@final
class _World:
    def __init__(self) -> None:
        self.now = SECOND
        config = GatewayConfig(
            resolvers=((packed("192.0.2.53"), 53), (packed("127.0.0.53"), 53)),
            max_tcp_flows=8,
            max_udp_flows=4,
            max_ping_flows=2,
        )
        self.gateway = Gateway(config, _LINK, seed=1)
        self.host = FakeHost(self.gateway, lambda: self.now)
        self.host.outcome = lambda _address, port: HOLD if port & 1 else 0

    def step(self, data: _Input) -> None:
        kind = data.byte()
        if kind < 128:
            self.frame(data.take())
        elif kind < 144:
            self.now += data.byte() * 50_000
            self.gateway.tick(self.now)
        elif kind < 200:
            self.tcp(kind, data)
        elif kind < 220:
            self.datagrams(kind, data)
        elif kind < 228:
            self.host.accept(_TCP_PORT, (packed("203.0.113.5"), 1 + data.byte()))
        else:
            peer = packed("127.0.0.1") if kind & 1 else packed("203.0.113.5")
            self.gateway.inbound_datagram(_UDP_PORT, (peer, 1 + data.byte()), data.take(), self.now)
        self.settle()

    def frame(self, frame: bytes) -> None:
        if frame[12:14] == b"\x08\0" and len(frame) >= 34:
            header = frame[14:24] + b"\0\0" + frame[26:34]
            frame = frame[:24] + checksum.finish(checksum.sum16(header)).to_bytes(2, "big") + frame[26:]
        if frame and not frame[0] & 1:
            frame = _GATEWAY_MAC + frame[6:]
        self.gateway.receive(_VNET + frame, self.now)

    def tcp(self, kind: int, data: _Input) -> None:
        """Something happens to one of the host's sockets."""
        alive = [socket for socket in self.host.sockets if not socket.ends and socket.flow.host is socket]
        if not alive:
            return
        socket = alive[data.byte() % len(alive)]
        what = kind % 8
        if what == 0:
            self.host.decide(socket.flow, _ERRNOS[data.byte() % len(_ERRNOS)])
        elif what == 1:
            self.host.decide(socket.flow, 0)
        elif what == 2:
            socket.send(bytes(data.byte() * 100 + 1))
        elif what == 3:
            socket.finish()
        elif what == 4:
            socket.reset()
        elif what == 5:
            socket.take(data.byte() * 10)
        else:
            socket.take(None)

    def datagrams(self, kind: int, data: _Input) -> None:
        """Something arrives on a socket of a UDP flow, an echo identifier or a DNS question."""
        gateway, host, now = self.gateway, self.host, self.now
        address = (packed("198.51.100.7"), packed("127.0.0.1"), packed("10.0.2.15"), packed("224.0.0.1"))[kind % 4]
        which = data.byte()
        if kind < 208 and host.udp:
            flow = host.udp[which % len(host.udp)][0]
            if which & 1:
                gateway.udp.icmp_error(flow, (address, 9), (3, data.byte(), 0), address, data.take(), now)
            else:
                gateway.udp.received(flow, data.take(), (address, 9), now)
        elif kind < 212 and host.pings:
            gateway.ping.reply(host.pings[which % len(host.pings)][0], address, data.byte(), data.take(), now)
        elif host.queries:
            transaction, query = host.queries[which % len(host.queries)]
            if which & 1:
                gateway.dns_reply(transaction, query[:2] + data.take(), now)
            else:
                gateway.dns_failed(transaction, now)

    def settle(self) -> None:
        for _ in range(50):
            moved = self.host.serve()
            for frame in self.gateway.frames(self.now):
                moved = True
                whole = b"".join(frame)
                packet = parse_untrusted(whole, 12, Counters())
                assert packet is not None, "it sends what cannot be parsed"
                assert verify_untrusted(packet, Counters(), rx_checksum=True), "it sends wrong checksums"
            if not moved:
                break
        self.gateway.check()
        for name, bound in _BOUNDS.items():
            assert self.gateway.sizes()[name] <= bound, name

    def check_policy(self) -> None:
        """Nothing was sent to an address that must not be reached; resolvers are an exception of ours."""
        dialled = [address for address, port in self.host.dialled if port != dns.PORT]
        for address in dialled + [sent[1] for sent in self.host.udp] + [sent[1] for sent in self.host.pings]:
            assert 0 < address[0] < 224
            assert address[0] != 127
            assert address[:3] != b"\x0a\x00\x02"

    def end(self) -> None:
        """In the end everything goes by itself."""
        for _ in range(8):
            self.now += _LONG
            self.gateway.tick(self.now)
            self.settle()
        sizes = self.gateway.sizes()
        for name in ("tcp_flows", "udp_flows", "ping_flows", "dns_questions", "connections"):
            assert sizes[name] == 0, f"{sizes[name]} of {name} are left"
        closed = sum(operation in (op.UDP_CLOSE, op.PING_CLOSE) for operation, _ in self.host.done)
        opened = {id(sent[0]) for sent in self.host.udp + self.host.pings}
        assert closed == len(opened), "a socket is left open"
        assert all(socket.ends or socket.flow.host is None for socket in self.host.sockets)


def _frames(*frames: bytes) -> bytes:
    return b"".join(b"\0" + len(frame).to_bytes(2, "big") + frame for frame in frames)


_WIRE = Crafter("10.0.2.15", "198.51.100.7", src_mac=_GUEST_MAC, dst_mac=_GATEWAY_MAC)
_TO_DNS = _WIRE.but(dst="10.0.2.3")
_DHCP = Crafter("0.0.0.0", "255.255.255.255", src_mac=_GUEST_MAC, dst_mac=b"\xff" * 6)
_OPTIONS = {dhcp.OPT_MESSAGE_TYPE: b"\x01"}

SEEDS = [
    _frames(
        _WIRE.tcp(sport=1000, dport=80, seq=9, flags=SYN),
        _WIRE.tcp(sport=1000, dport=80, seq=10, ack=1, flags=ACK | PSH, payload=b"hello"),
        _WIRE.tcp(sport=1000, dport=80, seq=15, ack=1, flags=ACK | FIN),
    )
    + bytes((146, 0, 3, 147, 0)),
    _frames(_WIRE.tcp(sport=1000, dport=81, seq=9, flags=SYN)) + bytes((144, 0, 1)),
    _frames(_WIRE.tcp(sport=1000, dport=81, seq=9, flags=SYN), _WIRE.tcp(sport=1000, dport=81, seq=10, flags=RST)),
    _frames(_WIRE.udp(5000, 7, b"x"), _WIRE.udp(5000, 53, b"")) + bytes((200, 0, 0, 1, 65)) + bytes((201, 1, 3, 0, 0)),
    _frames(_WIRE.echo()) + bytes((208, 0, 1, 0, 4)) + b"ping",
    _frames(_TO_DNS.udp(5000, 53, dns.build_query(7, dns.name_from_text("a.b"))))
    + bytes((213, 1, 0, 3, 129, 128, 0, 212, 0, 130, 255)),
    _frames(_DHCP.udp(68, 67, dhcp.build(dhcp.request(_GUEST_MAC, 1, _OPTIONS)))),
    _frames(_WIRE.arp_request("10.0.2.2")) + bytes((220, 5, 228, 5, 0, 1, 65)),
]


def target(data: bytes) -> None:
    """Run the steps, and then let time pass."""
    world = _World()
    steps = _Input(data)
    for _ in range(_MAX_STEPS):
        if not steps:
            break
        world.step(steps)
    world.check_policy()
    world.end()


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
