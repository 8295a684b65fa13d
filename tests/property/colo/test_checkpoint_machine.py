"""Checkpoints under anything that clients may report, at any time, held against models.

`AnyStepsMachine` reports steps in no sensible order at all; the three below it take checkpoints of a machine that sends
numbered frames, and hold the owner to output commit: a frame is released only if the secondary's state has it.
"""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from colo.checkpoint import CheckpointConfig, Checkpoints, State, Step
from colo.clients import Command, CommandClient, InProcessClient
from colo.qemu.notify import CHECKPOINT, MAX_OUTPUT_BYTES, NotifyClient, NotifyPeer
from pystack.clock import Micros
from pystack.link.qemu_framing import MAX_FRAME_BYTES, encode

CONFIG: Final = CheckpointConfig(min_interval=10, retry_after=40, retry_max=150, completion_timeout=400)
REASONS: Final = st.sampled_from(["payload", "flags", "timeout"])
WAITS: Final = st.one_of(st.integers(0, 12), st.integers(0, 500))
LOST: Final = (Step.LOST_PRIMARY, Step.LOST_SECONDARY)
SETTINGS: Final = settings(max_examples=150, stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow])

GRAMMAR: Final = {
    ("idle", Step.FAILED): "idle",
    ("idle", Step.PAUSED): "paused",
    ("paused", Step.FAILED): "idle",
    ("paused", Step.COMPLETED): "committed",
    ("paused", Step.RESUMED): "running ahead",
    ("running ahead", Step.FAILED): "idle",
    ("running ahead", Step.COMPLETED): "idle",
    ("committed", Step.RESUMED): "idle",
}
"""What an owner may be told next, and where it is then."""


class Reporter:
    """A client that reports what the test says, and remembers when it was asked to begin."""

    def __init__(self) -> None:
        self.begun: list[Micros] = []
        self.steps: list[Step] = []

    def begin(self, reason: str, now: Micros) -> None:
        assert reason
        self.begun.append(now)

    def poll(self, now: Micros) -> list[Step]:
        steps, self.steps = self.steps, []
        return steps

    def next_timeout(self) -> Micros | None:
        return None


