"""Throughput, CPU time and requests of user-mode gateways, interleaved (A B C, A B C, ...) so that noise hits all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tests.bench import load
from tests.bench.load import Case
from tests.bench.peers import Running, Subject
from tests.bench.report import Results, machine
from tests.interop.lab import Lab, LabError

MTUS = (1500, 65520)
WEB_MTU = 1500


def cases(mtus: Sequence[int], streams: Sequence[int], *, web: bool) -> list[Case]:
    """The rows of the table."""
    rows = [Case("tcp", mtu, outward, number) for mtu in mtus for number in streams for outward in (True, False)]
    if web and WEB_MTU in mtus:
        rows += [Case("keep-alive", WEB_MTU), Case("new connection", WEB_MTU)]
    return rows


def measure(
    subjects: Sequence[Subject], rows: Sequence[Case], *, rounds: int, seconds: int, say: Callable[[str], None]
) -> Results:
    """Run every case of every subject `rounds` times for `seconds` each; what fails is recorded and not repeated."""
    results = Results([subject.name for subject in subjects], list(rows), about=machine())
    for subject in subjects:
        results.about[subject.name] = subject.version()
    given_up: set[tuple[str, Case]] = set()
    with Lab() as lab:
        load.start_web_server(lab)
        for number in range(rounds):
            for subject, mtu in _plan(subjects, rows):
                todo = [case for case in rows if case.mtu == mtu and (subject.name, case) not in given_up]
                say(f"round {number + 1} of {rounds}: {subject.name}, MTU {mtu}")
                for case, reason in _measure_one(lab, subject, todo, results, seconds=seconds):
                    given_up.add((subject.name, case))
                    results.failures.append(f"{subject.name}, {case.label}: {reason}")
    return results


def _plan(subjects: Sequence[Subject], rows: Sequence[Case]) -> Iterator[tuple[Subject, int]]:
    for mtu in sorted({case.mtu for case in rows}):
        for subject in subjects:
            yield subject, mtu


def _measure_one(
    lab: Lab, subject: Subject, rows: Sequence[Case], results: Results, *, seconds: int
) -> Iterator[tuple[Case, str]]:
    """Measure `rows`, all of one MTU, on one fresh gateway; yields what failed and why."""
    running: Running | None = None
    try:
        for case in rows:
            try:
                running = running or subject.start(lab, case.mtu)
                results.add(subject.name, case, load.run(case, running, seconds))
            except LabError as error:
                yield case, str(error)
                if running is not None:  # it may hang: the next case gets a fresh one
                    running.close()
                    running = None
    finally:
        if running is not None:
            running.close()
