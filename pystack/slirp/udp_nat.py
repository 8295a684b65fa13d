"""UDP through the gateway: one host socket for every endpoint of the guest.

Read before editing: RFC 4787. The mapping is endpoint-independent (REQ-1): whatever remotes a guest's endpoint talks
to, they all see the same host port, and what anybody sends there reaches the guest (the filtering of REQ-8's first
kind, which peer-to-peer programs need) with one exception, the host's own loopback (see `pystack.slirp.policy`).
"""

from __future__ import annotations

from typing import Final, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.net.udp import Datagram, UdpEndpoint
from pystack.slirp.dns_forwarder import PORT as DNS_PORT
from pystack.slirp.dns_forwarder import DnsForwarder
from pystack.slirp.forwards import Publish
from pystack.slirp.nat import DNS_IDLE, MAX_INBOUND_PEERS, UDP_IDLE, IdleTable, InboundPeer, UdpFlow
from pystack.slirp.plan import AddressPlan
from pystack.slirp.policy import LOOPBACK, Policy
from pystack.slirp.quote import udp_quote
from pystack.slirp.requests import INBOUND_SEND, UDP_CLOSE, UDP_SEND, HostRequest
from pystack.slirp.tcp_nat import UNREACHABLE_CODES
from pystack.stack import Stack
from pystack.wire.icmp import ADMIN_PROHIBITED, PORT_UNREACHABLE, UNREACHABLE

Endpoint = tuple[bytes, int]

_QUOTED_PAYLOAD: Final = 128  # of the datagram that an error is about; 0 would do, people read captures
_FIRST_SPARE_PORT: Final = 49_152
_SPARE_PORTS: Final = 16_384


