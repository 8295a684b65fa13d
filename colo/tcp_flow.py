"""The two streams of one TCP connection, as the guest sends them, held against each other.

Read before editing: docs/explanation/output-commit.md, RFC 9293 sections 3.4 (sequence numbers) and 3.8.6 (windows),
RFC 7323 section 2 (scaled windows). Where this differs from QEMU's colo-compare:
docs/reference/differences-from-qemu.md.

Only the direction from the guest to its peer is seen. All numbers inside are absolute (`pystack.seq.unwrap`), in the
primary's sequence space: the secondary's frames have passed a rewriter, except its SYN, whose number says nothing.

Streams are compared and not packets: ``p_nxt`` and ``s_nxt`` count how far each side's stream is known without a gap;
whatever both have sent is compared at once and dropped, so that everything below the smaller of the two is agreed on,
and ``ahead`` holds what only one side has sent. A frame of the primary waits in ``held``, and the queue is served in
order: its head is released when all that it carries is the secondary's too (`TcpFlow.advance`).

`colo.lane` does the same for the ordinary frame, faster; ``p_open`` and ``s_open`` let it.
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import Final, final

from colo import difference, window
from colo.early import Early
from colo.held import (
    ACKNOWLEDGES,
    DATA,
    FLAGS,
    HIGH,
    LOW,
    PAYLOAD,
    RIGHT,
    START,
    STOP,
    UNCOVERED,
    Outbox,
    Piece,
    Record,
    own,
    with_flag,
)
from pystack import Micros
from pystack.seq import unwrap
from pystack.wire.packet import ACK, FIN, RST, SYN, Packet
from pystack.wire.tcp import parse_options_untrusted

UNSET: Final = -1
_ORIGIN: Final = 1 << 32  # added to the first number seen, so that what lies before it is not negative
_FAR: Final = 1 << 30  # RFC 7323 section 2.3: no window is larger, so no honest number is further away
_HISTORY: Final = 32
NOTHING: Final[Piece] = ()
"""What is in `TcpFlow.single` when nothing waits, on either side."""
REMEMBERING: Final = 512
"""How many flows remember what they have released, `_HISTORY` frames each: more would cost more than they tell."""
_CLOSING: Final = FIN | RST

Negotiated = tuple[int, "int | None", "int | None", bool, bool]
"""SYN and ACK flags; MSS, window scale, SACK-permitted, whether timestamps are used."""


@final
class TcpFlow:
    """One connection's output of both machines. See the module's text for the names.

    Attributes:
        held: frames of the primary that wait, in its order. single: with most connections no more than one piece waits,
            of one side, and then it is here and in no list: what takes the lanes touches no more memory than it must,
            and memory is what a packet costs where connections are many. `NOTHING` if none does; None when one has to
            look into ``held_many`` and ``ahead_many``, which are empty otherwise. armed: whether the comparator's clock
            watches them.
        diverged: a difference was found, and only a checkpoint can tell how it goes on: nothing is compared.
        ended: both sides have ended the stream, and the primary's end was released.
    """

    __slots__ = (
        "_ack_near",
        "_base",
        "_below",
        "_debt",
        "_early_p",
        "_early_s",
        "_first",
        "_iss_p",
        "_iss_s",
        "_near",
        "_next_s",
        "_p_top_ack",
        "_p_top_right",
        "_shift",
        "_syn_p",
        "_syn_s",
        "ahead_many",
        "armed",
        "diverged",
        "ended",
        "fin_p",
        "fin_s",
        "held_many",
        "history",
        "key",
        "limit",
        "out",
        "p_ack",
        "p_nxt",
        "p_open",
        "p_right",
        "p_told",
        "rst_p",
        "rst_s",
        "rst_s_frame",
        "s_ack",
        "s_nxt",
        "s_open",
        "s_right",
        "s_told",
        "single",
    )  # fmt: skip

    def __init__(self, key: bytes, out: Outbox, limit: int) -> None:
        self.key = key
        self.out = out
        self.limit = limit  # pieces of the secondary that may be ahead, and frames of the primary before help is asked
        self.single: Piece | None = None
        # Lists, short as they are: an empty one is a tenth of a deque, and there is one pair for every connection.
        self.held_many: list[Record] = []
        self.ahead_many: list[Piece] = []
        self.history: deque[Record] | None = None  # what was released lately, to hold retransmissions against
        self.armed = False
        self._ack_near = self._near = UNSET
        self._next_s: list[tuple[Packet, bytes, int, int, int, Micros]] = []
        self._forget()

    def _forget(self) -> None:
        """Know nothing of either stream. ``held`` stays, as do the frames in ``_next_s``."""
        self.ahead.clear()
        self.p_open = self.s_open = False
        self.p_nxt = self.s_nxt = UNSET
        self._base = UNSET  # of what lies below nothing is known
        self._first = UNSET  # where the stream begins, or began to be followed: differences are told from there on
        self.p_ack = self._p_top_ack = self.s_ack = UNSET
        self.p_told = self.s_told = -1  # the last acknowledgement and window as in the header, for the lanes
        self.p_right = self._p_top_right = self.s_right = 0
        self._shift = 0
        self._iss_p = self._iss_s = -1  # as in the header
        self._syn_p: Negotiated | None = None
        self._syn_s: Negotiated | None = None
        self.fin_p = self.fin_s = self.rst_p = self.rst_s = UNSET
        self.rst_s_frame: bytes = b""
        self._early_p: Early | None = None  # beyond a gap of the primary's stream
        self._early_s: Early | None = None
        self._below: Early | None = None  # what the secondary repeats from before this comparison began
        self._debt: Record | None = None  # the last frame that went out with a smaller window than the primary's
        self.diverged = False
        self.ended = False

    # -------------------------------------------------------------------------------------------------- what is waiting

    @property
    def held(self) -> list[Record]:
        """See the class."""
        if self.single is not None:
            self.unfold()
        return self.held_many

    @property
    def ahead(self) -> list[Piece]:
        """Pieces that one side has sent and the other has not, in order and without a gap."""
        if self.single is not None:
            self.unfold()
        return self.ahead_many

    def unfold(self) -> None:
        """Put what is alone in ``single`` into the lists, where everything but the lanes looks for it."""
        single, self.single = self.single, None
        if single:
            self.ahead_many.append(single)
            if len(single) > HIGH:  # a record of the primary
                self.held_many.append(single)

    def _fold(self) -> None:
        """The opposite, when nothing waits."""
        if self.single is None and not self.held_many and not self.ahead_many:
            self.single = NOTHING

    # ----------------------------------------------------------------------------------------------- the primary's side

    def primary(
        self,
        packet: Packet,
        data: bytes,
        shift: int,
        low: int,
        high: int,
        now: Micros,
        position: int,
        more: tuple[tuple[int, bytes, int, int], ...] | None = None,
    ) -> None:
        """Take a frame of the primary.

        Args:
            packet: the frame, parsed. data: what it is to be kept in, where it starts ``shift`` bytes later than in
                ``packet.frame``.
            low, high: its extent in ``data``, prefix included. position, more: see `colo.held`.
        """
        flags = packet.flags
        if flags & SYN and (self._syn_p is None or packet.seq != self._iss_p):
            self._primary_opens(packet)
        start = self._unwrap(packet.seq, self.p_nxt)
        if self.p_nxt == UNSET:
            self._begin(start)
        if flags & SYN:
            start += 1
        stop = start + packet.end - packet.payload
        if flags & ACK:
            self.primary_acked(packet.ack, packet.window, 0 if flags & SYN else self._shift)
        where = packet.payload + shift
        record: Record = (
            start, stop, data, where, self.p_ack, self.p_right if flags & ACK else 0, flags, low, high, now, position,
            more
        )  # fmt: skip
        again = not self.diverged and start < stop <= self.p_nxt and not flags & (SYN | FIN | RST)
        if not self.diverged:
            record = self._primary_stream(record)
        elif stop > start and stop > self.p_nxt:
            self.p_nxt = stop
        if again and self.held:
            self._overtake(record)
        else:
            self.held.append(record)
        self._settle()

    def _overtake(self, record: Record) -> None:
        """Hold a retransmission before what is new.

        Behind it, it could wait for ever: the client has lost what it repeats and acknowledges nothing until it comes,
        the secondary sends nothing new until the client acknowledges, and what is new waits for the secondary. One that
        is covered leaves before everything, even before the larger frame that it repeats a part of, unless the SYN has
        not left yet.
        """
        held = self.held
        at = 0
        if held[0][FLAGS] & SYN or not self._covered(record):
            while at < len(held) and held[at][START] < record[STOP]:
                at += 1
        held.insert(at, record)

    def _primary_opens(self, packet: Packet) -> None:
        """A SYN that does not belong to what is known: the four-tuple is used anew (RFC 9293 section 3.6.1)."""
        unfinished = bool(self.held)
        self._forget()
        self._iss_p = packet.seq
        self._syn_p = _negotiated(packet, self.out)
        self._shift = self._syn_p[2] or 0
        self._begin(self._unwrap(packet.seq, UNSET) + 1)
        if unfinished:
            self._differ(difference.INCARNATION, b"a new SYN", b"")

    def _begin(self, start: int) -> None:
        """Compare from ``start`` on: what lies before it is not known."""
        self.p_nxt = self.s_nxt = self._base = self._first = start
        if self._early_s is not None:
            self._below, self._early_s = self._early_s, None
            for piece in self._below.all():
                self._secondary_piece(piece)
        waiting, self._next_s = self._next_s, []
        for arguments in waiting:
            self.secondary(*arguments)

    def _primary_stream(self, record: Record) -> Record:
        """Work the payload and the end of a frame into the primary's stream; returns it as it shall be held."""
        start, stop, flags = record[START], record[STOP], record[FLAGS]
        if stop > start:
            if (start < self.p_nxt or self._early_p) and self._contradicts(record):
                self._differ_again(record)
            elif start < self._base or start - self.p_nxt > _FAR:
                record = with_flag(record, UNCOVERED)
            elif start > self.p_nxt:
                if self._early_p is None:
                    self._early_p = Early(self.limit)
                self._early_p.add(record)
            elif stop > self.p_nxt:
                self._extend(_trimmed(record, self.p_nxt), primary=True)
                self.p_nxt = self._drain(self._early_p, stop, primary=True)
        if flags & _CLOSING:
            if flags & FIN and self.fin_p == UNSET:
                self.fin_p = stop
            if flags & RST:
                self.rst_p = start
        return record

    def primary_acked(self, ack: int, window_field: int, shift: int) -> None:
        """Note another acknowledgement or window than that of the last frame."""
        number = _same(self._unwrap_ack(ack, self.p_ack), self.s_ack)
        self.p_ack = number
        # A SYN's window is not scaled.
        self.p_told = _same(ack << 32 | window_field, self.s_told) if shift == self._shift else -1
        self.p_right = _same(number + (window_field << shift), self.s_right)
        if number > self._p_top_ack:
            self._p_top_ack = number
        if self.p_right > self._p_top_right:
            self._p_top_right = self.p_right

    def primary_acked_again(self, ack: int, window_field: int) -> None:
        """`primary_acked` of a frame that is no SYN."""
        self.primary_acked(ack, window_field, self._shift)

    def _contradicts(self, record: Record) -> bool:
        """Whether a frame says anything else than what the primary has said before, as far as that is still known."""
        start, stop, data, payload = record[:4]
        known = 0
        top = self.p_nxt
        for old in chain(self.history or (), self.held):
            low, high = max(start, old[START]), min(stop, old[STOP])
            if low < high:
                known += max(min(high, top) - low, 0)
                at = payload - start
                there = old[PAYLOAD] - old[START]
                if data[at + low : at + high] != old[DATA][there + low : there + high]:
                    return True
        if known < min(stop, top) - start:
            self.out.counters.bump("compare.retransmission_unverified")
        return False

    # --------------------------------------------------------------------------------------------- the secondary's side

    def secondary(self, packet: Packet, data: bytes, shift: int, low: int, high: int, now: Micros) -> None:
        """Take a frame of the secondary; the arguments are those of `primary`."""
        flags = packet.flags
        if self.diverged:
            return
        if self._next_s or (flags & SYN and not self._is_answer(packet)):
            # The secondary opens a connection that the primary has not opened yet: all this belongs to that one.
            if len(self._next_s) < self.limit:
                self._next_s.append((packet, data, shift, low, high, now))
            else:
                self.out.counters.bump("compare.secondary_early")
            self._settle()
            return
        if flags & SYN:
            self._iss_s = packet.seq
            self._syn_s = _negotiated(packet, self.out)
            start = self._base
        elif self._syn_p is not None and self._syn_s is None and not flags & RST:
            self.out.counters.bump("compare.secondary_stale")  # the rest of the connection before this one
            return
        else:
            start = self._unwrap(packet.seq, self.s_nxt)
        if flags & ACK:
            self.secondary_acked(packet.ack, packet.window, 0 if flags & SYN else self._shift)
        stop = start + packet.end - packet.payload
        if stop > start:
            self._secondary_piece((start, stop, data, packet.payload + shift, low, high))
        if flags & FIN and self.fin_s == UNSET:
            self.fin_s = stop
        if flags & RST:
            self.rst_s = start
            self.rst_s_frame = data[low:high]
        self._settle()

    def _is_answer(self, packet: Packet) -> bool:
        """Whether a SYN of the secondary belongs to the connection that the primary has opened."""
        return self._syn_p is not None and (self._syn_s is None or packet.seq in (self._iss_s, self._iss_p))

    def _secondary_piece(self, piece: Piece) -> None:
        start, stop = piece[START], piece[STOP]
        if self.s_nxt == UNSET or start > self.s_nxt:
            if self.s_nxt != UNSET and start - self.s_nxt > _FAR:
                self.out.counters.bump("compare.out_of_window")
                return
            if self._early_s is None:
                self._early_s = Early(self.limit)
            if not self._early_s.add(piece):
                self.out.counters.bump("compare.secondary_early")
            return
        if start < self._base:
            if self._below is None:
                self._below = Early(self.limit)
            self._below.add(piece)
        if stop > self.s_nxt:
            if len(self.ahead) > self.limit and self.s_nxt >= self.p_nxt:
                self.out.counters.bump("compare.secondary_dropped")
                self._differ(difference.SECONDARY_QUEUE_FULL, b"", b"")
                return
            self._extend(_trimmed(piece, self.s_nxt), primary=False)
            self.s_nxt = self._drain(self._early_s, stop, primary=False)

    def secondary_acked(self, ack: int, window_field: int, shift: int) -> None:
        """Note another acknowledgement or window than that of the last frame. Neither goes back."""
        self.s_told = _same(ack << 32 | window_field, self.p_told) if shift == self._shift else -1
        number = _same(self._unwrap_ack(ack, self.s_ack), self.p_ack)
        if self.s_ack != UNSET and number - self.s_ack > _FAR:
            self.out.counters.bump("compare.out_of_window")
            return
        if number > self.s_ack:
            self.s_ack = number
        right = _same(number + (window_field << shift), self.p_right)
        if right > self.s_right:
            self.s_right = right

    def secondary_acked_again(self, ack: int, window_field: int) -> None:
        """`secondary_acked` of a frame that is no SYN."""
        self.secondary_acked(ack, window_field, self._shift)

    # -------------------------------------------------------------------------------------------- holding them together

    def _extend(self, piece: Piece, *, primary: bool) -> None:
        """Add what one side sends next: compare what the other side has sent already, keep the rest."""
        start, stop = piece[START], piece[STOP]
        ahead = self.ahead
        other = self.s_nxt if primary else self.p_nxt
        while start < other and start < stop and not self.diverged:
            there = ahead[0]
            length = min(stop, there[STOP]) - start
            mine, its = piece[PAYLOAD] + start - piece[START], there[PAYLOAD] + start - there[START]
            if not _equal(piece[DATA], mine, there[DATA], its, length):
                self._differ_at(start, piece[DATA], mine, there[DATA], its, length, primary=primary)
                return
            start += length
            if start < there[STOP]:
                ahead[0] = _trimmed(there, start)
            else:
                del ahead[0]
        if start < stop:
            ahead.append(_trimmed(piece, start))

    def _drain(self, early: Early | None, reached: int, *, primary: bool) -> int:
        """Add what was beyond a gap and is not any more; returns how far the stream goes then."""
        while early is not None and (piece := early.pop(reached)) is not None:
            if primary:
                self.p_nxt = reached
            else:
                self.s_nxt = reached
            self._extend(_trimmed(piece, reached), primary=primary)
            reached = piece[STOP]
        return reached

    def _settle(self) -> None:
        """After anything but the ordinary: look for conflicts, release what can go, open or close the lanes."""
        if not self.diverged:
            conflict = self._conflict()
            if conflict:
                self._differ(conflict, *self._describe_ends())
            else:
                self.advance()
        self._open_lanes()

    def _open_lanes(self) -> None:
        plain = (
            not self.diverged
            and self.p_nxt != UNSET
            and self.fin_p == self.fin_s == self.rst_p == self.rst_s == UNSET
            and self._debt is None
            and not self._next_s
            and (self._syn_p is None or self._syn_s is not None)
        )
        if plain:
            self._fold()
        self.p_open = plain and not self._early_p
        self.s_open = plain and not self._early_s and self.s_ack != UNSET

    def _conflict(self) -> str:
        """The reason why the two cannot become equal any more, however long one waits; "" while they can."""
        if self._syn_p is not None and self._syn_s is not None and self._syn_p != self._syn_s:
            return difference.OPTIONS
        if self.rst_s != UNSET and (self.p_nxt > self.s_nxt or (self._syn_p is not None and self._syn_s is None)):
            return difference.FLAGS
        if self.rst_p != UNSET and (self._next_s or UNSET != self.rst_s != self.rst_p):
            return difference.FLAGS
        if self.fin_p != UNSET and (self.s_nxt > self.fin_p or UNSET != self.fin_s != self.fin_p):
            return difference.FLAGS
        if self.fin_s != UNSET and self.p_nxt > self.fin_s:
            return difference.FLAGS
        return ""

    def advance(self) -> None:
        """Release from the head of the queue what the secondary covers. The conditions are those of output commit."""
        held = self.held
        while held and not self.diverged:
            record = held[0]
            if not self._covered(record):
                return
            del held[0]
            if record[RIGHT] > self.s_right and record[FLAGS] & ACK:
                record = self._clamp(record)
            self.out.emit(record)
            self.remember(record)
            if record[FLAGS] & _CLOSING:
                self.ended = True
        if self._debt is not None and not self.diverged:
            self._pay_debt()

    def _covered(self, record: Record) -> bool:
        """Whether everything that a frame of the primary tells its peer was told by the secondary too."""
        flags = record[FLAGS]
        return (
            self._payload_covered(record)
            and (not flags & ACK or self._ack_covered(record))
            and (not flags & SYN or self._syn_covered())
            and (not flags & FIN or self._fin_covered(record))
            and (not flags & RST or self._rst_covered(record))
        )

    def _payload_covered(self, record: Record) -> bool:
        if record[STOP] == record[START]:
            return True
        if record[FLAGS] & UNCOVERED:
            return self._below is not None and self._below.covers(record)
        return record[STOP] <= self.p_nxt and record[STOP] <= self.s_nxt

    def _ack_covered(self, record: Record) -> bool:
        return record[ACKNOWLEDGES] <= self.s_ack

    def _syn_covered(self) -> bool:
        return self._syn_s is not None and self._syn_s == self._syn_p

    def _fin_covered(self, record: Record) -> bool:
        return self.fin_s == record[STOP] <= self.s_nxt

    def _rst_covered(self, record: Record) -> bool:
        return self.rst_s == record[START]

    def remember(self, record: Record) -> None:
        """Keep a released frame for a while, to hold a retransmission against it, unless too many flows do."""
        if record[STOP] > record[START]:
            history = self.history
            if history is None:
                young = self.out.young
                if len(young) >= REMEMBERING:
                    return
                young.append(self)
                history = self.history = deque(maxlen=_HISTORY)
            history.append(record)

    # ---------------------------------------------------------------------------------------------------------- windows

    def _clamp(self, record: Record) -> Record:
        """A frame whose window is larger than what the secondary can take, with as much as both can take."""
        clamped = window.clamped(record, self.s_right, 0 if record[FLAGS] & SYN else self._shift, self.out)
        self.out.counters.bump("compare.window_clamped")
        if self._debt is None:
            self.out.debtors.append(self)
        self._debt = record
        self.p_open = self.s_open = False  # the lanes do not look after it
        return clamped

    def _pay_debt(self) -> None:
        """Tell the client of the window once the secondary has opened it: its own frame that says so is dropped."""
        debt = self._debt
        assert debt is not None
        right = min(self.s_right, self._p_top_right)
        if self.held or right <= debt[RIGHT] - (1 << self._shift):
            return
        self._debt = None
        update = window.update(debt, self.p_nxt + (self.fin_p != UNSET), right, self._shift, self.out)
        if update is not None:
            self.out.counters.bump("compare.window_updates")
            self.out.make(update)

    # ------------------------------------------------------------------------------------------------------ differences

    def _differ(self, reason: str, primary: bytes, secondary: bytes, offset: int = UNSET, before: int = 0) -> None:
        if offset == UNSET:
            offset = min(self.p_nxt, self.s_nxt)
        self.diverged = True
        self.p_open = self.s_open = False
        self.out.differ(reason, self.key, max(offset - self._first, 0), primary, secondary, before)

    def _differ_at(
        self, start: int, data: bytes, mine: int, other: bytes, its: int, length: int, *, primary: bool
    ) -> None:
        at = difference.first_difference(data[mine : mine + length], other[its : its + length])
        before = min(at, difference.CONTEXT_BYTES)
        after = min(length - at, difference.CONTEXT_BYTES)
        one = data[mine + at - before : mine + at + after]
        two = other[its + at - before : its + at + after]
        self._differ(difference.PAYLOAD, *((one, two) if primary else (two, one)), start + at, before)

    def _differ_again(self, record: Record) -> None:
        shown = record[DATA][
            record[PAYLOAD] : record[PAYLOAD] + min(record[STOP] - record[START], difference.CONTEXT_BYTES)
        ]
        self._differ(difference.RETRANSMISSION, shown, b"", record[START])

    def _describe_ends(self) -> tuple[bytes, bytes]:
        """Both sides' SYN and ends in words."""
        return (
            _described(self._syn_p, self.fin_p, self.rst_p, self._first),
            _described(self._syn_s, self.fin_s, self.rst_s, self._first),
        )

    def waits_for(self) -> tuple[int, bytes]:
        """What the head of the queue lacks: the offset in the stream, and words."""
        record = self.held[0]
        flags = record[FLAGS]
        if flags & SYN and not self._syn_covered():
            lacking = "the secondary's SYN"
        elif not self._payload_covered(record):
            lacking = "bytes of the secondary"
        elif flags & ACK and record[ACKNOWLEDGES] > self.s_ack:
            lacking = "an acknowledgement of the secondary"
        else:
            lacking = "the secondary's " + ("RST" if flags & RST else "FIN")
        return max(min(self.p_nxt, self.s_nxt) - self._first, 0), lacking.encode()

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def resync(self) -> None:
        """A checkpoint has completed: the secondary is where the primary is, and all that was held is on its way."""
        for record in self.held:
            self.remember(record)
        self.held.clear()
        self.ahead.clear()
        if self.p_nxt == UNSET:
            self._forget()
            self._next_s.clear()
            return
        if self._early_p:
            self.p_nxt = max(self.p_nxt, self._early_p.end)
        self.s_nxt = self.p_nxt
        self.s_ack, self.s_right = self._p_top_ack, self._p_top_right
        self._syn_s, self._iss_s = self._syn_p, self._iss_p
        self.fin_s, self.rst_s = self.fin_p, self.rst_p
        self.rst_s_frame = b""
        self._base = 0
        self._early_p = self._early_s = self._below = None
        self._next_s.clear()
        self.diverged = False
        if self.fin_p != UNSET or self.rst_p != UNSET:
            self.ended = True
        if self._debt is not None:
            self._pay_debt()
            self._debt = None
        self._open_lanes()

    def secondary_frames(self) -> list[bytes]:
        """What the secondary has sent and the primary has not, as whole frames: for a secondary that carries on."""
        # After a difference there may be frames of the primary among them, which are longer.
        ahead = [piece for piece in self.ahead if len(piece) <= HIGH] if self.s_nxt > self.p_nxt else []
        frames = [piece[DATA][piece[4] : piece[5]] for piece in ahead]
        return frames + ([self.rst_s_frame] if self.rst_s_frame and self.rst_p == UNSET else [])

    def compact(self) -> None:
        """Keep small frames in bytes of their own, so that none keeps all of what was read with it alive."""
        if self.single is NOTHING and self._early_p is self._early_s is self._below is None:
            return  # most of those that the clock watches hold nothing at the moment
        renewed = {id(record): own(record, LOW, HIGH) for record in self.held}
        self.held_many = [renewed[id(record)] for record in self.held]
        self.ahead_many = [renewed.get(id(piece)) or _own_piece(piece) for piece in self.ahead]
        for early in (self._early_p, self._early_s, self._below):
            if early is not None:
                early.renew(_own_piece)

    @property
    def idle(self) -> bool:
        """Whether forgetting this flow loses nothing but the numbers of a connection at rest."""
        lists = self.held_many or self.ahead_many
        return not self.single and not lists and not self.diverged and not self._next_s and not self._early_s

    # ---------------------------------------------------------------------------------------------------------- numbers

    def _unwrap(self, seq: int, near: int) -> int:
        if near == UNSET:
            if self._near == UNSET:
                self._near = seq + _ORIGIN
            near = self._near
        return unwrap(seq, near)

    def _unwrap_ack(self, ack: int, near: int) -> int:
        if near == UNSET:
            if self._ack_near == UNSET:
                self._ack_near = ack + _ORIGIN
            near = self._ack_near
        return unwrap(ack, near)


