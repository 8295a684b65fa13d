"""Processes: what they leave, and that none is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from colo.qemu import process
from colo.qemu.process import Process

FOREVER = ("sleep", "1000")


@pytest.fixture(params=["pidfd", "no pidfd"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows pidfd_open(2), and one that does not."""
    if request.param == "no pidfd":

        def refuse(_: int) -> int:
            raise OSError

        monkeypatch.setattr(os, "pidfd_open", refuse)


async def started(directory: Path, *argv: str, **environment: str) -> Process:
    return await Process.start(argv, directory / "log", {"PATH": os.environ["PATH"], **environment})


@pytest.mark.usefixtures("kernel")
def test_its_words_and_its_status(tmp_path: Path) -> None:
    async def scene() -> None:
        child = await started(tmp_path, "sh", "-c", "read line; echo $WORD; echo and >&2; exit 7", WORD="said")
        assert (await child.wait(), await child.wait()) == (7, 7)
        child.kill()
        child.close()
        child.close()

    asyncio.run(scene())
    assert (tmp_path / "log").read_text() == "said\nand\n"


@pytest.mark.usefixtures("kernel")
def test_it_is_ended_at_once_while_somebody_waits(tmp_path: Path) -> None:
    async def scene() -> None:
        child = await started(tmp_path, *FOREVER)
        waiting = asyncio.create_task(child.wait())
        await asyncio.sleep(0)
        child.kill()
        assert await waiting == -signal.SIGKILL
        child.kill()
        child.close()

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_it_has_the_files_it_was_given_and_a_session_of_its_own(tmp_path: Path) -> None:
    async def scene() -> None:
        mine, its = os.pipe()
        words = f"echo $(cut -d' ' -f6 /proc/self/stat) >/proc/self/fd/{its}"  # proc(5): the session
        child = await Process.start(["sh", "-c", words], tmp_path / "log", os.environ, [its])
        os.close(its)
        assert await child.wait() == 0
        assert int(os.read(mine, 100)) == child.pid
        os.close(mine)
        child.close()

    asyncio.run(scene())


def test_what_is_no_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/qemu"):
        asyncio.run(started(tmp_path, "/nowhere/qemu"))


@pytest.mark.parametrize("turns", range(3))
def test_no_child_is_left_of_a_start_that_is_given_up(tmp_path: Path, turns: int) -> None:
    async def scene() -> None:
        starting = asyncio.create_task(started(tmp_path, *FOREVER))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        (outcome,) = await asyncio.gather(starting, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError)

    before = children()
    asyncio.run(asyncio.wait_for(scene(), 10))
    assert children() == before


def children() -> set[int]:
    """Of this process, whichever thread has started them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, _, rest = stat.read_text().partition(" (")
            if int(rest.rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(pid))
    return found


def test_it_dies_with_who_has_started_it(tmp_path: Path) -> None:
    script = (
        "import asyncio, os, pathlib, sys\n"
        "from colo.qemu.process import Process\n"
        "async def scene():\n"
        "    child = await Process.start(['sleep', '1000'], pathlib.Path(sys.argv[1]), os.environ)\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(scene())\n"
    )

    async def scene() -> int:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(tmp_path / "log"), stdout=asyncio.subprocess.PIPE
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        parent.kill()
        await parent.wait()
        return pid

    pid = asyncio.run(scene())
    deadline = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_thread_that_starts_them_lives_as_long_as_they_may(tmp_path: Path) -> None:
    """Otherwise they would die with it: a loop's own threads end with the loop."""

    async def scene() -> Process:
        return await started(tmp_path, *FOREVER)

    child = asyncio.run(scene())
    assert process._STARTER is not None
    time.sleep(0.05)
    assert _runs(child.pid)
    child.kill()
    assert asyncio.run(child.wait()) == -signal.SIGKILL
    child.close()
