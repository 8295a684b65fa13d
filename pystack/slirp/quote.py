"""The start of a packet that the guest sent, made again from what its flow remembers: what an ICMP error has to quote.

Read before editing: RFC 792 (IP header and 8 bytes), RFC 1122 section 3.2.2. The guest's kernel finds the socket by
addresses, ports and (for TCP) the sequence number; the rest is filled with what is most likely true.
"""

from __future__ import annotations

from pystack.wire import icmp, ipv4, udp
from pystack.wire.packet import PROTO_ICMP, PROTO_TCP, PROTO_UDP


def udp_quote(source: tuple[bytes, int], destination: tuple[bytes, int], payload: bytes) -> bytes:
    """A datagram from ``source`` to ``destination``, as the guest named it."""
    body = udp.build(src=source[0], dst=destination[0], sport=source[1], dport=destination[1], payload=payload)
    return ipv4.build_header(src=source[0], dst=destination[0], proto=PROTO_UDP, payload_len=len(body)) + body


def tcp_quote(source: tuple[bytes, int], destination: tuple[bytes, int], seq: int) -> bytes:
    """The first 8 bytes of a segment with the sequence number ``seq``."""
    body = source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big") + seq.to_bytes(4, "big")
    # The total length is that of the shortest segment, although only the 8 bytes that matter follow.
    return ipv4.build_header(src=source[0], dst=destination[0], proto=PROTO_TCP, payload_len=20) + body


def echo_quote(source: bytes, destination: bytes, ident: int, seq: int, payload: bytes) -> bytes:
    """An echo request."""
    body = icmp.build_echo(icmp.ECHO_REQUEST, ident, seq, payload)
    return ipv4.build_header(src=source, dst=destination, proto=PROTO_ICMP, payload_len=len(body)) + body
