"""What stood around the differences of a `colo.replay.Replay`: found by going through both captures a second time.

The first time nothing is kept of a stream but what waits to be compared, so that captures of any size can be compared.
The second time it is known which few places are wanted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, final

from colo import causes, difference
from colo.datum import datum_of
from colo.finding import MISSING, Finding
from colo.replay import Numbering, Place
from pystack import Counters
from pystack.wire.packet import FIN, PROTO_TCP, RST, SYN, Packet, parse_untrusted

BEFORE: Final = 4096
AFTER: Final = 4096
"""Bytes of the stream that are looked at for a likely cause."""
SHOWN: Final = 32
"""Bytes before a difference, and from it on, that a person is shown."""

MAX_FINDINGS: Final = 1000
"""How many findings are completed; each takes 32 KiB meanwhile."""

_SPAN: Final = BEFORE + AFTER
_DATAGRAMS: Final = 64


class _Datagram(NamedTuple):
    """One datagram near a difference: its record, how many of the flow came before it, what of it is compared."""

    record: int
    number: int
    data: bytes


@final
class _Window:
    """One side's stream around one offset, put together from its segments; what came first stands."""

    __slots__ = ("_at", "_data", "_known", "frame", "nearest", "special")

    def __init__(self, offset: int) -> None:
        self._at = offset - BEFORE
        self._data = bytearray(_SPAN)
        self._known = bytearray(_SPAN)  # 1 where a byte has come
        self.frame = -1  # the record that brought the byte at the offset
        self.nearest = -1  # the last one that ended at or before it
        self.special = {SYN: -1, FIN: -1, RST: -1}  # the first with each flag

    def add(self, packet: Packet, place: Place, record: int) -> None:
        offset = self._at + BEFORE
        for flag, first in self.special.items():
            if packet.flags & flag and first < 0:
                self.special[flag] = record
        if place.offset <= offset < place.end and self.frame < 0:
            self.frame = record
        if place.end <= offset:
            self.nearest = record
        low, high = max(place.offset - self._at, 0), min(place.end - self._at, _SPAN)
        if low >= high:
            return
        start = packet.payload + low - (place.offset - self._at)
        payload = packet.frame[start : start + high - low]
        if not any(self._known[low:high]):
            self._data[low:high] = payload
        else:
            for index, byte in enumerate(payload, low):
                if not self._known[index]:
                    self._data[index] = byte
        self._known[low:high] = b"\1" * (high - low)

    def around(self) -> tuple[int, bytes]:
        """How many known bytes stand before the offset, and they with all that follow it without a gap."""
        low = self._known.rfind(0, 0, BEFORE) + 1
        high = self._known.find(0, BEFORE)
        return BEFORE - low, bytes(self._data[low : _SPAN if high < 0 else high])


@final
class Around:
    """Completes findings: the bytes around them, the frames concerned, the likely cause.

    Feed it both captures as `Replay` was fed, one side after the other, and then call `complete`.
    """

    def __init__(self, findings: Iterable[Finding], bases: dict[tuple[bytes, int], int], *, aligned: bool) -> None:
        self._findings = list(findings)[:MAX_FINDINGS]
        self._counters = Counters()
        self._numberings = (Numbering(bases, shares=True), Numbering(bases, shares=aligned))
        self._windows = {id(finding): (_Window(finding.offset), _Window(finding.offset)) for finding in self._findings}
        self._datagrams: dict[int, tuple[list[_Datagram], list[_Datagram]]] = {
            id(finding): ([], []) for finding in self._findings
        }
        self._wanted: dict[tuple[bytes, int], list[Finding]] = {}
        for finding in self._findings:
            self._wanted.setdefault((finding.key, finding.incarnation), []).append(finding)

    def feed_untrusted(self, side: int, record: int, frame: bytes) -> None:
        """Take record number ``record`` of a side's capture."""
        packet = parse_untrusted(frame, 0, self._counters)
        if packet is None:
            return
        place = self._numberings[side].place(packet)
        if place is None:
            return
        for finding in self._wanted.get((place.key, place.incarnation), ()):
            if packet.proto == PROTO_TCP:
                self._windows[id(finding)][side].add(packet, place, record)
            elif abs(place.offset - finding.offset) <= _DATAGRAMS:
                self._datagrams[id(finding)][side].append(_Datagram(record, place.offset, datum_of(packet)))

    def complete(self) -> None:
        """Fill in what was found."""
        for finding in self._findings:
            if any(self._datagrams[id(finding)]):
                self._complete_datagram(finding)
            else:
                self._complete_stream(finding, *self._windows[id(finding)])

    def _complete_stream(self, finding: Finding, ours: _Window, theirs: _Window) -> None:
        flags: tuple[int, ...] = ()
        if finding.reason == difference.OPTIONS:
            flags = (SYN,)
            finding.cause = causes.of_options(
                finding.primary.decode("ascii", "replace"), finding.secondary.decode("ascii", "replace")
            )
        elif finding.reason == difference.FLAGS:
            flags = (RST, FIN)
        finding.primary_record = _record(ours, flags)
        finding.secondary_record = _record(theirs, flags)
        before, mine = ours.around()
        other_before, its = theirs.around()
        common = min(before, other_before)
        mine, its = mine[before - common :], its[other_before - common :]
        if finding.reason == difference.PAYLOAD:
            finding.cause = causes.likely(mine, its, common)
            finding.before = min(common, SHOWN)
            finding.primary = mine[common - finding.before : common + SHOWN]
            finding.secondary = its[common - finding.before : common + SHOWN]
        elif finding.reason == MISSING:
            finding.cause = causes.likely(mine, its, common)
        elif finding.reason == difference.RETRANSMISSION:
            finding.secondary = mine[common : common + len(finding.primary)]

    def _complete_datagram(self, finding: Finding) -> None:
        ours, theirs = self._datagrams[id(finding)]
        if finding.reason == difference.DATAGRAM:
            mine, its = _with(ours, finding.primary), _with(theirs, finding.secondary)
        else:
            mine, its = _numbered(ours, finding.offset), _numbered(theirs, finding.offset)
        finding.primary_record = -1 if mine is None else mine.record
        finding.secondary_record = -1 if its is None else its.record
        if mine is None or its is None or finding.reason != difference.DATAGRAM:
            return
        at = difference.first_difference(mine.data, its.data)
        finding.cause = causes.likely(mine.data, its.data, at)
        finding.before = before = min(at, SHOWN)
        finding.primary, finding.secondary = mine.data[at - before : at + SHOWN], its.data[at - before : at + SHOWN]


def _record(window: _Window, flags: tuple[int, ...]) -> int:
    for flag in flags:
        if window.special[flag] >= 0:
            return window.special[flag]
    return window.frame if window.frame >= 0 else window.nearest


def _with(datagrams: Iterable[_Datagram], piece: bytes) -> _Datagram | None:
    """The first one that holds ``piece``."""
    return next((datagram for datagram in datagrams if piece in datagram.data), None)


def _numbered(datagrams: Iterable[_Datagram], number: int) -> _Datagram | None:
    return next((datagram for datagram in datagrams if datagram.number == number), None)
