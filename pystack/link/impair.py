"""A link that loses, delays, reorders, duplicates, corrupts and slows down what passes: netem where there is none.

Everything follows from the seed and from ``now``: the same run again gives the same faults, in virtual time too.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from random import Random
from typing import Final, final

from pystack.clock import MILLISECOND, SECOND, Micros
from pystack.counters import Counters
from pystack.errors import LinkClosed
from pystack.frame import LinkInfo, TxFrame
from pystack.link.base import Link
from pystack.link.impairment import Impairment
from pystack.link.segment import to_wire_untrusted
from pystack.wire.packet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN

__all__ = ["ImpairLink", "Impairment"]

_HELD_PACKETS: Final = 65_536
_HELD_BYTES: Final = 64 << 20
_BATCH: Final = 64


@final
class ImpairLink:
    """``inner`` with faults in both directions, each with randomness of its own.

    Faults happen to packets as they would be on a wire. A large segment is therefore cut up first, and a checksum that
    was left undone is completed, so that a corrupted packet is recognised as one. What comes out still has the
    virtio_net_hdr that ``inner`` declares, empty: the information of a link stays that of the link it wraps.

    At most 65,536 packets and 64 MiB are held in each direction; what comes on top is lost.

    Args:
        inner: the link to wrap; closed with this one.
        impairment: what happens to packets.
        seed: of the randomness.
        inbound: what happens to received packets, when it is something else. ``Impairment()`` leaves them alone.
        counters: where to count; a set of its own by default.

    Attributes:
        counters: ``impair.lost``, ``impair.reordered``, ``impair.duplicated``, ``impair.corrupted``, and
            ``impair.overflow`` for what found a queue full.
    """

    def __init__(
        self,
        inner: Link,
        impairment: Impairment,
        *,
        seed: int,
        inbound: Impairment | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._inner = inner
        self._info = inner.info
        self._header = bytes(inner.info.vnet_hdr_len)
        self.counters = Counters() if counters is None else counters
        inbound = impairment if inbound is None else inbound
        self._in = None if inbound.nothing else _Wire(inbound, f"{seed}/in", self.counters)
        self._out = None if impairment.nothing else _Wire(impairment, f"{seed}/out", self.counters)
        self._refused: list[TxFrame] = []  # due, and not accepted by the inner link yet
        self._inner_ended = False
        self._closed = False

    @property
    def info(self) -> LinkInfo:
        """What the inner link declares."""
        return self._info

    def fileno(self) -> int:
        """The inner link's descriptor; -1 once its end was seen and only held packets are left."""
        return -1 if self._inner_ended else self._inner.fileno()

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        """Up to ``limit`` packets that are through by ``now``; see `pystack.link.base.Link.recv`."""
        with contextlib.suppress(LinkClosed):  # what the far end sent before it went comes first: the inner recv knows
            self._flush(now)
        wire = self._in
        if wire is None:
            return self._inner.recv(now, limit)
        if not wire.has_due(now, limit):
            self._receive_into(wire, now, limit)
        header = self._header
        packets = wire.take(now, limit)
        return [header + packet for packet in packets] if header else packets

    def _receive_into(self, wire: _Wire, now: Micros, limit: int) -> None:
        try:
            frames = [] if self._inner_ended else self._inner.recv(now, limit)
        except LinkClosed:
            self._inner_ended = True
            frames = []
        if self._inner_ended and not wire.holds:
            raise LinkClosed("the far end of the impaired link is closed")
        for frame in frames:
            for packet in to_wire_untrusted(frame, self._info.vnet_hdr_len, self.counters):
                wire.put(packet, now)

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        """Give ``frames`` their fate and send what is due; see `pystack.link.base.Link.send`."""
        wire = self._out
        if wire is None:
            return self._inner.send(frames, now)
        if self._closed:
            raise LinkClosed("the impaired link is closed")
        self._flush(now)
        if self._refused:
            return 0
        if not frames:
            return self._inner.send((), now)
        for frame in frames:
            for packet in to_wire_untrusted(b"".join(frame), self._info.vnet_hdr_len, self.counters):
                wire.put(packet, now)
        self._flush(now)
        return len(frames)

    def _flush(self, now: Micros) -> None:
        """Send what is due, as far as the inner link takes it."""
        wire, refused, header = self._out, self._refused, self._header
        if wire is None:
            return
        while refused or wire.has_due(now, 1):
            if not refused:
                refused.extend((header + packet,) for packet in wire.take(now, _BATCH))
            del refused[: self._inner.send(refused, now)]
            if refused:
                return

    def wants_write(self) -> bool:
        """Whether packets are due that the inner link did not take."""
        return bool(self._refused) or self._inner.wants_write()

    def next_timeout(self) -> Micros | None:
        """When the next packet is due, in either direction."""
        instants = [self._inner.next_timeout()]
        if self._in is not None:
            instants.append(self._in.next_due())
        if self._out is not None and not self._refused:
            instants.append(self._out.next_due())
        return min((at for at in instants if at is not None), default=None)

    def close(self) -> None:
        """Close the inner link; held packets are lost, as on a cable that is cut."""
        self._closed = self._inner_ended = True
        for wire in (self._in, self._out):
            if wire is not None:
                wire.clear()
        self._refused.clear()
        self._inner.close()


