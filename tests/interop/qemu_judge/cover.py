"""Output commit, checked directly: what a comparator has let out that the secondary had not said by then.

Independent of both comparators, and of how a case was made. It looks at untagged, whole IPv4 packets.
"""

from __future__ import annotations

from collections import Counter

from pystack.seq import MASK
from pystack.wire.packet import ACK, SYN
from tests.interop.qemu_judge.draft import Case, Step
from tests.interop.qemu_judge.judge import Outcome, matched
from tests.interop.qemu_judge.oracle import Framed
from tests.interop.qemu_judge.packets import Item, Said, after, datum, item_of


class Ledger:
    """What the secondary has said so far."""

    def __init__(self) -> None:
        self._said = Said()
        self._bytes: dict[int, int] = {}
        self._datums: Counter[bytes] = Counter()
        self._right: int | None = None
        self._shift = 0

    def note(self, index: int, step: Step) -> None:
        """The secondary sends a frame."""
        proto = protocol(step)
        if proto < 0:
            return
        item = item_of(index, step, tcp=proto == 6)
        if proto != 6:
            self._datums[datum(proto, item)] += 1
            return
        self._said.note(item)
        for offset, byte in enumerate(item.true_payload):
            self._bytes[item.seq + offset & MASK] = byte
        if item.flags & SYN and item.options[2] is not None:
            self._shift = int(str(item.options[2]))
        right = self._right_of(item)
        if item.flags & ACK and (self._right is None or after(right, self._right)):
            self._right = right

    def covers(self, index: int, step: Step, left: bytes) -> bool:
        """Whether the primary's frame, which went out as ``left``, says nothing that was not said here."""
        proto = protocol(step)
        if proto < 0:
            return True
        item = item_of(index, Step(step.primary, left, step.vnet_hdr_len), tcp=proto == 6)
        if proto != 6:
            self._datums[datum(proto, item)] -= 1
            return self._datums[datum(proto, item)] >= 0
        reaches_too_far = self._right is not None and after(self._right_of(item), self._right)
        return self.covers_all_but_window(item) and not (item.flags & ACK and reaches_too_far)

    def covers_all_but_window(self, item: Item) -> bool:
        """Whether a segment may leave, if need be with a smaller window."""
        said = (self._bytes.get(item.seq + offset & MASK) == byte for offset, byte in enumerate(item.true_payload))
        return all(said) and self._said.covers_ack(item) and self._said.covers_flags(item)

    def _right_of(self, item: Item) -> int:
        return item.ack + (item.window << (0 if item.flags & SYN else self._shift)) & MASK


def protocol(step: Step) -> int:
    """The IP protocol of an untagged whole IPv4 packet, -1 for anything else."""
    frame, l3 = step.frame, step.vnet_hdr_len + 14
    if len(frame) < l3 + 20 or frame[l3 - 2 : l3] != b"\x08\0" or frame[l3 + 6] & 0x3F or frame[l3 + 7]:
        return -1
    return frame[l3 + 9]


def uncovered(case: Case, outcome: Outcome) -> list[int]:
    """The steps of the primary that left before the secondary had said the same."""
    ledger = Ledger()
    found = []
    waiting = [(index, step) for index, step in enumerate(case.steps) if step.primary]
    for index, (step, (released, _)) in enumerate(zip(case.steps, outcome.trace, strict=True)):
        if not step.primary:
            ledger.note(index, step)
        for framed in released:
            ((sent,), made) = matched(case, [framed])[0], matched(case, [framed])[1]
            if made:
                continue
            which = next((item for item in waiting if sent and item[1].frame == sent[0]), None)
            if which is None:
                continue  # a window update that looks like a frame of the primary
            waiting.remove(which)
            if not ledger.covers(*which, framed[1]):
                found.append(which[0])
    return found


def overdue(case: Case, outcome: Outcome) -> str:
    """Where a segment was held although it, and all that the primary sent before it, was covered; "" when nowhere.

    For cases of TCP alone, as long as no difference was found. What lies beyond a gap of the primary's own stream may
    wait until the gap is filled.
    """
    if any(protocol(step) != 6 for step in case.steps):
        return ""
    opened = [item_of(index, step, tcp=True) for index, step in enumerate(case.steps) if step.primary]
    if len({item.seq for item in opened if item.flags & SYN}) > 1:
        return ""  # several connections, one after the other
    ledger = Ledger()
    due: list[Item] = []
    left: list[Framed] = []
    for index, (step, (released, asked)) in enumerate(zip(case.steps, outcome.trace, strict=True)):
        if asked:
            return ""
        if step.primary:
            due.append(item_of(index, step, tcp=True))
        else:
            ledger.note(index, step)
        left += released
        gone = matched(case, left)[0][0]
        top: int | None = None
        for item in due:
            if item.flags & SYN:
                top = item.seq + 1 & MASK
            elif item.true_payload and top is not None and after(item.seq, top):
                break
            elif top is None or after(item.stop, top):
                top = item.seq + len(item.true_payload) & MASK
            if not ledger.covers_all_but_window(item):
                break
            if item.frame not in gone:
                return f"step {item.step} is held after step {index}"
    return ""
