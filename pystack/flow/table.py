"""A table of flows that is bounded, and forgets what has been silent for too long.

A flow is a `pystack.timers.TimerOwner`: it keeps its own ``deadline``, which a packet moves by a plain assignment, and
the heap of `pystack.timers.Timers` finds out later that it has moved. So a packet costs a look-up and an assignment,
whatever the size of the table.

What happens at the bound is the owner's choice, `AtBound`. Whether a flow is unfinished (half-open, or at its end) is
told by `FlowTable.mark`, in the order in which they should make room.

A flow that is removed leaves its entry in the heap, which would keep it in memory until its time would have come: under
a flood, all the flows of the last minutes. So the heap is made anew from the flows that are there when most of it is
of others; that is a constant cost for each flow that was added.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.timers import NEVER, Timers

DEFAULT_CAPACITY: Final = 65_536

_STALE_SLACK: Final = 256  # entries of the heap that are not worth making it anew


class AtBound(Enum):
    """What becomes of a new flow when the table is full."""

    REFUSE = "refuse"
    """It is not tracked."""
    EVICT_UNFINISHED = "evict unfinished"
    """The one that has been half-open or at its end for the longest makes room; if there is none, it is not tracked."""
    EVICT_OLDEST = "evict oldest"
    """The unfinished ones make room first, and then the one that was added first."""


class Flow(Protocol):
    """What a table holds. ``key`` is what it is found by; the rest is of `pystack.timers.TimerOwner`."""

    key: bytes
    deadline: Micros
    armed_at: Micros

    def on_timer(self, now: Micros) -> None:
        """Its deadline has come: `FlowTable.remove` it, or set another."""


FlowT = TypeVar("FlowT", bound=Flow)


@final
class FlowTable(Generic[FlowT]):
    """Flows by key.

    Args:
        capacity: how many there may be. at_bound: what to do with one more.

    Attributes:
        flows: by key; the same dictionary for good, for hot paths to look into.
        timers: of all flows; `Timers.arm` a flow after its deadline became earlier. Not the same object for good.
        counters: ``flow.table_full`` (refused), ``flow.evicted``.

    Invariant: the heap of ``timers`` stays within a small multiple of ``capacity``, however many flows come and go.
    """

    __slots__ = ("_ages", "_at_bound", "_capacity", "_unfinished", "counters", "flows", "timers")

    def __init__(
        self,
        capacity: int = DEFAULT_CAPACITY,
        at_bound: AtBound = AtBound.EVICT_UNFINISHED,
        counters: Counters | None = None,
    ) -> None:
        self.flows: dict[bytes, FlowT] = {}
        self.timers = Timers()
        self.counters = Counters() if counters is None else counters
        self._capacity = capacity
        self._at_bound = at_bound
        self._unfinished: OrderedDict[bytes, None] = OrderedDict()
        # A plain dictionary is no queue: its first key is found by passing over all that were deleted before it.
        self._ages: OrderedDict[bytes, None] = OrderedDict()  # kept for EVICT_OLDEST alone

    def __len__(self) -> int:
        return len(self.flows)

    @property
    def capacity(self) -> int:
        """How many flows there may be."""
        return self._capacity

    def add(self, flow: FlowT) -> list[FlowT] | None:
        """Add ``flow``, an object and a key that are new here, and arm its deadline. O(1), O(log n) for the timer.

        Returns:
            The flows that made room for it, none or one; None when it was refused.
        """
        evicted: list[FlowT] = []
        if len(self.flows) >= self._capacity:
            victim = self._victim()
            if victim is None:
                self.counters.bump("flow.table_full")
                return None
            self.counters.bump("flow.evicted")
            evicted.append(victim)
            self.remove(victim)
        self.flows[flow.key] = flow
        if self._at_bound is AtBound.EVICT_OLDEST:
            self._ages[flow.key] = None
        self.timers.arm(flow)
        if len(self.timers) > len(self.flows) * 3 // 2 + _STALE_SLACK:
            self.timers.renew(self.flows.values())  # the entries of flows that are gone keep those in memory
        return evicted

    def _victim(self) -> FlowT | None:
        if self._at_bound is AtBound.REFUSE:
            return None
        if self._unfinished:
            return self.flows[next(iter(self._unfinished))]
        if self._at_bound is AtBound.EVICT_OLDEST:
            return self.flows[next(iter(self._ages))]
        return None

    def mark(self, flow: FlowT, *, unfinished: bool) -> None:
        """Say whether ``flow`` is half-open or at its end. One that becomes so again goes to the end of the queue."""
        if not unfinished:
            self._unfinished.pop(flow.key, None)
        elif self.flows.get(flow.key) is flow:
            self._unfinished[flow.key] = None

    def remove(self, flow: FlowT) -> None:
        """Forget ``flow``; nothing when it is not here."""
        if self.flows.get(flow.key) is flow:
            del self.flows[flow.key]
            self._unfinished.pop(flow.key, None)
            self._ages.pop(flow.key, None)
        flow.deadline = NEVER

    def tick(self, now: Micros) -> None:
        """Let the flows know whose deadline has come."""
        self.timers.fire(now)

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""
        return self.timers.next_timeout()

    def _check(self) -> None:
        """The invariants, for tests."""
        assert len(self.flows) <= self._capacity
        assert self._unfinished.keys() <= self.flows.keys()
        assert self._ages.keys() == (self.flows.keys() if self._at_bound is AtBound.EVICT_OLDEST else set())
        assert len(self.timers) <= 6 * self._capacity + 3 * _STALE_SLACK
        for key, flow in self.flows.items():
            assert flow.key == key
            assert flow.armed_at <= flow.deadline
