"""What flowed through a gateway, for a person and for a program."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStats:
    """A snapshot. Bytes are TCP payload.

    Attributes:
        tcp_opened: connections that both sides completed, published ports included. tcp_refused: what was refused to
            the guest, by policy, by the host or for want of room. tcp_active: flows in the table now.
        bytes_to_host, bytes_to_guest: carried by all connections so far.
        retransmissions: segments sent to the guest again.
        udp_flows: endpoints of the guest so far; udp_active: in the table now.
        datagrams_to_host, datagrams_to_guest: carried by all flows so far.
        dns_queries, pings: carried so far.
        frames_bad: frames of the guest that were dropped because they are not what they say.
    """

    tcp_opened: int
    tcp_refused: int
    tcp_active: int
    bytes_to_host: int
    bytes_to_guest: int
    retransmissions: int
    udp_flows: int
    udp_active: int
    datagrams_to_host: int
    datagrams_to_guest: int
    dns_queries: int
    pings: int
    frames_bad: int

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)