@final
class _Wire:
    """One direction: packets under way, ordered by when they arrive."""

    def __init__(self, impairment: Impairment, seed: str, counters: Counters) -> None:
        self._impairment = impairment
        self._counters = counters
        # One stream for each kind of fault: changing one leaves the others' choices alone.
        self._loss, self._reorder, self._duplicate, self._corrupt, self._jitter = (
            Random(f"{seed}/{kind}")  # noqa: S311  (faults, not secrets)
            for kind in ("loss", "reorder", "duplicate", "corrupt", "jitter")
        )
        self._held: list[tuple[Micros, int, bytes]] = []  # a heap
        self._held_bytes = 0
        self._serial = 0
        self._last_due: Micros = 0  # of the packets that keep their order
        self._free_at: Micros = 0  # when the sender limited by `rate` has sent all it was given
        self._departures: deque[Micros] = deque()  # of those that wait for `rate`

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def next_due(self) -> Micros | None:
        return self._held[0][0] if self._held else None

    def clear(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    def has_due(self, now: Micros, count: int) -> bool:
        """Whether ``count`` packets are due, or nearly so: exact for 1, a guess from the heap's head otherwise."""
        return len(self._held) >= count and self._held[0][0] <= now

    def take(self, now: Micros, limit: int) -> list[bytes]:
        """Up to ``limit`` packets that are due, in order."""
        held = self._held
        packets: list[bytes] = []
        while held and held[0][0] <= now and len(packets) < limit:
            packets.append(heappop(held)[2])
        self._held_bytes -= sum(map(len, packets))
        return packets

    def put(self, packet: bytes, now: Micros) -> None:
        """Decide about ``packet``, which enters at ``now``."""
        impairment, counters = self._impairment, self._counters
        if self._loss.random() < impairment.loss:
            counters.bump("impair.lost")
            return
        self._enter(packet, now)
        if self._duplicate.random() < impairment.duplicate:
            counters.bump("impair.duplicated")
            self._enter(packet, now)

    def _enter(self, packet: bytes, now: Micros) -> None:
        impairment, counters = self._impairment, self._counters
        if self._corrupt.random() < impairment.corrupt and (spoilt := flip_bit(packet, self._corrupt)) is not None:
            counters.bump("impair.corrupted")
            packet = spoilt
        departure = self._depart(len(packet), now)
        if departure is None or len(self._held) >= _HELD_PACKETS or self._held_bytes + len(packet) > _HELD_BYTES:
            counters.bump("impair.overflow")
            return
        due = departure + impairment.delay
        if impairment.jitter:
            due = max(due + self._jitter.randint(-impairment.jitter, impairment.jitter), departure)
        due = max(due, self._last_due)
        if self._reorder.random() < impairment.reorder:
            counters.bump("impair.reordered")
            due += max(impairment.delay // 2, MILLISECOND)
        else:
            self._last_due = due
        self._serial += 1
        self._held_bytes += len(packet)
        heappush(self._held, (due, self._serial, packet))

    def _depart(self, length: int, now: Micros) -> Micros | None:
        """When the last bit has left at the limited rate; None if the queue before that is full."""
        rate = self._impairment.rate
        if not rate:
            return now
        departures = self._departures
        while departures and departures[0] <= now:
            departures.popleft()
        if len(departures) >= self._impairment.queue:
            return None
        self._free_at = max(self._free_at, now) + -(-length * 8 * SECOND // rate)
        departures.append(self._free_at)
        return self._free_at


def flip_bit(frame: bytes, random: Random) -> bytes | None:
    """``frame`` (plain Ethernet) with one bit of its IP packet flipped; None if it carries none."""
    at = 12
    while (ethertype := frame[at : at + 2]) in _VLANS:
        at += 4
    start = at + 2
    if ethertype not in _IP or len(frame) <= start:
        return None
    bit = random.randrange(start * 8, len(frame) * 8)
    spoilt = bytearray(frame)
    spoilt[bit >> 3] ^= 1 << (bit & 7)
    return bytes(spoilt)


_VLANS: Final = frozenset({ETHERTYPE_VLAN.to_bytes(2, "big"), ETHERTYPE_QINQ.to_bytes(2, "big")})
_IP: Final = frozenset({ETHERTYPE_IPV4.to_bytes(2, "big"), ETHERTYPE_IPV6.to_bytes(2, "big")})
