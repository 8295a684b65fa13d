"""The comparator's flows: found by key, bounded, and looked after while they hold something.

A flow that was touched since the last checkpoint is *active*, and the lanes find it at once. A commit moves all of them
to the *dormant* ones, in constant time for each: both machines are in step there, so a dormant flow can be forgotten
without loss, and it takes up the comparison where the checkpoint left it when its next frame comes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from heapq import heappop, heappush
from typing import Final, TypeAlias, final

from colo.datagram_flow import DatagramFlow, Uncovered
from colo.held import SINCE, Outbox, Record
from colo.tcp_flow import TcpFlow
from pystack import Micros

Flow: TypeAlias = TcpFlow | DatagramFlow | Uncovered

_EVICTION_TRIES: Final = 32


@final
class Flows:
    """All flows of a comparator.

    Args:
        capacity: how many there may be. limit: frames that one may hold before it is too many.

    Attributes:
        active: by key; the same dictionary for good.
    """

    __slots__ = ("_capacity", "_dormant", "_limit", "_order", "_out", "_serial", "_watched", "active")

    def __init__(self, out: Outbox, capacity: int, limit: int) -> None:
        self._out = out
        self._capacity = capacity
        self._limit = limit
        self.active: dict[bytes, Flow] = {}
        self._dormant: OrderedDict[bytes, Flow] = OrderedDict()  # longest first
        self._order: deque[bytes] = deque()  # keys of the active ones, to look for one that has ended
        self._watched: list[tuple[Micros, int, Flow]] = []  # heap: when to look at a flow that holds something
        self._serial = 0

    def __len__(self) -> int:
        return len(self.active) + len(self._dormant)

    # ------------------------------------------------------------------------------------------------------ the table

    def get(self, key: bytes, kind: type[Flow]) -> Flow | None:
        """The flow with ``key``, made if need be; None when there is none and no room for it."""
        flow = self.active.get(key)
        if flow is not None:
            return flow
        flow = self._dormant.pop(key, None)
        if flow is not None:
            flow.resync()
        else:
            if len(self) >= self._capacity and not self._make_room():
                self._out.counters.bump("compare.table_full")
                return None
            flow = Uncovered(key) if kind is Uncovered else kind(key, self._out, self._limit)
        self.active[key] = flow
        self._order.append(key)
        return flow

    def _make_room(self) -> bool:
        """Forget a flow without loss: one in step since a checkpoint, or one that has ended. Constant cost."""
        if self._dormant:
            self._dormant.popitem(last=False)
            self._out.counters.bump("compare.evicted")
            return True
        order = self._order
        for _ in range(min(_EVICTION_TRIES, len(order))):
            key = order.popleft()
            flow = self.active.get(key)
            if flow is None:
                continue
            if flow.ended and flow.idle:
                del self.active[key]
                self._out.counters.bump("compare.evicted")
                return True
            order.append(key)
        return False

    def remove(self, key: bytes) -> None:
        """Forget one flow, which holds nothing."""
        self.active.pop(key, None)

    def rest(self) -> None:
        """Both machines are in step: all flows are dormant, and some make room for new ones."""
        self._dormant.update(self.active)
        self.active.clear()
        self._order.clear()
        while len(self._dormant) > self._capacity * 3 // 4:
            self._dormant.popitem(last=False)
            self._out.counters.bump("compare.evicted")

    def clear(self) -> None:
        """Forget all flows; none holds anything."""
        self.active.clear()
        self._dormant.clear()
        self._order.clear()

    # ---------------------------------------------------------------------------------------------- what they hold

    def watch(self, flow: Flow, at: Micros) -> None:
        """Look at ``flow``, which holds something, at ``at``."""
        flow.armed = True
        self._serial += 1
        heappush(self._watched, (at, self._serial, flow))

    def late(self, now: Micros, timeout: Micros, cycle: Micros) -> Flow | None:
        """Look at the flows whose time has come; returns one whose first frame has waited for ``timeout``."""
        late: Flow | None = None
        while self._watched and self._watched[0][0] <= now:
            flow = heappop(self._watched)[2]
            if not flow.held:
                if isinstance(flow, DatagramFlow):
                    flow.prune(now - timeout)
                if flow.idle:
                    flow.armed = False
                else:
                    self.watch(flow, now + timeout)
            elif now - flow.held[0][SINCE] >= timeout:
                late = late or flow
                self.watch(flow, now + cycle)
            else:
                self.watch(flow, flow.held[0][SINCE] + timeout)
        return late

    @property
    def watched(self) -> int:
        """How many flows hold something, or did lately."""
        return len(self._watched)

    @property
    def next_look(self) -> Micros | None:
        """When `late` has something to look at."""
        return self._watched[0][0] if self._watched else None

    @property
    def held_frames(self) -> int:
        """How many frames are held. O(flows that hold something)."""
        return sum(len(flow.held) for _, _, flow in self._watched)

    def held(self) -> list[Record]:
        """Every frame that is held, flow by flow."""
        return [record for _, _, flow in self._watched for record in flow.held]

    def resync(self) -> None:
        """What was held is on its way: let every flow that held something, or owes something, be in step."""
        debtors, self._out.debtors = self._out.debtors, []
        flows: dict[int, Flow] = {id(flow): flow for flow in debtors}
        flows.update((id(flow), flow) for _, _, flow in self._watched)
        self._watched.clear()
        for flow in flows.values():
            flow.resync()
            flow.armed = False

    def drop(self) -> None:
        """Drop what is held, and forget everything."""
        for _, _, flow in self._watched:
            flow.held.clear()
            flow.armed = False
        self._watched.clear()
        self.clear()

    def secondary_frames(self) -> list[bytes]:
        """What the secondary has sent and the primary has not, in order for each flow."""
        return [frame for flow in self.active.values() for frame in flow.secondary_frames()]

    def compact(self) -> None:
        """Let go of bytes that were read together with held frames."""
        for _, _, flow in self._watched:
            flow.compact()