class AnyStepsMachine(RuleBasedStateMachine):
    """The model knows only what the owner saw: where it is in the grammar, and which requests each pause covers."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Micros = 1000
        self.client = Reporter()
        self.checkpoints = Checkpoints(self.client, CONFIG)
        self.place = "idle"
        self.over = False
        self.waiting = self.covered = self.served = self.ignored = 0
        self.requested = False  # a begin that neither a pause nor a failure has answered
        self.checked = 0  # begins that were looked at
        self.backoff = CONFIG.retry_after
        self.not_before: Micros = 0
        self.began_at: Micros = 0
        self.overdue_at: Micros = 0

    # ------------------------------------------------------------------------------------------------------- the model

    def look_at_begins(self) -> None:
        """A begin: never while another is under way, nor before the interval and the backoff have passed.

        But one that stands between its pause and its completion for too long is asked for again.
        """
        for at in self.client.begun[self.checked :]:
            assert at == self.now
            assert not self.over
            if self.place in ("paused", "running ahead"):
                assert at >= self.overdue_at
                self.overdue_at = at + CONFIG.completion_timeout
                continue
            assert not self.requested
            assert self.place == "idle"
            assert self.waiting
            assert at >= self.not_before
            self.requested = True
            self.began_at = at
            self.overdue_at = at + CONFIG.completion_timeout
            self.not_before = at + CONFIG.min_interval
        self.checked = len(self.client.begun)

    def owner_sees(self, step: Step) -> None:
        assert not self.over
        if step in LOST:
            self.over = True
            self.waiting = self.covered = 0
            return
        if step is Step.FAILED:
            assert self.place != "idle" or self.requested
            self.requested = False
            self.waiting, self.covered = self.waiting + self.covered, 0
            self.not_before = max(self.began_at + CONFIG.min_interval, self.now + self.backoff)
            self.backoff = min(2 * self.backoff, CONFIG.retry_max)
        elif step is Step.PAUSED:
            if not self.requested:
                self.began_at = self.now
                self.overdue_at = self.now + CONFIG.completion_timeout
                self.not_before = self.now + CONFIG.min_interval
            self.requested = False
            self.covered, self.waiting = self.waiting, 0
        elif step is Step.COMPLETED:
            self.served, self.covered = self.served + self.covered, 0
            self.backoff = CONFIG.retry_after
        self.place = GRAMMAR[self.place, step]

    def advance(self, *reported: Step) -> list[Step]:
        self.client.steps += reported
        steps = self.checkpoints.advance(self.now)
        for step in steps:
            self.owner_sees(step)
        self.look_at_begins()
        return steps

    # ------------------------------------------------------------------------------------------------------- the rules

    @rule(reason=REASONS)
    def request(self, reason: str) -> None:
        if self.over:
            self.ignored += 1
        else:
            self.waiting += 1
        self.checkpoints.request(reason, self.now)
        self.look_at_begins()

    @rule(wait=WAITS)
    def pass_time(self, wait: Micros) -> None:
        self.now += wait
        boundary = self.place in ("paused", "running ahead")
        seen = self.advance()
        assert not (boundary and Step.FAILED in seen), "time alone lifts no boundary"

    @rule(step=st.sampled_from([step for step in Step if step not in LOST]))
    def report(self, step: Step) -> None:
        could_complete = self.place in ("paused", "running ahead")
        in_time = self.now < self.began_at + CONFIG.completion_timeout
        over = self.over
        seen = self.advance(step)
        if step is Step.PAUSED and not over:
            assert Step.PAUSED in seen
        if step is Step.COMPLETED:
            # Believed exactly while a pause stands.
            assert (Step.COMPLETED in seen) == (could_complete and not over)
        else:
            assert Step.COMPLETED not in seen
        if step in (Step.COMPLETED, Step.RESUMED) and in_time:
            assert Step.FAILED not in seen

    @rule(steps=st.lists(st.sampled_from([step for step in Step if step not in LOST]), max_size=6))
    def report_many(self, steps: list[Step]) -> None:
        self.advance(*steps)

    @rule()
    def sleep_until_something_is_due(self) -> None:
        at = self.checkpoints.next_timeout()
        if at is not None:
            assert at > self.now
            self.now = at
            self.advance()

    @precondition(lambda self: self.client.begun)
    @rule(step=st.sampled_from(LOST), chance=st.integers(0, 9))
    def lose(self, step: Step, chance: int) -> None:
        if chance == 0:
            self.advance(Step.PAUSED, step, Step.COMPLETED)
            assert self.checkpoints.state is State.FAILED_OVER

    # ----------------------------------------------------------------------------------------------- what always holds

    @invariant()
    def no_request_is_lost(self) -> None:
        checkpoints = self.checkpoints
        assert (checkpoints.waiting, checkpoints.covered) == (self.waiting, self.covered)
        assert checkpoints.served == self.served
        if not self.over:
            assert checkpoints.counters["checkpoint.requested"] == self.waiting + self.covered + self.served
        assert checkpoints.counters["checkpoint.ignored"] == self.ignored

    @invariant()
    def the_state_is_what_the_owner_thinks(self) -> None:
        states = {
            "paused": [State.PAUSED],
            "committed": [State.PAUSED],
            "running ahead": [State.RESUMED],
            "idle": [State.REQUESTED] if self.requested else [State.RUNNING, State.RESUMED, State.FAILED],
        }[self.place]
        assert self.checkpoints.state in ([State.FAILED_OVER] if self.over else states)

    @invariant()
    def what_waits_is_under_way_or_has_an_instant(self) -> None:
        if self.waiting + self.covered and not self.over:
            at = self.checkpoints.next_timeout()
            assert at is not None
            longest = max(CONFIG.completion_timeout, CONFIG.retry_max)
            assert self.now < at <= self.now + longest

    @invariant()
    def the_figures_add_up(self) -> None:
        checkpoints = self.checkpoints
        counters = checkpoints.counters
        assert sum(checkpoints.by_reason.values()) == counters["checkpoint.completed"]
        under_way = self.requested or self.place in ("paused", "running ahead")
        ended = counters["checkpoint.completed"] + counters["checkpoint.failed"]
        if not self.over:
            assert counters["checkpoint.begun"] + counters["checkpoint.unasked"] == ended + under_way
        assert checkpoints.last_duration <= checkpoints.total_duration

    def teardown(self) -> None:
        """A client that does what it is asked to serves all that is left, with at most two checkpoints."""
        before = self.checkpoints.counters["checkpoint.completed"]
        for _ in range(10):
            if self.over or not self.waiting + self.covered:
                break
            if self.requested:
                self.advance(Step.PAUSED, Step.COMPLETED, Step.RESUMED)
            elif self.place in ("paused", "running ahead"):
                self.advance(Step.COMPLETED)
                self.advance(Step.RESUMED)
            elif self.place == "committed":
                self.advance(Step.RESUMED)
            else:
                self.sleep_until_something_is_due()
        assert self.over or self.waiting + self.covered == 0
        assert self.checkpoints.counters["checkpoint.completed"] <= before + 2


class PairMachine(RuleBasedStateMachine):
    """A primary that sends numbered frames, a secondary that is a copy of its state, an owner that holds the frames.

    The state of a machine is how many frames it has sent. Frames up to the boundary are released by a completion.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now: Micros = 1000
        self.primary = 0
        self.secondary = 0
        self.standing = False
        self.released = 0
        self.boundary: int | None = None
        self.wanted = 0  # frames that were sent before the last request
        self.checkpoints: Checkpoints

    def advance(self) -> list[Step]:
        sent = self.primary
        steps = self.checkpoints.advance(self.now)
        for step in steps:
            if step is Step.PAUSED:
                assert self.boundary is None
                self.boundary = sent
            elif step is Step.COMPLETED:
                assert self.boundary is not None
                self.released = max(self.released, self.boundary)
                self.boundary = None
            elif step is Step.FAILED:
                self.boundary = None
        return steps

    @rule(frames=st.integers(1, 5))
    def send(self, frames: int) -> None:
        if not self.standing:
            self.primary += frames

    @rule(reason=REASONS)
    def request(self, reason: str) -> None:
        self.wanted = self.primary
        self.checkpoints.request(reason, self.now)

    def assert_all_are_served(self) -> None:
        assert self.checkpoints.served == self.checkpoints.counters["checkpoint.requested"]
        assert self.released >= self.wanted

    @rule(wait=WAITS)
    def pass_time(self, wait: Micros) -> None:
        self.now += wait
        self.advance()

    @rule()
    def sleep_until_something_is_due(self) -> None:
        at = self.checkpoints.next_timeout()
        if at is not None:
            self.now = max(self.now, at)
            self.advance()

    @invariant()
    def no_frame_leaves_that_the_secondary_does_not_have(self) -> None:
        assert self.released <= self.secondary <= self.primary

    @invariant()
    def a_request_stays_until_it_is_served(self) -> None:
        checkpoints = self.checkpoints
        assert (
            checkpoints.waiting + checkpoints.covered + checkpoints.served
            == checkpoints.counters["checkpoint.requested"]
        )


