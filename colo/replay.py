"""Two captures of the same service, compared offline: what a comparator would have said of them.

What a guest sent is fed to a `Comparator` as if it came from two running machines. Three things are different: time
does not matter, as the captures may come from two clocks; the secondary's numbers are aligned with the primary's by a
`Rewriter` that sees both; and at the end what only one of the two has sent is a finding too, since nothing more will
come. A flow is compared up to its first difference.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, final

from colo import difference
from colo.compare import Comparator, CompareConfig
from colo.finding import ACKNOWLEDGEMENT, MISSING, Finding
from pystack import Counters, Micros
from pystack.flow.key import directed_key
from pystack.flow.rewriter import Rewriter
from pystack.seq import MASK
from pystack.wire.packet import ACK, FIN, PROTO_TCP, RST, SYN, Packet, parse_untrusted

_NEVER: Final[Micros] = 1 << 60
_PLENTY: Final = 1 << 40
_MAX_PENDING_BYTES: Final = 512 << 20
_LAG: Final = 64
_HALF: Final = 0x8000_0000


class Place(NamedTuple):
    """Where in which flow a packet of a guest belongs. ``offset`` and ``end`` are its payload's, or count datagrams."""

    key: bytes
    incarnation: int
    offset: int
    end: int


@final
class Numbering:
    """Tells one side's incarnations apart, and turns its sequence numbers into offsets in the stream.

    Args:
        bases: sequence number of the first byte by flow and incarnation; of the primary's, shared by both sides.
        shares: whether this side's numbers are the primary's (it is the primary, or its numbers were rewritten).
    """

    __slots__ = ("_bases", "_flows", "_own", "_shares")

    def __init__(self, bases: dict[tuple[bytes, int], int], *, shares: bool) -> None:
        self._bases = bases
        self._own: dict[tuple[bytes, int], int] = {}
        self._shares = shares
        self._flows: dict[bytes, list[int]] = {}  # incarnation, its ISS, the highest offset so far

    def place(self, packet: Packet) -> Place | None:
        """Where ``packet`` belongs; None for what is no flow: not IP, or a fragment."""
        key = directed_key(packet)
        if not key:
            return None
        flow = self._flows.get(key)
        if flow is None:
            flow = self._flows[key] = [0, -1, 0]
        if packet.proto != PROTO_TCP:
            flow[2] += 1
            return Place(key, 0, flow[2] - 1, flow[2])
        if packet.flags & SYN and packet.seq != flow[1]:
            flow[:] = [flow[0] + 1, packet.seq, 0]
            self._own[key, flow[0]] = (packet.seq + 1) & MASK
            if self._shares:
                self._bases.setdefault((key, flow[0]), (packet.seq + 1) & MASK)
        incarnation, _, top = flow
        seq = packet.seq + bool(packet.flags & SYN)
        offset = top + signed(seq - self._base(key, incarnation, seq) - top)
        end = offset + packet.payload_len
        flow[2] = max(top, end)
        return Place(key, incarnation, offset, end)

    def _base(self, key: bytes, incarnation: int, seq: int) -> int:
        """The number of the first byte. Of a connection that was open before, both machines use the same numbers."""
        if not incarnation:
            return self._bases.setdefault((key, 0), seq & MASK)
        own = self._own[key, incarnation]
        return self._bases.get((key, incarnation), own) if self._shares else own


def signed(number: int) -> int:
    """A difference of sequence numbers as the integer of least magnitude."""
    return ((number + _HALF) & MASK) - _HALF


@dataclass(slots=True)
class _Reach:
    """How far one side came in one incarnation."""

    frames: int = 0
    end: int = 0
    fin: int = -1
    acked: int = -1
    reset: bool = False

    def note(self, packet: Packet, place: Place) -> None:
        self.frames += 1
        self.end = max(self.end, place.end)
        if packet.proto != PROTO_TCP:
            return
        if packet.flags & FIN:
            self.fin = place.end
        if packet.flags & RST:
            self.reset = True
        elif packet.flags & ACK and (self.acked < 0 or signed(packet.ack - self.acked) > 0):
            self.acked = packet.ack


@dataclass(slots=True)
class _Flow:
    """One flow of both captures: what waits to be compared, so that neither side is fed an incarnation too early."""

    started: int = -1  # the secondary's latest incarnation
    fed: int = -1  # the primary's latest that was compared
    ours: deque[tuple[int, Packet]] = field(default_factory=deque)
    theirs: deque[tuple[int, Packet]] = field(default_factory=deque)
    reach: dict[int, tuple[_Reach, _Reach]] = field(default_factory=dict)
    found: set[int] = field(default_factory=set)
    lag: int = 0  # how many datagrams the primary's comparison stays ahead of the secondary's, so that order may differ
    ahead: int = 0  # how many it is


