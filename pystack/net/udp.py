"""UDP endpoints and their demultiplexer.

Read before editing: RFC 768, RFC 1122 section 4.1 (checksums, ports that are closed, errors passed up, addresses).

Counters: ``udp.delivered``, ``udp.sent``, ``udp.closed_port``, ``udp.queue_full``, ``udp.zero_port``,
``udp.not_sent``, ``udp.bad_segment_size``.
"""

from __future__ import annotations

from typing import Final, TypeAlias, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.net.addressing import UNSPECIFIED, Addressing
from pystack.net.endpoint import DATAGRAM, Endpoint, Inbox, Signals
from pystack.net.icmp import IcmpError
from pystack.net.ip_output import IpOutput
from pystack.net.ports import EphemeralPorts
from pystack.net.udp_train import datagrams_untrusted, is_train
from pystack.wire import udp
from pystack.wire.packet import PROTO_UDP, Packet

SocketAddress: TypeAlias = tuple[bytes, int]
"""An address of 4 bytes and a port."""

_CHECKSUM_AT: Final = 6

MAX_ITEMS: Final = 512
MAX_BYTES: Final = 1 << 20
"""What one endpoint keeps for its reader: datagrams, and bytes of the frames they came in."""

_ITEM_OVERHEAD: Final = 512
_MAX_ERRORS: Final = 16


@final
class Datagram:
    """A received datagram, as a view of the packet it came in."""

    __slots__ = ("packet",)

    def __init__(self, packet: Packet) -> None:
        self.packet = packet

    @property
    def source(self) -> SocketAddress:
        """Who sent it."""
        return self.packet.src, self.packet.sport

    @property
    def destination(self) -> SocketAddress:
        """Whom it was sent to: an address of ours, a broadcast, or with a catch-all endpoint anybody's."""
        return self.packet.dst, self.packet.dport

    @property
    def payload(self) -> bytes:
        """Its data; b"" is a datagram too."""
        return self.packet.frame[self.packet.payload : self.packet.end]


def _size(datagram: Datagram) -> int:
    return len(datagram.packet.frame) + _ITEM_OVERHEAD


@final
class UdpEndpoint(Endpoint):
    """One end of UDP. Made by `Stack.udp_bind` and `Stack.udp_any`.

    Attributes:
        local_addr: the address it is bound to, None for all of ours. local_port: 0 for the catch-all endpoint.
        remote: the only peer it talks to, None for everybody.
        dropped: datagrams that found the queue full.
    """

    __slots__ = ("_errors", "_inbox", "_udp", "dropped", "local_addr", "local_port", "remote")

    def __init__(self, udp: Udp, local_addr: bytes | None, local_port: int) -> None:
        super().__init__()
        self._udp: Udp | None = udp
        self._inbox: Inbox[Datagram] = Inbox(_size, max_items=MAX_ITEMS, max_bytes=MAX_BYTES)
        self._errors: list[IcmpError] = []
        self.local_addr = local_addr
        self.local_port = local_port
        self.remote: SocketAddress | None = None
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._inbox)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._udp is None

    def connect(self, remote: SocketAddress | None) -> None:
        """Talk to ``remote`` only; None to talk to everybody again."""
        self.remote = remote

    def send(
        self,
        payload: bytes | memoryview,
        now: Micros,
        *,
        to: SocketAddress | None = None,
        source: SocketAddress | None = None,
        dst_mac: bytes | None = None,
    ) -> bool:
        """Send one datagram.

        Args:
            payload: at most 65,507 bytes, immutable: it is sent by reference.
            to: the peer; the connected one when None.
            source: in whose name, for a gateway; this endpoint's own address and port when None.
            dst_mac: the Ethernet destination, for a host that cannot be asked for it yet (a DHCP client).

        Returns:
            False when it was dropped: closed or no peer named; no route, too large or a queue full, which are counted.
        """
        remote = to or self.remote
        if self._udp is None or remote is None:
            return False
        return self._udp.send(payload, source or (self.local_addr, self.local_port), remote, dst_mac, now)

    def take(self) -> Datagram | None:
        """The oldest datagram, None when there is none."""
        return self._inbox.take()

    def take_error(self) -> IcmpError | None:
        """The oldest ICMP error about a datagram sent from here, None when there is none (RFC 1122 4.1.3.3)."""
        return self._errors.pop(0) if self._errors else None

    def deliver(self, datagram: Datagram) -> bool:
        """Called by the stack: queue ``datagram`` if there is room."""
        if self._inbox.put(datagram):
            return True
        self.dropped += 1
        return False

    def deliver_error(self, error: IcmpError) -> None:
        """Called by the stack: note ``error``; of many the first ones are kept."""
        if len(self._errors) < _MAX_ERRORS:
            self._errors.append(error)

    def close(self) -> None:
        """Give the port back and drop what waits. Idempotent."""
        if self._udp is not None:
            self._udp.forget(self)
            self._udp = None
            self._inbox.clear()
            self._errors.clear()


