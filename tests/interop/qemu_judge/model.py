"""What QEMU 7.2's colo-compare does, as plain lists and loops: the facts about it in a form that can be checked.

`tests.interop.test_qemu_judge` holds this against QEMU itself, frame by frame, in every case. What it is for is
`Model.notes`: at each place where QEMU decides without looking at something that matters, or by looking at the wrong
thing, the model notes which; the classes of `tests.interop.qemu_judge.judge` are these notes. Function names are those
of net/colo-compare.c and net/colo.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pystack.seq import MASK
from pystack.wire.packet import ACK, FIN, SYN
from tests.interop.qemu_judge.draft import Step
from tests.interop.qemu_judge.packets import Item, Said, after, contradicts, datum, item_of, says_ip

BARE_UNSEEN: Final = "bare-unseen"
BARE_ALONE: Final = "bare-alone"
ACK_UNSEEN: Final = "ack-unseen"
ACK_IS_DIFFERENCE: Final = "ack-is-a-difference"
END_UNSEEN: Final = "end-unseen"
ENDS_EARLY: Final = "ends-early"
RETRANSMISSION_UNSEEN: Final = "retransmission-unseen"
BEFORE_DIFFERENCE: Final = "before-the-difference"
OVER_READ: Final = "over-read"
"""What QEMU answers then depends on what its memory holds: the model does not know."""
SORTED: Final = "sorted"
UNALIGNED: Final = "unaligned"
ZERO_IS_UNSET: Final = "zero-is-unset"
USED_ANEW: Final = "used-anew"
WINDOW_UNSEEN: Final = "window-unseen"
PADDING: Final = "padding-is-payload"
NEWEST_FIRST: Final = "newest-first"
WHOLE_PACKET: Final = "whole-packet"
ICMP_IS_ONE_FLOW: Final = "icmp-is-one-flow"
FRAGMENTS_APART: Final = "fragments-apart"
NOT_LOOKED_INTO: Final = "not-looked-into"

MAX_VNET_HDR_LEN: Final = 20
_PORTED: Final = frozenset({6, 17, 33, 50, 132, 136})  # at offset 0, or what QEMU takes for ports
_AH: Final = 51


@dataclass(slots=True)
class Connection:
    """``primary`` and ``secondary``: for TCP by sequence number, lowest first; for all else as they came."""

    proto: int
    primary: list[Item] = field(default_factory=list)
    secondary: list[Item] = field(default_factory=list)
    compare_seq: int = 0
    pack: int = 0
    sack: int = 0
    said: Said = field(default_factory=Said)  # by the secondary
    sent: list[Item] = field(default_factory=list)  # by the primary, all of it
    s_right: int | None = None  # how far the secondary's window reaches
    shift: int = 0
    compared: bool = False


class Model:
    """One colo-compare object.

    Attributes:
        notes: what QEMU decided without looking, see the module's text.
    """

    def __init__(self, max_queue_size: int = 1024) -> None:
        self._connections: dict[tuple[bytes, ...], Connection] = {}
        self._max = max_queue_size
        self._released: list[int] = []
        self._asked = 0
        self.notes: set[str] = set()
        self.dropped: list[int] = []

    def feed(self, index: int, step: Step) -> tuple[list[int], int]:
        """One frame; returns which frames it releases, by their index, and how often it asks for a checkpoint."""
        self._released, self._asked = [], 0
        key = self._key(step)
        if key is None:
            if step.primary:
                self._released.append(index)
            if says_ip(step):
                self.notes.add(NOT_LOOKED_INTO)
        else:
            connection = self._connections.setdefault(key, Connection(step.frame[step.vnet_hdr_len + 23]))
            self._enqueue(connection, index, step)
            if connection.primary and connection.secondary:
                if connection.proto == 6:
                    self._compare_tcp(connection)
                else:
                    self._compare_packet(connection)
        return self._released, self._asked

    def flush(self) -> list[int]:
        """COLO_CHECKPOINT: colo_flush_packets."""
        released = []
        for connection in self._connections.values():
            self._look_at_rest(connection)
            order = connection.primary if connection.proto == 6 else connection.primary[::-1]
            released += [item.step for item in order]
            connection.primary.clear()
            connection.secondary.clear()
        return released

    # ------------------------------------------------------------------------------------------------ packets

    def _key(self, step: Step) -> tuple[bytes, ...] | None:
        """parse_packet_early and fill_connection_key; None for what QEMU does not support."""
        frame, vnet = step.frame, step.vnet_hdr_len
        if vnet > MAX_VNET_HDR_LEN or len(frame) < vnet + 18 or frame[vnet + 12 : vnet + 14] != b"\x08\0":
            return None
        l3 = vnet + 14
        l4 = l3 + (frame[l3] & 15) * 4
        proto = frame[l3 + 9]
        ports = frame[l4 : l4 + 4] if proto in _PORTED else frame[l4 + 4 : l4 + 8] if proto == _AH else b""
        return frame[l3 + 12 : l3 + 16], frame[l3 + 16 : l3 + 20], ports, bytes((proto,))

    def _enqueue(self, connection: Connection, index: int, step: Step) -> None:
        item = item_of(index, step, tcp=connection.proto == 6)
        queue = connection.primary if step.primary else connection.secondary
        if len(queue) > self._max:
            self.dropped.append(index)
            return
        if connection.proto != 6:
            queue.append(item)
            self._look_at_datagram(connection, item)
            return
        at = len(queue)
        while at and after(queue[at - 1].seq, item.seq):
            at -= 1
        queue.insert(at, item)
        if step.primary:
            if at < len(queue) - 1:
                self.notes.add(SORTED)
            connection.pack = item.ack
        else:
            connection.sack = item.ack
        self._look_at_segment(connection, item, primary=step.primary)

    # ---------------------------------------------------------------------------------------------------- TCP

    def _compare_tcp(self, connection: Connection) -> None:
        """colo_compare_tcp."""
        least = min(connection.pack, connection.sack)
        mine: Item | None = None
        started = False  # whether a part of the secondary's segment was found equal, now
        while True:
            if mine is None:
                if not connection.primary:
                    return
                mine = connection.primary.pop(0)
            if not connection.secondary:
                connection.primary.insert(0, mine)
                return
            its = connection.secondary.pop(0)
            mine = self._without_comparing(connection, mine)
            if its.bare or self._is_old(connection, its):
                continue
            if mine is None:
                connection.secondary.insert(0, its)
                continue
            mark = self._mark(connection, mine, its, least)
            if not mark:
                if started:
                    self.notes.add(BEFORE_DIFFERENCE)
                connection.primary.insert(0, mine)
                connection.secondary.insert(0, its)
                self._asked += 1
                return
            connection.compared = True
            started = mark == "primary"
            if mark == "secondary":
                connection.compare_seq = its.stop
                continue
            connection.compare_seq = mine.stop
            if mark == "primary":
                connection.secondary.insert(0, its)
            self._released.append(mine.step)
            if not connection.said.covers_ack(mine):
                self.notes.add(ACK_UNSEEN)
            if not connection.said.covers_flags(mine):
                self.notes.add(END_UNSEEN)
            mine = None

    def _is_old(self, connection: Connection, item: Item) -> bool:
        if connection.compared and not connection.compare_seq:
            self.notes.add(ZERO_IS_UNSET)
        return bool(connection.compare_seq) and not after(item.stop, connection.compare_seq)

    def _without_comparing(self, connection: Connection, mine: Item) -> Item | None:
        if mine.bare:
            if not (connection.said.covers_flags(mine) and connection.said.covers_ack(mine)):
                self.notes.add(BARE_UNSEEN)
        elif self._is_old(connection, mine):
            if not connection.said.covers_ack(mine):
                self.notes.add(ACK_UNSEEN)
            if not connection.said.covers_flags(mine):
                self.notes.add(END_UNSEEN)
        else:
            return mine
        self._released.append(mine.step)
        return None

    def _mark(self, connection: Connection, mine: Item, its: Item, least: int) -> str:
        """colo_mark_tcp_pkt: which of the two is used up; "" when they differ."""
        if mine.seq == its.seq and mine.stop == its.stop and mine.payload == its.payload:
            return "both"
        if (mine.seq + mine.offset - its.seq - its.offset) & MASK:
            self.notes.add(UNALIGNED)
        if not after(mine.stop, its.stop):
            size = len(mine.payload) - mine.offset
            self._look_at_extent(size, its)
            if mine.rest() == its.rest()[:size]:
                if not after(mine.ack, least):
                    its.offset += size
                    return "primary"
                self.notes.add(ACK_IS_DIFFERENCE)
        else:
            size = len(its.payload) - its.offset
            self._look_at_extent(size, mine)
            if mine.rest()[:size] == its.rest():
                mine.offset += size
                return "secondary"
        return ""

    # ------------------------------------------------------------------- what QEMU has not looked at, from outside

    def _look_at_segment(self, connection: Connection, item: Item, *, primary: bool) -> None:
        said = connection.said
        if item.flags & SYN and item.options[2] is not None:
            connection.shift = int(str(item.options[2]))
        if len(item.payload) != len(item.true_payload):
            self.notes.add(PADDING)
        right = item.ack + (item.window << (0 if item.flags & SYN else connection.shift)) & MASK
        if primary:
            syns = {other.seq for other in connection.sent if other.flags & SYN}
            if item.flags & SYN and syns and item.seq not in syns:
                self.notes.add(USED_ANEW)
            if any(contradicts(item, other) for other in connection.sent):
                self.notes.add(RETRANSMISSION_UNSEEN)
            item.right = right
            connection.sent.append(item)
        else:
            said.note(item)
            if not item.bare and (said.top is None or after(item.stop, said.top)):
                said.top = item.stop
            if item.flags & ACK and (connection.s_right is None or after(right, connection.s_right)):
                connection.s_right = right
        for mine in connection.sent:
            if mine.flags & ACK and connection.s_right is not None and after(mine.right, connection.s_right):
                if said.covers_ack(mine) and (mine.bare or not (said.top is None or after(mine.stop, said.top))):
                    self.notes.add(WINDOW_UNSEEN)
            if not mine.bare and any(end is not None and after(mine.stop, end) for end in (said.fin, said.rst)):
                self.notes.add(ENDS_EARLY)
            if mine.flags & FIN and said.top is not None and after(said.top, mine.seq + len(mine.true_payload)):
                self.notes.add(ENDS_EARLY)

    def _look_at_extent(self, size: int, other: Item) -> None:
        if size > len(other.payload) - other.offset:
            self.notes.add(OVER_READ)

    def _look_at_datagram(self, connection: Connection, item: Item) -> None:
        l3 = item.vnet_hdr_len + 14
        if item.frame[l3 + 6] & 0x3F or item.frame[l3 + 7]:
            self.notes.add(FRAGMENTS_APART)
        if connection.proto == 1:
            idents = {
                other.frame[other.vnet_hdr_len + 38 : other.vnet_hdr_len + 40]
                for other in (*connection.primary, *connection.secondary)
            }
            if len(idents) > 1:
                self.notes.add(ICMP_IS_ONE_FLOW)

    def _look_at_rest(self, connection: Connection) -> None:
        if connection.proto == 6 and connection.primary and not connection.secondary:
            first = connection.primary[0]
            if (first.bare or self._is_old(connection, first)) and connection.said.covers_ack(first):
                self.notes.add(BARE_ALONE)

    # ------------------------------------------------------------------------------------------------- others

    def _compare_packet(self, connection: Connection) -> None:
        """colo_compare_packet with colo_packet_compare_udp, _icmp or _other."""
        while connection.primary and connection.secondary:
            if len(connection.primary) > 1:
                self.notes.add(NEWEST_FIRST)
            mine = connection.primary.pop()
            found = next((its for its in connection.secondary if _same(connection.proto, mine, its)), None)
            if found is None:
                if any(datum(connection.proto, mine) == datum(connection.proto, its) for its in connection.secondary):
                    self.notes.add(WHOLE_PACKET)
                connection.primary.append(mine)
                self._asked += 1
                return
            connection.secondary.remove(found)
            self._released.append(mine.step)


def _same(proto: int, mine: Item, its: Item) -> bool:
    if len(mine.frame) != len(its.frame):
        return False
    start = mine.vnet_hdr_len
    if proto in (1, 17):
        start += 14 + (mine.frame[start + 14] & 15) * 4
    return mine.frame[start:] == its.frame[start:]


def answers(steps: Sequence[Step]) -> tuple[list[tuple[list[int], int]], list[int], frozenset[str]]:
    """The model's answer to each frame of a case, to the checkpoint at its end, and its notes."""
    model = Model()
    given = [model.feed(index, step) for index, step in enumerate(steps)]
    return given, model.flush(), frozenset(model.notes)
