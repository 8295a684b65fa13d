"""UDP, ICMP, other protocols, and what QEMU does not look into. Each function drafts one kind of case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pystack.testing.frames import Crafter
from pystack.wire import icmp, icmpv6, ipv6, tcp, udp, vlan
from pystack.wire.packet import ACK, ETHERTYPE_IPV6, PSH
from tests.interop.qemu_judge.draft import CLIENT, Draft, changed, pad

_DATA: Final = ACK | PSH


def _datagrams(draft: Draft, count: int) -> list[bytes]:
    rng = draft.rng
    return [index.to_bytes(2, "big") + rng.randbytes(rng.randrange(1, 60)) for index in range(count)]


def _udp(draft: Draft, payload: bytes, **fields: int) -> bytes:
    return draft.wire.udp(53, 5353, payload, **fields)


def udp_equal(draft: Draft) -> None:
    for payload in _datagrams(draft, draft.rng.randrange(1, 6)):
        draft.mine.append(_udp(draft, payload, ident=1))
        draft.its.append(_udp(draft, payload, ident=2, ttl=63))


def udp_different(draft: Draft) -> None:
    *before, last = _datagrams(draft, draft.rng.randrange(1, 4))
    for payload in before:
        draft.both(_udp(draft, payload))
    draft.asked = True
    draft.hold(_udp(draft, last))
    draft.its.append(_udp(draft, changed(draft.rng, last) if draft.rng.random() < 0.6 else last + b"!"))


def udp_swapped(draft: Draft) -> None:
    """The secondary's come in another order."""
    payloads = _datagrams(draft, draft.rng.randrange(2, 6))
    draft.mine += [_udp(draft, payload) for payload in payloads]
    at = draft.rng.randrange(len(payloads) - 1)
    payloads[at], payloads[at + 1] = payloads[at + 1], payloads[at]
    draft.its += [_udp(draft, payload) for payload in payloads]
    draft.order = draft.rng.choice(("primary first", "secondary first"))


def udp_lost_by_the_secondary(draft: Draft) -> None:
    """One of the secondary's is missing: it is waited for."""
    payloads = _datagrams(draft, draft.rng.randrange(2, 6))
    lost = draft.rng.randrange(len(payloads))
    for index, payload in enumerate(payloads):
        frame = _udp(draft, payload)
        draft.mine.append(frame) if index < lost else draft.hold(frame)
    draft.its += [_udp(draft, payload) for index, payload in enumerate(payloads) if index != lost]
    draft.order = "primary first"


def udp_sent_by_the_secondary_alone(draft: Draft) -> None:
    payloads = _datagrams(draft, draft.rng.randrange(2, 6))
    draft.its += [_udp(draft, payload) for payload in payloads]
    del payloads[draft.rng.randrange(len(payloads))]
    draft.mine += [_udp(draft, payload) for payload in payloads]
    draft.order = "secondary first"


def udp_of_the_primary_alone(draft: Draft) -> None:
    draft.hold(*(_udp(draft, payload) for payload in _datagrams(draft, draft.rng.randrange(1, 4))))


def udp_without_checksum(draft: Draft) -> None:
    """RFC 768: a checksum of zero is none."""
    payload = draft.rng.randbytes(20)
    frame = _udp(draft, payload)
    draft.mine.append(frame)
    draft.its.append(frame[:40] + b"\0\0" + frame[42:])


def udp_padded(draft: Draft) -> None:
    payload = draft.rng.randbytes(draft.rng.randrange(1, 10))
    draft.mine.append(pad(draft.rng, _udp(draft, payload)))
    draft.its.append(pad(draft.rng, _udp(draft, payload)) if draft.rng.random() < 0.5 else _udp(draft, payload))


def echo_equal(draft: Draft) -> None:
    data = draft.rng.randbytes(32)
    for sequence in range(draft.rng.randrange(1, 5)):
        draft.mine.append(draft.wire.echo(7, sequence, data, icmp.ECHO_REPLY))
        draft.its.append(draft.wire.echo(7, sequence, data, icmp.ECHO_REPLY))


def echo_different(draft: Draft) -> None:
    data = draft.rng.randbytes(32)
    draft.asked = True
    draft.hold(draft.wire.echo(7, 1, data, icmp.ECHO_REPLY))
    draft.its.append(draft.wire.echo(7, 1, changed(draft.rng, data), icmp.ECHO_REPLY))


def echo_of_two(draft: Draft) -> None:
    """Two programs ping the guest: two flows between two addresses."""
    data = draft.rng.randbytes(16)
    draft.hold(draft.wire.echo(1, 1, data, icmp.ECHO_REPLY))
    frame = draft.wire.echo(2, 1, data, icmp.ECHO_REPLY)
    draft.both(frame)


def icmp_error(draft: Draft) -> None:
    original = Crafter(CLIENT, draft.wire.src).udp(5000, 9, draft.rng.randbytes(30))[14:]
    frame = draft.wire.icmp_error(icmp.UNREACHABLE, 3, original)
    draft.mine.append(frame)
    draft.its.append(frame)
    if draft.rng.random() < 0.4:
        draft.asked = True
        draft.held.add(0)
        draft.its[0] = draft.wire.icmp_error(icmp.UNREACHABLE, 1, original)


