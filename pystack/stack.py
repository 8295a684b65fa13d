"""The stack: one object that composes neighbours, reassembly, ICMP, UDP and TCP. It has no protocol of its own.

Read before editing: RFC 1122 section 3.2.1.3 (which addresses a packet may carry), section 3.2.2 (no error about what),
section 4.2.3.10 (no TCP to a group), RFC 894 (the frame).

Inputs are a frame with ``now`` (`Stack.receive`), a timer with ``now`` (`Stack.tick`) and calls of the API; outputs are
polled: `Stack.frames`, `Stack.events`, `Stack.next_timeout`. Whoever drives it does, after every input::

    stack.frames(now)       # until it returns []
    stack.events()
    sleep until a frame comes or stack.next_timeout(), then stack.tick(now)
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Final, TypeAlias, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.frame import LinkInfo, TxFrame
from pystack.net.addressing import Addressing
from pystack.net.admission import options_allow_untrusted, refusal_untrusted
from pystack.net.endpoint import Endpoint, Signals
from pystack.net.icmp import Icmp, IcmpEndpoint, IcmpError, PingEndpoint
from pystack.net.ip_output import IpOutput
from pystack.net.neighbours import NeighbourTable
from pystack.net.path import Path
from pystack.net.pmtu import PathMtus, next_mtu
from pystack.net.reassembly import Reassembler
from pystack.net.txqueue import TxQueue
from pystack.net.udp import Udp, UdpEndpoint
from pystack.stack_config import StackConfig
from pystack.tcp.config import TcpConfig
from pystack.tcp.engine import TcpEngine
from pystack.tcp.listener import Listener
from pystack.tcp.tcb import Connection
from pystack.timers import Timers
from pystack.wire import ethernet, icmp
from pystack.wire.packet import (
    ETHERTYPE_ARP,
    PROTO_ICMP,
    PROTO_TCP,
    PROTO_UDP,
    Packet,
    parse_untrusted,
    verify_untrusted,
)

__all__ = ["Event", "Stack", "StackConfig"]

_PLAIN_HEADERS: Final = 14 + 20  # Ethernet and IPv4

Event: TypeAlias = tuple[Connection | Listener | Endpoint, int]
"""Who has something to tell, and what: flags of `pystack.tcp.events`."""


def _nobody(_target: bytes, _asker: bytes) -> bool:
    return False


def _anybody(target: bytes, asker: bytes) -> bool:
    return target != asker


def _check_port(port: int) -> None:
    if not 0 <= port < 1 << 16:
        raise UsageError(f"{port} is no port: choose one from 1 to 65535, or 0 for a free one.")


@final
class Stack:
    """A host on one link.

    Args:
        link: what the link can do (`Link.info`).
        seed: of everything that must not be guessed: initial sequence numbers, ports, identifiers. At least 128 bits
            from the system's random source, except in tests, where the same seed gives the same frames.

    Attributes:
        counters: one integer per thing that happened. Shared by all parts.
    """

    __slots__ = (
        "_addressing", "_any_destination", "_connections", "_icmp", "_link", "_mac", "_max_frame",
        "_mtus", "_neighbours", "_now", "_output", "_reassembler", "_signals", "_tcp", "_timers", "_tx", "_udp",
        "_vnet_hdr_len", "config", "counters",
    )  # fmt: skip

    def __init__(self, config: StackConfig, link: LinkInfo, *, seed: int) -> None:
        if len(config.mac) != 6 or ethernet.is_group(config.mac):
            raise UsageError(
                f"{config.mac.hex(':')} is not the Ethernet address of one host: the first byte must be even."
            )
        if not config.addresses:
            raise UsageError("A stack needs at least one IPv4 address.")
        seed %= 1 << 256
        self.config: Final = config
        self.counters: Final = Counters()
        self._link = link
        self._mac = config.mac
        self._vnet_hdr_len = link.vnet_hdr_len
        # Two VLAN tags may come on top of the largest packet.
        self._max_frame = link.vnet_hdr_len + 14 + 8 + link.mtu
        self._addressing = Addressing(config.addresses, config.gateway)
        self._now: Micros = 0  # of the call under way, for `_path_to`
        self._any_destination = config.accept_any
        self._timers = Timers()
        self._signals = Signals()
        self._mtus = PathMtus(config.max_path_mtus)
        self._tx = TxQueue(self.counters, max_frames=config.max_queued_frames)
        answers = config.arp_for or (_anybody if config.accept_any else _nobody)
        self._neighbours = NeighbourTable(
            config.mac, self._addressing, link, self._tx, self._timers, self.counters, config.neighbours, answers
        )
        self._output = IpOutput(
            config.mac, self._addressing, link, self._neighbours, self._tx, self.counters, self._mtus, config.ttl, seed
        )
        self._reassembler = Reassembler(self.counters, self._timers, config.reassembly)
        self._icmp = Icmp(
            self._addressing,
            self._output,
            self._signals,
            self.counters,
            errors_per_second=config.icmp_errors_per_second,
            error_burst=config.icmp_error_burst,
            max_pings=config.max_pings,
            seed=seed,
        )
        self._udp = Udp(
            self._addressing,
            self._output,
            self._signals,
            self.counters,
            max_endpoints=config.max_udp_endpoints,
            seed=seed,
        )
        self._tcp = TcpEngine(
            config.tcp,
            self.counters,
            self._timers,
            self._path_to,
            seed=seed,
            max_connections=config.max_connections,
        )
        self._connections = self._tcp.by_key

    # ------------------------------------------------------------------------------------------------------- receive

    def receive(self, frame: bytes, now: Micros) -> None:
        """Take one frame as the link delivered it. Never raises: what cannot be used is dropped and counted."""
        packet = parse_untrusted(frame, self._vnet_hdr_len, self.counters)
        if packet is None:
            return
        # The frame that counts belongs to a connection, whose addresses were judged when it was made, and has neither
        # a VLAN tag nor IP options.
        connection = self._connections.get(packet.key)
        if (
            connection is not None
            and packet.proto == PROTO_TCP
            and packet.l4 - packet.eth == _PLAIN_HEADERS
            and frame[packet.eth : packet.eth + 6] == self._mac
            and (len(frame) <= self._max_frame or packet.gso_type)
        ):
            if verify_untrusted(packet, self.counters, rx_checksum=self._link.rx_checksum):
                self._tcp.on_segment(connection, packet, now)
            return
        self._receive_other(packet, now)

    def _receive_other(self, packet: Packet, now: Micros) -> None:
        """Any frame but one of a connection: Ethernet's part."""
        dst_mac, src_mac = packet.dst_mac(), packet.src_mac()
        if dst_mac != self._mac and not ethernet.is_group(dst_mac):
            self.counters.bump("ethernet.not_ours")
        elif ethernet.is_group(src_mac) or src_mac == self._mac:
            self.counters.bump("ethernet.bad_source")
        elif len(packet.frame) > self._max_frame and not packet.gso_type:
            self.counters.bump("ethernet.oversize")
        elif packet.tags and packet.vlan & 0xFFF:
            # VLAN 0 is a priority without a VLAN (IEEE 802.1Q table 9-2); any other one is not our network.
            self.counters.bump("vlan.not_ours")
        elif packet.version == 4:
            self._receive_ipv4(packet, dst_mac == self._mac, src_mac, now)
        elif packet.ethertype == ETHERTYPE_ARP:
            self._neighbours.on_arp_untrusted(packet, now)
            self._wake_paths()
        elif packet.version == 6:
            self.counters.bump("ipv6.unsupported")
        else:
            self.counters.bump("ethernet.unknown_type")

    def _receive_ipv4(self, packet: Packet, to_one: bool, src_mac: bytes, now: Micros) -> None:
        if not verify_untrusted(packet, self.counters, rx_checksum=self._link.rx_checksum):
            return
        reason = refusal_untrusted(packet, self._addressing, to_one=to_one, any_destination=self._any_destination)
        if reason:
            self.counters.bump(reason)
            return
        if not options_allow_untrusted(packet, self.counters):
            return
        if self._any_destination:
            self._neighbours.learn_from_ip(packet.src, src_mac, now)
            self._wake_paths()
        if packet.is_fragment:
            datagram = self._reassembler.add_untrusted(packet, now)
            # Nobody vouched for its checksum: the pieces' virtio_net_hdr spoke of the pieces.
            if datagram is None or not verify_untrusted(datagram, self.counters, rx_checksum=False):
                return
            packet = datagram
        self._deliver(packet, now)

    def _deliver(self, packet: Packet, now: Micros) -> None:
        """Hand a whole, verified packet for us to its protocol."""
        proto = packet.proto
        if proto == PROTO_TCP:
            if self._addressing.next_hop(packet.src) is None:
                self.counters.bump("ipv4.no_route")
            else:
                self._now = now
                self._tcp.on_packet(packet, now)
        elif proto == PROTO_UDP:
            if not self._udp.on_packet_untrusted(packet):
                self.send_icmp_error(packet, icmp.UNREACHABLE, icmp.PORT_UNREACHABLE, source=packet.dst, now=now)
        elif proto == PROTO_ICMP:
            error = self._icmp.on_packet_untrusted(packet, now)
            if error is not None:
                self._on_icmp_error(error, now)
        else:
            self.counters.bump("ipv4.unknown_protocol")
            self.send_icmp_error(packet, icmp.UNREACHABLE, icmp.PROTOCOL_UNREACHABLE, source=packet.dst, now=now)

    def _on_icmp_error(self, error: IcmpError, now: Micros) -> None:
        """Hand an error to what sent the packet that it quotes (RFC 1122 section 3.2.2)."""
        quote = error.quote
        if quote.proto == PROTO_TCP:
            key = quote.dst + quote.src + quote.key[10:12] + quote.key[8:10]
            mtu = next_mtu(error.mtu, quote.total_length) if error.is_too_big else 0
            self._tcp.on_icmp_error(key, quote.seq, hard=error.is_hard, text=error.text, mtu=mtu)
            return
        if quote.proto == PROTO_UDP:
            known = self._udp.on_error(error)
        else:
            known = quote.proto == PROTO_ICMP and self._icmp.on_error(error)
        if not known:
            self.counters.bump("icmp.error_unmatched")
        elif error.is_too_big:
            self._mtus.lower(quote.dst, next_mtu(error.mtu, quote.total_length), now)

    # -------------------------------------------------------------------------------------------------- what goes out

    def tick(self, now: Micros) -> None:
        """Do what is due at ``now``."""
        self._timers.fire(now)
        for first in self._reassembler.take_expired():
            self.send_icmp_error(first, icmp.TIME_EXCEEDED, icmp.REASSEMBLY_TIMEOUT, source=first.dst, now=now)
        self._wake_paths()

    def frames(self, now: Micros, limit: int = 64) -> list[TxFrame]:
        """Up to ``limit`` frames to send, made now; [] when there is nothing more.

        They belong to the link from here on: what is not sent is lost, as on a wire.
        """
        out: list[TxFrame] = []
        if self._tx:
            # Neither a flood of datagrams nor a bulk transfer keeps the other waiting.
            self._tx.drain_into(out, limit - limit // 4 if self._tcp.pending else limit)
        self._tcp.output(now, out, limit)
        return out

    def events(self) -> list[Event]:
        """What happened since the last call: each endpoint at most once, with all its flags."""
        out: list[Event] = []
        self._tcp.events_into(out)
        if self._signals:
            out += self._signals.drain()
        return out

    def next_timeout(self) -> Micros | None:
        """The instant at which `tick` has something to do, None if never."""
        return self._timers.next_timeout()

    def _wake_paths(self) -> None:
        paths = self._neighbours.take_ready()
        if paths:
            self._tcp.paths_ready(paths)

    def _path_to(self, src: bytes, dst: bytes, _answered: Packet | None) -> Path:
        """A new way from ``src``, an address that is ours or spoken for, to ``dst``, which has a next hop."""
        path = Path(self._link, self._mac, None, src, dst, ttl=self.config.ttl)
        hop = self._addressing.next_hop(dst)
        if hop is not None:
            self._neighbours.attach(path, hop, self._now)
        return path

    # ----------------------------------------------------------------------------------------------------------- TCP

    def connect(
        self,
        remote: tuple[bytes, int],
        now: Micros,
        *,
        local_port: int = 0,
        local_address: bytes | None = None,
        config: TcpConfig | None = None,
    ) -> Connection:
        """Open a connection to ``remote``, an address of 4 bytes and a port. OPEN or CLOSED is its first event.

        Args:
            local_port: 0 for a free ephemeral one.
            local_address: in whose name; None for our address towards ``remote``. With ``accept_any`` it may be any.

        Raises:
            UsageError: an address no host has, no way there, a port in use, too many connections.
        """
        _check_port(local_port)
        address, port = remote
        text = f"{IPv4Address(address)}:{port}"
        if not self._addressing.is_valid_peer(address) or address in self._addressing.own or not 0 < port < 1 << 16:
            raise UsageError(f"There can be no connection to {text}: name the address and port of another host.")
        source = local_address or self._addressing.source_address(address)
        if source is None or self._addressing.next_hop(address) is None:
            raise UsageError(f"There is no way to {text}: give the stack a gateway, or an address on that network.")
        if not self._any_destination and source not in self._addressing.own:
            raise UsageError(f"{IPv4Address(source)} is no address of this stack: leave the local address out.")
        self._now = now
        return self._tcp.connect((source, local_port), remote, now, config)

    def listen(
        self, port: int, *, address: bytes | None = None, backlog: int = 128, config: TcpConfig | None = None
    ) -> Listener:
        """Accept connections to ``port`` at ``address`` (None: at all of ours). ACCEPT says that some wait.

        Raises:
            UsageError: somebody listens there already, or this is no port.
        """
        if not port:
            raise UsageError("Nobody can listen on port 0: choose one from 1 to 65535.")
        _check_port(port)
        return self._tcp.listen(port, address=address or b"", backlog=backlog, config=config)

    def listen_any(self, *, backlog: int = 1024, config: TcpConfig | None = None) -> Listener:
        """Accept connections to any address and port that nobody else listens on, deferred: the owner decides.

        `Listener.take` gives connections whose SYN is not answered yet, until `Connection.accept` or
        `Connection.refuse` is called.

        Raises:
            UsageError: there is such a listener already.
        """
        return self._tcp.listen_any(backlog=backlog, config=config)

    # ------------------------------------------------------------------------------------------------- UDP and ICMP

    def udp_bind(self, port: int = 0, address: bytes | None = None) -> UdpEndpoint:
        """An endpoint on ``port`` (0: a free one) at ``address`` (None: all of ours, and broadcasts).

        Raises:
            UsageError: the port is taken, or too many endpoints are open.
        """
        _check_port(port)
        endpoint = self._udp.bind(port, address)
        if endpoint is None:
            raise UsageError(
                f"UDP port {port} is in use, or there are too many endpoints: choose another, or close some."
            )
        return endpoint

    def udp_any(self) -> UdpEndpoint:
        """The endpoint that takes every datagram to one host that no other endpoint takes. For a gateway.

        Raises:
            UsageError: there is one already.
        """
        endpoint = self._udp.bind_any()
        if endpoint is None:
            raise UsageError("There is a catch-all UDP endpoint already: close it first.")
        return endpoint

    def ping_open(self) -> PingEndpoint:
        """An endpoint that sends echo requests and takes the replies.

        Raises:
            UsageError: too many are open.
        """
        endpoint = self._icmp.open_ping()
        if endpoint is None:
            raise UsageError("Too many ping endpoints are open: close some.")
        return endpoint

    def icmp_any(self) -> IcmpEndpoint:
        """The endpoint that takes echo requests to addresses that are not the stack's own. For a gateway.

        Raises:
            UsageError: there is one already.
        """
        endpoint = self._icmp.open_any()
        if endpoint is None:
            raise UsageError("There is a catch-all ICMP endpoint already: close it first.")
        return endpoint

    def send_icmp_error(
        self, about: Packet | bytes, kind: int, code: int, *, source: bytes, extra: int = 0, now: Micros
    ) -> bool:
        """Report an error about a packet to its sender; see `pystack.net.icmp.Icmp.send_error`."""
        return self._icmp.send_error(about, kind, code, source=source, extra=extra, now=now)

    # -------------------------------------------------------------------------------------------------- introspection

    def sizes(self) -> dict[str, int]:
        """How much every table and queue holds now; each is bounded by `StackConfig`."""
        return {
            "connections": len(self._connections),
            "neighbours": len(self._neighbours),
            "packets_waiting_for_neighbours": sum(len(neighbour.waiting) for neighbour in self._neighbours),
            "datagrams_in_reassembly": len(self._reassembler),
            "bytes_in_reassembly": self._reassembler.bytes_held,
            "queued_frames": len(self._tx),
            "udp_endpoints": len(self._udp),
            "pings": len(self._icmp),
            "path_mtus": len(self._mtus),
            "timers": len(self._timers),
        }
