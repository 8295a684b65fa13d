"""The same case put to QEMU and to ours, the two answers side by side, and the classes of difference.

A difference is explained only by a class whose predicate says, from the frames of the case alone, that QEMU decides
there without looking at something that matters (`tests.interop.qemu_judge.model`, which is held against QEMU). The
reasons are in docs/reference/differences-from-qemu.md, by the same names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from colo.compare import Comparator, CompareConfig
from pystack.link.qemu_framing import FrameDecoder, encode
from tests.interop.qemu_judge import model
from tests.interop.qemu_judge.draft import Case, Step
from tests.interop.qemu_judge.oracle import Framed, Judge
from tests.interop.qemu_judge.packets import repeated

LONG = 600_000_000
"""Microseconds: in the main run nothing waits so long."""

CLASSES: dict[str, str] = {
    model.BARE_UNSEEN: "a segment without payload is released although the secondary has not said what it says",
    model.BARE_ALONE: "a segment without payload is held until the secondary sends anything at all",
    model.ACK_UNSEEN: "data is released although the secondary has not acknowledged what it acknowledges",
    model.ACK_IS_DIFFERENCE: "an acknowledgement that is ahead counts as a difference",
    model.END_UNSEEN: "a FIN with data is released although the secondary has not ended the stream",
    model.ENDS_EARLY: "one side ends the stream where the other goes on, which QEMU notices by its timeout only",
    model.RETRANSMISSION_UNSEEN: "a retransmission is released although its bytes are others",
    model.BEFORE_DIFFERENCE: "what stands before a difference in the same segment of the secondary is released",
    model.OVER_READ: "more bytes are compared than the shorter segment has",
    model.SORTED: "segments are released in the order of their numbers, not in that of the primary",
    model.UNALIGNED: "bytes of different positions are compared: beyond a gap, or of an overlap",
    model.ZERO_IS_UNSET: "a position of exactly 2^32 counts as unknown",
    model.USED_ANEW: "a reused four-tuple keeps the position of the connection before it",
    model.WINDOW_UNSEEN: "a larger window than the secondary's is released as it is",
    model.PADDING: "Ethernet padding counts as payload",
    model.NEWEST_FIRST: "the newest datagram is compared first, and released first",
    model.WHOLE_PACKET: "checksum, padding, IP header or a quotation's end is compared where the datum is equal",
    model.ICMP_IS_ONE_FLOW: "all ICMP between two addresses is one flow",
    model.FRAGMENTS_APART: "fragments are compared one by one, under keys made from their payload",
    model.NOT_LOOKED_INTO: "IPv6 and tagged frames pass without comparing",
}
"""Name of a class: what QEMU does."""


@dataclass(slots=True)
class Outcome:
    """What one comparator made of a case.

    Attributes:
        trace: for each step what it released, and how often it asked. flushed: what the checkpoint at the end released.
        late: requests that came after the last step. reasons: of the requests, where they are known.
    """

    trace: list[tuple[list[Framed], int]] = field(default_factory=list)
    flushed: list[Framed] = field(default_factory=list)
    late: int = 0
    reasons: list[str] = field(default_factory=list)

    @property
    def asked(self) -> bool:
        """Whether a checkpoint was asked for; QEMU asks again for each event."""
        return self.late > 0 or any(asked for _, asked in self.trace)

    @property
    def released(self) -> list[Framed]:
        """What left before the checkpoint."""
        return [framed for released, _ in self.trace for framed in released]

    def describe(self, case: Case) -> str:
        """Both in the numbers of the case's steps."""
        numbers = {step.frame: index for index, step in enumerate(case.steps) if step.primary}
        steps = [
            f"{index}: releases {[numbers.get(frame, frame.hex()) for _, frame in released]}, asks {asked} times"
            for index, (released, asked) in enumerate(self.trace)
            if released or asked
        ]
        return "; ".join([*steps, f"late {self.late}", *self.reasons])


def put_to(judge: Judge, case: Case) -> Outcome:
    """Put a case to a comparator behind sockets."""
    outcome = Outcome()
    for step in case.steps:
        answer = judge.feed(step.primary, step.frame, step.vnet_hdr_len)
        outcome.trace.append((answer.released, answer.asked))
    answer = judge.flush()
    outcome.flushed, outcome.late = answer.released, answer.asked
    return outcome


