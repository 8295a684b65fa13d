"""All connections that a rewriter knows, within a bound, and the frames that wait for an offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.flow.key import flow_key
from pystack.flow.offsets import Offsets
from pystack.flow.table import AtBound, FlowTable
from pystack.wire.packet import Packet


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriterConfig:
    """What a rewriter is made with.

    Attributes:
        vnet_hdr_len: bytes of virtio_net_hdr in front of each frame. A packet parsed with another length comes from a
            link that is configured differently: it passes unchanged (``rewriter.bad_vnet_hdr_len``), and nothing is
            learnt from it.
        max_flows: how many connections are known; beyond it the one that has been opening or closing for the longest
            makes room, or else the new one is not translated.
        max_waiting_frames: the client's frames kept for one connection until its offset is known;
            max_waiting_bytes: for all of them. What comes beyond that is dropped.
        half_open_timeout: how long a connection may take to open. closing_timeout: how long its end is still looked
            after (2 MSL). idle_timeout: how long an open one may be silent; as long as Linux tracks one.
    """

    vnet_hdr_len: int = 0
    max_flows: int = 65_536
    max_waiting_frames: int = 16
    max_waiting_bytes: int = 16 << 20
    half_open_timeout: Micros = 75 * SECOND
    closing_timeout: Micros = 120 * SECOND
    idle_timeout: Micros = 432_000 * SECOND


@final
class OffsetTable:
    """Flows by the directed keys of both directions, and the frames that wait.

    Attributes:
        by_output, by_input: flows by the `pystack.flow.key.directed_key` of the guest's and the client's segments.
        epoch: of the last event that all flows have to take notice of; each does so when it is next touched.
        waiting_bytes: of the frames that wait. ready: frames that need not wait any longer.
    """

    __slots__ = ("_config", "_counters", "_flows", "_waiting", "_zero_epoch", "by_input", "by_output", "epoch", "ready",
                 "waiting_bytes")  # fmt: skip

    def __init__(self, config: RewriterConfig, counters: Counters) -> None:
        self._config = config
        self._counters = counters
        self._flows: FlowTable[Offsets] = FlowTable(config.max_flows, AtBound.EVICT_UNFINISHED, counters)
        self._zero_epoch = 0
        self._waiting: dict[Offsets, list[Packet]] = {}
        self.by_output: dict[bytes, Offsets] = {}
        self.by_input: dict[bytes, Offsets] = {}
        self.epoch = 0
        self.waiting_bytes = 0
        self.ready: list[bytes] = []

    # ----------------------------------------------------------------------------------------------------------- flows

    def create(self, packet: Packet, key: bytes, now: Micros, *, from_guest: bool) -> Offsets | None:
        """A new flow of which nothing is known; None when the table is full of flows that need their places.

        Args:
            key: the packet's directed key. from_guest: which of the two ends sent it.
        """
        ends = len(packet.src)
        start = len(key) - 2 * ends - 4
        reverse = key[:start] + packet.dst + packet.src + key[-2:] + key[-4:-2]
        output_key, input_key = (key, reverse) if from_guest else (reverse, key)
        both, direction = flow_key(packet)
        # Somebody may send the client's way what claims to come from the guest: that is a flow of its own.
        flow = Offsets(both + bytes((direction ^ from_guest,)), output_key, input_key, self.epoch, self)
        flow.deadline = now + self._config.half_open_timeout
        evicted = self._flows.add(flow)
        if evicted is None:
            return None
        for other in evicted:
            self._forgotten(other)
        self.by_output[output_key] = self.by_input[input_key] = flow
        self._counters.bump("rewriter.flows")
        return flow

    def keep(self, flow: Offsets, now: Micros) -> None:
        """Set the time until which a flow may be silent, and whether it has to make room when the table is full.

        One without offsets may always: unknown flows pass as they are.
        """
        config = self._config
        unfinished = flow.is_over or not flow.opened
        if flow.is_over:
            flow.deadline = now + config.closing_timeout
        else:
            flow.deadline = now + (config.idle_timeout if flow.opened else config.half_open_timeout)
        self._flows.timers.arm(flow)
        self._flows.mark(flow, unfinished=unfinished or not (flow.seq_offset or flow.ts_offset))

    def forget(self, key: bytes) -> None:
        """Remove what has this `flow_key`, if it is there."""
        for way in (b"\0", b"\1"):
            flow = self._flows.flows.get(key + way)
            if flow is not None:
                self.remove(flow)

    def remove(self, flow: Offsets) -> None:
        """Remove ``flow``."""
        self._flows.remove(flow)
        self._forgotten(flow)

    def _forgotten(self, flow: Offsets) -> None:
        self.drop_waiting(flow)
        self.by_output.pop(flow.output_key, None)
        self.by_input.pop(flow.input_key, None)

    def expired(self, flow: Offsets) -> None:
        """The flow was silent for too long."""
        self._counters.bump("rewriter.expired")
        self.remove(flow)

    def tick(self, now: Micros) -> None:
        """Let flows die."""
        self._flows.tick(now)

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""
        return self._flows.next_timeout()

    # ---------------------------------------------------------------------------------------------------------- epochs

    def zero_all(self) -> None:
        """All offsets are zero, and no frame has to wait. Constant time but for the frames that do."""
        self.epoch += 1
        self._zero_epoch = self.epoch
        for packets in self._waiting.values():
            self.ready += [packet.frame for packet in packets]
        self._waiting = {}
        self.waiting_bytes = 0

    def look_again(self) -> None:
        """Have each flow take the long way the next time."""
        self.epoch += 1

    def catch_up(self, flow: Offsets) -> None:
        """Let ``flow`` take notice of what happened since it was last touched."""
        if flow.epoch != self.epoch:
            if flow.epoch < self._zero_epoch:
                flow.zero()
            flow.epoch = self.epoch
            flow.settled = False

    # --------------------------------------------------------------------------------------------------------- waiting

    def hold(self, packet: Packet, flow: Offsets) -> None:
        """Keep a client's frame until the offset is known, or drop it when there is no room."""
        config = self._config
        held = len(self._waiting.get(flow, ()))
        size = len(packet.frame)
        if held >= config.max_waiting_frames or self.waiting_bytes + size > config.max_waiting_bytes:
            self._counters.bump("rewriter.waiting_dropped")
            return
        self._counters.bump("rewriter.waiting")
        self._waiting.setdefault(flow, []).append(packet)
        self.waiting_bytes += size

    def take_waiting(self, flow: Offsets) -> list[Packet]:
        """What waited for the offset of ``flow``."""
        packets = self._waiting.pop(flow, [])
        for packet in packets:
            self.waiting_bytes -= len(packet.frame)
        return packets

    def drop_waiting(self, flow: Offsets) -> None:
        """Nobody needs it any more."""
        packets = self.take_waiting(flow) if self._waiting else []
        if packets:
            self._counters.bump("rewriter.waiting_dropped", len(packets))

    def take_ready(self) -> list[bytes]:
        """What need not wait any longer, once."""
        ready = self.ready
        if ready:
            self.ready = []
        return ready
