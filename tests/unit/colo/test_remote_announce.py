"""Where a machine is now, told over IPv6 (RFC 4861 section 7.2.6) as any neighbour would read it."""

from __future__ import annotations

from colo.remote.announce import MAX_ADDRESSES, Announcer
from pystack.counters import Counters
from pystack.wire import ethernet, ipv6, ndp, udp
from pystack.wire.packet import ETHERTYPE_IPV6, PROTO_UDP, Packet, parse_untrusted

MAC = bytes.fromhex("525400123456")
ADDRESS = bytes.fromhex("fd00c010") + bytes(11) + b"\x15"
SECOND = 1_000_000


def sent_from(address: bytes) -> Packet:
    """A datagram of the machine."""
    datagram = udp.build(src=address, dst=ADDRESS, sport=1, dport=2, payload=b"x")
    header = ipv6.build_header(src=address, dst=ADDRESS, next_header=PROTO_UDP, payload_len=len(datagram))
    return parsed(ethernet.build_header(bytes(6), MAC, ETHERTYPE_IPV6) + header + datagram)


def parsed(frame: bytes) -> Packet:
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    return packet


def test_an_advertisement_goes_to_all_nodes_and_overrides_what_they_knew() -> None:
    announcer = Announcer()
    announcer.learn_untrusted(sent_from(ADDRESS))
    announcer.begin(0)
    (frame,) = announcer.due(0)
    assert frame[:12] == bytes.fromhex("333300000001") + MAC
    counters = Counters()
    message = ndp.parse_untrusted(parsed(frame), counters)  # which checks hop limit, checksum and lengths
    assert isinstance(message, ndp.NeighbourAdvertisement), counters.snapshot()
    assert message.target == ADDRESS
    assert message.flags == ndp.FLAG_OVERRIDE
    assert message.options.target_link == MAC


def test_it_is_said_three_times_a_second_apart() -> None:
    announcer = Announcer()
    announcer.learn_untrusted(sent_from(ADDRESS))
    announcer.begin(0)
    said = [len(announcer.due(now * SECOND // 2)) for now in range(10)]
    assert said == [1, 0, 1, 0, 1, 0, 0, 0, 0, 0]
    assert announcer.next_timeout() is None


def test_addresses_are_bounded_and_those_of_groups_are_nobodys() -> None:
    announcer = Announcer()
    announcer.learn_untrusted(sent_from(b"\xff\x02" + ADDRESS[2:]))
    assert announcer.addresses == {}
    for number in range(100):
        announcer.learn_untrusted(sent_from(ADDRESS[:15] + bytes([number])))
    assert len(announcer.addresses) == MAX_ADDRESSES
