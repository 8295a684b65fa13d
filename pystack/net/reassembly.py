"""Fragments become datagrams again, within bounds.

Read before editing: RFC 791 section 3.2 (reassembly), RFC 815 (the hole descriptors, here the gaps between pieces in
order), RFC 1122 section 3.3.2 (timeout, Time Exceeded), RFC 5722 section 4 (overlap ends the datagram), RFC 8900.

Overlapping fragments have no honest sender, and every way of resolving them differs from some other host's: the whole
datagram is dropped, with what arrives of it later. An exact duplicate is what a network does, and is ignored.

Bounds: `Limits.datagrams`, `Limits.fragments` of each and `Limits.bytes` in all. At a bound the datagram that has
waited longest makes room, so that a flood of first fragments cannot keep out what is complete a moment later.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, final

from sortedcontainers import SortedDict

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.timers import NEVER, Timers
from pystack.wire import checksum
from pystack.wire.packet import IP_MF, IP_OFFSET, Packet, parse_untrusted

MAX_DATAGRAM: Final = 65_535
"""The largest IPv4 packet in bytes, its header included (RFC 791 section 3.1: Total Length)."""

# What one piece costs beside its bytes: its entry in the ordered map, two tuples, a bytes object's header.
_PIECE_OVERHEAD: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may wait for its missing pieces.

    Attributes:
        datagrams: how many at once. fragments: of one datagram. bytes: of all, bookkeeping included.
        timeout: from the first fragment that arrived (RFC 1122 section 3.3.2: fixed, 60 to 120 s).
    """

    datagrams: int = 64
    fragments: int = 256
    bytes: int = 4 << 20
    timeout: Micros = 60 * SECOND


@final
class FragmentBuffer:
    """The pieces of one datagram's payload, by offset in bytes, whatever the IP version.

    Invariant: no two pieces in ``_pieces`` overlap, none is empty, none reaches beyond ``_total`` once that is known;
    ``size`` is the sum of their lengths.
    """

    __slots__ = ("_pieces", "_total", "size")

    def __init__(self) -> None:
        self._pieces: SortedDict = SortedDict()  # start -> bytes
        self._total: int | None = None
        self.size = 0

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, start: int, data: bytes, *, last: bool) -> str:
        """Take one piece. Returns "" when it was new, "duplicate", or the reason why the datagram is beyond help."""
        end = start + len(data)
        if self._total is not None and (end > self._total or (last and end != self._total)):
            return "inconsistent"
        pieces = self._pieces
        index = pieces.bisect_right(start)
        if index:
            before, held = pieces.peekitem(index - 1)
            if before == start and held == data:
                return "duplicate"
            if before + len(held) > start:
                return "overlap"
        if index < len(pieces):
            if pieces.keys()[index] < end:
                return "overlap"
            if last:
                return "inconsistent"
        if last:
            self._total = end
        pieces[start] = data
        self.size += len(data)
        return ""

    @property
    def complete(self) -> bool:
        """Whether every byte from 0 to the last fragment's end is there: without overlap the sizes tell."""
        return self.size == self._total

    def join(self) -> bytes:
        """The payload, once `complete`."""
        return b"".join(self._pieces.values())


@final
class _Datagram:
    """One datagram on its way. Beyond help ``buffer`` is None: a tombstone that swallows what still comes."""

    __slots__ = ("buffer", "expires_at", "first", "held")

    def __init__(self, expires_at: Micros) -> None:
        self.buffer: FragmentBuffer | None = FragmentBuffer()
        self.first: Packet | None = None  # the packet with fragment zero
        self.held = 0
        self.expires_at = expires_at