def _same(number: int, other: int) -> int:
    """``other`` if it is equal: the two sides then have one integer object between them, and so half the memory.

    It is what a packet costs with many connections that matters here: each object is another line of the cache.
    """
    return other if number == other else number


def _equal(one: bytes, at: int, other: bytes, there: int, length: int) -> bool:
    """Whether ``length`` bytes are the same; long ones are not copied for it."""
    if length < 2048:
        return one[at : at + length] == other[there : there + length]
    return one.startswith(memoryview(other)[there : there + length], at)


def _trimmed(piece: Piece, start: int) -> Piece:
    """A piece without what lies before ``start``."""
    skip = start - piece[START]
    return piece if skip <= 0 else (start, piece[STOP], piece[DATA], piece[PAYLOAD] + skip, *piece[4:])


def _own_piece(piece: Piece) -> Piece:
    """A piece in bytes of its own, be it a record of the primary or a piece of the secondary."""
    return own(piece, LOW, HIGH) if len(piece) > HIGH else own(piece, 4, 5)


def _negotiated(packet: Packet, out: Outbox) -> Negotiated:
    options = parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, out.counters)
    return (
        packet.flags & (SYN | ACK),
        options.mss,
        options.window_scale,
        options.sack_permitted,
        options.timestamps is not None,
    )


def _described(syn: Negotiated | None, fin: int, rst: int, base: int) -> bytes:
    words = []
    if syn is not None:
        flags, mss, scale, sack, timestamps = syn
        words.append(
            f"SYN{'-ACK' if flags & ACK else ''} mss={mss} wscale={scale} sack={int(sack)} timestamps={int(timestamps)}"
        )
    if fin != UNSET:
        words.append(f"FIN at {fin - base}")
    if rst != UNSET:
        words.append(f"RST at {rst - base}")
    return (", ".join(words) or "open").encode()
