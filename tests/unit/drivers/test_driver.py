"""The driver: one turn serves link, host and timers; what fails ends `run`; nobody is starved."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence

import pytest

from pystack.clock import Micros
from pystack.drivers.aio import Driver, monotonic
from pystack.errors import LinkClosed
from pystack.frame import LinkInfo, TxFrame
from pystack.link.memory import MemoryLink, pair


class EchoNode:
    """Sends every frame back; notes when it was ticked."""

    def __init__(self) -> None:
        self.outgoing: list[TxFrame] = []
        self.received = 0
        self.deadline: Micros | None = None
        self.ticks: list[Micros] = []

    def receive(self, frame: bytes, now: Micros) -> None:
        if frame == b"bad":
            raise RuntimeError("a bug of the node")
        self.received += 1
        self.outgoing.append((frame,))

    def tick(self, now: Micros) -> None:
        if self.deadline is not None and now >= self.deadline:
            self.ticks.append(now)
            self.deadline = None

    def frames(self, now: Micros, limit: int = 64) -> list[TxFrame]:
        taken, self.outgoing = self.outgoing[:limit], self.outgoing[limit:]
        return taken

    def next_timeout(self) -> Micros | None:
        return self.deadline


Scenario = Callable[[MemoryLink, EchoNode, Driver], Awaitable[None]]


def drive(scenario: Scenario, *, queue_frames: int = 1000, seconds: float = 10.0) -> None:
    """Run ``scenario`` with the far end of a link that a driver serves with an `EchoNode`."""

    async def main() -> None:
        far, near = pair(queue_frames=queue_frames, wakeup=True)
        node = EchoNode()
        driver = Driver(node, near)
        async with asyncio.timeout(seconds):
            running = asyncio.create_task(driver.run())
            try:
                await asyncio.sleep(0)
                await scenario(far, node, driver)
            finally:
                running.cancel()
                outcome = (await asyncio.gather(running, return_exceptions=True))[0]
                far.close()
                near.close()
            if isinstance(outcome, Exception):
                raise outcome

    asyncio.run(main())


async def _readable(link: MemoryLink) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(link.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(link.fileno())


async def _collect(link: MemoryLink, count: int) -> list[bytes]:
    frames: list[bytes] = []
    while len(frames) < count:
        await _readable(link)
        frames += link.recv(0)
    return frames


def test_a_frame_is_answered() -> None:
    async def scenario(far: MemoryLink, node: EchoNode, driver: Driver) -> None:
        far.send([(b"ping",)], 0)
        assert await _collect(far, 1) == [b"ping"]
        assert driver.frames_moved == 2

    drive(scenario)


def test_frames_keep_their_order_through_a_link_that_is_often_full() -> None:
    async def scenario(far: MemoryLink, node: EchoNode, driver: Driver) -> None:
        wanted = [b"%d" % number for number in range(500)]
        waiting = [(frame,) for frame in wanted]
        got: list[bytes] = []
        while len(got) < len(wanted):
            accepted = far.send(waiting, 0)
            waiting = waiting[accepted:]
            await asyncio.sleep(0)
            got += far.recv(0, 1)
        assert got == wanted

    drive(scenario, queue_frames=4)


def test_a_full_link_stops_the_pulling_of_frames() -> None:
    async def scenario(far: MemoryLink, node: EchoNode, driver: Driver) -> None:
        node.outgoing = [(b"%d" % number,) for number in range(1000)]
        driver.wake()
        for _ in range(10):
            await asyncio.sleep(0)
        # Four lie in the link's queue and the rest of one batch in the driver; all others stay with the node.
        assert len(node.outgoing) >= 1000 - 4 - 64
        assert await _collect(far, 1000) == [b"%d" % number for number in range(1000)]

    drive(scenario, queue_frames=4)


def test_a_deadline_of_the_node_is_kept() -> None:
    async def scenario(far: MemoryLink, node: EchoNode, driver: Driver) -> None:
        node.deadline = due = monotonic() + 20_000
        driver.wake()
        while not node.ticks:
            await asyncio.sleep(0.005)
        assert node.ticks[0] >= due

    drive(scenario)


def test_an_earlier_deadline_replaces_a_later_one() -> None:
    async def scenario(far: MemoryLink, node: EchoNode, driver: Driver) -> None:
        node.deadline = monotonic() + 60_000_000
        driver.wake()
        await asyncio.sleep(0.01)
        node.deadline = monotonic() + 10_000
        driver.wake()
        for _ in range(1000):
            if node.ticks:
                break
            await asyncio.sleep(0.005)
        assert node.ticks

    drive(scenario)


def test_a_deadline_that_stands_still_does_not_spin() -> None:
    class Stuck(EchoNode):
        calls = 0

        def tick(self, now: Micros) -> None:
            self.calls += 1

        def next_timeout(self) -> Micros | None:
            return 1

    async def main() -> None:
        far, near = pair(wakeup=True)
        node = Stuck()
        running = asyncio.create_task(Driver(node, near).run())
        await asyncio.sleep(0.05)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        near.close()
        far.close()
        assert node.calls <= 0.05 / 500e-6 + 2

    asyncio.run(main())


def test_an_error_of_the_node_ends_run_with_it() -> None:
    async def scenario(far: MemoryLink, node: EchoNode, driver: Driver) -> None:
        far.send([(b"bad",)], 0)
        await asyncio.sleep(0.05)

    with pytest.raises(RuntimeError, match="a bug of the node"):
        drive(scenario)


def test_a_link_that_is_closed_ends_run() -> None:
    async def scenario(far: MemoryLink, node: EchoNode, driver: Driver) -> None:
        far.close()
        await asyncio.sleep(0.05)

    with pytest.raises(LinkClosed):
        drive(scenario)


def test_other_tasks_have_their_turn_while_frames_never_end() -> None:
    class Endless(EchoNode):
        def frames(self, now: Micros, limit: int = 64) -> list[TxFrame]:
            return [(b"x",)] * limit

    class Bottomless:
        """A link that takes everything and never has anything."""

        info = LinkInfo()

        def fileno(self) -> int:
            return -1

        def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
            return []

        def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
            return len(frames)

        def wants_write(self) -> bool:
            return False

        def next_timeout(self) -> Micros | None:
            return None

        def close(self) -> None:
            pass

    async def main() -> None:
        driver = Driver(Endless(), Bottomless())
        running = asyncio.create_task(driver.run())
        async with asyncio.timeout(10):
            for _ in range(20):
                await asyncio.sleep(0)
        assert driver.frames_moved > 0
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_the_host_side_is_served_when_its_descriptor_wakes_up() -> None:
    class Host:
        def __init__(self) -> None:
            self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK)

        def fileno(self) -> int:
            return self.read_end

        def serve(self, now: Micros) -> None:
            with contextlib.suppress(BlockingIOError):
                node.outgoing.append((os.read(self.read_end, 100),))

    node = EchoNode()

    async def main() -> None:
        far, near = pair(wakeup=True)
        host = Host()
        running = asyncio.create_task(Driver(node, near, host).run())
        await asyncio.sleep(0)
        os.write(host.write_end, b"from the host")
        async with asyncio.timeout(10):
            assert await _collect(far, 1) == [b"from the host"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for fd in (host.read_end, host.write_end):
            os.close(fd)
        near.close()
        far.close()

    asyncio.run(main())


def test_a_driver_can_run_again_after_it_was_cancelled() -> None:
    async def main() -> None:
        far, near = pair(wakeup=True)
        driver = Driver(EchoNode(), near)
        for word in (b"first", b"second"):
            running = asyncio.create_task(driver.run())
            await asyncio.sleep(0)
            far.send([(word,)], 0)
            async with asyncio.timeout(10):
                assert await _collect(far, 1) == [word]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        near.close()
        far.close()

    asyncio.run(main())