@final
class UdpNat:
    """The table of UDP flows, and the peers that came in through published ports.

    Args:
        endpoint: the stack's catch-all endpoint.
        requests: where requests to the host are put.
        limit: flows at most; the one unused for longest gives way.
    """

    def __init__(
        self,
        stack: Stack,
        endpoint: UdpEndpoint,
        plan: AddressPlan,
        policy: Policy,
        dns: DnsForwarder | None,
        requests: list[HostRequest],
        *,
        limit: int,
    ) -> None:
        self._stack = stack
        self._endpoint = endpoint
        self._plan = plan
        self._policy = policy
        self._dns = dns
        self._requests = requests
        self._counters: Counters = stack.counters
        self._flows: IdleTable[Endpoint, UdpFlow] = IdleTable(limit=limit, idle=UDP_IDLE)
        self._dns_flows: IdleTable[Endpoint, UdpFlow] = IdleTable(limit=limit, idle=DNS_IDLE)
        # By what the guest sees: its own endpoint's port, the peer's address and port.
        self._peers: IdleTable[tuple[int, bytes, int], InboundPeer] = IdleTable(limit=MAX_INBOUND_PEERS, idle=UDP_IDLE)
        self._seen_as: dict[tuple[Publish, Endpoint], tuple[int, bytes, int]] = {}
        self.to_host = 0
        """Datagrams carried by all flows so far, and in the other direction `to_guest`."""
        self.to_guest = 0

    def __len__(self) -> int:
        return len(self._flows) + len(self._dns_flows)

    def flows(self) -> list[UdpFlow]:
        """All flows."""
        return self._flows.values() + self._dns_flows.values()

    # ---------------------------------------------------------------------------------------------- from the guest

    def on_datagrams(self, now: Micros) -> None:
        """Take what the guest sent."""
        take = self._endpoint.take
        while (datagram := take()) is not None:
            self._forward(datagram, now)
        while self._endpoint.take_error() is not None:
            # The guest's port is closed; the host's socket cannot be made to say so to its peer.
            self._counters.bump("slirp.udp_guest_refused")

    def _forward(self, datagram: Datagram, now: Micros) -> None:
        source, (destination, port) = datagram.source, datagram.destination
        if not self._plan.may_be_guest(source[0]):
            self._counters.bump("slirp.foreign_source")
            return
        if self._dns is not None and destination == self._plan.dns and port == DNS_PORT:
            self._dns.query_untrusted(source, datagram.payload, now)
            return
        peer = self._peers.use((source[1], destination, port), now)
        if peer is not None:
            self._requests.append((INBOUND_SEND, peer, datagram.payload))
            return
        address = self._policy.host_address(destination)
        if address is None:
            self._refuse(datagram, now)
            return
        flow = self._flow(source, port == DNS_PORT, now)
        flow.to_host += 1
        self.to_host += 1
        self._requests.append((UDP_SEND, flow, (address, port, datagram.packet.ttl, datagram.payload)))

    def _refuse(self, datagram: Datagram, now: Micros) -> None:
        """Our own addresses have closed ports, others are not to be reached; nothing is said about groups."""
        self._counters.bump("slirp.udp_refused_by_policy")
        destination = datagram.destination[0]
        if self._policy.is_silent(destination):
            return
        if destination in self._plan.own:
            code, source = PORT_UNREACHABLE, destination
        else:
            code, source = ADMIN_PROHIBITED, self._plan.gateway
        self._stack.send_icmp_error(datagram.packet, UNREACHABLE, code, source=source, now=now)

    def _flow(self, guest: Endpoint, only_dns: bool, now: Micros) -> UdpFlow:
        """The flow of the guest's endpoint, made if there is none. It lives longer once it talks to more than DNS."""
        flow = self._flows.use(guest, now)
        if flow is not None:
            return flow
        flow = self._dns_flows.use(guest, now)
        if flow is None:
            flow = UdpFlow(*guest)
            self._counters.bump("slirp.udp_flows")
        elif not only_dns:
            self._dns_flows.remove(guest)
        else:
            return flow
        flow.only_dns = only_dns
        evicted = (self._dns_flows if only_dns else self._flows).add(guest, flow, now)
        if evicted is not None:
            self._counters.bump("slirp.udp_evicted")
            self._requests.append((UDP_CLOSE, evicted, None))
        return flow

    # ----------------------------------------------------------------------------------------------- from the host

    def received(self, flow: UdpFlow, data: bytes, source: Endpoint, now: Micros) -> None:
        """A datagram, possibly an empty one, arrived on the flow's socket."""
        seen = self._policy.guest_address(source[0])
        if seen is None:
            self._counters.bump("slirp.udp_unwanted_source")
            return
        guest = flow.guest, flow.guest_port
        (self._dns_flows if flow.only_dns else self._flows).use(guest, now)
        flow.to_guest += 1
        self.to_guest += 1
        self._endpoint.send(data, now, to=guest, source=(seen, source[1]))

    def icmp_error(
        self,
        flow: UdpFlow,
        destination: Endpoint,
        error: tuple[int, int, int],
        offender: bytes | None,
        payload: bytes,
        now: Micros,
    ) -> None:
        """The host got an ICMP error about a datagram of the flow, which had gone to ``destination``: pass it on.

        Args:
            error: type, code, and the second word of the header (the next-hop MTU).
            offender: who reported it, 4 bytes; None for the host itself.
            payload: as much of the datagram's as is known.
        """
        address = self._as_named(destination[0])
        reporter = self._plan.gateway if offender is None else self._policy.guest_address(offender)
        about = udp_quote((flow.guest, flow.guest_port), (address, destination[1]), payload[:_QUOTED_PAYLOAD])
        self._counters.bump("slirp.icmp_errors_relayed")
        kind, code, extra = error
        self._stack.send_icmp_error(about, kind, code, source=reporter or self._plan.gateway, extra=extra, now=now)

    def send_failed(self, flow: UdpFlow, destination: Endpoint, number: int, payload: bytes, now: Micros) -> None:
        """The host's kernel refused to send: no route, not allowed, or out of something (``number``: an errno)."""
        code = UNREACHABLE_CODES.get(number)
        if code is None:
            self._counters.bump("slirp.udp_not_sent")
        else:
            self.icmp_error(flow, destination, (UNREACHABLE, code, 0), None, payload, now)

    def _as_named(self, address: bytes) -> bytes:
        """The address that the guest used for the host's ``address``."""
        return self._plan.gateway if address == LOOPBACK else address

    # --------------------------------------------------------------------------------------------- published ports

    def inbound(self, publish: Publish, guest: bytes, peer: Endpoint, data: bytes, now: Micros) -> InboundPeer | None:
        """A datagram from ``peer`` came in through a published port: the guest gets it from an endpoint of its own."""
        known = self._seen_as.get((publish, peer))
        entry = self._peers.use(known, now) if known is not None else None
        if entry is None:
            entry = self._new_peer(publish, peer, now)
            if entry is None:
                self._counters.bump("slirp.inbound_failed")
                return None
        self._endpoint.send(data, now, to=(guest, publish.guest_port), source=(entry.address, entry.port))
        return entry

    def _new_peer(self, publish: Publish, peer: Endpoint, now: Micros) -> InboundPeer | None:
        """Two peers that would look the same to the guest (127.0.0.1 and 127.0.0.2) get different ports."""
        address = self._policy.published_address(peer[0])
        candidates = (peer[1], *(_FIRST_SPARE_PORT + (peer[1] + step) % _SPARE_PORTS for step in range(64)))
        for port in candidates:
            key = publish.guest_port, address, port
            if key not in self._peers:
                entry = InboundPeer(publish, peer, (address, port))
                evicted = self._peers.add(key, entry, now)
                if evicted is not None:
                    self._forget_peer(evicted)
                self._seen_as[publish, peer] = key
                self._counters.bump("slirp.inbound_accepted")
                return entry
        return None

    def _forget_peer(self, peer: InboundPeer) -> None:
        self._seen_as.pop((peer.publish, (peer.host_address, peer.host_port)), None)

    # --------------------------------------------------------------------------------------------------------- time

    def tick(self, now: Micros) -> None:
        """Close what has been idle for too long."""
        for flow in self._flows.expire(now) + self._dns_flows.expire(now):
            self._counters.bump("slirp.udp_expired")
            self._requests.append((UDP_CLOSE, flow, None))
        for peer in self._peers.expire(now):
            self._forget_peer(peer)

    def next_timeout(self) -> Micros | None:
        """When the next one expires, None if there is none."""
        tables = (self._flows, self._dns_flows, self._peers)
        return min((at for table in tables if (at := table.next_timeout()) is not None), default=None)

    def check(self) -> None:
        """Verify the invariants; for tests."""
        for table in (self._flows, self._dns_flows, self._peers):
            table.check()
        assert len(self._seen_as) == len(self._peers)
        assert all(flow.only_dns for flow in self._dns_flows.values())