class InProcessMachine(PairMachine):
    """Copies that fail, that take longer than the owner waits, and that nobody asked for."""

    @initialize()
    def make(self) -> None:
        self.works = True
        self.client = InProcessClient(self.copy, pause=self.pause, resume=self.resume)
        self.checkpoints = Checkpoints(self.client, CONFIG)

    def copy(self, now: Micros) -> bool:
        assert self.standing
        if self.works:
            self.secondary = self.primary
        return self.works

    def pause(self, now: Micros) -> None:
        assert not self.standing
        self.standing = True

    def resume(self, now: Micros) -> None:
        self.standing = False

    @rule(
        pause_after=st.integers(0, 30), duration=st.one_of(st.integers(0, 20), st.integers(0, 900)), works=st.booleans()
    )
    def change(self, pause_after: Micros, duration: Micros, works: bool) -> None:
        self.client.pause_after, self.client.duration, self.works = pause_after, duration, works

    @rule()
    def unasked(self) -> None:
        self.client.unasked(self.now)

    def teardown(self) -> None:
        if hasattr(self, "client"):
            self.change(0, 3, works=True)
            for _ in range(30):
                self.sleep_until_something_is_due()
            self.assert_all_are_served()


class CommandMachine(PairMachine):
    """Commands that say what they do in pieces, die at any point, say nothing, or hang until they are killed."""

    @initialize()
    def make(self) -> None:
        self.client = CommandClient(["take", "it"])
        self.checkpoints = Checkpoints(self.client, CONFIG)
        self.job: Command | None = None
        self.did = 0  # how far the command is: paused, copied, resumed

    @precondition(lambda self: self.job is None)
    @rule()
    def start(self) -> None:
        self.job = self.client.take_command()
        self.did = 0

    @precondition(lambda self: self.job is not None and self.did < 3)
    @rule(cut=st.integers(0, 10))
    def go_on(self, cut: int) -> None:
        assert self.job is not None
        said = (b"paused\n", b"completed\n", b"resumed\n")[self.did]
        if self.did == 0:
            self.standing = True
        elif self.did == 1:
            self.secondary = self.primary
        self.did += 1
        self.client.feed(self.job.serial, said[:cut])
        self.client.feed(self.job.serial, said[cut:])
        self.advance()  # the driver hears of it at once, and the links are drained
        if self.did == 3:
            self.standing = False

    @precondition(lambda self: self.job is not None)
    @rule(status=st.sampled_from([0, 1, -9]))
    def end(self, status: int) -> None:
        assert self.job is not None
        serial, self.job = self.job.serial, None
        self.client.ended(serial, status)
        self.advance()
        self.standing = False

    @precondition(lambda self: self.job is not None)
    @rule()
    def obey(self) -> None:
        if self.client.take_kill() is not None:
            self.end(-9)

    @rule(data=st.binary(max_size=300))
    def hear_nonsense(self, data: bytes) -> None:
        if self.job is not None and b"ed" not in data:
            self.client.feed(self.job.serial, b"\n" + data + b"\n")

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        for _ in range(100):
            if self.job is None:
                self.start()
            if self.job is None:
                self.sleep_until_something_is_due()
            elif self.client.take_kill() is not None or self.did == 3:
                self.end(0)
            else:
                self.go_on(3)
        self.assert_all_are_served()


