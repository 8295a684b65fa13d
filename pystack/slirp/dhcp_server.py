"""The DHCP server of the guest's network.

Read before editing: RFC 2131 sections 3 and 4.1 (where a reply goes) and 4.3 (what a server does), RFC 2132.

One deviation, as in other servers that know themselves to be the only one on their link: a client that asks for the
address of a lease which is not on record (section 4.3.2, INIT-REBOOT and after) gets it if it is free, where the RFC
has the server stay silent. A guest thereby keeps its address when the gateway was restarted.

Counters: ``dhcp.discover``, ``.request``, ``.decline``, ``.release``, ``.inform`` for what came, ``dhcp.offer``,
``.ack``, ``.nak`` for what was answered, and for what was not: ``dhcp.not_a_request``, ``.bad_hardware_address``,
``.relayed``, ``.no_message_type``, ``.unknown_message_type``, ``.other_server``, ``.pool_exhausted``,
``.bad_client_address``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, final

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.slirp.plan import AddressPlan
from pystack.wire import dhcp, ethernet

LEASE_SECONDS: Final = 86_400
OFFER_HOLD: Final[Micros] = 60 * SECOND
"""How long an offered address is kept for the client to ask for it."""
DECLINED_HOLD: Final[Micros] = 600 * SECOND
"""How long an address is not leased after a client found it in use."""

_ZERO: Final = bytes(4)
_ALL: Final = b"\xff" * 4
_ETHERNET: Final = 1
_MAC_BYTES: Final = 6
_SMALLEST_MAXIMUM: Final = 576  # what every client takes (RFC 2131 section 2)
_IP_AND_UDP: Final = 28


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DhcpConfig:
    """What clients are told beside their address.

    Attributes:
        mtu: of the link, in bytes. dns: whether our DNS address is given as the resolver.
        domain, search: domain names, "" and () for none. lease_seconds: RFC 2131 section 3.3.
        reserved: addresses that are never leased, 4 bytes each.
    """

    mtu: int = 1500
    dns: bool = True
    domain: str = ""
    search: tuple[str, ...] = ()
    lease_seconds: int = LEASE_SECONDS
    reserved: frozenset[bytes] = frozenset()


class Reply(NamedTuple):
    """What to send, from port 67 to port 68: ``mac`` is None where ARP or broadcast gives the Ethernet address."""

    payload: bytes
    address: bytes
    mac: bytes | None


@final
@dataclass(slots=True)
class Lease:
    """An address and whose it is until ``expires_at``; ``bound`` once it was acknowledged, an offer before that."""

    address: bytes
    mac: bytes
    expires_at: Micros
    bound: bool = False


@final
class DhcpServer:
    """The leases. At most one for each address of the pool, so that nothing a client sends makes it grow.

    Raises:
        UsageError: a domain that is none.
    """

    def __init__(self, plan: AddressPlan, config: DhcpConfig, counters: Counters) -> None:
        self._plan = plan
        self._config = config
        self._counters = counters
        self._pool = tuple(address for address in plan.pool if address not in config.reserved)
        self._leases: dict[bytes, Lease] = {}  # by client identifier
        self._declined: dict[bytes, Micros] = {}  # address -> until when
        self._options = self._network_options()
        self._handlers: Final = {
            dhcp.DISCOVER: ("dhcp.discover", self._discover),
            dhcp.REQUEST: ("dhcp.request", self._request),
            dhcp.DECLINE: ("dhcp.decline", self._decline),
            dhcp.RELEASE: ("dhcp.release", self._release),
            dhcp.INFORM: ("dhcp.inform", self._inform),
        }
        self.latest: bytes | None = None
        """The address that was acknowledged last."""

    def leases(self, now: Micros) -> list[Lease]:
        """The leases that are bound and not expired."""
        return [lease for lease in self._leases.values() if lease.bound and lease.expires_at > now]

    def handle_untrusted(self, payload: bytes, now: Micros) -> Reply | None:
        """Take one datagram that arrived at port 67, and return the answer if there is one."""
        message = dhcp.parse_untrusted(payload, self._counters)
        if message is None:
            return None
        header = message.header
        reason = ""
        if header.op != dhcp.BOOTREQUEST:
            reason = "dhcp.not_a_request"
        elif header.htype != _ETHERNET or header.hlen != _MAC_BYTES or ethernet.is_group(message.mac):
            reason = "dhcp.bad_hardware_address"
        elif header.giaddr != _ZERO:
            reason = "dhcp.relayed"
        elif message.message_type is None:
            reason = "dhcp.no_message_type"
        elif message.message_type not in self._handlers:
            reason = "dhcp.unknown_message_type"
        if reason:
            self._counters.bump(reason)
            return None
        name, handler = self._handlers[message.message_type or 0]
        self._counters.bump(name)
        return handler(message, now)

    # ------------------------------------------------------------------------------------- one method per message type

    def _discover(self, message: dhcp.Message, now: Micros) -> Reply | None:
        lease = self._lease_of(message, now)
        address = lease.address if lease else self._choose(message, now)
        if address is None:
            self._counters.bump("dhcp.pool_exhausted")
            return None
        if lease is None:
            self._bind(message, address, now + OFFER_HOLD)
        self._counters.bump("dhcp.offer")
        return self._reply(message, dhcp.OFFER, address, lease=True)

    def _request(self, message: dhcp.Message, now: Micros) -> Reply | None:
        if message.server_id is not None and message.server_id != self._plan.gateway:
            self._counters.bump("dhcp.other_server")
            self._forget_offer(message)
            return None
        # SELECTING and INIT-REBOOT name the address in an option, RENEWING and REBINDING in ciaddr (table 4).
        wanted = message.requested_address or message.header.ciaddr
        lease = self._lease_of(message, now)
        if lease is None and message.server_id is None and self._is_free(wanted, now):
            lease = self._bind(message, wanted, now)
        if lease is None or lease.address != wanted:
            self._counters.bump("dhcp.nak")
            return Reply(dhcp.build(self._message(message, dhcp.NAK, _ZERO, lease=False)), _ALL, None)
        lease.bound = True
        self.latest = lease.address
        lease.expires_at = now + self._config.lease_seconds * SECOND
        self._counters.bump("dhcp.ack")
        return self._reply(message, dhcp.ACK, wanted, lease=True)

    def _decline(self, message: dhcp.Message, now: Micros) -> Reply | None:
        lease = self._leases.get(message.client_id)
        if lease is not None and lease.address == message.requested_address:
            del self._leases[message.client_id]
            self._declined[lease.address] = now + DECLINED_HOLD
        return None

    def _release(self, message: dhcp.Message, _now: Micros) -> Reply | None:
        lease = self._leases.get(message.client_id)
        if lease is not None and lease.address == message.header.ciaddr:
            del self._leases[message.client_id]
        return None

    def _inform(self, message: dhcp.Message, _now: Micros) -> Reply | None:
        if not self._plan.may_be_guest(message.header.ciaddr):
            self._counters.bump("dhcp.bad_client_address")
            return None
        self._counters.bump("dhcp.ack")
        return self._reply(message, dhcp.ACK, _ZERO, lease=False)

    # --------------------------------------------------------------------------------------------------------- leases

    def _lease_of(self, message: dhcp.Message, now: Micros) -> Lease | None:
        """The client's lease or offer, unless it has expired and somebody else may have it."""
        lease = self._leases.get(message.client_id)
        return lease if lease is not None and lease.expires_at > now else None

    def _is_free(self, address: bytes, now: Micros) -> bool:
        if address not in self._pool or self._declined.get(address, 0) > now:
            return False
        return not any(lease.address == address and lease.expires_at > now for lease in self._leases.values())

    def _choose(self, message: dhcp.Message, now: Micros) -> bytes | None:
        """RFC 2131 section 4.3.1: the address it had before, the one it asks for, or the first free one."""
        expired = self._leases.get(message.client_id)
        for address in (expired.address if expired else None, message.requested_address, *self._pool):
            if address is not None and self._is_free(address, now):
                return address
        return None

    def _bind(self, message: dhcp.Message, address: bytes, until: Micros) -> Lease:
        """Give ``address`` to the client; whoever had it before and let it expire loses the record of it."""
        for client in [client for client, lease in self._leases.items() if lease.address == address]:
            del self._leases[client]
        lease = self._leases[message.client_id] = Lease(address, message.mac, until)
        return lease

    def _forget_offer(self, message: dhcp.Message) -> None:
        lease = self._leases.get(message.client_id)
        if lease is not None and not lease.bound:
            del self._leases[message.client_id]

    # -------------------------------------------------------------------------------------------------------- replies

    def _reply(self, message: dhcp.Message, kind: int, address: bytes, *, lease: bool) -> Reply:
        """Where it goes: RFC 2131 section 4.1."""
        payload = dhcp.build(self._message(message, kind, address, lease=lease))
        header = message.header
        if header.ciaddr != _ZERO:
            return Reply(payload, header.ciaddr, None)
        if header.flags & dhcp.FLAG_BROADCAST:
            return Reply(payload, _ALL, None)
        return Reply(payload, address, message.mac)

    def _message(self, message: dhcp.Message, kind: int, address: bytes, *, lease: bool) -> dhcp.Message:
        """Table 3 of RFC 2131."""
        options = {
            dhcp.OPT_MESSAGE_TYPE: dhcp.encode_number(kind, 1),
            dhcp.OPT_SERVER_ID: self._plan.gateway,
        }
        if lease:
            seconds = self._config.lease_seconds
            options[dhcp.OPT_LEASE_SECONDS] = dhcp.encode_number(seconds, 4)
            options[dhcp.OPT_RENEWAL_SECONDS] = dhcp.encode_number(seconds // 2, 4)
            options[dhcp.OPT_REBINDING_SECONDS] = dhcp.encode_number(seconds * 7 // 8, 4)
        header = message.header
        ciaddr = header.ciaddr if kind == dhcp.ACK else _ZERO
        if kind == dhcp.NAK:
            header = header._replace(flags=dhcp.FLAG_BROADCAST)
        else:
            options |= self._options
        made = dhcp.reply(header._replace(ciaddr=ciaddr), options, yiaddr=address)
        limit = max(message.max_message_bytes or 0, _SMALLEST_MAXIMUM) - _IP_AND_UDP
        if len(dhcp.build(made)) > limit:
            del options[dhcp.OPT_DOMAIN_SEARCH]  # the only one that can be long
        return made

    def _network_options(self) -> dict[int, bytes]:
        plan, config = self._plan, self._config
        options = {
            dhcp.OPT_SUBNET_MASK: plan.netmask,
            dhcp.OPT_ROUTERS: plan.gateway,
            dhcp.OPT_BROADCAST: plan.broadcast,
            dhcp.OPT_MTU: dhcp.encode_number(config.mtu, 2),
        }
        if config.dns:
            options[dhcp.OPT_DNS_SERVERS] = plan.dns
        if config.domain:
            options[dhcp.OPT_DOMAIN_NAME] = config.domain.encode()
        if config.search:
            try:
                options[dhcp.OPT_DOMAIN_SEARCH] = dhcp.encode_domain_search(config.search)
            except ValueError as error:
                raise UsageError(f"{error}; correct the search list.") from None
        return options
