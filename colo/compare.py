"""The comparator: the primary's output waits until the secondary has produced the same, or a checkpoint has completed.

Read before editing: docs/explanation/output-commit.md (the property that all this serves).

Sans-I/O. Frames of both machines go in, one at a time or as QEMU's framed stream cut anywhere; what may leave comes out
of `Comparator.take_released`, what asks for a checkpoint of `Comparator.take_requests`. Around a checkpoint its owner
calls:

    primary_boundary(), secondary_boundary()    both machines stand still, and all that they sent has been fed
    commit(now)                                 the secondary is a copy of the primary: everything held leaves
    abort(now)                                  it did not happen: the comparison goes on where it was

What is fed between a side's boundary and the commit belongs to the next epoch and is kept aside until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, final

from colo import difference
from colo.datagram_flow import DatagramFlow, Uncovered
from colo.datum import datum_of, is_link_local_talk
from colo.difference import Difference
from colo.flows import Flow, Flows
from colo.framing import MAX_VNET_HDR_LEN, Framing
from colo.held import Outbox, Pieces, Record
from colo.input import FramedInput
from colo.lane import Lane
from colo.tcp_flow import TcpFlow
from pystack import Buffer, Counters, Micros
from pystack.flow.key import directed_key
from pystack.wire.packet import PROTO_TCP, Packet, parse_untrusted

__all__ = ["Comparator", "CompareConfig", "Difference", "Mode"]

_SECOND: Final = 1_000_000
_COMPACT_BYTES: Final = 16 << 20  # of the primary's output, after which held frames get bytes of their own; but as
_COMPACT_BYTES_A_FLOW: Final = 16 << 10  # each flow is looked at for that, no more often than this, counted by flows
_OPAQUE: Final = b"opaque"


class Mode(Enum):
    """How the primary's output earns its way out."""

    COMPARE = "compare"
    """By being equal to the secondary's, or by a checkpoint."""
    PERIODIC = "periodic"
    """By the next checkpoint alone: simple checkpointing. The secondary's output is dropped."""
    PASS = "pass-through"  # noqa: S105 - no password
    """At once: there is no secondary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareConfig:
    """What a comparator is made with; times in microseconds.

    Attributes:
        vnet_hdr_len: bytes of virtio_net_hdr in front of a bare frame. framed: whether frames come in QEMU's stream
            instead; vnet_framing: whether that stream declares a virtio_net_hdr's length for each.
        compare_timeout: how long a frame of the primary may wait before a checkpoint is asked for. scan_cycle: how
            often that is looked after.
        max_queue_size: frames of the primary, and of the secondary, of one flow that may wait.
        max_flows: how many flows are tracked.
        max_held_bytes: how much of the primary's output is held in all: at half of it a checkpoint is asked for, and
            beyond it the newest frames are dropped, as a network may.
    """

    vnet_hdr_len: int = 0
    framed: bool = False
    vnet_framing: bool = False
    compare_timeout: Micros = 3 * _SECOND
    scan_cycle: Micros = _SECOND
    max_queue_size: int = 1024
    max_flows: int = 65_536
    max_held_bytes: int = 256 << 20


@final
class Comparator:
    """Compares what a primary and a secondary send to their peers.

    Attributes:
        counters: ``compare.*``. mode: how output is released now.
        primary_error, secondary_error: why a framed stream cannot be followed any more, "" while it can; cleared by
            `reset_primary` and `reset_secondary`.
    """

    def __init__(self, config: CompareConfig, counters: Counters | None = None) -> None:
        self.config = config
        self.counters = Counters() if counters is None else counters
        self.mode = Mode.COMPARE
        self._next_mode = Mode.COMPARE
        self._framing = Framing(framed=config.framed, vnet=config.vnet_framing, vnet_hdr_len=config.vnet_hdr_len)
        self._out = Outbox(self._framing, self.counters)
        self._flows = Flows(self._out, config.max_flows, config.max_queue_size)
        self._scan_at: Micros = 0
        self._buffer = Uncovered()  # periodic mode, and flows that find no room
        self._aside: list[tuple[bool, bytes, Micros]] = []
        self._aside_bytes = 0
        self._accepted = 0  # bytes of the primary's frames
        self._dropped = 0
        self._quick = True
        self._crowded = False
        self._asked: set[str] = set()  # reasons that a checkpoint was asked for and that need no repeating
        self._compact_at = _COMPACT_BYTES
        said = self._out.recent.add
        self._primary = FramedInput(self._framing, self.counters, self._lane(True, config.vnet_hdr_len), said)
        self._secondary = FramedInput(self._framing, self.counters, self._lane(False, config.vnet_hdr_len))

    def _lane(self, primary: bool, vnet_hdr_len: int) -> Lane:
        slow = self._slow_primary if primary else self._slow_secondary
        limit = self.config.max_queue_size
        return Lane(self._framing, vnet_hdr_len, self._flows.active, self._out, limit, slow, self._watch)

    # ------------------------------------------------------------------------------------------------------------ input

    def primary(self, frame: bytes, now: Micros, packet: Packet | None = None) -> None:
        """Take one bare frame of the primary; ``packet``: the same, if it was parsed already."""
        side = self._primary
        if side.aside:
            self._put_aside(True, frame, now)
        else:
            self._out.now = now
            self._out.recent.add(side.position, frame, 0)
            self._primary_frame(frame, self.config.vnet_hdr_len, frame, 0, len(frame), side.position, now, packet)
            side.position += 1
            self._accepted += len(frame)
            self._after_input()

    def secondary(self, frame: bytes, now: Micros, packet: Packet | None = None) -> None:
        """Take one bare frame of the secondary; ``packet``: see `primary`."""
        if self._secondary.aside:
            self._put_aside(False, frame, now)
        else:
            self._out.now = now
            self._secondary_frame(frame, self.config.vnet_hdr_len, frame, 0, len(frame), now, packet)

    def primary_bytes(self, data: bytes, now: Micros) -> None:
        """Take a part of the primary's framed stream, cut anywhere."""
        if self._primary.aside:
            self._put_aside(True, data, now)
            return
        quick = self._quick and self.mode is Mode.COMPARE and not self._crowded
        walk = self._primary.lane.primary if quick else self._walk_primary
        self._accepted += self._primary.feed(data, walk, now)
        self._after_input()

    def secondary_bytes(self, data: bytes, now: Micros) -> None:
        """Take a part of the secondary's framed stream, cut anywhere."""
        if self._secondary.aside:
            self._put_aside(False, data, now)
        else:
            quick = self._quick and self.mode is Mode.COMPARE
            self._secondary.feed(data, self._secondary.lane.secondary if quick else self._walk_secondary, now)

    @property
    def primary_error(self) -> str:
        """See the class."""
        return self._primary.error

    @property
    def secondary_error(self) -> str:
        """See the class."""
        return self._secondary.error

    def reset_primary(self) -> None:
        """The primary's stream starts anew: forget the frame that was not whole."""
        self._primary.reset()

    def reset_secondary(self) -> None:
        """The secondary's stream starts anew."""
        self._secondary.reset()

    # ----------------------------------------------------------------------------------------- frames, the readable way

    def _walk_primary(self, data: bytes, at: int, position: int, now: Micros) -> int:
        """`colo.lane.Lane.primary` without its short cut."""
        while (following := self._slow_primary(data, at, position, now)) >= 0:
            at = following
        return at

    def _walk_secondary(self, data: bytes, at: int, position: int, now: Micros) -> int:
        while (following := self._slow_secondary(data, at, position, now)) >= 0:
            at = following
        return at

    def walk_slowly(self) -> None:
        """Do without the fast lanes from now on: for tests that hold the one against the other."""
        self._quick = False

    def _slow_primary(self, data: bytes, at: int, position: int, now: Micros) -> int:
        high, vnet_hdr_len = self._whole_untrusted(self._primary, data, at)
        if high > at:
            frame = data[at + self._framing.prefix : high]
            if frame:
                self._primary_frame(frame, vnet_hdr_len, data, at, high, position, now)
            else:
                self._out.bytes += high - at  # nothing to send; QEMU would end itself on it
                self.counters.bump("compare.empty")
        return high

    def _slow_secondary(self, data: bytes, at: int, position: int, now: Micros) -> int:  # noqa: ARG002 - the lane's form
        high, vnet_hdr_len = self._whole_untrusted(self._secondary, data, at)
        if high > at:
            frame = data[at + self._framing.prefix : high]
            if frame:
                self._secondary_frame(frame, vnet_hdr_len, data, at, high, now)
            else:
                self.counters.bump("compare.empty")
        return high

    def _whole_untrusted(self, side: FramedInput, data: bytes, at: int) -> tuple[int, int]:
        """Where the frame at ``at`` ends, -1 unless all of it is there; and its virtio_net_hdr's length."""
        high, vnet_hdr_len = side.whole_untrusted(data, at)
        if high >= 0 and vnet_hdr_len != side.lane.vnet_hdr_len and vnet_hdr_len <= MAX_VNET_HDR_LEN:
            side.lane = self._lane(side is self._primary, vnet_hdr_len)
        return high, vnet_hdr_len

    def _primary_frame(
        self,
        frame: bytes,
        vnet_hdr_len: int,
        data: bytes,
        low: int,
        high: int,
        position: int,
        now: Micros,
        packet: Packet | None = None,
    ) -> None:
        """Deal with one frame, which is ``data[low:high]`` with its prefix, and ``packet`` if it was parsed."""
        if self.mode is Mode.PASS:
            self._pass(data, low, high, now, position)
            return
        if self._crowded:
            self._dropped += high - low
            self.counters.bump("compare.primary_dropped")
            return
        if self.mode is Mode.PERIODIC:
            self._buffer.add(data, low, high, now, position)
            return
        packet = packet or self._parse_untrusted(frame, vnet_hdr_len)
        if packet is None:
            pieces = ((position, data, low, high),)
            flow = self._flow_of(_OPAQUE, DatagramFlow)
            if isinstance(flow, DatagramFlow):
                flow.primary(frame[vnet_hdr_len + 12 :], pieces, now, position + low)
                self._look_after(flow, now)
        elif not packet.version or is_link_local_talk(packet):
            self.counters.bump("compare.not_compared")
            self._pass(data, low, high, now, position)
        elif packet.is_fragment:
            self._primary_fragment(packet, data, low, high, position, now)
        else:
            self._primary_packet(packet, data, low + self._framing.prefix, low, high, position, now, None)

    def _parse_untrusted(self, frame: bytes, vnet_hdr_len: int) -> Packet | None:
        """The packet; None for what says it is IP and is not, which can only be compared as it is."""
        if len(frame) < vnet_hdr_len + 14 or vnet_hdr_len > MAX_VNET_HDR_LEN:
            self.counters.bump("compare.runt")
            return Packet(frame, 0)
        packet = parse_untrusted(frame, vnet_hdr_len, self.counters)
        if packet is None:
            self.counters.bump("compare.opaque")
        return packet

    def _primary_packet(
        self,
        packet: Packet,
        data: bytes,
        shift: int,
        low: int,
        high: int,
        position: int,
        now: Micros,
        more: Pieces | None,
    ) -> None:
        flow = self._flow_of(directed_key(packet), TcpFlow if packet.proto == PROTO_TCP else DatagramFlow)
        if isinstance(flow, TcpFlow):
            flow.primary(packet, data, shift, low, high, now, position, more)
        elif isinstance(flow, DatagramFlow):
            flow.primary(datum_of(packet), more or ((position, data, low, high),), now, position + low)
        else:
            for piece in more or ((position, data, low, high),):
                self._buffer.add(piece[1], piece[2], piece[3], now, piece[0])
            self._look_after(self._buffer, now)
            return
        self._look_after(flow, now)

    def _primary_fragment(self, packet: Packet, data: bytes, low: int, high: int, position: int, now: Micros) -> None:
        """Hold a fragment until its datagram is whole, and then hold that."""
        key = b"fragments" + packet.src + packet.dst + packet.ident.to_bytes(4, "big") + bytes((packet.proto,))
        flow = self._flow_of(key, Uncovered)
        whole = self._primary.inspector.add_untrusted(packet, now)
        pending = flow if isinstance(flow, Uncovered) else self._buffer
        pending.add(data, low, high, now, position)
        if whole is None or pending is self._buffer:
            self._look_after(pending, now)
            return
        pieces = pending.pieces()
        pending.held.clear()
        self._flows.remove(key)
        self._primary_packet(whole, whole.frame, 0, 0, 0, position + low, now, pieces)

    def _secondary_frame(
        self,
        frame: bytes,
        vnet_hdr_len: int,
        data: bytes,
        low: int,
        high: int,
        now: Micros,
        packet: Packet | None = None,
    ) -> None:
        if self.mode is not Mode.COMPARE:
            self.counters.bump("compare.secondary_ignored")
            return
        packet = packet or self._parse_untrusted(frame, vnet_hdr_len)
        if packet is None:
            flow = self._flow_of(_OPAQUE, DatagramFlow)
            if isinstance(flow, DatagramFlow):
                flow.secondary(frame[vnet_hdr_len + 12 :], frame, now)
            return
        if not packet.version or is_link_local_talk(packet):
            return
        shift = low + self._framing.prefix
        if packet.is_fragment:
            whole = self._secondary.inspector.add_untrusted(packet, now)
            if whole is None:
                return
            packet, data, shift, low, high = whole, whole.frame, 0, 0, len(whole.frame)
            frame = b""  # if the secondary carries on: no link need be wide enough for what came in pieces
        flow = self._flow_of(directed_key(packet), TcpFlow if packet.proto == PROTO_TCP else DatagramFlow)
        if isinstance(flow, TcpFlow):
            flow.secondary(packet, data, shift, low, high, now)
        elif isinstance(flow, DatagramFlow):
            flow.secondary(datum_of(packet), frame, now)
        else:
            self.counters.bump("compare.secondary_ignored")
            return
        if not flow.armed and not flow.idle:
            self._watch(flow, now)

    def _pass(self, data: bytes, low: int, high: int, now: Micros, position: int) -> None:
        self._out.emit((0, 0, data, 0, 0, 0, 0, low, high, now, position, None))

    def _flow_of(self, key: bytes, kind: type[Flow]) -> Flow | None:
        """The flow with ``key``; None, and a request, when there is no room for it."""
        flow = self._flows.get(key, kind)
        if flow is None:
            self._ask_once(difference.TABLE_FULL)
        return flow

    @property
    def flows(self) -> int:
        """How many flows are known."""
        return len(self._flows)

    # -------------------------------------------------------------------------------------------------- time and bounds

    def _look_after(self, flow: Flow, now: Micros) -> None:
        if flow.held and (not flow.armed or len(flow.held) > self.config.max_queue_size):
            self._watch(flow, now)

    def _watch(self, flow: Flow, now: Micros) -> None:
        """A flow holds something and is not watched yet, or holds too much."""
        if not flow.armed:
            self._flows.watch(flow, now + self.config.compare_timeout)
        if len(flow.held) > self.config.max_queue_size:
            self._ask_once(difference.QUEUE_FULL, flow)

    def _ask_once(self, reason: str, flow: Flow | None = None) -> None:
        """Ask for a checkpoint, once until there was one."""
        if reason not in self._asked:
            self._asked.add(reason)
            key, (offset, why) = (b"", (0, b"")) if flow is None else (flow.key, flow.waits_for())
            self._out.differ(reason, key, offset, why, b"", 0)

    def _after_input(self) -> None:
        held = self.held_bytes
        most = self.config.max_held_bytes
        if held > most // 2:
            self._ask_once(difference.QUEUE_FULL)
        self._crowded = held > most
        if self._accepted >= self._compact_at:
            self._flows.compact()
            self._compact_at = self._accepted + max(_COMPACT_BYTES, _COMPACT_BYTES_A_FLOW * self._flows.watched)

    def tick(self, now: Micros) -> None:
        """Look, once in a scan cycle, for frames that have waited for too long."""
        if now < self._scan_at:
            return
        self._scan_at = now + self.config.scan_cycle
        self._primary.inspector.tick(now)
        self._secondary.inspector.tick(now)
        late = self._flows.late(now, self.config.compare_timeout, self.config.scan_cycle)
        if late is not None and self.mode is Mode.COMPARE:
            offset, why = late.waits_for()
            self._out.differ(difference.TIMEOUT, late.key, offset, why, b"", 0)

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""
        due = self._flows.next_look
        return None if due is None else max(due, self._scan_at)

    # ----------------------------------------------------------------------------------------------------------- output

    def take_released(self) -> list[Buffer]:
        """What may leave, in the primary's order: one buffer a frame, or pieces of the framed stream."""
        return self._out.take()

    def take_requests(self) -> list[Difference]:
        """Why a checkpoint is wanted; empty when it is not."""
        differences = self._out.differences
        if differences:
            self._out.differences = []
        return differences

    @property
    def asks(self) -> bool:
        """Whether `take_requests` has any."""
        return bool(self._out.differences)

    @property
    def held_bytes(self) -> int:
        """Bytes of the primary's output that have not left, prefixes included."""
        return self._accepted - self._dropped - (self._out.bytes - self._out.made)

    @property
    def held_frames(self) -> int:
        """Frames of the primary that wait. O(flows that hold something)."""
        return self._flows.held_frames + (0 if self._buffer.armed else len(self._buffer.held))

    @property
    def waited(self) -> Micros:
        """How long the frames that have left had waited, all together. Counted for bare frames only."""
        return self._out.waited

    @property
    def released_frames(self) -> int:
        """Frames that have left so far."""
        return self._out.frames

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def primary_boundary(self) -> None:
        """All that the primary sent before it stood still has been fed."""
        self._primary.aside = True

    def secondary_boundary(self) -> None:
        """All that the secondary sent before it stood still has been fed."""
        self._secondary.aside = True

    def commit(self, now: Micros) -> None:
        """The checkpoint has completed: everything held leaves, and both machines are in step from here on."""
        self._out.now = now
        self._release_all()
        self._asked.clear()
        self._out.differences.clear()
        if self.mode is self._next_mode:
            self._flows.rest()
        else:
            self.mode = self._next_mode
            self._flows.clear()  # nobody has followed the streams meanwhile
        self.counters.bump("compare.commits")
        self._lift(now)

    def abort(self, now: Micros) -> None:
        """The checkpoint did not happen: what was kept aside joins what is held, and the comparison goes on."""
        self._asked.clear()
        self._lift(now)

    def _release_all(self) -> None:
        records: list[Record] = []
        if not self._buffer.armed:
            records += self._buffer.held
            self._buffer.held.clear()
        self._out.emit_all(records + self._flows.held())
        self._flows.resync()
        self._crowded = False

    def _put_aside(self, primary: bool, data: bytes, now: Micros) -> None:
        if self._aside_bytes + len(data) > self.config.max_held_bytes and not self._framing.framed:
            self.counters.bump("compare.primary_dropped" if primary else "compare.secondary_dropped")
            return
        self._aside.append((primary, data, now))
        self._aside_bytes += len(data)

    def _lift(self, now: Micros) -> None:  # noqa: ARG002 - what was kept aside keeps its own time
        self._primary.aside = self._secondary.aside = False
        aside, self._aside = self._aside, []
        self._aside_bytes = 0
        framed = self._framing.framed
        for primary, data, since in aside:
            if primary:
                self.primary_bytes(data, since) if framed else self.primary(data, since)
            else:
                self.secondary_bytes(data, since) if framed else self.secondary(data, since)

    def set_mode(self, mode: Mode) -> None:
        """Release by ``mode``: PERIODIC at once, COMPARE from the next commit on, when both machines are in step."""
        self._next_mode = mode
        if mode is Mode.PERIODIC:
            self.mode = mode

    def pass_through(self, now: Micros) -> None:
        """The secondary is gone: everything held leaves, and everything after it at once."""
        self.mode = self._next_mode = Mode.PASS
        self._release_all()
        self._flows.clear()
        self._lift(now)

    def drop_held(self) -> list[bytes]:
        """The primary is gone: nothing of its output that is held may leave.

        Returns:
            What the secondary has sent and the primary has not: frames for the client, in order for each flow.
        """
        frames = self._flows.secondary_frames()
        self._dropped += self.held_bytes
        self._flows.drop()
        self._buffer = Uncovered()
        self._out.differences.clear()
        self._aside = [item for item in self._aside if not item[0]]
        return frames
