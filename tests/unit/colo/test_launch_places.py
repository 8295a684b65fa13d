"""Where machines run: halves while they are a pair, everything for the one that is left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from colo.launch.places import Places

_THREADS = "import threading, time; [threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(3)]"


@pytest.fixture
def machines() -> Iterator[tuple[int, int]]:
    """Two processes of four threads each."""
    processes = [subprocess.Popen([sys.executable, "-c", _THREADS]) for _ in range(2)]
    try:
        for process in processes:
            for _ in range(1000):
                if len(os.listdir(f"/proc/{process.pid}/task")) == 4:
                    break
                os.sched_yield()
        yield processes[0].pid, processes[1].pid
    finally:
        for process in processes:
            process.kill()
            process.wait()


def found(pid: int) -> set[tuple[frozenset[int], int]]:
    """Processors and policy of each thread."""
    tasks = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return {(frozenset(os.sched_getaffinity(task)), os.sched_getscheduler(task)) for task in tasks}


def test_each_has_a_half_and_the_one_that_is_left_has_all(machines: tuple[int, int]) -> None:
    primary, secondary = machines
    places = Places()
    places.settle(primary, secondary)
    assert found(primary) == {(places.halves[0], os.SCHED_BATCH)}
    assert found(secondary) == {(places.halves[1], os.SCHED_BATCH)}
    places.settle(secondary, None)
    assert found(secondary) == {(places.everything, os.SCHED_BATCH)}


def test_nothing_is_touched_when_it_is_not_wanted(machines: tuple[int, int]) -> None:
    before = [found(pid) for pid in machines]
    Places(wanted=False).settle(*machines)
    assert [found(pid) for pid in machines] == before


@pytest.mark.parametrize(
    ("processors", "halves"),
    [
        ({3}, ({3}, {3})),
        ({0, 1}, ({0}, {1})),
        ({2, 4, 7}, ({2}, {4, 7})),
        (set(range(8)), (set(range(4)), {4, 5, 6, 7})),
    ],
)
def test_halves_are_disjoint_where_they_can_be(processors: set[int], halves: tuple[set[int], set[int]]) -> None:
    assert [set(half) for half in Places(processors=frozenset(processors)).halves] == list(halves)


def test_a_machine_that_has_gone_is_no_trouble() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    places = Places()
    places.settle(process.pid, process.pid)
    assert places.everything == os.sched_getaffinity(0)