@final
class Reassembler:
    """The IPv4 datagrams of one stack that miss pieces. A timer owner: registers itself with ``timers``.

    Counters: ``ipv4.fragments``, ``ipv4.reassembled``; ``ipv4.fragment_`` + ``empty``, ``misaligned``, ``too_big``,
    ``overlap``, ``inconsistent``, ``duplicate``, ``late`` (of a dropped datagram), ``too_many``;
    ``ipv4.reassembly_timeout`` and ``ipv4.reassembly_evicted`` count datagrams.
    """

    __slots__ = ("_counters", "_datagrams", "_expired", "_limits", "_timers", "armed_at", "bytes_held", "deadline")

    def __init__(self, counters: Counters, timers: Timers, limits: Limits) -> None:
        self._counters = counters
        self._timers = timers
        self._limits = limits
        # In order of arrival, which is the order of expiry too, as the timeout is fixed.
        self._datagrams: dict[bytes, _Datagram] = {}
        self._expired: list[Packet] = []
        self.bytes_held = 0
        self.deadline: Micros = NEVER
        self.armed_at: Micros = NEVER

    def __len__(self) -> int:
        return len(self._datagrams)

    def add_untrusted(self, packet: Packet, now: Micros) -> Packet | None:
        """Take one IPv4 fragment whose header's checksum holds; returns the datagram that it completes, else None."""
        self._counters.bump("ipv4.fragments")
        start = (packet.frag & IP_OFFSET) << 3
        last = not packet.frag & IP_MF
        reason = _implausible(packet, start, last=last)
        if reason:
            self._counters.bump(reason)
            return None
        key = packet.src + packet.dst + struct.pack("!BH", packet.proto, packet.ident)
        datagram = self._datagrams.get(key)
        if datagram is None:
            datagram = self._open(key, now)
        if datagram.buffer is None:
            self._counters.bump("ipv4.fragment_late")
            return None
        if len(datagram.buffer) >= self._limits.fragments:
            self._condemn(datagram, "too_many")
            return None
        reason = datagram.buffer.add(start, packet.payload_bytes(), last=last)
        if reason == "duplicate":
            self._counters.bump("ipv4.fragment_duplicate")
            return None
        if reason:
            self._condemn(datagram, reason)
            return None
        cost = packet.payload_len + _PIECE_OVERHEAD
        if not start:
            datagram.first = packet
            cost += len(packet.frame)
        datagram.held += cost
        self.bytes_held += cost
        if datagram.buffer.complete:
            self._remove(key)
            return self._rebuild(datagram)
        self._make_room(key)
        return None

    def take_expired(self) -> list[Packet]:
        """Fragments zero of the datagrams whose time ran out: each asks for one ICMP Time Exceeded, code 1."""
        if not self._expired:
            return []
        expired, self._expired = self._expired, []
        return expired

    def on_timer(self, now: Micros) -> None:
        """Give up what has waited for too long. A tombstone just goes."""
        while self._datagrams:
            key, datagram = next(iter(self._datagrams.items()))
            if datagram.expires_at > now:
                break
            if datagram.buffer is not None:
                self._counters.bump("ipv4.reassembly_timeout")
                if datagram.first is not None:
                    self._expired.append(datagram.first)
            self._remove(key)
        self._rearm()

    def _open(self, key: bytes, now: Micros) -> _Datagram:
        if len(self._datagrams) >= self._limits.datagrams:
            self._evict(next(iter(self._datagrams)))
        datagram = self._datagrams[key] = _Datagram(now + self._limits.timeout)
        self._rearm()
        return datagram

    def _rearm(self) -> None:
        self.deadline = next(iter(self._datagrams.values())).expires_at if self._datagrams else NEVER
        self._timers.arm(self)

    def _condemn(self, datagram: _Datagram, reason: str) -> None:
        self._counters.bump(f"ipv4.fragment_{reason}")
        self.bytes_held -= datagram.held
        datagram.held = 0
        datagram.buffer = datagram.first = None

    def _remove(self, key: bytes) -> None:
        datagram = self._datagrams.pop(key)
        self.bytes_held -= datagram.held

    def _evict(self, key: bytes) -> None:
        self._counters.bump("ipv4.reassembly_evicted")
        self._remove(key)

    def _make_room(self, newest: bytes) -> None:
        """Drop the longest waiting until the bytes fit, but not the one that has just grown: it still moves."""
        while self.bytes_held > self._limits.bytes and len(self._datagrams) > 1:
            self._evict(next(key for key in self._datagrams if key != newest))
        self._rearm()

    def _rebuild(self, datagram: _Datagram) -> Packet | None:
        """The datagram as a frame that was never fragmented: fragment zero's headers, length and checksum renewed."""
        first = datagram.first
        assert first is not None  # complete: offset 0 is there
        assert datagram.buffer is not None
        self._rearm()
        header = bytearray(first.frame[first.l3 : first.l4])
        total = len(header) + datagram.buffer.size
        if total > MAX_DATAGRAM:
            self._counters.bump("ipv4.fragment_too_big")
            return None
        struct.pack_into("!HHH", header, 2, total, first.ident, 0)
        struct.pack_into("!H", header, 10, 0)
        struct.pack_into("!H", header, 10, checksum.finish(checksum.sum16(header)))
        frame = b"".join((first.frame[first.eth : first.l3], header, datagram.buffer.join()))
        packet = parse_untrusted(frame, 0, self._counters)
        if packet is not None:
            self._counters.bump("ipv4.reassembled")
        return packet


def _implausible(packet: Packet, start: int, *, last: bool) -> str:
    """What no part of any datagram can be, told from the fragment alone; "" when it is plausible."""
    length = packet.payload_len
    if not length:
        return "ipv4.fragment_empty"
    if not last and length & 7:
        return "ipv4.fragment_misaligned"
    if packet.l4 - packet.l3 + start + length > MAX_DATAGRAM:
        return "ipv4.fragment_too_big"
    return ""