def icmp_error_about_rewritten_numbers(draft: Draft) -> None:
    """The quotation goes beyond the eight bytes that name the packet, where the secondary's acknowledgement stands."""
    quoted = Crafter(CLIENT, draft.wire.src).tcp(sport=5000, dport=80, seq=5, ack=1000, flags=ACK)[14:]
    draft.mine.append(draft.wire.icmp_error(icmp.UNREACHABLE, 3, quoted))
    other = Crafter(CLIENT, draft.wire.src).tcp(sport=5000, dport=80, seq=5, ack=77_000, flags=ACK)[14:]
    draft.its.append(draft.wire.icmp_error(icmp.UNREACHABLE, 3, other))


def gre_equal(draft: Draft) -> None:
    payload = b"\0\0\x08\0" + draft.rng.randbytes(30)
    draft.mine.append(draft.wire.ipv4(47, payload, ident=1))
    draft.its.append(draft.wire.ipv4(47, payload, ident=draft.rng.choice((1, 1, 2))))


def gre_different(draft: Draft) -> None:
    payload = b"\0\0\x08\0" + draft.rng.randbytes(30)
    draft.asked = True
    draft.hold(draft.wire.ipv4(47, payload))
    draft.its.append(draft.wire.ipv4(47, changed(draft.rng, payload)))


# ----------------------------------------------------------------------------------------- what QEMU does not look into


def not_ip(draft: Draft) -> None:
    """ARP, LLDP and runts: the primary's go, the secondary's do not."""
    rng = draft.rng
    noise = [
        draft.wire.arp_request(),
        draft.wire.arp_reply(),
        draft.wire.ethernet(0x88CC, rng.randbytes(40)),
        draft.wire.ethernet(0x0800, b"")[: rng.randrange(1, 14)],
        draft.wire.ethernet(0x0026, rng.randbytes(38)),
    ]
    draft.mine += rng.sample(noise, 2)
    draft.its += rng.sample(noise, 2)


def ipv6_frame(wire: Crafter, payload: bytes, *, proto: int = 17) -> bytes:
    """A packet of TCP, UDP or ICMPv6 over IPv6, its addresses made from the IPv4 ones."""
    src = b"\x20\x01\x0d\xb8" + bytes(8) + bytes(map(int, wire.src.split(".")))
    dst = b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01"
    if proto == 17:
        body = udp.build(src=src, dst=dst, sport=53, dport=5353, payload=payload)
    elif proto == 6:
        body = tcp.build(src=src, dst=dst, sport=80, dport=5353, seq=1, ack=1, flags=_DATA, payload=payload)
    else:
        body = icmpv6.build_echo(src=src, dst=dst, kind=129, ident=3, sequence=1, data=payload)
    header = ipv6.build_header(src=src, dst=dst, next_header=proto, payload_len=len(body))
    return wire.ethernet(ETHERTYPE_IPV6, header + body)


def ipv6_packets(draft: Draft) -> None:
    """Equal, missing on one side, or different."""
    payload = draft.rng.randbytes(20)
    proto = draft.rng.choice((6, 17, 58))
    what = draft.rng.choice(("equal", "missing", "different"))
    frame = ipv6_frame(draft.wire, payload, proto=proto)
    draft.mine.append(frame)
    if what == "equal":
        draft.its.append(frame)
    elif what == "different":
        draft.asked = True
        draft.held.add(0)
        draft.its.append(ipv6_frame(draft.wire, changed(draft.rng, payload), proto=proto))
    else:
        draft.held.add(0)


def tagged(draft: Draft) -> None:
    """VLAN tags in front of a UDP datagram."""
    udp_equal(draft)
    draft.mine = [vlan.push(frame, 7) for frame in draft.mine]
    draft.its = [vlan.push(frame, 7) for frame in draft.its]
    if draft.rng.random() < 0.5:
        draft.its.clear()
        draft.held = set(range(len(draft.mine)))


def fragmented(draft: Draft) -> None:
    """A datagram in pieces, cut differently by the two machines, or not at all by one of them."""
    payload = draft.rng.randbytes(400)
    body = udp.build(
        src=bytes(map(int, draft.wire.src.split("."))), dst=bytes((192, 0, 2, 1)), sport=53, dport=5353, payload=payload
    )
    draft.mine += draft.wire.fragments(17, body, 208, ident=9)
    sizes = draft.rng.choice(((208,), (104, 104), (408,)))
    draft.its += draft.wire.fragments(17, body, *sizes, ident=draft.rng.choice((9, 55)))


KINDS: Final[tuple[Callable[[Draft], None], ...]] = (
    udp_equal, udp_different, udp_swapped, udp_lost_by_the_secondary, udp_sent_by_the_secondary_alone,
    udp_of_the_primary_alone, udp_without_checksum, udp_padded, echo_equal, echo_different, echo_of_two, icmp_error,
    icmp_error_about_rewritten_numbers, gre_equal, gre_different, not_ip, ipv6_packets, tagged, fragmented,
)  # fmt: skip
