"""ICMP as a host: echo answered, errors made (rarely) and errors read (carefully).

Read before editing: RFC 792 (formats), RFC 1122 section 3.2.2 (what never gets an error, which errors mean what),
RFC 1812 section 4.3.2 (how much is quoted, rate limit), RFC 6633 (Source Quench is ignored), RFC 5927 (forged errors).

Redirects are counted and ignored: they could only send us to another neighbour, and anybody can forge them.
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.net.addressing import Addressing
from pystack.net.endpoint import DATAGRAM, Endpoint, Inbox, Signals
from pystack.net.ip_output import IpOutput
from pystack.net.limits import TokenBucket
from pystack.net.ports import EphemeralPorts
from pystack.wire import icmp, ipv4
from pystack.wire.packet import IP_OFFSET, PROTO_ICMP, Packet

_REPORTED: Final = frozenset({icmp.UNREACHABLE, icmp.TIME_EXCEEDED, icmp.PARAMETER_PROBLEM})

_MAX_ITEMS: Final = 256
_MAX_BYTES: Final = 256 << 10


class IcmpError(NamedTuple):
    """An error that somebody reports about a packet of ours.

    Attributes:
        kind, code: the ICMP type and code. extra: the second word of the header; `mtu` reads it.
        offender: who reports. quote: of our packet what is sure to be there; quoted: all that is, from its header on.
    """

    kind: int
    code: int
    extra: int
    offender: bytes
    quote: icmp.Quote
    quoted: bytes

    @property
    def mtu(self) -> int:
        """Next-hop MTU in bytes, 0 when the router does not say (RFC 1191 section 4)."""
        return self.extra & 0xFFFF

    @property
    def is_too_big(self) -> bool:
        """Whether our packet had DF set and did not fit."""
        return self.kind == icmp.UNREACHABLE and self.code == icmp.FRAGMENTATION_NEEDED

    @property
    def is_hard(self) -> bool:
        """Whether the destination says that it does not do this at all (RFC 1122 section 4.2.3.9)."""
        return self.kind == icmp.UNREACHABLE and self.code in (icmp.PROTOCOL_UNREACHABLE, icmp.PORT_UNREACHABLE)

    @property
    def text(self) -> str:
        """The error in a few words, for a person."""
        return f"ICMP type {self.kind} code {self.code} from {ipv4.text(self.offender)}"


@final
class Echo:
    """An echo request or reply, as a view of the packet it came in."""

    __slots__ = ("packet",)

    def __init__(self, packet: Packet) -> None:
        self.packet = packet

    @property
    def source(self) -> bytes:
        """Who sent it, 4 bytes."""
        return self.packet.src

    @property
    def destination(self) -> bytes:
        """Whom it was sent to, 4 bytes."""
        return self.packet.dst

    @property
    def ident(self) -> int:
        """The identifier: which ping of the sender's."""
        return int.from_bytes(self.packet.frame[self.packet.l4 + 4 : self.packet.l4 + 6], "big")

    @property
    def seq(self) -> int:
        """The sequence number."""
        return int.from_bytes(self.packet.frame[self.packet.l4 + 6 : self.packet.l4 + 8], "big")

    @property
    def payload(self) -> bytes:
        """What follows the 8 bytes of header."""
        return self.packet.frame[self.packet.l4 + 8 : self.packet.end]


def _size(item: Echo | IcmpError) -> int:
    return len(item.packet.frame if isinstance(item, Echo) else item.quoted) + 64


@final
class PingEndpoint(Endpoint):
    """Sends echo requests under an identifier of its own and collects what comes back.

    Event: DATAGRAM when there is something to `take`. At most 256 items and 256 KiB wait; more are dropped (`dropped`).
    """

    __slots__ = ("_icmp", "_inbox", "dropped", "ident")

    def __init__(self, icmp: Icmp, ident: int) -> None:
        super().__init__()
        self._icmp: Icmp | None = icmp
        self._inbox: Inbox[Echo | IcmpError] = Inbox(_size, max_items=_MAX_ITEMS, max_bytes=_MAX_BYTES)
        self.ident = ident
        self.dropped = 0

    def send_echo(self, destination: bytes, seq: int, payload: bytes, now: Micros) -> bool:
        """Send one echo request; False when it was dropped (no route, closed)."""
        return self._icmp is not None and self._icmp.send_request(destination, self.ident, seq & 0xFFFF, payload, now)

    def take(self) -> Echo | IcmpError | None:
        """The oldest reply, or error about a request; None when there is none."""
        return self._inbox.take()

    def deliver(self, item: Echo | IcmpError) -> bool:
        """Called by the stack: queue ``item`` if there is room."""
        if self._inbox.put(item):
            return True
        self.dropped += 1
        return False

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        if self._icmp is not None:
            self._icmp.forget(self)
            self._icmp = None
            self._inbox.clear()