@final
class Replay:
    """Takes the guest's frames of both captures, in any common order, and says what differs.

    Args:
        guests: addresses of the guest, 4 or 16 bytes each; frames of others are not looked at.
        aligned: the secondary's capture was taken behind a rewriter: its numbers are the primary's already.

    Attributes:
        bases: see `Numbering`; for those who go through the captures again.
        findings: so far. frames: of the primary's and of the secondary's guest. unread: frames that cannot be parsed.
    """

    def __init__(self, guests: Iterable[bytes], *, aligned: bool = False, counters: Counters | None = None) -> None:
        self.counters = Counters() if counters is None else counters
        self._guests = frozenset(guests)
        self._aligned = aligned
        config = CompareConfig(
            compare_timeout=_NEVER, max_queue_size=_PLENTY, max_flows=_PLENTY, max_held_bytes=_PLENTY
        )
        self._comparator = Comparator(config, self.counters)
        self._rewriter = Rewriter(counters=self.counters)
        self._flows: dict[bytes, _Flow] = {}
        self._pending_bytes = 0
        self._now: Micros = 0
        self.bases: dict[tuple[bytes, int], int] = {}
        self._numberings = (Numbering(self.bases, shares=True), Numbering(self.bases, shares=aligned))
        self.findings: list[Finding] = []
        self.frames = [0, 0]
        self.unread = 0

    @property
    def flows(self) -> int:
        """How many flows the two captures have, directions of the guest only."""
        return len(self._flows)

    # ------------------------------------------------------------------------------------------------------- frames

    def feed_untrusted(self, side: int, frame: bytes, now: Micros) -> None:
        """Take a frame of the primary (``side`` 0) or of the secondary (1); of the client's, nothing is made."""
        packet = parse_untrusted(frame, 0, self.counters)
        if packet is None:
            self.unread += 1
            return
        if packet.src not in self._guests:
            return
        self._now = max(self._now, now)
        self.frames[side] += 1
        place = self._numberings[side].place(packet)
        if place is None:
            self._compare(side, packet)
            return
        flow = self._flows.get(place.key)
        if flow is None:
            flow = self._flows[place.key] = _Flow(lag=0 if packet.proto == PROTO_TCP else _LAG)
        flow.reach.setdefault(place.incarnation, (_Reach(), _Reach()))[side].note(packet, place)
        (flow.theirs if side else flow.ours).append((place.incarnation, packet))
        self._pending_bytes += len(frame)
        if side:
            flow.started = max(flow.started, place.incarnation)
        self._pump(flow, at_any_rate=self._pending_bytes > _MAX_PENDING_BYTES)

    def _pump(self, flow: _Flow, *, at_any_rate: bool) -> None:
        """Compare what may be: the primary's next incarnation once the secondary has one, and then the secondary's."""
        moved = True
        while moved:
            moved = False
            while flow.ours and (flow.ours[0][0] <= max(flow.started, 1) or at_any_rate):
                flow.fed, packet = flow.ours.popleft()
                flow.ahead += 1
                self._compare(0, packet)
                moved = True
            while flow.theirs and flow.theirs[0][0] <= flow.fed and (flow.ahead >= flow.lag or at_any_rate):
                flow.ahead -= bool(flow.lag)
                self._compare(1, flow.theirs.popleft()[1])
                moved = True

    def _compare(self, side: int, packet: Packet) -> None:
        self._pending_bytes -= len(packet.frame)
        comparator, rewriter, now = self._comparator, self._rewriter, self._now
        if not side:
            rewriter.observe_primary(packet, now)
            comparator.primary(packet.frame, now)
        elif self._aligned and not packet.flags & SYN:
            comparator.secondary(packet.frame, now)
        else:
            comparator.secondary(rewriter.from_secondary(packet, now), now)
        rewriter.take_waiting()
        comparator.take_released()
        for found in comparator.take_requests():
            self._note(found)

    def _note(self, found: difference.Difference) -> None:
        flow = self._flows.get(found.key)
        incarnation = max(flow.fed, 0) if flow is not None else 0
        if flow is not None:
            if flow.found:
                return  # a consequence of the first
            flow.found.add(incarnation)
        self.findings.append(
            Finding(found.reason, found.key, incarnation, found.offset, found.primary, found.secondary, found.before)
        )

    # ------------------------------------------------------------------------------------------------------ the end

    def finish(self) -> list[Finding]:
        """Both captures are at their end: what one side lacks is a finding now."""
        for flow in self._flows.values():
            self._pump(flow, at_any_rate=True)
        for key, flow in self._flows.items():
            for incarnation, (ours, theirs) in sorted(flow.reach.items()):
                if flow.found and incarnation >= min(flow.found):
                    break
                finding = _lacking(key, incarnation, ours, theirs)
                if finding is not None:
                    self.findings.append(finding)
        return self.findings


def _lacking(key: bytes, incarnation: int, ours: _Reach, theirs: _Reach) -> Finding | None:
    """What one side did and the other did not."""
    words = (_words(ours, theirs), _words(theirs, ours))
    if ours.end != theirs.end or ours.fin != theirs.fin or ours.reset != theirs.reset:
        return Finding(MISSING, key, incarnation, min(ours.end, theirs.end), *words)
    if not ours.frames or not theirs.frames:
        return Finding(MISSING, key, incarnation, 0, *words)
    if ours.acked >= 0 and theirs.acked >= 0 and signed(ours.acked - theirs.acked) > 0:
        ahead = signed(ours.acked - theirs.acked)
        return Finding(ACKNOWLEDGEMENT, key, incarnation, ours.end, f"{ahead} bytes more".encode(), b"")
    return None


def _words(one: _Reach, other: _Reach) -> bytes:
    if not one.frames:
        return b"no frame"
    words = [f"{one.end} in all" if one.end or other.end else "no payload"]
    if one.fin != other.fin:
        words.append("ended by FIN" if one.fin >= 0 else "without FIN")
    if one.reset != other.reset:
        words.append("reset" if one.reset else "not reset")
    return ", ".join(words).encode()
