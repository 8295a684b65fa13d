"""The DHCP server, message by message, and through the gateway."""

from __future__ import annotations

import pytest

from pystack.clock import SECOND
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.slirp import dhcp_server
from pystack.slirp.dhcp_server import DhcpConfig, DhcpServer, Reply
from pystack.slirp.plan import AddressPlan
from pystack.testing.frames import Crafter
from pystack.wire import dhcp
from tests.unit.slirp.fake_host import GUEST_MAC, Rig
from tests.unit.slirp.test_plan_and_policy import ip

PLAN = AddressPlan.from_cidr()
MAC = b"\x52\x54\0\x12\x34\x56"
OTHER_MAC = b"\x52\x54\0\x12\x34\x57"
ALL = b"\xff" * 4


class Client:
    def __init__(self, server: DhcpServer, mac: bytes = MAC) -> None:
        self.server = server
        self.mac = mac

    def say(
        self, kind: int, now: int = 0, *, ciaddr: bytes = bytes(4), flags: int = 0, **options: bytes
    ) -> Reply | None:
        codes = {getattr(dhcp, f"OPT_{name.upper()}"): value for name, value in options.items()}
        codes[dhcp.OPT_MESSAGE_TYPE] = bytes((kind,))
        message = dhcp.request(self.mac, 77, codes, ciaddr=ciaddr, flags=flags)
        return self.server.handle_untrusted(dhcp.build(message), now)

    def answer(self, kind: int, now: int = 0, **fields: object) -> dhcp.Message:
        reply = self.say(kind, now, **fields)  # type: ignore[arg-type]
        assert reply is not None
        message = dhcp.parse_untrusted(reply.payload, Counters())
        assert message is not None
        return message

    def lease(self, now: int = 0) -> bytes:
        offer = self.answer(dhcp.DISCOVER, now)
        ack = self.answer(dhcp.REQUEST, now, requested_address=offer.header.yiaddr, server_id=offer.server_id or b"")
        assert ack.message_type == dhcp.ACK
        return ack.header.yiaddr


def served(**config: object) -> tuple[DhcpServer, Counters]:
    counters = Counters()
    return DhcpServer(PLAN, DhcpConfig(**config), counters), counters  # type: ignore[arg-type]


def test_a_client_is_offered_the_first_address_and_gets_it() -> None:
    server, counters = served(mtu=9000, domain="lan", search=("a.example", "b.example"))
    client = Client(server)
    offer = client.answer(dhcp.DISCOVER)
    assert offer.message_type == dhcp.OFFER
    assert offer.header.yiaddr == ip("10.0.2.15")
    assert offer.header.xid == 77
    assert offer.server_id == ip("10.0.2.2")
    ack = client.answer(dhcp.REQUEST, requested_address=ip("10.0.2.15"), server_id=ip("10.0.2.2"))
    assert ack.message_type == dhcp.ACK
    assert ack.header.yiaddr == ip("10.0.2.15")
    assert ack.lease_seconds == 86_400
    assert ack.addresses(dhcp.OPT_SUBNET_MASK) == (ip("255.255.255.0"),)
    assert ack.addresses(dhcp.OPT_ROUTERS) == (ip("10.0.2.2"),)
    assert ack.addresses(dhcp.OPT_DNS_SERVERS) == (ip("10.0.2.3"),)
    assert ack.addresses(dhcp.OPT_BROADCAST) == (ip("10.0.2.255"),)
    assert ack.options[dhcp.OPT_MTU] == (9000).to_bytes(2, "big")
    assert ack.options[dhcp.OPT_DOMAIN_NAME] == b"lan"
    assert dhcp.decode_domain_search_untrusted(ack.options[dhcp.OPT_DOMAIN_SEARCH]) == (
        b"\x01a\x07example\0", b"\x01b\x07example\0",
    )  # fmt: skip
    assert counters.snapshot() == {"dhcp.discover": 1, "dhcp.offer": 1, "dhcp.request": 1, "dhcp.ack": 1}
    assert [lease.address for lease in server.leases(0)] == [ip("10.0.2.15")]


def test_without_dns_none_is_told() -> None:
    server, _ = served(dns=False)
    assert dhcp.OPT_DNS_SERVERS not in Client(server).answer(dhcp.DISCOVER).options


def test_a_search_list_too_long_for_the_client_is_left_out() -> None:
    server, _ = served(search=tuple(f"{'x' * 60}{n}.example" for n in range(8)))
    assert dhcp.OPT_DOMAIN_SEARCH not in Client(server).answer(dhcp.DISCOVER).options
    told = Client(server).answer(dhcp.DISCOVER, max_message=(1500).to_bytes(2, "big"))
    assert dhcp.OPT_DOMAIN_SEARCH in told.options


