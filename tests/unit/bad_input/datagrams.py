"""UDP, ARP and DHCP: see `tests.unit.test_bad_input`."""

from __future__ import annotations

from pystack.testing.frames import Crafter, packed
from pystack.wire import arp, dhcp
from pystack.wire.packet import (
    ETHERTYPE_ARP,
    PROTO_UDP,
)
from tests.unit.bad_input.bench import ATTACKER, ATTACKER_MAC, EVERYBODY, SERVER, Bench, Row, frames, no_answer


def empty_datagram_from_the_host(bench: Bench) -> None:
    """11: delivered once, and nothing spins."""
    bench.send(bench.wire.udp(7, 53, b"?"))
    flow = bench.rig.host.udp[-1][0]
    bench.rig.gateway.udp.received(flow, b"", (packed(SERVER), 53), bench.rig.now)
    bench.rig.settle()
    (answer,) = bench._take()
    assert (answer.proto, answer.payload_len) == (PROTO_UDP, 0)
    bench.run(1)
    assert len(bench.answers) == 1


def many_udp_flows(bench: Bench) -> None:
    for number in range(20_000):
        bench.rig.gateway.receive(bench.wire.udp(1 + number, 53, b"?"), bench.rig.now)
        if not number % 200:
            bench.rig.settle()
    bench.rig.settle()
    assert bench.rig.gateway.sizes()["udp_flows"] <= 4096


def udp_faster_than_it_is_taken(bench: Bench) -> None:
    for _ in range(3000):
        bench.rig.gateway._stack.receive(bench.wire.udp(7, 53, bytes(1400)), bench.rig.now)
    bench.rig.settle()


def arp_scan(bench: Bench) -> None:
    for number in range(16, 255):
        frame = bench.to_gateway.but(src=f"10.0.2.{number}").arp_request()
        bench.rig.gateway.receive(frame, bench.rig.now)
    bench.rig.settle()
    assert bench.rig.gateway.sizes()["neighbours"] <= 256


def arp_from_a_group(bench: Bench) -> bytes:
    message = arp.build(arp.REQUEST, sha=EVERYBODY, spa=packed(ATTACKER), tha=bytes(6), tpa=packed("10.0.2.2"))
    return bench.wire.ethernet(ETHERTYPE_ARP, message)


def arp_for_special_addresses(bench: Bench) -> None:
    before = bench.rig.gateway.sizes()["neighbours"]
    for source in ("0.0.0.0", "0.0.0.9", "127.0.0.1", "224.0.0.1", "255.255.255.255", "10.0.2.255", "10.0.2.2"):
        spoofed = bench.to_gateway.but(src=source)
        for frame in (spoofed.arp_request("10.0.2.200"), spoofed.arp_reply(), spoofed.udp(1, 53)):
            bench.rig.gateway.receive(frame, bench.rig.now)
    bench.rig.settle()
    assert bench.rig.gateway.sizes()["neighbours"] == before


def dhcp_exhaustion(bench: Bench) -> None:
    client = Crafter("0.0.0.0", "255.255.255.255", src_mac=ATTACKER_MAC, dst_mac=EVERYBODY)
    for number in range(2000):
        mac = b"\x02\1\1\1" + number.to_bytes(2, "big")
        message = dhcp.build(dhcp.request(mac, number, {dhcp.OPT_MESSAGE_TYPE: bytes((dhcp.DISCOVER,))}))
        frame = client.but(src_mac=mac).udp(dhcp.CLIENT_PORT, dhcp.SERVER_PORT, message)
        bench.rig.gateway.receive(frame, bench.rig.now)
    bench.rig.settle()


PADDED_DISCOVER = dhcp.build(dhcp.request(ATTACKER_MAC, 9, {dhcp.OPT_MESSAGE_TYPE: bytes((dhcp.DISCOVER,))}))


def dhcp_end_and_pad(bench: Bench) -> None:
    """As in passt 7d0c077: what follows the end is nothing, and a pad has no length."""
    client = Crafter("0.0.0.0", "255.255.255.255", src_mac=ATTACKER_MAC, dst_mac=EVERYBODY)
    message = PADDED_DISCOVER[:240] + b"\0\0\x35\x01\x01\0\xff\x40\x40\x40"
    before = len(bench.rig.to_guest)
    bench.send(client.udp(dhcp.CLIENT_PORT, dhcp.SERVER_PORT, message))
    assert len(bench.rig.to_guest) == before + 1, "it is a good message"


ROWS = [
    # UDP
    Row("3: source port 0", no_answer(lambda b: b.wire.udp(0, 53, b"?")), "udp.zero_port"),
    Row("passt: destination port 0", no_answer(lambda b: b.wire.udp(53, 0, b"?")), "udp.zero_port"),
    Row("11: empty datagram from the host", empty_datagram_from_the_host, "slirp.udp_flows"),
    Row("UDP from thousands of ports", many_udp_flows, "slirp.udp_evicted|slirp.udp_table_full"),
    Row("UDP faster than it is taken", udp_faster_than_it_is_taken, "udp.queue_full"),
    # ARP
    Row("2, 22: ARP for addresses nobody has", arp_for_special_addresses, "arp.bad_sender"),
    Row("ARP from everybody", arp_scan, "arp.learned"),
    Row("ARP sender is a group", frames(arp_from_a_group), "arp.bad_sender"),
    Row(
        "ARP sender is us", frames(lambda b: b.wire.but(src="10.0.2.2").arp_request("10.0.2.2")), "arp.address_conflict"
    ),
    Row(
        "ARP reply that nobody asked for",
        frames(lambda b: b.to_gateway.but(src="10.0.2.99").arp_reply()),
        "arp.unsolicited",
    ),
    # DHCP
    Row("DHCP from thousands of clients", dhcp_exhaustion, "dhcp.pool_exhausted"),
    Row("DHCP with pad, end and bytes behind it", dhcp_end_and_pad, "dhcp.offer"),
]
