"""The gateway: a stack that accepts every address, and above it what turns a guest's flows into host sockets.

Sans-I/O. Frames, timers and what the host's sockets did come in with ``now``; frames and requests to the host are
polled. Whoever drives it does, after every input::

    gateway.requests()      # carry them out; their outcome is told by `dialled`, `written`, `host_data`, ...
    gateway.frames(now)     # until it returns []
    sleep until a frame or a socket is ready or gateway.next_timeout(), then gateway.tick(now)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, final

from pystack.clock import SECOND, Micros
from pystack.frame import LinkInfo, TxFrame
from pystack.net.icmp import IcmpEndpoint
from pystack.slirp.dhcp_server import DhcpConfig, DhcpServer, Lease
from pystack.slirp.dns_forwarder import MAX_RESOLVERS, DnsForwarder, Resolver, Transaction
from pystack.slirp.dns_forwarder import PORT as DNS_PORT
from pystack.slirp.forwards import Publish
from pystack.slirp.nat import (
    MAX_PING_FLOWS,
    MAX_READ_AHEAD_BYTES,
    MAX_TCP_FLOWS,
    MAX_UDP_FLOWS,
    InboundPeer,
    TcpFlow,
    UdpFlow,
)
from pystack.slirp.ping_nat import PingNat
from pystack.slirp.plan import AddressPlan
from pystack.slirp.policy import Policy
from pystack.slirp.requests import HostRequest
from pystack.slirp.stats import GatewayStats
from pystack.slirp.tcp_nat import BACKLOG, TcpNat
from pystack.slirp.udp_nat import Endpoint, UdpNat
from pystack.stack import Stack, StackConfig
from pystack.tcp.config import TcpConfig
from pystack.tcp.listener import Listener
from pystack.tcp.tcb import Connection
from pystack.wire import dhcp

_VIRTUAL: Final = b"\x52\x55"  # a locally administered address, as SLIRP makes it: these two bytes and the IPv4 address

_BAD: Final = ("_checksum", ".short", "_length", ".bad_version", "_offset", "_option", ".bad_source", ".oversize")

TCP: Final = TcpConfig(nagle=False, time_wait=2 * SECOND, send_buffer=2 << 20)
"""Towards the guest: the programs on the host's side have decided already what a segment is, so Nagle would only delay.
Two seconds of TIME-WAIT outlive any segment on a link without routers. The send buffer takes two of the largest reads
from the host."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """What a gateway is. Immutable.

    Attributes:
        plan: the guest's network.
        mac: our Ethernet address, 6 bytes; None for 52:55 and the gateway's IPv4 address.
        allow_host_loopback: whether the guest reaches the host's 127.0.0.1 at the gateway's address.
        dns: whether our DNS address answers. resolvers: the host's, in order; see also `Gateway.set_resolvers`.
        domain, search: told to DHCP clients.
        guest: the guest's address, 4 bytes, if it was configured by us; published ports lead there. None: to whoever
            holds the latest lease, or the first address of the pool.
        tcp: settings of connections with the guest.
        max_tcp_flows, max_udp_flows, max_ping_flows, max_read_ahead: bounds (the last one in bytes); see
            `pystack.slirp.nat` for what happens there.
    """

    plan: AddressPlan = field(default_factory=AddressPlan.from_cidr)
    mac: bytes | None = None
    allow_host_loopback: bool = False
    dns: bool = True
    resolvers: tuple[Resolver, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    guest: bytes | None = None
    tcp: TcpConfig = TCP
    max_tcp_flows: int = MAX_TCP_FLOWS
    max_udp_flows: int = MAX_UDP_FLOWS
    max_ping_flows: int = MAX_PING_FLOWS
    max_read_ahead: int = MAX_READ_AHEAD_BYTES


def _nobody(_target: bytes, _asker: bytes) -> bool:
    return False


@final
class Gateway:
    """One gateway for one link.

    Args:
        link: what the link can do.
        seed: of everything that must not be guessed; see `pystack.stack.Stack`.

    Attributes:
        config: as given. counters: one integer per thing that happened, shared with the stack.
        tcp, udp, ping: what the host side answers to, one object for each kind of flow.
    """

    def __init__(self, config: GatewayConfig, link: LinkInfo, *, seed: int) -> None:
        plan = config.plan
        self.config: Final = config
        self._stack = Stack(
            StackConfig(
                mac=config.mac or _VIRTUAL + plan.gateway,
                addresses=tuple(plan.interface(address) for address in plan.own),
                tcp=config.tcp,
                accept_any=True,
                arp_for=_nobody,
                # Beside the flows there are connections whose flow is over and that the guest has yet to acknowledge.
                max_connections=2 * config.max_tcp_flows,
            ),
            link,
            seed=seed,
        )
        self.counters: Final = self._stack.counters
        self._requests: list[HostRequest] = []
        self._now: Micros = 0
        self._dns = DnsForwarder(config.resolvers, self.counters, self._requests, seed=seed)
        reserved = frozenset((plan.configured, config.guest or plan.configured))
        self._dhcp = DhcpServer(
            plan,
            DhcpConfig(mtu=link.mtu, dns=config.dns, domain=config.domain, search=config.search, reserved=reserved),
            self.counters,
        )
        policy = Policy(plan, allow_host_loopback=config.allow_host_loopback)
        stack, requests = self._stack, self._requests
        dns = self._dns if config.dns else None
        self._listener = stack.listen_any(backlog=BACKLOG)
        self._dhcp_endpoint = stack.udp_bind(dhcp.SERVER_PORT)
        self._udp_endpoint = stack.udp_any()
        self._icmp_endpoint = stack.icmp_any()
        self.tcp: Final = TcpNat(
            stack,
            self._listener,
            plan,
            policy,
            dns,
            requests,
            limit=config.max_tcp_flows,
            read_ahead=config.max_read_ahead,
        )
        self.udp: Final = UdpNat(stack, self._udp_endpoint, plan, policy, dns, requests, limit=config.max_udp_flows)
        self.ping: Final = PingNat(stack, self._icmp_endpoint, plan, policy, requests, limit=config.max_ping_flows)

    # ------------------------------------------------------------------------------------------------- what comes in

    def receive(self, frame: bytes, now: Micros) -> None:
        """Take one frame as the link delivered it. Never raises."""
        self._now = now
        self._stack.receive(frame, now)

    def tick(self, now: Micros) -> None:
        """Do what is due at ``now``."""
        self._now = now
        self._stack.tick(now)
        self.tcp.tick(now)
        self.udp.tick(now)
        self.ping.tick(now)
        self._dns.tick(now)

    def set_resolvers(self, resolvers: tuple[Resolver, ...]) -> None:
        """Use these resolvers from now on, in this order; the host's configuration has changed."""
        self._dns.resolvers = resolvers[:MAX_RESOLVERS]

    # ------------------------------------------------------------------------------------------------- what goes out

    def frames(self, now: Micros, limit: int = 64) -> list[TxFrame]:
        """Up to ``limit`` frames to send; [] when there is nothing more."""
        return self._stack.frames(now, limit)

    def next_timeout(self) -> Micros | None:
        """The instant at which `tick` has something to do, None if never."""
        instants = [
            self._stack.next_timeout(),
            self.tcp.next_timeout(),
            self.udp.next_timeout(),
            self.ping.next_timeout(),
            self._dns.next_timeout(),
        ]
        return min((instant for instant in instants if instant is not None), default=None)

    def requests(self) -> list[HostRequest]:
        """What the host side is to do, in order; drained. See `pystack.slirp.requests`."""
        now = self._now
        for endpoint, flags in self._stack.events():
            if type(endpoint) is Connection:
                self.tcp.on_event(endpoint, flags, now)
            elif type(endpoint) is Listener:
                self.tcp.on_listener(now)
            elif type(endpoint) is IcmpEndpoint:
                self.ping.on_requests(now)
            elif endpoint is self._udp_endpoint:
                self.udp.on_datagrams(now)
            elif endpoint is self._dhcp_endpoint:
                self._on_dhcp(now)
        if self._dns.answers:
            self._send_dns_answers(now)
        if not self._requests:
            return []
        drained = self._requests[:]
        self._requests.clear()
        return drained

    def _send_dns_answers(self, now: Micros) -> None:
        source = self.config.plan.dns, DNS_PORT
        for guest, message in self._dns.answers:
            self._udp_endpoint.send(message, now, to=guest, source=source)
        self._dns.answers.clear()

    def _on_dhcp(self, now: Micros) -> None:
        endpoint = self._dhcp_endpoint
        source = self.config.plan.gateway, dhcp.SERVER_PORT
        while (datagram := endpoint.take()) is not None:
            reply = self._dhcp.handle_untrusted(datagram.payload, now)
            if reply is not None:
                to = reply.address, dhcp.CLIENT_PORT
                endpoint.send(reply.payload, now, to=to, source=source, dst_mac=reply.mac)
        while endpoint.take_error() is not None:
            self.counters.bump("dhcp.client_gone")

    # --------------------------------------------------------------------------- what the host side tells, beside flows

    def dns_reply(self, transaction: Transaction, message: bytes, now: Micros) -> None:
        """A datagram arrived on the socket of ``transaction``."""
        self._dns.reply_untrusted(transaction, message, now)

    def dns_failed(self, transaction: Transaction, now: Micros) -> None:
        """The resolver of ``transaction`` cannot be reached."""
        self._dns.failed(transaction, now)

    def inbound(self, publish: Publish, peer: Endpoint, now: Micros) -> TcpFlow | None:
        """A published port accepted a connection from ``peer``: connect to the guest.

        Returns:
            The flow; `TcpNat.host_space` is 0 until the guest has accepted. None: close the connection by an RST.
        """
        return self.tcp.inbound(publish, publish.guest or self.guest, peer, now)

    def inbound_datagram(self, publish: Publish, peer: Endpoint, data: bytes, now: Micros) -> InboundPeer | None:
        """A published UDP port received ``data`` from ``peer``. None: it was dropped."""
        return self.udp.inbound(publish, publish.guest or self.guest, peer, data, now)

    # -------------------------------------------------------------------------------------------------- introspection

    @property
    def guest(self) -> bytes:
        """Where published ports lead, 4 bytes."""
        return self.config.guest or self._dhcp.latest or self.config.plan.pool[0]

    def flows(self) -> list[TcpFlow | UdpFlow]:
        """All TCP flows and then all UDP flows."""
        return [*self.tcp.flows(), *self.udp.flows()]

    def leases(self, now: Micros) -> list[Lease]:
        """The DHCP leases in force."""
        return self._dhcp.leases(now)

    def stats(self) -> GatewayStats:
        """What flowed so far."""
        count = self.counters
        tcp = self.tcp.flows()
        refused = (
            "tcp_refused_by_policy", "tcp_table_full", "dial_refused", "dial_unreachable", "dial_timed_out",
            "dial_exhausted",
        )  # fmt: skip
        return GatewayStats(
            tcp_opened=count["slirp.tcp_opened"],
            tcp_refused=sum(count[f"slirp.{name}"] for name in refused),
            tcp_active=len(tcp),
            bytes_to_host=self.tcp.to_host + sum(flow.to_host for flow in tcp),
            bytes_to_guest=self.tcp.to_guest + sum(flow.to_guest for flow in tcp),
            retransmissions=count["tcp.retransmitted"],
            udp_flows=count["slirp.udp_flows"],
            udp_active=len(self.udp),
            datagrams_to_host=self.udp.to_host,
            datagrams_to_guest=self.udp.to_guest,
            dns_queries=count["dns.queries"],
            pings=count["slirp.pings"],
            frames_bad=sum(n for name, n in count.snapshot().items() if name.endswith(_BAD)),
        )

    def sizes(self) -> dict[str, int]:
        """How much every table holds now, the stack's included; each is bounded."""
        return self._stack.sizes() | {
            "tcp_flows": len(self.tcp),
            "udp_flows": len(self.udp),
            "ping_flows": len(self.ping),
            "dns_questions": len(self._dns),
        }

    def check(self) -> None:
        """Verify the invariants; for tests."""
        self.tcp.check()
        self.udp.check()
        self.ping.check()