@final
class IcmpEndpoint(Endpoint):
    """Takes the echo requests to addresses that are not the stack's own: what a gateway has to carry on.

    Event: DATAGRAM when there is something to `take`. At most 256 requests and 256 KiB wait; more are dropped.
    """

    __slots__ = ("_icmp", "_inbox", "dropped")

    def __init__(self, icmp: Icmp) -> None:
        super().__init__()
        self._icmp: Icmp | None = icmp
        self._inbox: Inbox[Echo] = Inbox(_size, max_items=_MAX_ITEMS, max_bytes=_MAX_BYTES)
        self.dropped = 0

    def take(self) -> Echo | None:
        """The oldest request, None when there is none."""
        return self._inbox.take()

    def send_reply(self, source: bytes, destination: bytes, ident: int, seq: int, payload: bytes, now: Micros) -> bool:
        """Answer in the name of ``source``; False when it was dropped."""
        return self._icmp is not None and self._icmp.send_reply(source, destination, ident, seq, payload, now)

    def deliver(self, request: Echo) -> bool:
        """Called by the stack: queue ``request`` if there is room."""
        if self._inbox.put(request):
            return True
        self.dropped += 1
        return False

    def close(self) -> None:
        """Stop receiving. Idempotent."""
        if self._icmp is not None:
            self._icmp.forget(self)
            self._icmp = None
            self._inbox.clear()


