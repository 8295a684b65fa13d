"""Datagrams of both machines, flow by flow and in order: UDP, ICMP, other protocols over IP.

Two queues. Equal heads leave together. Heads that are not equal are not a difference yet: the network between a machine
and this one may have swapped two datagrams or lost one, so each head is looked for a little way down the other queue.
Found in the secondary's: its order differs, and the primary's goes out. Found in the primary's: the secondary has
skipped or delayed one, which is waited for. Found in neither: that is a difference.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final, final

from colo import difference
from colo.held import DATA, HIGH, LOW, POSITION, SINCE, Outbox, Record, own, own_pieces
from pystack import Micros

_LOOK_AHEAD: Final = 64


@final
class DatagramFlow:
    """One flow of datagrams. In a record ``data`` is what is compared, and what goes out is in ``more``.

    Attributes:
        held: the primary's datagrams that wait; others as in `colo.tcp_flow.TcpFlow`.
    """

    __slots__ = ("_seen", "_theirs", "armed", "diverged", "ended", "held", "key", "limit", "out")

    def __init__(self, key: bytes, out: Outbox, limit: int) -> None:
        self.key = key
        self.out = out
        self.limit = limit
        self.held: deque[Record] = deque()
        self._theirs: deque[tuple[bytes, bytes, Micros]] = deque()  # what is compared, the frame, since when
        self._seen = 0  # datagrams of the primary that were released
        self.armed = False
        self.diverged = False
        self.ended = False

    def primary(
        self, datum: bytes, pieces: tuple[tuple[int, bytes, int, int], ...], now: Micros, position: int
    ) -> None:
        """Take a datagram of the primary: ``datum`` is compared, ``pieces`` (position, data, low, high) go out."""
        self.held.append((0, 0, datum, 0, 0, 0, 0, 0, 0, now, position, pieces))
        self._match()

    def secondary(self, datum: bytes, frame: bytes, now: Micros) -> None:
        """Take a datagram of the secondary; ``frame``, b"" for none, is kept for the case that it carries on alone."""
        if self.diverged:
            return
        if len(self._theirs) > self.limit:
            self.out.counters.bump("compare.secondary_dropped")
            self._differ(difference.SECONDARY_QUEUE_FULL, b"", b"")
            return
        self._theirs.append((datum, frame, now))
        self._match()

    def _match(self) -> None:
        held, theirs = self.held, self._theirs
        while held and theirs and not self.diverged:
            mine = held[0][DATA]
            if mine == theirs[0][0]:
                theirs.popleft()
            elif (index := self._find_theirs(mine)) >= 0:
                self.out.counters.bump("compare.datagrams_reordered")
                del theirs[index]
            elif any(record[DATA] == theirs[0][0] for record in islice(held, 1, _LOOK_AHEAD)):
                return
            else:
                self._differ_at(mine, theirs[0][0])
                return
            self._seen += 1
            self.out.emit(held.popleft())

    def _find_theirs(self, datum: bytes) -> int:
        return next((at for at, item in enumerate(islice(self._theirs, _LOOK_AHEAD)) if item[0] == datum), -1)

    def _differ_at(self, mine: bytes, its: bytes) -> None:
        at = difference.first_difference(mine, its)
        before = min(at, difference.CONTEXT_BYTES)
        low, high = at - before, at + difference.CONTEXT_BYTES
        self._differ(difference.DATAGRAM, mine[low:high], its[low:high], before)

    def _differ(self, reason: str, mine: bytes, its: bytes, before: int = 0) -> None:
        self.diverged = True
        self.out.differ(reason, self.key, self._seen, mine, its, before)

    def resync(self) -> None:
        """A checkpoint has completed, and what was held is on its way."""
        self._seen += len(self.held)
        self.held.clear()
        self._theirs.clear()
        self.diverged = False

    def prune(self, before: Micros) -> None:
        """Forget datagrams of the secondary that the primary did not send in time: it has lost them."""
        theirs = self._theirs
        while theirs and theirs[0][2] < before and (not self.held or self.held[0][SINCE] > theirs[0][2]):
            theirs.popleft()
            self.out.counters.bump("compare.secondary_unmatched")

    def compact(self) -> None:
        """Keep what goes out in bytes of its own; see `colo.tcp_flow.TcpFlow.compact`."""
        self.held = deque(own_pieces(record) for record in self.held)

    def secondary_frames(self) -> list[bytes]:
        """What the secondary has sent and the primary has not."""
        return [frame for _, frame, _ in self._theirs if frame]

    def waits_for(self) -> tuple[int, bytes]:
        """What the head of the queue lacks: how many datagrams came before it, and words."""
        return self._seen, b"a datagram"

    @property
    def idle(self) -> bool:
        """Whether forgetting this flow loses nothing."""
        return not self.held and not self._theirs and not self.diverged


@final
class Uncovered:
    """Frames of the primary that nothing of the secondary can cover, as long as they are here: only a checkpoint can.

    Fragments until their datagram is whole; frames of flows that the table has no room for; everything in periodic
    mode.
    """

    __slots__ = ("armed", "diverged", "ended", "held", "key")

    def __init__(self, key: bytes = b"") -> None:
        self.key = key
        self.held: deque[Record] = deque()
        self.armed = False
        self.diverged = False
        self.ended = False

    def add(self, data: bytes, low: int, high: int, now: Micros, position: int) -> None:
        """Hold one frame."""
        self.held.append((0, 0, data, 0, 0, 0, 0, low, high, now, position, None))

    def pieces(self) -> tuple[tuple[int, bytes, int, int], ...]:
        """What is held, as a record's ``more``."""
        return tuple((record[POSITION], record[DATA], record[LOW], record[HIGH]) for record in self.held)

    def compact(self) -> None:
        """See `colo.tcp_flow.TcpFlow.compact`."""
        self.held = deque(own(record, LOW, HIGH) for record in self.held)

    def resync(self) -> None:
        """A checkpoint has completed, and what was held is on its way."""
        self.held.clear()

    def secondary_frames(self) -> list[bytes]:
        """None: nothing of the secondary is here."""
        return []

    def waits_for(self) -> tuple[int, bytes]:
        """See `DatagramFlow.waits_for`."""
        return 0, b"a checkpoint"

    @property
    def idle(self) -> bool:
        """Whether nothing is held."""
        return not self.held