def put_to_ours(case: Case, *, framed: bool = True, timeout: int = LONG, wait: int = 0, **limits: int) -> Outcome:
    """Put a case to a `Comparator`; as QEMU's stream, or as bare frames, whose header lengths must then be equal.

    Args:
        timeout: after how many microseconds a held frame is asked for. wait: how long to wait after the last frame.
        limits: of `CompareConfig`.
    """
    vnet_hdr_len = case.steps[0].vnet_hdr_len
    comparator = Comparator(
        CompareConfig(
            framed=framed,
            vnet_framing=framed and case.vnet,
            vnet_hdr_len=vnet_hdr_len,
            compare_timeout=timeout,
            scan_cycle=timeout,
            **limits,
        )
    )
    decoder = FrameDecoder(vnet_hdr=case.vnet)

    def released() -> list[Framed]:
        buffers = [bytes(buffer) for buffer in comparator.take_released()]
        if framed:
            return decoder.feed(b"".join(buffers))
        return [(vnet_hdr_len, buffer) for buffer in buffers]

    outcome = Outcome()
    for now, step in enumerate(case.steps):
        if framed:
            data = encode(step.frame, step.vnet_hdr_len if case.vnet else None)
            (comparator.primary_bytes if step.primary else comparator.secondary_bytes)(data, now * 1000)
        else:
            (comparator.primary if step.primary else comparator.secondary)(step.frame, now * 1000)
        requests = comparator.take_requests()
        outcome.trace.append((released(), len(requests)))
        outcome.reasons += [request.reason for request in requests]
    comparator.tick(len(case.steps) * 1000 + wait)
    requests = comparator.take_requests()
    outcome.late = len(requests)
    outcome.reasons += [request.reason for request in requests]
    comparator.commit(len(case.steps) * 1000 + wait)
    outcome.flushed = released()
    return outcome


# ------------------------------------------------------------------------------------------------------------ judgement


def disagreement(case: Case, qemu: Outcome, ours: Outcome) -> str:
    """What the two disagree about; "" when in nothing."""
    if qemu.asked is not ours.asked:
        return "asked"
    if qemu.released != ours.released:
        return "released in another order" if sorted(qemu.released) == sorted(ours.released) else "released"
    if sorted(qemu.flushed) != sorted(ours.flushed):
        return "flushed"
    return ""


def classes_of(case: Case) -> frozenset[str]:
    """The classes that a case belongs to, by its frames alone."""
    return model.answers(case.steps)[2]


def faults(case: Case, ours: Outcome) -> list[str]:
    """Where ours is not what the case wants by the way it was made, whatever QEMU says."""
    found = []
    if ours.asked is not case.want.asked:
        found.append(f"asked is {ours.asked}")
    sent = [step.frame for step in case.steps if step.primary]
    may_leave = [step.frame for index, step in enumerate(case.steps) if step.primary and index not in case.want.held]
    (left, after), made = matched(case, ours.released, ours.flushed)
    if case.want.asked:
        found += [
            f"released {index}, which must be held"
            for index in sorted(case.want.held)
            if case.steps[index].frame in left
        ]
    elif sorted(left) != sorted(may_leave):
        found.append("released other frames than it must")
    elif _but_repeated(case, left) != _but_repeated(case, may_leave):
        found.append("released in another order than the primary's")
    if sorted(left + after) != sorted(sent):
        found.append("what was released and flushed is not what the primary sent")
    if after != [frame for frame in sent if frame in after]:
        found.append("flushed in another order than the primary's")
    if made and model.WINDOW_UNSEEN not in classes_of(case):
        found.append("made a frame")
    return found


def _but_repeated(case: Case, frames: Sequence[bytes]) -> list[bytes]:
    """Frames without the retransmissions among them, which may overtake what is new."""
    again = {case.steps[index].frame for index in repeated(case.steps)}
    return [frame for frame in frames if frame not in again]


def matched(case: Case, *groups: Sequence[Framed]) -> tuple[list[list[bytes]], int]:
    """Released frames as the primary sent them, windows that were lowered put back; and how many nobody sent.

    Each frame that was sent is matched once. One that opens a window again, later, is nobody's.
    """
    waiting = [step for step in case.steps if step.primary]
    found: list[list[bytes]] = []
    made = 0
    for group in groups:
        found.append([])
        for _, frame in group:
            step = next((step for step in waiting if step.frame == frame), None) or next(
                (step for step in waiting if _but_window(step, step.frame) == _but_window(step, frame)), None
            )
            if step is None:
                made += 1
            else:
                waiting.remove(step)
                found[-1].append(step.frame)
    return found, made


def _but_window(step: Step, frame: bytes) -> bytes:
    """A TCP frame without window and checksum; any other frame as it is. Both frames have the step's header lengths."""
    l3 = step.vnet_hdr_len + 14
    if len(frame) < l3 + 40 or frame[l3 - 2 : l3] != b"\x08\0" or frame[l3 + 9] != 6:
        return frame
    at = l3 + (frame[l3] & 15) * 4 + 14
    return frame[:at] + bytes(4) + frame[at + 4 :]