@final
class Icmp:
    """The ICMP of one stack.

    Args:
        errors_per_second, error_burst: limit of the errors that are generated (RFC 1812 section 4.3.2.8).
        max_pings: ping endpoints that may be open at once.
    """

    __slots__ = ("_addressing", "_any", "_bucket", "_counters", "_idents", "_output", "_pings", "_signals", "max_pings")

    def __init__(
        self,
        addressing: Addressing,
        output: IpOutput,
        signals: Signals,
        counters: Counters,
        *,
        errors_per_second: int,
        error_burst: int,
        max_pings: int,
        seed: int,
    ) -> None:
        self._addressing = addressing
        self._output = output
        self._signals = signals
        self._counters = counters
        self._bucket = TokenBucket(errors_per_second, error_burst)
        self._idents = EphemeralPorts(seed, "ping")
        self._pings: dict[int, PingEndpoint] = {}
        self._any: IcmpEndpoint | None = None
        self.max_pings = max_pings

    def __len__(self) -> int:
        return len(self._pings)

    # ----------------------------------------------------------------------------------------------------- endpoints

    def open_ping(self) -> PingEndpoint | None:
        """A new endpoint with an identifier of its own, None when `max_pings` are open."""
        if len(self._pings) >= self.max_pings:
            return None
        ident = self._idents.pick(self._pings.__contains__)
        if ident is None:
            return None
        endpoint = self._pings[ident] = PingEndpoint(self, ident)
        return endpoint

    def open_any(self) -> IcmpEndpoint | None:
        """The catch-all endpoint, None when there is one already."""
        if self._any is not None:
            return None
        self._any = IcmpEndpoint(self)
        return self._any

    def forget(self, endpoint: PingEndpoint | IcmpEndpoint) -> None:
        """Called by an endpoint that closes."""
        if endpoint is self._any:
            self._any = None
        elif isinstance(endpoint, PingEndpoint):
            self._pings.pop(endpoint.ident, None)

    # ----------------------------------------------------------------------------------------------------- receiving

    def on_packet_untrusted(self, packet: Packet, now: Micros) -> IcmpError | None:
        """Take one ICMP message whose checksum holds, sent to one host. Returns the error it reports, if any."""
        message = icmp.parse_untrusted(packet.frame, packet.l4, packet.end, self._counters)
        if message is None:
            return None
        kind = message.kind
        if kind == icmp.ECHO_REQUEST:
            self._on_request(packet, now)
        elif kind == icmp.ECHO_REPLY:
            self._on_reply(packet)
        elif kind in _REPORTED:
            return self._on_error_untrusted(packet, message)
        elif kind == icmp.SOURCE_QUENCH:
            self._counters.bump("icmp.source_quench_ignored")
        elif kind == icmp.REDIRECT:
            self._counters.bump("icmp.redirect_ignored")
        else:
            # RFC 1122 section 3.2.2: silently.
            self._counters.bump("icmp.unknown_type")
        return None

    def _on_request(self, packet: Packet, now: Micros) -> None:
        if packet.dst in self._addressing.own:
            self._counters.bump("icmp.echo_replied")
            request = Echo(packet)
            self.send_reply(packet.dst, packet.src, request.ident, request.seq, request.payload, now)
        elif self._any is None:
            self._counters.bump("icmp.echo_ignored")
        elif self._any.deliver(Echo(packet)):
            self._signals.signal(self._any, DATAGRAM)
        else:
            self._counters.bump("icmp.queue_full")

    def _on_reply(self, packet: Packet) -> None:
        reply = Echo(packet)
        endpoint = self._pings.get(reply.ident)
        if endpoint is None or packet.dst not in self._addressing.own:
            self._counters.bump("icmp.reply_unexpected")
        elif endpoint.deliver(reply):
            self._signals.signal(endpoint, DATAGRAM)
        else:
            self._counters.bump("icmp.queue_full")

    def _on_error_untrusted(self, packet: Packet, message: icmp.Message) -> IcmpError | None:
        """Read what an error quotes: the start of a packet of ours, or it is no business of ours."""
        quote = icmp.parse_quote_untrusted(packet.frame, message.start, message.end, self._counters)
        if quote is None:
            return None
        # Whoever is told of the error sent the packet; and a later fragment does not say whose it is.
        if quote.src != packet.dst or quote.fragment & IP_OFFSET:
            self._counters.bump("icmp.foreign_quote")
            return None
        self._counters.bump("icmp.errors_received")
        quoted = packet.frame[message.start : message.end]
        return IcmpError(message.kind, message.code, message.rest, packet.src, quote, quoted)

    def on_error(self, error: IcmpError) -> bool:
        """Hand an error about an echo request of ours to its endpoint; False when there is none."""
        if error.quoted[(error.quoted[0] & 15) << 2] != icmp.ECHO_REQUEST:
            return False
        endpoint = self._pings.get(error.quote.seq >> 16)
        if endpoint is None:
            return False
        if endpoint.deliver(error):
            self._signals.signal(endpoint, DATAGRAM)
        else:
            self._counters.bump("icmp.queue_full")
        return True

    # ------------------------------------------------------------------------------------------------------- sending

    def send_request(self, destination: bytes, ident: int, seq: int, payload: bytes, now: Micros) -> bool:
        """Send an echo request from the address that leads to ``destination``."""
        source = self._addressing.source_address(destination)
        if source is None:
            self._counters.bump("ipv4.no_route")
            return False
        return self._send(source, destination, icmp.build_echo(icmp.ECHO_REQUEST, ident, seq, payload), now)

    def send_reply(self, source: bytes, destination: bytes, ident: int, seq: int, payload: bytes, now: Micros) -> bool:
        """Send an echo reply; its data is the request's (RFC 1122 section 3.2.2.6)."""
        return self._send(source, destination, icmp.build_echo(icmp.ECHO_REPLY, ident, seq, payload), now)

    def _send(self, source: bytes, destination: bytes, message: bytes, now: Micros) -> bool:
        return self._output.send(source, destination, PROTO_ICMP, message[:8], memoryview(message)[8:], now)

    def send_error(
        self, about: Packet | bytes, kind: int, code: int, *, source: bytes, extra: int = 0, now: Micros
    ) -> bool:
        """Report an error about a packet to its sender, unless RFC 1122 section 3.2.2 forbids it or too many were sent.

        Args:
            about: the packet, or its first bytes from the IP header on (at least the header and 8 more).
            source: in whose name; one of our addresses, or the one that the packet was sent to.
            extra: the second word of the ICMP header (the next-hop MTU, a pointer).
        """
        if isinstance(about, Packet):
            original = about.frame[about.l3 : about.end]
            deserved = icmp.may_report(about)
        else:
            original = about
            deserved = True
        if not deserved or not self._deserves_error(original):
            self._counters.bump("icmp.error_suppressed")
            return False
        if not self._bucket.take(now):
            self._counters.bump("icmp.error_rate_limited")
            return False
        self._counters.bump("icmp.errors_sent")
        return self._send(source, original[12:16], icmp.build_error(kind, code, original, extra), now)

    def _deserves_error(self, original: bytes) -> bool:
        """Not for an error, a group, a later fragment, or a sender that is not one host (RFC 1122 section 3.2.2)."""
        header = (original[0] & 15) << 2 if original else 0
        if header < 20 or original[0] >> 4 != 4 or len(original) <= header:
            return False
        if int.from_bytes(original[6:8], "big") & IP_OFFSET:
            return False
        if original[9] == PROTO_ICMP and original[header] in icmp.ERRORS:
            return False
        source, destination = original[12:16], original[16:20]
        return self._addressing.is_valid_peer(source) and self._addressing.is_valid_peer(destination)
