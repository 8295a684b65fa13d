"""QEMU's colo-compare, filter-rewriter, filter-mirror and filter-redirector judge ours: the same frames into both.

Every answer is equal, or the case is in a class of docs/reference/differences-from-qemu.md. And whatever QEMU says,
ours does what each case wants by the way it was made, and lets nothing out that the secondary has not said.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from pystack.link.qemu_framing import encode
from tests.interop.qemu_judge import card, cases, cover, filters, judge, model, oracle, rewriting
from tests.interop.qemu_judge.draft import Case

pytestmark = pytest.mark.requires("qemu")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "differences-from-qemu.md"
SEED = 20_261_125
EACH = 60
COMPARED = EACH * len(cases.KINDS)
REWRITTEN = 40 * len(rewriting.KINDS)
WITH_HEADERS = 10 * len(rewriting.KINDS)
THROUGH_THE_COMMAND = 4 * len(cases.KINDS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A case, and both answers."""

    case: Case
    qemu: judge.Outcome
    ours: judge.Outcome
    classes: frozenset[str]

    def describe(self) -> str:
        answers = f"QEMU: {self.qemu.describe(self.case)}\nours: {self.ours.describe(self.case)}"
        return f"seed {SEED}, {self.case.describe()}\n{answers}\nclasses: {sorted(self.classes)}"


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    found = []
    everything = cases.cases(COMPARED, SEED)
    for vnet in (False, True):
        with oracle.qemu_compare(vnet=vnet) as qemu:
            for case in everything:
                if case.vnet is vnet:
                    answer = judge.put_to(qemu, case)
                    found.append(Verdict(case, answer, judge.put_to_ours(case), judge.classes_of(case)))
    return found


def test_at_least_two_thousand_cases(verdicts: list[Verdict]) -> None:
    assert len(verdicts) >= 2000
    assert {verdict.case.kind for verdict in verdicts} == set(cases.KINDS)
    assert sum(verdict.case.vnet for verdict in verdicts) > 500


def test_every_disagreement_is_in_a_class(verdicts: list[Verdict]) -> None:
    unexplained = [
        f"{what}: {verdict.describe()}"
        for verdict in verdicts
        if (what := judge.disagreement(verdict.case, verdict.qemu, verdict.ours)) and not verdict.classes
    ]
    assert not unexplained, f"{len(unexplained)} unexplained; the first:\n{unexplained[0]}"


def test_outside_the_classes_there_are_enough_cases_and_every_class_has_some(verdicts: list[Verdict]) -> None:
    """The classes are no excuse for everything, and none of them is without a case that shows it."""
    assert sum(not verdict.classes for verdict in verdicts) > len(verdicts) // 3
    shown: Counter[str] = Counter()
    for verdict in verdicts:
        if judge.disagreement(verdict.case, verdict.qemu, verdict.ours):
            shown.update(verdict.classes)
    assert set(shown) == set(judge.CLASSES)


def test_ours_does_what_every_case_wants(verdicts: list[Verdict]) -> None:
    wrong = [f"{faults}: {item.describe()}" for item in verdicts if (faults := judge.faults(item.case, item.ours))]
    assert not wrong, f"{len(wrong)} cases; the first:\n{wrong[0]}"


def test_ours_lets_nothing_out_that_is_not_covered_and_qemu_does(verdicts: list[Verdict]) -> None:
    wrong = [item.describe() for item in verdicts if cover.uncovered(item.case, item.ours)]
    assert not wrong, f"{len(wrong)} cases; the first:\n{wrong[0]}"
    leaks = Counter(item.case.kind for item in verdicts if cover.uncovered(item.case, item.qemu))
    assert leaks["set_up_with_other_options"] == leaks["set_up_refused_by_one"] == EACH
    assert sum(leaks.values()) > len(verdicts) // 10


def test_ours_holds_nothing_longer_than_it_must(verdicts: list[Verdict]) -> None:
    wrong = [f"{what}: {item.describe()}" for item in verdicts if (what := cover.overdue(item.case, item.ours))]
    assert not wrong, f"{len(wrong)} cases; the first:\n{wrong[0]}"


def test_the_model_of_qemu_is_qemu(verdicts: list[Verdict]) -> None:
    """What the classes are made from answers as QEMU does, frame by frame; but for what QEMU reads out of bounds."""
    for verdict in verdicts:
        steps = verdict.case.steps
        given, flushed, notes = model.answers(steps)
        if model.OVER_READ in notes:
            continue
        told = [([frame for _, frame in released], asked) for released, asked in verdict.qemu.trace]
        assert told == [([steps[i].frame for i in released], asked) for released, asked in given], verdict.describe()
        assert [frame for _, frame in verdict.qemu.flushed] == [steps[i].frame for i in flushed], verdict.describe()


def test_bare_frames_get_the_answers_of_the_stream(verdicts: list[Verdict]) -> None:
    for verdict in verdicts:
        bare = judge.put_to_ours(verdict.case, framed=False)
        assert bare.reasons == verdict.ours.reasons, verdict.describe()
        assert _frames(bare) == _frames(verdict.ours), verdict.describe()


def _frames(outcome: judge.Outcome) -> list[list[bytes]]:
    groups = [*(released for released, _ in outcome.trace), outcome.flushed]
    return [[frame for _, frame in group] for group in groups]