class NotifyMachine(PairMachine):
    """QEMU's notify_dev protocol between both ends, cut anywhere, with peers that vanish and that talk nonsense."""

    @initialize(vnet=st.booleans())
    def make(self, vnet: bool) -> None:
        self.vnet = vnet
        self.client = NotifyClient(vnet=vnet)
        self.checkpoints = Checkpoints(self.client, CONFIG)
        self.peer: NotifyPeer | None = None
        self.on_the_way = b""

    @rule()
    def arrive(self) -> None:
        if self.peer is None:
            self.peer = NotifyPeer(vnet=self.vnet)
            self.client.connect()
            self.peer.greet()

    @precondition(lambda self: self.peer is not None)
    @rule()
    def vanish(self) -> None:
        self.peer = None
        self.on_the_way = b""
        self.client.disconnect()

    @precondition(lambda self: self.peer is not None)
    @rule(cut=st.integers(0, 40))
    def to_the_comparator(self, cut: int) -> None:
        assert self.peer is not None
        self.on_the_way += self.peer.take_output()
        self.client.feed(self.on_the_way[:cut])
        self.on_the_way = self.on_the_way[cut:]
        self.advance()
        if self.client.error:
            self.vanish()

    @precondition(lambda self: self.peer is not None)
    @rule()
    def to_the_peer(self) -> None:
        assert self.peer is not None
        self.peer.feed(self.client.take_output())
        assert not self.peer.error
        assert not self.peer.unknown

    @precondition(lambda self: self.peer is not None)
    @rule()
    def take_one(self) -> None:
        """Both stand still, the state is sent, and they stand until the comparator has heard of it."""
        assert self.peer is not None
        self.secondary = self.primary
        self.peer.checkpoint()
        self.to_the_comparator(1 << 20)

    @precondition(lambda self: self.peer is not None)
    @rule(message=st.binary(max_size=40).filter(lambda message: message != CHECKPOINT))
    def say_anything(self, message: bytes) -> None:
        assert self.peer is not None
        self.peer.send(message)

    @precondition(lambda self: self.peer is not None)
    @rule(data=st.binary(min_size=1, max_size=40).filter(lambda data: CHECKPOINT not in data))
    def say_anything_unframed(self, data: bytes) -> None:
        self.on_the_way += data

    @invariant()
    def little_is_kept(self) -> None:
        if hasattr(self, "client"):
            assert self.client._decoder.buffered <= MAX_FRAME_BYTES + 8
            assert len(self.client._replies) <= MAX_OUTPUT_BYTES + 64
            assert len(self.client._steps) <= 5

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        if self.peer is not None:
            self.vanish()
        self.arrive()
        for _ in range(20):
            self.sleep_until_something_is_due()
            self.to_the_peer()
            assert self.peer is not None
            if self.peer.requests:
                self.peer.requests = 0
                self.take_one()
        self.assert_all_are_served()


def test_the_peer_says_what_the_framing_demands() -> None:
    peer = NotifyPeer(vnet=True)
    peer.send(b"x")
    assert peer.take_output() == encode(b"x", 0)


for machine in (AnyStepsMachine, InProcessMachine, CommandMachine, NotifyMachine):
    machine.TestCase.settings = SETTINGS

TestAnySteps = AnyStepsMachine.TestCase
TestInProcess = InProcessMachine.TestCase
TestCommand = CommandMachine.TestCase
TestNotify = NotifyMachine.TestCase
