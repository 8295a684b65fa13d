"""What a stack is: one immutable value, with every bound it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface

from pystack.net import neighbours, reassembly
from pystack.net.path import DEFAULT_TTL
from pystack.tcp.config import TcpConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """What a stack is. Immutable.

    Attributes:
        mac: our Ethernet address, 6 bytes, of one host.
        addresses: our IPv4 addresses with their networks; the first one is preferred.
        gateway: the neighbour that leads everywhere else; None: there is no way there.
        tcp: settings of connections that are opened without their own.
        accept_any: every unicast IPv4 destination is ours. For a gateway with one guest behind the link; the Ethernet
            source of its packets is learnt, so that no ARP is needed to answer it.
        arp_for: whether to answer the ARP request for (target) from (asker), 4 bytes each, when the target is not ours
            already. None: with ``accept_any`` for all but known neighbours, else for nobody.
        ttl: of what we send.

    Bounds; at each one the stated thing happens, and a counter moves:
        max_connections: a SYN is dropped, `Stack.connect` raises.
        max_udp_endpoints, max_pings: the call raises. One endpoint keeps 512 datagrams and 1 MiB (UDP), 256 items and
            256 KiB (ping, ICMP); what comes beyond that is dropped.
        neighbours: see `pystack.net.neighbours.Limits`. reassembly: see `pystack.net.reassembly.Limits`.
        max_path_mtus: the oldest estimate goes.
        max_queued_frames: a frame that is not TCP's is dropped. TCP makes its frames only when they are asked for.
        icmp_errors_per_second, icmp_error_burst: the error is not sent.
    """

    mac: bytes
    addresses: tuple[IPv4Interface, ...]
    gateway: IPv4Address | None = None
    tcp: TcpConfig = field(default_factory=TcpConfig)
    accept_any: bool = False
    arp_for: Callable[[bytes, bytes], bool] | None = None
    ttl: int = DEFAULT_TTL
    max_connections: int = 16_384
    max_udp_endpoints: int = 4096
    max_pings: int = 1024
    neighbours: neighbours.Limits = field(default_factory=neighbours.Limits)
    reassembly: reassembly.Limits = field(default_factory=reassembly.Limits)
    max_path_mtus: int = 256
    max_queued_frames: int = 1024
    icmp_errors_per_second: int = 1000
    icmp_error_burst: int = 50
