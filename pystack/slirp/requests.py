"""What the gateway asks of the host side: tuples ``(operation, flow, argument)``, drained in batches.

Plain integers and tuples, since one is made for every wake-up of every flow. Who executes them
(`pystack.drivers.hostio`, or a fake host in a test) answers by calling the gateway.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

HostRequest: TypeAlias = tuple[int, Any, Any]
"""(one of the operations below, the flow or transaction that it is about, its argument or None)"""

# TCP: the flow is a `nat.TcpFlow`, the argument None.
DIAL: Final = 1
"""Connect to flow.address, flow.port. Answer: `dialled` or `dial_failed`."""
WRITE: Final = 2
"""Data waits in ``flow.conn.peek()``. Answer: `written`, as far as the host takes it now and whenever it takes more."""
SHUTDOWN: Final = 3
"""The guest has closed its direction and everything was written: shut down writing."""
ABORT: Final = 4
"""Close with an RST."""
CLOSE: Final = 5
"""Close; both directions are over."""
READ: Final = 6
"""`host_space` was 0 and is not any more: read on."""

# UDP: a `nat.UdpFlow`.
UDP_SEND: Final = 7
"""Argument: (address of 4 bytes, port, TTL, payload). Made on first use, one socket for all destinations."""
UDP_CLOSE: Final = 8

# Echo: a `nat.PingFlow`.
PING_SEND: Final = 9
"""Argument: (address of 4 bytes, sequence number, TTL, payload)."""
PING_CLOSE: Final = 10

# DNS: a `dns_forwarder.Transaction`; argument of a query: the message to send to ``transaction.resolver``.
DNS_QUERY: Final = 11
"""Send from a socket of its own, connected to the resolver, so that every query has another source port."""
DNS_CLOSE: Final = 12

# Published UDP: a `nat.InboundPeer`.
INBOUND_SEND: Final = 13
"""Argument: the payload, to be sent from the published port to ``peer.host_address``, ``peer.host_port``."""
