"""Deadlines for many owners: a heap with lazy entries.

An owner keeps its own deadline in one attribute and moves it freely, which is what TCP does for every segment; the
heap holds one valid entry per owner, possibly too early. Such an entry is put back when it comes up, so that moving a
deadline to the future costs nothing. Entries that an earlier deadline has superseded are swept out when they outnumber
the valid ones: the heap's size stays proportional to the number of owners.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from typing import Final, Protocol, final

from pystack.clock import Micros

NEVER: Final[Micros] = 1 << 62
"""A deadline that does not come."""

_SLACK: Final = 64


class TimerOwner(Protocol):
    """What a `Timers` fires.

    Invariant: ``armed_at`` belongs to `Timers`; it is the instant of the owner's entry in the heap, NEVER if none.
    """

    deadline: Micros
    armed_at: Micros

    def on_timer(self, now: Micros) -> None:
        """Act on what is due at ``now`` and set ``deadline`` to the next instant, NEVER if there is none."""


@final
class Timers:
    """Fires the owners whose deadline has come, in order of their deadlines. O(log n) per firing."""

    __slots__ = ("_armed", "_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[Micros, int, TimerOwner]] = []
        self._serial = 0
        self._armed = 0  # owners with a valid entry

    def arm(self, owner: TimerOwner) -> None:
        """Have ``owner`` come up no later than its ``deadline``. Free when an earlier entry stands already."""
        deadline = owner.deadline
        if deadline < owner.armed_at:
            if owner.armed_at == NEVER:
                self._armed += 1
            owner.armed_at = deadline
            self._serial += 1
            heappush(self._heap, (deadline, self._serial, owner))
            if len(self._heap) > 2 * self._armed + _SLACK:
                self._sweep()

    def _sweep(self) -> None:
        self._heap = [entry for entry in self._heap if entry[0] == entry[2].armed_at]
        heapify(self._heap)

    def renew(self, owners: Iterable[TimerOwner]) -> None:
        """Forget every entry, whoever its owner is, but for one of each of ``owners``. Not while timers are fired."""
        heap: list[tuple[Micros, int, TimerOwner]] = []
        for owner in owners:
            owner.armed_at = owner.deadline
            if owner.deadline < NEVER:
                heap.append((owner.deadline, len(heap), owner))
        heapify(heap)
        self._heap = heap
        self._serial = self._armed = len(heap)

    def next_timeout(self) -> Micros | None:
        """The earliest instant at which something is due, or None. Drops stale entries on the way."""
        while self._heap:
            heap = self._heap
            at, _, owner = heap[0]
            if at == owner.armed_at and at >= owner.deadline:
                return at
            heappop(heap)
            if at == owner.armed_at:
                self._disarm(owner)
                self.arm(owner)
        return None

    def _disarm(self, owner: TimerOwner) -> None:
        owner.armed_at = NEVER
        self._armed -= 1

    def fire(self, now: Micros) -> int:
        """Call ``on_timer`` of every owner that is due at ``now``; returns how many.

        Bounded: an owner that asks for an instant that has passed already is served at the next call, so that one
        that never moves its deadline cannot spin here.
        """
        heap = self._heap  # re-arming below may replace the list, hence the re-read
        due: list[TimerOwner] = []
        while heap and heap[0][0] <= now:
            at, _, owner = heappop(heap)
            if at != owner.armed_at:
                continue
            self._disarm(owner)
            if owner.deadline <= now:
                due.append(owner)
            else:
                self.arm(owner)
                heap = self._heap
        for owner in due:
            owner.on_timer(now)
            self.arm(owner)
        return len(due)

    def __len__(self) -> int:
        return len(self._heap)