def test_a_search_list_that_is_none_is_the_users_error() -> None:
    with pytest.raises(UsageError):
        served(search=("a..b",))


def test_a_client_keeps_its_address() -> None:
    server, _ = served()
    client, other = Client(server), Client(server, OTHER_MAC)
    assert client.lease() == ip("10.0.2.15")
    assert other.lease() == ip("10.0.2.16")
    assert client.lease(10 * SECOND) == ip("10.0.2.15")
    expired = (dhcp_server.LEASE_SECONDS + 100) * SECOND
    assert other.lease(expired) == ip("10.0.2.16")
    assert server.leases(expired)[0].address == ip("10.0.2.16")


def test_a_client_may_ask_for_an_address() -> None:
    server, _ = served()
    offer = Client(server).answer(dhcp.DISCOVER, requested_address=ip("10.0.2.20"))
    assert offer.header.yiaddr == ip("10.0.2.20")
    outside = Client(server, OTHER_MAC).answer(dhcp.DISCOVER, requested_address=ip("10.0.2.100"))
    assert outside.header.yiaddr == ip("10.0.2.15")


def test_reserved_addresses_are_never_leased() -> None:
    server, _ = served(reserved=frozenset({ip("10.0.2.15")}))
    assert Client(server).lease() == ip("10.0.2.16")
    refused = Client(server, OTHER_MAC).answer(dhcp.REQUEST, requested_address=ip("10.0.2.15"))
    assert refused.message_type == dhcp.NAK


def test_a_client_that_reboots_or_renews_keeps_its_lease_even_if_we_forgot_it() -> None:
    server, _ = served()
    rebooting = Client(server).answer(dhcp.REQUEST, requested_address=ip("10.0.2.17"))
    assert (rebooting.message_type, rebooting.header.yiaddr) == (dhcp.ACK, ip("10.0.2.17"))
    reply = Client(server).say(dhcp.REQUEST, ciaddr=ip("10.0.2.17"))
    assert reply is not None
    assert reply.address == ip("10.0.2.17")
    renewing = dhcp.parse_untrusted(reply.payload, Counters())
    assert renewing is not None
    assert (renewing.message_type, renewing.header.ciaddr) == (dhcp.ACK, ip("10.0.2.17"))


@pytest.mark.parametrize("wanted", ["10.0.2.16", "192.168.1.5", "10.0.2.2", "10.0.2.100", "0.0.0.0"])
def test_a_wrong_address_is_denied_by_broadcast(wanted: str) -> None:
    server, counters = served()
    Client(server, OTHER_MAC).lease()
    Client(server).lease()
    reply = Client(server, OTHER_MAC).say(dhcp.REQUEST, requested_address=ip(wanted))
    assert reply is not None
    assert (reply.address, reply.mac) == (ALL, None)
    message = dhcp.parse_untrusted(reply.payload, Counters())
    assert message is not None
    assert message.message_type == dhcp.NAK
    assert message.header.flags & dhcp.FLAG_BROADCAST
    assert message.header.yiaddr == bytes(4)
    assert counters["dhcp.nak"] == 1


def test_a_request_to_another_server_frees_the_offer() -> None:
    server, counters = served()
    Client(server).answer(dhcp.DISCOVER)
    assert Client(server).say(dhcp.REQUEST, requested_address=ip("10.0.2.15"), server_id=ip("10.0.2.9")) is None
    assert counters["dhcp.other_server"] == 1
    assert Client(server, OTHER_MAC).lease() == ip("10.0.2.15")


def test_release_frees_and_decline_keeps_away() -> None:
    server, _ = served()
    client = Client(server)
    client.lease()
    assert client.say(dhcp.RELEASE, ciaddr=ip("10.0.2.15")) is None
    assert Client(server, OTHER_MAC).lease() == ip("10.0.2.15")
    assert Client(server, OTHER_MAC).say(dhcp.DECLINE, requested_address=ip("10.0.2.15")) is None
    assert client.lease() == ip("10.0.2.16")
    later = dhcp_server.DECLINED_HOLD + 1
    assert Client(server, OTHER_MAC).lease(later) == ip("10.0.2.15")


def test_nobody_frees_anothers_lease() -> None:
    server, _ = served()
    Client(server).lease()
    Client(server, OTHER_MAC).say(dhcp.RELEASE, ciaddr=ip("10.0.2.15"))
    Client(server, OTHER_MAC).say(dhcp.DECLINE, requested_address=ip("10.0.2.15"))
    assert Client(server, OTHER_MAC).lease() == ip("10.0.2.16")


