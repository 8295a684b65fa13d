"""What may leave: the conditions of output commit, one method each, and what follows when they cannot come true.

Read before editing: docs/explanation/output-commit.md, RFC 9293 section 3.8.6 (windows), RFC 7323 section 2.
"""

from __future__ import annotations

from typing import Final

from colo import difference, parting, window
from colo.held import ACKNOWLEDGES, DATA, FLAGS, HIGH, LOW, PAYLOAD, RIGHT, START, STOP, UNCOVERED, Record
from colo.negotiated import Negotiated
from colo.tcp_state import UNSET, TcpState, trimmed
from pystack.wire.packet import ACK, FIN, RST, SYN

CLOSING: Final = FIN | RST


class TcpRelease(TcpState):
    """Holds the primary's frames until the secondary covers them."""

    __slots__ = ()

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
        if self.rst_p != UNSET and (self._next_s or (self.rst_s != UNSET and not self._same_reset(self.rst_p))):
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
                if self.s_nxt > record[START]:
                    self.out.partly.setdefault(self, False)
                return
            del held[0]
            if record[RIGHT] > self.s_right and record[FLAGS] & ACK:
                record = self._clamp(record)
            self.out.emit(record)
            if record[FLAGS] & CLOSING:
                self.ended = True
        if self._debt is not None and not self.diverged:
            self._pay_debt()

    def release_part(self, *, anywhere: bool) -> None:
        """Release what the secondary covers of the first frame, which is too large to be covered soon.

        Args:
            anywhere: the secondary repeats what it has sent of it, and so waits for the client to have that: then any
                frame is cut, and at any byte. See `colo.parting.cut`.
        """
        held = self.held
        if self.diverged or not held:
            return
        record = held[0]
        covered = self._part_covered(record)
        if covered <= 0 or (record[FLAGS] & ACK and not self._ack_covered(record)):
            return
        parts = parting.cut(record, covered, self.out, anywhere=anywhere)
        if parts is None:
            return
        part, rest = parts
        held[0] = rest
        ahead = self.ahead
        if ahead and ahead[0][DATA] is record[DATA] and ahead[0][STOP] == record[STOP]:
            ahead[0] = trimmed(rest, ahead[0][START])  # what they are in is not needed any more
        self.out.made += part[HIGH] + rest[HIGH] - (record[HIGH] - record[LOW])
        self.out.counters.bump("compare.cut")
        if part[RIGHT] > self.s_right and part[FLAGS] & ACK:
            part = self._clamp(part)
        self.out.emit(part)

    def _part_covered(self, record: Record) -> int:
        """How many bytes of a frame's payload the secondary has sent too."""
        return min(self.p_nxt, self.s_nxt, record[STOP]) - record[START]

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
        return self._same_reset(record[START])

    def _same_reset(self, start: int) -> bool:
        """Whether the secondary has reset the connection where the primary does."""
        return start in (self.rst_s, self._rst_s_own)

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
