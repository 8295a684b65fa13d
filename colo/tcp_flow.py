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

What is known of both streams is in `colo.tcp_state`, and what may leave by that is decided in `colo.tcp_release`.
`colo.lane` does the same for the ordinary frame, faster; ``p_open`` and ``s_open`` let it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

from colo import difference
from colo.early import Early
from colo.held import (
    DATA,
    FLAGS,
    HIGH,
    LOW,
    PAYLOAD,
    POSITION,
    START,
    STOP,
    UNCOVERED,
    Piece,
    Record,
    own,
    with_flag,
)  # fmt: skip
from colo.negotiated import negotiated
from colo.tcp_release import CLOSING, TcpRelease
from colo.tcp_state import NOTHING, UNSET, trimmed
from pystack import Micros
from pystack.seq import MASK, unwrap
from pystack.wire.packet import ACK, FIN, RST, SYN, Packet

__all__ = ["NOTHING", "TcpFlow"]

_FAR: Final = 1 << 30  # RFC 7323 section 2.3: no window is larger, so no honest number is further away


@final
class TcpFlow(TcpRelease):
    """One connection's output of both machines, held against each other. Attributes: see `colo.tcp_state.TcpState`."""

    __slots__ = ()

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
        self._syn_p = negotiated(packet, self.out)
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
                self._extend(trimmed(record, self.p_nxt), primary=True)
                self.p_nxt = self._drain(self._early_p, stop, primary=True)
        if flags & CLOSING:
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
        known: list[tuple[int, int]] = []
        for old, end, other, where in self._said(start, record[POSITION] + record[LOW]):
            low, high = max(start, old), min(stop, end)
            if low < high:
                known.append((low, high))
                at, there = payload - start, where - old
                if data[at + low : at + high] != other[there + low : there + high]:
                    return True
        reached = start
        for low, high in sorted(known):
            if low <= reached < high:
                reached = high
        if reached < min(stop, self.p_nxt):
            self.out.counters.bump("compare.retransmission_unverified")
        return False

    def _said(self, near: int, before: int) -> Iterator[Piece]:
        """What the primary has sent before position ``before`` and is remembered, and what is held however long."""
        for seq, data, payload, length in self.out.recent.segments(self.key, before):
            start = unwrap(seq, near)
            yield start, start + length, data, payload
        for record in self.held:
            yield record[:4]

    # --------------------------------------------------------------------------------------------- the secondary's side

    def secondary(self, packet: Packet, data: bytes, shift: int, low: int, high: int, now: Micros) -> None:
        """Take a frame of the secondary; the arguments are those of `primary`."""
        flags = packet.flags
        if self.diverged:
            return
        self.out.heard = now
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
            self._syn_s = negotiated(packet, self.out)
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
            if not flags & ACK and min(self._iss_p, self._iss_s) >= 0:
                self._rst_s_own = self._unwrap(packet.seq + self._iss_p - self._iss_s & MASK, self.s_nxt)
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
            self._extend(trimmed(piece, self.s_nxt), primary=False)
            self.s_nxt = self._drain(self._early_s, stop, primary=False)
        elif self.held and self.held[0][START] < stop:
            self.out.partly[self] = True  # it repeats what the client does not have yet

    def secondary_acked(self, ack: int, window_field: int, shift: int) -> None:
        """Note another acknowledgement or window than that of the last frame. Neither goes back."""
        number = _same(self._unwrap_ack(ack, self.s_ack), self.p_ack)
        if self.s_ack != UNSET and number - self.s_ack > _FAR:
            self.s_told = -1
            self.out.counters.bump("compare.out_of_window")
            return
        self.s_told = _same(ack << 32 | window_field, self.p_told) if shift == self._shift else -1
        if number > self.s_ack:
            self.s_ack = number
        right = _same(number + (window_field << shift), self.p_right)
        if right > self.s_right:
            self.s_right = right

    def secondary_acked_again(self, ack: int, window_field: int) -> None:
        """`secondary_acked` of a frame that is no SYN."""
        self.secondary_acked(ack, window_field, self._shift)

    def secondary_covers(self, told: int) -> bool:
        """Whether the secondary has acknowledged as much and offered as large a window as a frame that `told` so."""
        ack = self._unwrap_ack(told >> 32, self.p_ack)
        return ack <= self.s_ack and ack + ((told & 0xFFFF) << self._shift) <= self.s_right

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
                ahead[0] = trimmed(there, start)
            else:
                del ahead[0]
        if start < stop:
            ahead.append(trimmed(piece, start))

    def _drain(self, early: Early | None, reached: int, *, primary: bool) -> int:
        """Add what was beyond a gap and is not any more; returns how far the stream goes then."""
        while early is not None and (piece := early.pop(reached)) is not None:
            if primary:
                self.p_nxt = reached
            else:
                self.s_nxt = reached
            self._extend(trimmed(piece, reached), primary=primary)
            reached = piece[STOP]
        return reached

    # ------------------------------------------------------------------------------------------------------ checkpoints

    def resync(self) -> None:
        """A checkpoint has completed: the secondary is where the primary is, and all that was held is on its way."""
        self.held.clear()
        self.ahead.clear()
        if self.p_nxt == UNSET:
            self._forget()
            self._next_s.clear()
            return
        if self._early_p:
            self.p_nxt = max(self.p_nxt, self._early_p.end)
        self.s_nxt = self.p_nxt
        self.s_ack, self.s_right, self.s_told = self._p_top_ack, self._p_top_right, self.p_told
        self._syn_s, self._iss_s = self._syn_p, self._iss_p
        self.fin_s, self.rst_s = self.fin_p, self.rst_p
        self.rst_s_frame = b""
        self._rst_s_own = UNSET
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
        frames += [data[low:high] for _, data, _, low, high, _ in self._next_s]  # which it alone has opened
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


def _own_piece(piece: Piece) -> Piece:
    """A piece in bytes of its own, be it a record of the primary or a piece of the secondary."""
    return own(piece, LOW, HIGH) if len(piece) > HIGH else own(piece, 4, 5)