def test_the_pool_is_bounded_and_an_offer_that_nobody_takes_returns_to_it() -> None:
    server, counters = served()
    for number in range(1000):
        Client(server, b"\x52\x54\0\0" + number.to_bytes(2, "big")).say(dhcp.DISCOVER)
    assert counters["dhcp.offer"] == 16
    assert counters["dhcp.pool_exhausted"] == 984
    assert server.leases(0) == []
    assert Client(server).lease(dhcp_server.OFFER_HOLD + 1) in PLAN.pool


def test_inform_tells_the_network_without_a_lease() -> None:
    server, counters = served()
    ack = Client(server).answer(dhcp.INFORM, ciaddr=ip("10.0.2.100"))
    assert (ack.message_type, ack.header.yiaddr, ack.lease_seconds) == (dhcp.ACK, bytes(4), None)
    assert ack.addresses(dhcp.OPT_ROUTERS) == (ip("10.0.2.2"),)
    assert Client(server).say(dhcp.INFORM, ciaddr=ip("8.8.8.8")) is None
    assert counters["dhcp.bad_client_address"] == 1


@pytest.mark.parametrize(
    ("flags", "address", "mac"),
    [(dhcp.FLAG_BROADCAST, ALL, None), (0, ip("10.0.2.15"), MAC)],
    ids=["broadcast", "unicast"],
)
def test_a_reply_goes_where_the_client_can_hear_it(flags: int, address: bytes, mac: bytes | None) -> None:
    server, _ = served()
    reply = Client(server).say(dhcp.DISCOVER, flags=flags)
    assert reply is not None
    assert (reply.address, reply.mac) == (address, mac)


@pytest.mark.parametrize(
    ("counter", "change"),
    [
        ("dhcp.not_a_request", {"op": 2}),
        ("dhcp.bad_hardware_address", {"htype": 6}),
        ("dhcp.bad_hardware_address", {"hlen": 8}),
        ("dhcp.bad_hardware_address", {"chaddr": b"\xff" * 16}),
        ("dhcp.relayed", {"giaddr": ip("10.0.2.9")}),
    ],
)
def test_what_is_no_request_of_this_link_is_counted(counter: str, change: dict[str, object]) -> None:
    server, counters = served()
    message = dhcp.request(MAC, 1, {dhcp.OPT_MESSAGE_TYPE: b"\x01"})
    message = message._replace(header=message.header._replace(**change))  # type: ignore[arg-type]
    assert server.handle_untrusted(dhcp.build(message), 0) is None
    assert counters.snapshot() == {counter: 1}


@pytest.mark.parametrize(
    ("counter", "kind"),
    [("no_message_type", b""), ("unknown_message_type", b"\x09"), ("unknown_message_type", b"\x02")],
)
def test_a_message_of_no_type_that_a_client_sends_is_counted(counter: str, kind: bytes) -> None:
    server, counters = served()
    message = dhcp.request(MAC, 1, {dhcp.OPT_MESSAGE_TYPE: kind} if kind else {})
    assert server.handle_untrusted(dhcp.build(message), 0) is None
    assert counters.snapshot() == {f"dhcp.{counter}": 1}


def test_a_guest_without_an_address_gets_one_through_the_gateway_and_is_published() -> None:
    rig = Rig(guest="10.0.2.77")
    wire = Crafter("0.0.0.0", "255.255.255.255", src_mac=GUEST_MAC, dst_mac=b"\xff" * 6)
    asked = {dhcp.OPT_MESSAGE_TYPE: b"\x01", dhcp.OPT_REQUESTED_ADDRESS: ip("10.0.2.19")}
    rig.inject(wire.udp(68, 67, dhcp.build(dhcp.request(GUEST_MAC, 5, asked))))
    rig.settle()
    (offer,) = rig.to_guest
    assert offer[:6] == GUEST_MAC
    assert offer[26:34] == ip("10.0.2.2") + ip("10.0.2.19")
    taken = asked | {dhcp.OPT_MESSAGE_TYPE: b"\x03", dhcp.OPT_SERVER_ID: ip("10.0.2.2")}
    message = dhcp.request(GUEST_MAC, 5, taken, flags=dhcp.FLAG_BROADCAST)
    rig.inject(wire.udp(68, 67, dhcp.build(message)))
    rig.settle()
    ack = rig.to_guest[-1]
    assert ack[:6] == b"\xff" * 6
    assert ack[30:34] == ALL
    assert rig.gateway.guest == ip("10.0.2.19")
    assert [lease.mac for lease in rig.gateway.leases(rig.now)] == [GUEST_MAC]
