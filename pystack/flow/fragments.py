"""Fragments put together to be looked at: the frames themselves travel on as they came.

Read before editing: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722 section 4 (overlap ends the datagram).

Untagged IPv4 is the `pystack.net.reassembly.Reassembler` that the stack uses. IPv6, and what is in a VLAN, whose
datagrams must not be mixed with another's, stands here, on the same buffer and within the same limits.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.flow.key import vlans
from pystack.net.reassembly import FragmentBuffer, Limits, Reassembler
from pystack.timers import Timers
from pystack.wire import checksum
from pystack.wire.packet import IP_MF, IP_OFFSET, Packet, parse_untrusted

_MAX_LENGTH: Final = 65_535  # of IPv4's Total Length and of IPv6's Payload Length
_PIECE_OVERHEAD: Final = 256
_AUTHENTICATION: Final = 51  # the one extension header whose length is in other units (RFC 4302 section 2.2)


@final
class _Names(NamedTuple):
    """Counters, by IP version."""

    fragments: str
    reassembled: str
    bad: str
    late: str
    evicted: str
    timeout: str


_NAMES4: Final = _Names(
    "ipv4.fragments",
    "ipv4.reassembled",
    "ipv4.fragment_inconsistent",
    "ipv4.fragment_late",
    "ipv4.reassembly_evicted",
    "ipv4.reassembly_timeout",
)
_NAMES6: Final = _Names(
    "ipv6.fragments",
    "ipv6.reassembled",
    "ipv6.fragment_bad",
    "ipv6.fragment_late",
    "ipv6.reassembly_evicted",
    "ipv6.reassembly_timeout",
)


@final
class _Datagram:
    """One datagram on its way. Beyond help ``buffer`` is None: a tombstone that swallows what still comes."""

    __slots__ = ("buffer", "expires_at", "first", "held", "names")

    def __init__(self, expires_at: Micros, names: _Names) -> None:
        self.names = names
        self.buffer: FragmentBuffer | None = FragmentBuffer()
        self.first: Packet | None = None  # the packet with fragment zero
        self.held = 0
        self.expires_at = expires_at


@final
class FragmentInspector:
    """Gives the whole datagram, parsed, when its last fragment arrives. Bounded in memory and time by ``limits``.

    The limits hold twice: for untagged IPv4, and for everything else.

    Counters: those of `pystack.net.reassembly.Reassembler`; ``ipv6.fragments``, ``ipv6.reassembled``,
    ``ipv6.fragment_bad`` (implausible, or at odds with what came before), ``ipv6.fragment_late`` (of a datagram beyond
    help), ``ipv6.reassembly_evicted`` and ``ipv6.reassembly_timeout`` (datagrams).
    """

    __slots__ = ("_counters", "_datagrams", "_held", "_limits", "_plain", "_timers")

    def __init__(self, counters: Counters, limits: Limits | None = None) -> None:
        self._counters = counters
        self._limits = Limits() if limits is None else limits
        self._timers = Timers()
        self._plain = Reassembler(counters, self._timers, self._limits)
        # In order of arrival, which is the order of expiry too, as the timeout is fixed.
        self._datagrams: dict[bytes, _Datagram] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._plain) + len(self._datagrams)

    @property
    def bytes_held(self) -> int:
        """Bytes that are held, bookkeeping included."""
        return self._plain.bytes_held + self._held

    def add_untrusted(self, packet: Packet, now: Micros) -> Packet | None:
        """Take one fragment.

        Returns:
            The datagram that it completes: a packet of a frame put together, without virtio_net_hdr and with the first
            fragment's headers. None as long as some is missing, and when nothing can come of it.
        """
        if packet.version == 4 and not packet.tags:
            return self._plain.add_untrusted(packet, now)
        counters = self._counters
        names = _NAMES4 if packet.version == 4 else _NAMES6
        counters.bump(names.fragments)
        start = (packet.frag & IP_OFFSET) << 3
        last = not packet.frag & IP_MF
        length = packet.end - packet.l4
        if not length or (not last and length & 7) or start + length > _MAX_LENGTH:
            counters.bump(names.bad)
            return None
        key = _key(packet)
        datagram = self._datagrams.get(key)
        if datagram is None:
            if len(self._datagrams) >= self._limits.datagrams:
                self._evict(next(iter(self._datagrams)))
            datagram = self._datagrams[key] = _Datagram(now + self._limits.timeout, names)
        if datagram.buffer is None:
            counters.bump(names.late)
            return None
        reason = "too_many" if len(datagram.buffer) >= self._limits.fragments else ""
        reason = reason or datagram.buffer.add(start, packet.frame[packet.l4 : packet.end], last=last)
        if reason == "duplicate":
            return None
        if reason:
            counters.bump(names.bad)
            self._held -= datagram.held
            datagram.held = 0
            datagram.buffer = datagram.first = None
            return None
        return self._grown(key, datagram, packet, start)

    def _grown(self, key: bytes, datagram: _Datagram, packet: Packet, start: int) -> Packet | None:
        """A piece was added: account for it, and see whether it was the last one."""
        cost = packet.end - packet.l4 + _PIECE_OVERHEAD
        if not start:
            datagram.first = packet
            cost += len(packet.frame)
        datagram.held += cost
        self._held += cost
        assert datagram.buffer is not None
        if datagram.buffer.complete:
            self._remove(key)
            return self._rebuild(datagram)
        while self._held > self._limits.bytes and len(self._datagrams) > 1:
            self._evict(next(other for other in self._datagrams if other != key))
        return None

    def tick(self, now: Micros) -> None:
        """Give up what has waited for too long."""
        self._timers.fire(now)
        self._plain.take_expired()
        while self._datagrams:
            key, datagram = next(iter(self._datagrams.items()))
            if datagram.expires_at > now:
                break
            if datagram.buffer is not None:
                self._counters.bump(datagram.names.timeout)
            self._remove(key)

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""
        plain = self._timers.next_timeout()
        if not self._datagrams:
            return plain
        own = next(iter(self._datagrams.values())).expires_at
        return own if plain is None else min(own, plain)

    def _remove(self, key: bytes) -> None:
        self._held -= self._datagrams.pop(key).held

    def _evict(self, key: bytes) -> None:
        self._counters.bump(self._datagrams[key].names.evicted)
        self._remove(key)

    def _rebuild(self, datagram: _Datagram) -> Packet | None:
        """The datagram as a frame that was never fragmented."""
        first, buffer = datagram.first, datagram.buffer
        assert first is not None  # complete: offset 0 is there
        assert buffer is not None
        header = _whole_header4(first, buffer.size) if first.version == 4 else _whole_header6(first, buffer.size)
        if header is None:
            self._counters.bump(datagram.names.bad)
            return None
        frame = b"".join((first.frame[first.eth : first.l3], header, buffer.join()))
        packet = parse_untrusted(frame, 0, self._counters)
        if packet is not None:
            self._counters.bump(datagram.names.reassembled)
        return packet

    def _check(self) -> None:
        """The invariants, for tests."""
        assert len(self._datagrams) <= self._limits.datagrams
        assert self._held == sum(datagram.held for datagram in self._datagrams.values())
        assert self._held <= self._limits.bytes or len(self._datagrams) == 1


def _key(packet: Packet) -> bytes:
    """What the fragments of one datagram share (RFC 791 section 3.2, RFC 8200 section 4.5), and their VLANs."""
    proto = packet.proto if packet.version == 4 else 0
    head = struct.pack("!BBI", packet.version, proto, packet.ident)
    return head + packet.src + packet.dst + vlans(packet)


def _whole_header4(first: Packet, size: int) -> bytes | None:
    """Fragment zero's header with the length of the whole; None when that is too long."""
    header = bytearray(first.frame[first.l3 : first.l4])
    total = len(header) + size
    if total > _MAX_LENGTH:
        return None
    struct.pack_into("!HHH", header, 2, total, first.ident, 0)
    struct.pack_into("!H", header, 10, 0)
    struct.pack_into("!H", header, 10, checksum.finish(checksum.sum16(header)))
    return bytes(header)


def _whole_header6(first: Packet, size: int) -> bytes | None:
    """Fragment zero's headers without the Fragment header: the one before it names what came after it."""
    at = first.l4 - 8
    headers = bytearray(first.frame[first.l3 : at])
    length = len(headers) - 40 + size
    if length > _MAX_LENGTH:
        return None
    headers[_names_the_next(headers)] = first.frame[at]
    struct.pack_into("!H", headers, 4, length)
    return bytes(headers)


def _names_the_next(headers: bytearray) -> int:
    """Where the last of these headers, an IPv6 header and its extensions, names its successor."""
    at, named, kind = 40, 6, headers[6]
    while at < len(headers):
        named = at
        step = 8 + 4 * headers[at + 1] if kind == _AUTHENTICATION else 8 + 8 * headers[at + 1]
        kind = headers[at]
        at += step
    return named