@pytest.mark.parametrize("vnet", [False, True], ids=["plain", "vnet"])
def test_the_command_answers_as_the_comparator(vnet: bool) -> None:
    """`colo compare` on the sockets that QEMU's object would have."""
    chosen = [case for case in cases.cases(THROUGH_THE_COMMAND, SEED + 1) if case.vnet is vnet]
    assert len(chosen) >= 60
    with oracle.compare_command(vnet=vnet) as command:
        for case in chosen:
            got, ours = judge.put_to(command, case), judge.put_to_ours(case)
            assert got.asked is ours.asked, case.describe()
            assert [released for released, _ in got.trace] == [released for released, _ in ours.trace], case.describe()
            assert got.flushed == ours.flushed, case.describe()


# ----------------------------------------------------------------------------------------------------- frames held long


def test_a_held_frame_is_asked_for_after_the_timeout() -> None:
    """Where nothing differs and something is held both ask by their timeouts, ours where QEMU has asked at once too."""
    kinds = ("set_up_by_one", "secondary_behind", "udp_of_the_primary_alone", "reset_by_the_primary", "data_cut_alike")
    chosen = [case for case in cases.cases(4 * len(cases.KINDS), SEED + 2) if case.kind in kinds and not case.vnet]
    assert len(chosen) >= 8
    with oracle.qemu_compare(compare_timeout=40, scan_cycle=20) as qemu:
        for case in chosen:
            for step in case.steps:
                qemu.feed(step.primary, step.frame)
            held_by_qemu = len(qemu.flush_after(0.1).released)
            ours = judge.put_to_ours(case, timeout=40_000, wait=100_000)
            assert (ours.late > 0) is bool(case.want.held), case.describe()
            assert ours.reasons == ["timeout"] * bool(case.want.held), case.describe()
            if case.want.held:
                assert held_by_qemu or case.kind == "reset_by_the_primary", case.describe()


# ------------------------------------------------------------------------------------------------------------- rewriter


def judged(header: bytes, count: int) -> tuple[int, set[str]]:
    """How many cases are equal, and the classes of the others. Ours is right in each."""
    shown: set[str] = set()
    agreed = 0
    with filters.qemu_rewriter(header) as qemu:
        for case in rewriting.cases(count, SEED):
            told = rewriting.put_to_qemu(qemu, case)
            ours = rewriting.put_to_ours(case, observing=False, header=header)
            beside = rewriting.put_to_ours(case, observing=True, header=header)
            text = f"seed {SEED}, {case.describe()}"
            assert beside == rewriting.wanted(case, observing=True), text
            assert ours == rewriting.wanted(case, observing=False), text
            if told == ours:
                agreed += 1
                continue
            classes = rewriting.classes_of(case)
            assert classes, f"unexplained; QEMU: {told}, ours: {ours}, {text}"
            shown |= classes
    return agreed, shown


def test_the_rewriter_is_judged() -> None:
    """Ours is right in every frame, beside the primary and in QEMU's place; QEMU's differs in the classes only."""
    agreed, shown = judged(b"", REWRITTEN)
    assert shown == set(rewriting.CLASSES)
    assert agreed > REWRITTEN // 3


@pytest.mark.requires("netns", "tap")
@pytest.mark.parametrize("flags", [0, 2], ids=["plain", "data_valid"])
def test_the_rewriter_is_judged_with_virtio_net_hdr(flags: int) -> None:
    header = bytes((flags,)) + bytes(card.VNET_HDR_LEN - 1)
    agreed, shown = judged(header, WITH_HEADERS)
    assert shown == set(rewriting.CLASSES)
    assert agreed > WITH_HEADERS // 3


# ------------------------------------------------------------------------------------------------ mirror and redirector


def _some_frames() -> list[bytes]:
    """Of all lengths that matter: the shortest that QEMU passes, 60, Ethernet's longest, and larger."""
    frames = [step.frame for case in cases.cases(49, SEED) for step in case.steps if len(step.frame) > 13]
    return [*frames[:120], bytes(range(60)), bytes(1514), bytes(9014), bytes(65_000)]


def test_the_mirror_and_the_redirectors_say_what_ours_say() -> None:
    """What QEMU writes is, byte for byte, what ours writes; what ours writes QEMU reads."""
    frames = _some_frames()
    with filters.qemu_mirrors() as qemu, filters.mirror_command() as ours:
        for frame in frames:
            qemu.arrive("near", frame)
            transcript = qemu.mirror.raw(4 + len(frame))
            assert qemu.leaves("far") == frame  # a mirror only copies
            qemu.arrive("far", frame)
            assert qemu.taken.raw(4 + len(frame)) == transcript  # a redirector takes
            ours.source.sock.sendall(transcript)
            assert ours.out.raw(len(transcript)) == transcript
            assert ours.copy.raw(len(transcript)) == transcript
            qemu.given.sock.sendall(transcript)
            assert qemu.leaves("near") == frame


@pytest.mark.requires("netns", "tap")
def test_the_mirror_and_the_redirectors_say_what_ours_say_with_virtio_net_hdr() -> None:
    header = bytes(range(1, card.VNET_HDR_LEN + 1))
    with filters.qemu_vnet_mirrors() as qemu, filters.mirror_command(vnet=True) as ours:
        for frame in _some_frames():
            transcript = encode(header + frame, len(header))
            for source, outs in ((qemu.given, (qemu.mirror, qemu.taken)), (ours.source, (ours.out, ours.copy))):
                source.sock.sendall(transcript)
                assert [out.raw(len(transcript)) for out in outs] == [transcript] * 2


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_lists_the_classes() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted([*judge.CLASSES, *rewriting.CLASSES])