@final
class Udp:
    """All UDP endpoints of one stack.

    A datagram goes to the endpoint bound to its destination's address and port; else, when it was sent to us or to
    all, to the one bound to the port; else to the catch-all endpoint, which never sees broadcasts.
    """

    __slots__ = ("_addressing", "_any", "_bound", "_counters", "_max_endpoints", "_output", "_ports", "_signals")

    def __init__(
        self,
        addressing: Addressing,
        output: IpOutput,
        signals: Signals,
        counters: Counters,
        *,
        max_endpoints: int,
        seed: int,
    ) -> None:
        self._addressing = addressing
        self._output = output
        self._signals = signals
        self._counters = counters
        self._max_endpoints = max_endpoints
        self._ports = EphemeralPorts(seed, "udp")
        self._bound: dict[tuple[bytes | None, int], UdpEndpoint] = {}
        self._any: UdpEndpoint | None = None

    def __len__(self) -> int:
        return len(self._bound)

    def bind(self, port: int, address: bytes | None) -> UdpEndpoint | None:
        """An endpoint on ``port`` (0: a free ephemeral one); None when it is taken or `max_endpoints` are open."""
        if len(self._bound) >= self._max_endpoints:
            return None
        if not port:
            free = self._ports.pick(lambda candidate: (address, candidate) in self._bound)
            if free is None:
                return None
            port = free
        if (address, port) in self._bound:
            return None
        endpoint = self._bound[address, port] = UdpEndpoint(self, address, port)
        return endpoint

    def bind_any(self) -> UdpEndpoint | None:
        """The catch-all endpoint, None when there is one already."""
        if self._any is not None:
            return None
        self._any = UdpEndpoint(self, None, 0)
        return self._any

    def forget(self, endpoint: UdpEndpoint) -> None:
        """Called by an endpoint that closes."""
        if endpoint is self._any:
            self._any = None
        else:
            self._bound.pop((endpoint.local_addr, endpoint.local_port), None)

    def on_packet_untrusted(self, packet: Packet) -> bool:
        """Take one datagram whose checksum holds. False when nobody listens: that asks for Port Unreachable."""
        if not packet.sport or not packet.dport:
            # Nobody could answer to port 0, and nobody can listen on it.
            self._counters.bump("udp.zero_port")
            return True
        endpoint = self._find(packet)
        if endpoint is None or (endpoint.remote is not None and endpoint.remote != (packet.src, packet.sport)):
            self._counters.bump("udp.closed_port")
            return False
        several = packet.gso_type and is_train(packet)
        for datagram in datagrams_untrusted(packet, self._counters) if several else (packet,):
            if endpoint.deliver(Datagram(datagram)):
                self._counters.bump("udp.delivered")
                self._signals.signal(endpoint, DATAGRAM)
            else:
                self._counters.bump("udp.queue_full")
        return True

    def _find(self, packet: Packet) -> UdpEndpoint | None:
        dst, port = packet.dst, packet.dport
        endpoint = self._bound.get((dst, port))
        if endpoint is not None:
            return endpoint
        to_all = self._addressing.is_broadcast(dst)
        if to_all or dst in self._addressing.own:
            endpoint = self._bound.get((None, port))
        if endpoint is None and not to_all and packet.src != UNSPECIFIED:
            endpoint = self._any
        return endpoint

    def on_error(self, error: IcmpError) -> bool:
        """Hand an error to the endpoint that sent what it quotes; False when there is none."""
        key = error.quote.key
        src, port = key[:4], int.from_bytes(key[8:10], "big")
        # An endpoint with an empty inbox has length 0: `or` would pass it over.
        endpoint = self._bound.get((src, port), self._bound.get((None, port), self._any))
        if endpoint is None:
            return False
        remote = (key[4:8], int.from_bytes(key[10:12], "big"))
        if endpoint.remote is not None and endpoint.remote != remote:
            return False
        endpoint.deliver_error(error)
        self._signals.signal(endpoint, DATAGRAM)
        return True

    def send(
        self,
        payload: bytes | memoryview,
        source: tuple[bytes | None, int],
        to: SocketAddress,
        dst_mac: bytes | None,
        now: Micros,
    ) -> bool:
        """Build the header and send (RFC 768). Returns False when it was dropped."""
        address, sport = source
        src = address or self._addressing.source_address(to[0]) or self._addressing.preferred
        length = 8 + len(payload)
        if length > 0xFFFF - 20 or not sport or not to[1]:
            self._counters.bump("udp.not_sent")
            return False
        partial = self._output.offloads_checksum and self._output.fits(to[0], length, now)
        head = udp.build_header(src=src, dst=to[0], sport=sport, dport=to[1], payload=payload, partial=partial)
        partial_at = _CHECKSUM_AT if partial else 0
        self._counters.bump("udp.sent")
        return self._output.send(src, to[0], PROTO_UDP, head, payload, now, partial_at=partial_at, dst_mac=dst_mac)
