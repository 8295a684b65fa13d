"""Echo requests beyond the gateway: carried by the host's ping sockets, which need no privileges.

Read before editing: RFC 792 (echo), RFC 5508 section 3 (NAT behaviour: the identifier is what maps). A ping socket
(SOCK_DGRAM, IPPROTO_ICMP) has an identifier that the host's kernel chooses, so the guest's comes back only here.
"""

from __future__ import annotations

from typing import Final, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.net.icmp import Echo, IcmpEndpoint
from pystack.net.limits import TokenBucket
from pystack.slirp.nat import PING_IDLE, IdleTable, PingFlow
from pystack.slirp.plan import AddressPlan
from pystack.slirp.policy import LOOPBACK, Policy
from pystack.slirp.quote import echo_quote
from pystack.slirp.requests import PING_CLOSE, PING_SEND, HostRequest
from pystack.slirp.tcp_nat import UNREACHABLE_CODES
from pystack.stack import Stack
from pystack.wire.icmp import ADMIN_PROHIBITED, UNREACHABLE

_UNAVAILABLE_PER_SECOND: Final = 1


@final
class PingNat:
    """The table of echo identifiers in use.

    Args:
        endpoint: the stack's catch-all endpoint for echo requests.
        requests: where requests to the host are put.
        limit: flows at most; the one unused for longest gives way.
    """

    def __init__(
        self,
        stack: Stack,
        endpoint: IcmpEndpoint,
        plan: AddressPlan,
        policy: Policy,
        requests: list[HostRequest],
        *,
        limit: int,
    ) -> None:
        self._stack = stack
        self._endpoint = endpoint
        self._plan = plan
        self._policy = policy
        self._requests = requests
        self._counters: Counters = stack.counters
        self._flows: IdleTable[tuple[bytes, int], PingFlow] = IdleTable(limit=limit, idle=PING_IDLE)
        self._unavailable = TokenBucket(_UNAVAILABLE_PER_SECOND, 1)

    def __len__(self) -> int:
        return len(self._flows)

    def on_requests(self, now: Micros) -> None:
        """Take the echo requests that the guest sent."""
        while (echo := self._endpoint.take()) is not None:
            self._forward(echo, now)

    def _forward(self, echo: Echo, now: Micros) -> None:
        if not self._plan.may_be_guest(echo.source):
            self._counters.bump("slirp.foreign_source")
            return
        address = self._policy.host_address(echo.destination)
        if address is None:
            self._counters.bump("slirp.ping_refused_by_policy")
            self._stack.send_icmp_error(echo.packet, UNREACHABLE, ADMIN_PROHIBITED, source=self._plan.gateway, now=now)
            return
        key = echo.source, echo.ident
        flow = self._flows.use(key, now)
        if flow is None:
            flow = PingFlow(*key)
            evicted = self._flows.add(key, flow, now)
            if evicted is not None:
                self._requests.append((PING_CLOSE, evicted, None))
        self._counters.bump("slirp.pings")
        self._requests.append((PING_SEND, flow, (address, echo.seq, echo.packet.ttl, echo.payload)))

    def reply(self, flow: PingFlow, source: bytes, seq: int, payload: bytes, now: Micros) -> None:
        """An echo reply arrived on the flow's socket."""
        seen = self._policy.guest_address(source)
        if seen is None or self._flows.use((flow.guest, flow.ident), now) is not flow:
            self._counters.bump("slirp.ping_unwanted_reply")
            return
        self._endpoint.send_reply(seen, flow.guest, flow.ident, seq, payload, now)

    def icmp_error(
        self,
        flow: PingFlow,
        destination: bytes,
        seq: int,
        error: tuple[int, int, int],
        offender: bytes | None,
        payload: bytes,
        now: Micros,
    ) -> None:
        """The host got an ICMP error about a request of the flow; see `UdpNat.icmp_error`."""
        address = self._plan.gateway if destination == LOOPBACK else destination
        about = echo_quote(flow.guest, address, flow.ident, seq, payload)
        reporter = self._plan.gateway if offender is None else self._policy.guest_address(offender)
        self._counters.bump("slirp.icmp_errors_relayed")
        kind, code, extra = error
        self._stack.send_icmp_error(about, kind, code, source=reporter or self._plan.gateway, extra=extra, now=now)

    def send_failed(
        self, flow: PingFlow, destination: bytes, seq: int, number: int, payload: bytes, now: Micros
    ) -> None:
        """The request could not be sent (``number``: an errno)."""
        code = UNREACHABLE_CODES.get(number)
        if code is None:
            self._counters.bump("slirp.ping_not_sent")
        else:
            self.icmp_error(flow, destination, seq, (UNREACHABLE, code, 0), None, payload, now)

    def unavailable(self, flow: PingFlow, destination: bytes, seq: int, payload: bytes, now: Micros) -> None:
        """The host gives this user no ping sockets (net.ipv4.ping_group_range): say so, once a second at most."""
        self._counters.bump("slirp.ping_unavailable")
        self._flows.remove((flow.guest, flow.ident))
        if self._unavailable.take(now):
            self.icmp_error(flow, destination, seq, (UNREACHABLE, ADMIN_PROHIBITED, 0), None, payload, now)

    def tick(self, now: Micros) -> None:
        """Close what has been idle for too long."""
        self._requests.extend((PING_CLOSE, flow, None) for flow in self._flows.expire(now))

    def next_timeout(self) -> Micros | None:
        """When the next one expires, None if there is none."""
        return self._flows.next_timeout()

    def check(self) -> None:
        """Verify the invariants; for tests."""
        self._flows.check()
