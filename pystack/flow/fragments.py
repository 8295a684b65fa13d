"""Fragments put together to be looked at: the frames themselves travel on as they came.

Read before editing: RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722 section 4 (overlap ends the datagram).

IPv4 is the `pystack.net.reassembly.Reassembler` that the stack uses; IPv6 stands here, on the same buffer and within
the same bounds.
"""

from __future__ import annotations

import struct
from typing import final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.net.reassembly import FragmentBuffer, Limits, Reassembler
from pystack.timers import Timers
from pystack.wire.packet import IP_MF, IP_OFFSET, Packet, parse_untrusted

_MAX_PAYLOAD = 65_535
_PIECE_OVERHEAD = 256


@final
class _Datagram6:
    __slots__ = ("buffer", "expires_at", "first", "held")

    def __init__(self, expires_at: Micros) -> None:
        self.buffer: FragmentBuffer | None = FragmentBuffer()
        self.first: Packet | None = None
        self.held = 0
        self.expires_at = expires_at


@final
class FragmentInspector:
    """Gives the whole datagram, parsed, when its last fragment arrives. Bounded in memory and time by ``limits``.

    Counters: those of `pystack.net.reassembly.Reassembler`, and ``ipv6.fragments``, ``ipv6.reassembled``,
    ``ipv6.fragment_bad``, ``ipv6.reassembly_evicted``, ``ipv6.reassembly_timeout``.
    """

    __slots__ = ("_counters", "_datagrams", "_four", "_held", "_limits", "_timers")

    def __init__(self, counters: Counters, limits: Limits | None = None) -> None:
        self._counters = counters
        self._limits = Limits() if limits is None else limits
        self._timers = Timers()
        self._four = Reassembler(counters, self._timers, self._limits)
        self._datagrams: dict[bytes, _Datagram6] = {}
        self._held = 0

    def __len__(self) -> int:
        return len(self._four) + len(self._datagrams)

    @property
    def bytes_held(self) -> int:
        """Bytes that are held, bookkeeping included."""
        return self._four.bytes_held + self._held

    def add_untrusted(self, packet: Packet, now: Micros) -> Packet | None:
        """Take one fragment; returns the datagram that it completes, parsed from a frame put together, or None."""
        if packet.version == 4:
            return self._four.add_untrusted(packet, now)
        return self._add6_untrusted(packet, now)

    def tick(self, now: Micros) -> None:
        """Give up what has waited for too long."""
        self._timers.fire(now)
        self._four.take_expired()
        while self._datagrams:
            key, datagram = next(iter(self._datagrams.items()))
            if datagram.expires_at > now:
                break
            self._counters.bump("ipv6.reassembly_timeout")
            self._remove(key)

    def _add6_untrusted(self, packet: Packet, now: Micros) -> Packet | None:
        counters = self._counters
        counters.bump("ipv6.fragments")
        start = (packet.frag & IP_OFFSET) << 3
        last = not packet.frag & IP_MF
        length = packet.end - packet.l4
        if not length or (not last and length & 7) or start + length > _MAX_PAYLOAD:
            counters.bump("ipv6.fragment_bad")
            return None
        key = packet.src + packet.dst + packet.ident.to_bytes(4, "big")
        datagram = self._datagrams.get(key)
        if datagram is None:
            if len(self._datagrams) >= self._limits.datagrams:
                self._evict(next(iter(self._datagrams)))
            datagram = self._datagrams[key] = _Datagram6(now + self._limits.timeout)
        if datagram.buffer is None:
            return None
        reason = "too_many" if len(datagram.buffer) >= self._limits.fragments else ""
        reason = reason or datagram.buffer.add(start, packet.frame[packet.l4 : packet.end], last=last)
        if reason == "duplicate":
            return None
        if reason:
            counters.bump("ipv6.fragment_bad")
            self._held -= datagram.held
            datagram.held = 0
            datagram.buffer = datagram.first = None
            return None
        cost = length + _PIECE_OVERHEAD
        if not start:
            datagram.first = packet
            cost += len(packet.frame)
        datagram.held += cost
        self._held += cost
        if datagram.buffer.complete:
            self._remove(key)
            return self._rebuild6(datagram)
        while self._held > self._limits.bytes and len(self._datagrams) > 1:
            self._evict(next(other for other in self._datagrams if other != key))
        return None

    def _remove(self, key: bytes) -> None:
        self._held -= self._datagrams.pop(key).held

    def _evict(self, key: bytes) -> None:
        self._counters.bump("ipv6.reassembly_evicted")
        self._remove(key)

    def _rebuild6(self, datagram: _Datagram6) -> Packet | None:
        """The datagram without its Fragment header: the header before it names what came after it (RFC 8200 4.5)."""
        first, buffer = datagram.first, datagram.buffer
        if first is None or buffer is None:
            return None
        frame, l3 = first.frame, first.l3
        unfragmentable = bytearray(frame[l3 : first.l4 - 8])
        named = _next_header_at(unfragmentable)
        unfragmentable[named] = frame[first.l4 - 8]
        payload = buffer.join()
        length = len(unfragmentable) - 40 + len(payload)
        if length > _MAX_PAYLOAD:
            self._counters.bump("ipv6.fragment_bad")
            return None
        struct.pack_into("!H", unfragmentable, 4, length)
        packet = parse_untrusted(b"".join((frame[first.eth : l3], unfragmentable, payload)), 0, self._counters)
        if packet is not None:
            self._counters.bump("ipv6.reassembled")
        return packet


def _next_header_at(headers: bytearray) -> int:
    """Where the last of these headers, an IPv6 header and what follows it, names its successor."""
    at, end, named = 40, len(headers), 6
    kind = headers[6]
    while at < end:
        named = at
        step = 8 + 4 * headers[at + 1] if kind == 51 else 8 + 8 * headers[at + 1]
        kind = headers[at]
        at += step
    return named
