"""Where machines run: halves while they are a pair, everything for the one that is left."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colo.address import Address
from colo.aio import CompareServer
from colo.compare import CompareConfig
from colo.places import Places
from pystack import Counters

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


def sender(path: Path) -> subprocess.Popen[bytes]:
    """A process that connects there and stays."""
    code = f"import socket, time; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); time.sleep(60)"
    return subprocess.Popen([sys.executable, "-c", code])


def test_those_behind_the_sockets_of_a_comparator_are_placed(tmp_path: Path) -> None:
    """Each has a half while both are there, and the one that is left has all."""

    async def until(process: subprocess.Popen[bytes], processors: frozenset[int]) -> None:
        async with asyncio.timeout(20):
            while found(process.pid) != {(processors, os.SCHED_BATCH)}:
                await asyncio.sleep(0.01)

    async def scene() -> None:
        places = Places()
        names = ("primary_in", "secondary_in", "out")
        addresses = {name: Address(tmp_path / name, server=True) for name in names}
        server = CompareServer(CompareConfig(framed=True), addresses, None, Counters(), print, places=places)
        primary, secondary = (sender(tmp_path / name) for name in names[:2])
        try:
            await until(primary, places.halves[0])
            await until(secondary, places.halves[1])
            secondary.kill()
            await until(primary, places.everything)
        finally:
            server.close()
            for process in (primary, secondary):
                process.kill()
                process.wait()

    asyncio.run(scene())
