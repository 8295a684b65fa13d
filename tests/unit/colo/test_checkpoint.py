"""When a checkpoint is asked for, what its steps lead to, and one that fails, is late, or was not asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colo.checkpoint import MAX_REASONS, OTHER, UNASKED, CheckpointConfig, Checkpoints, State, Step
from colo.clients import MAX_LINE_BYTES, MAX_STEPS, Command, CommandClient, InProcessClient
from pystack.clock import Micros
from pystack.errors import UsageError

MS = 1_000
CONFIG = CheckpointConfig()
WHOLE = [Step.PAUSED, Step.COMPLETED, Step.RESUMED]


class Hypervisor:
    """A client whose steps the test makes."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, Micros]] = []
        self.steps: list[Step] = []

    def begin(self, reason: str, now: Micros) -> None:
        self.begun.append((reason, now))

    def poll(self, now: Micros) -> list[Step]:
        steps, self.steps = self.steps, []
        return steps

    def next_timeout(self) -> Micros | None:
        return 0 if self.steps else None


class Rig:
    """`Checkpoints` over a `Hypervisor`, and the steps that its owner saw."""

    def __init__(self, config: CheckpointConfig = CONFIG) -> None:
        self.hypervisor = Hypervisor()
        self.checkpoints = Checkpoints(self.hypervisor, config)
        self.mark = self.checkpoints.counters.snapshot()

    def tell(self, now: Micros, *steps: Step) -> list[Step]:
        self.hypervisor.steps += steps
        return self.checkpoints.advance(now)

    def state(self) -> State:
        return self.checkpoints.state

    @property
    def moved(self) -> dict[str, int]:
        """The counters that moved since this was last asked, without their layer."""
        counters = self.checkpoints.counters
        difference, self.mark = counters.since(self.mark), counters.snapshot()
        return {name.removeprefix("checkpoint."): value for name, value in difference.items()}


@pytest.fixture
def rig() -> Rig:
    return Rig()


# ---------------------------------------------------------------------------------------------------- the ordinary one


def test_a_request_begins_at_once_and_goes_through_all_states(rig: Rig) -> None:
    rig.checkpoints.request("payload", 1000)
    assert rig.state() is State.REQUESTED
    assert rig.hypervisor.begun == [("payload", 1000)]
    assert rig.tell(1200) == []
    assert rig.tell(2000, Step.PAUSED) == [Step.PAUSED]
    assert rig.state() is State.PAUSED
    assert rig.tell(4000, Step.COMPLETED) == [Step.COMPLETED]
    assert rig.state() is State.PAUSED
    assert not rig.checkpoints.under_way
    assert rig.tell(4500, Step.RESUMED) == [Step.RESUMED]
    assert rig.state() is State.RESUMED
    assert rig.checkpoints.next_timeout() == 1000 + CONFIG.min_interval
    assert rig.tell(1000 + CONFIG.min_interval) == []
    assert rig.state() is State.RUNNING
    assert rig.checkpoints.next_timeout() is None
    assert rig.moved == {"requested": 1, "begun": 1, "completed": 1}
    assert (rig.checkpoints.last_duration, rig.checkpoints.last_pause) == (3000, 2500)
    assert rig.checkpoints.by_reason == {"payload": 1}


def test_durations_and_pauses_add_up(rig: Rig) -> None:
    for start, took in ((0, 2 * MS), (100 * MS, 5 * MS)):
        rig.checkpoints.request("payload", start)
        rig.tell(start + MS, Step.PAUSED)
        rig.tell(start + took, Step.COMPLETED, Step.RESUMED)
    assert (rig.checkpoints.last_duration, rig.checkpoints.total_duration) == (5 * MS, 7 * MS)
    assert (rig.checkpoints.last_pause, rig.checkpoints.total_pause) == (4 * MS, 5 * MS)


def test_machines_that_run_on_before_the_state_has_arrived(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    assert rig.tell(1, Step.PAUSED, Step.RESUMED) == [Step.PAUSED, Step.RESUMED]
    assert rig.state() is State.RESUMED
    assert rig.checkpoints.under_way
    assert rig.tell(CONFIG.min_interval + 5) == []
    assert rig.state() is State.RESUMED
    assert rig.tell(CONFIG.min_interval + 9, Step.COMPLETED) == [Step.COMPLETED]
    assert rig.state() is State.RUNNING


# -------------------------------------------------------------------------------------------- merging and the interval


def test_requests_before_the_pause_are_served_by_the_same_checkpoint(rig: Rig) -> None:
    for now in range(5):
        rig.checkpoints.request("payload", now)
    assert len(rig.hypervisor.begun) == 1
    rig.tell(10, *WHOLE)
    rig.tell(CONFIG.min_interval)
    assert len(rig.hypervisor.begun) == 1
    assert rig.checkpoints.served == 5
    assert rig.moved == {"requested": 5, "merged": 4, "begun": 1, "completed": 1}


def test_requests_after_the_pause_ask_for_exactly_one_more(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    rig.tell(1, Step.PAUSED)
    rig.checkpoints.request("flags", 2)
    rig.checkpoints.request("payload", 3)
    assert (rig.checkpoints.covered, rig.checkpoints.waiting) == (1, 2)
    rig.tell(4, Step.COMPLETED, Step.RESUMED)
    assert rig.checkpoints.served == 1
    rig.tell(CONFIG.min_interval)
    assert [reason for reason, _ in rig.hypervisor.begun] == ["payload", "flags"]
    rig.tell(CONFIG.min_interval + 1, *WHOLE)
    rig.tell(10 * CONFIG.min_interval)
    assert len(rig.hypervisor.begun) == 2
    assert rig.checkpoints.served == 3


def test_the_next_waits_for_the_interval_between_two_beginnings(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    rig.tell(1, *WHOLE)
    rig.checkpoints.request("payload", 2)
    rig.checkpoints.request("payload", 3)
    assert rig.checkpoints.next_timeout() == CONFIG.min_interval
    rig.tell(CONFIG.min_interval - 1)
    assert len(rig.hypervisor.begun) == 1
    rig.tell(CONFIG.min_interval)
    assert rig.hypervisor.begun[1:] == [("payload", CONFIG.min_interval)]
    assert rig.moved == {"requested": 3, "merged": 1, "begun": 2, "completed": 1, "delayed": 1}


def test_without_an_interval_they_follow_each_other_at_once() -> None:
    rig = Rig(CheckpointConfig(min_interval=0))
    for now in range(3):
        rig.checkpoints.request("payload", now)
        rig.tell(now, *WHOLE)
    assert len(rig.hypervisor.begun) == 3
    assert "delayed" not in rig.moved


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_failed_one_is_retried_with_growing_pauses_up_to_a_bound() -> None:
    config = CheckpointConfig(retry_after=100 * MS, retry_max=500 * MS)
    rig = Rig(config)
    rig.checkpoints.request("payload", 0)
    now = 0
    pauses = []
    for _ in range(6):
        assert rig.tell(now, Step.PAUSED, Step.FAILED) == [Step.PAUSED, Step.FAILED]
        assert rig.state() is State.FAILED
        at = rig.checkpoints.next_timeout()
        assert at is not None
        assert rig.tell(at - 1) == []
        assert rig.state() is State.FAILED
        rig.tell(at)
        assert rig.state() is State.REQUESTED
        pauses.append((at - now) // MS)
        now = at
    assert pauses == [100, 200, 400, 500, 500, 500]
    assert rig.moved == {"requested": 1, "begun": 7, "failed": 6, "retried": 6}
    rig.tell(now, *WHOLE)
    assert rig.checkpoints.served == 1
    rig.checkpoints.request("payload", now + config.min_interval)
    rig.tell(now + config.min_interval, Step.FAILED)
    assert rig.checkpoints.next_timeout() == now + config.min_interval + config.retry_after


def test_how_long_they_have_failed_is_told_until_one_completes() -> None:
    rig = Rig(CheckpointConfig(min_interval=0, retry_after=100 * MS))
    rig.checkpoints.request("payload", 5 * MS)
    rig.tell(7 * MS, Step.PAUSED, Step.FAILED)
    assert (rig.checkpoints.failures, rig.checkpoints.failing_since) == (1, 5 * MS)
    rig.tell(107 * MS)
    rig.tell(108 * MS, Step.FAILED)
    assert (rig.checkpoints.failures, rig.checkpoints.failing_since) == (2, 5 * MS)
    rig.tell(308 * MS)
    rig.tell(309 * MS, *WHOLE)
    assert rig.checkpoints.failures == 0
    rig.checkpoints.request("payload", 400 * MS)
    rig.tell(401 * MS, Step.FAILED)
    assert (rig.checkpoints.failures, rig.checkpoints.failing_since) == (1, 400 * MS)


def test_the_requests_of_a_failed_one_wait_before_those_that_came_later(rig: Rig) -> None:
    rig.checkpoints.request("flags", 0)
    rig.tell(1, Step.PAUSED)
    rig.checkpoints.request("payload", 2)
    rig.tell(3, Step.FAILED)
    assert (rig.checkpoints.covered, rig.checkpoints.waiting) == (0, 2)
    rig.tell(3 + CONFIG.retry_after)
    assert rig.hypervisor.begun[1][0] == "flags"
    rig.tell(4 + CONFIG.retry_after, *WHOLE)
    assert rig.checkpoints.served == 2
    assert rig.checkpoints.by_reason == {"flags": 1}


def test_a_request_while_the_retry_waits_does_not_hurry_it(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    rig.tell(1, Step.FAILED)
    rig.checkpoints.request("payload", 50 * MS)
    assert len(rig.hypervisor.begun) == 1
    assert rig.state() is State.FAILED


def test_one_that_never_pauses_fails_and_is_asked_for_again(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    assert rig.checkpoints.next_timeout() == CONFIG.completion_timeout
    assert rig.tell(CONFIG.completion_timeout - 1) == []
    assert rig.tell(CONFIG.completion_timeout) == [Step.FAILED]
    rig.tell(CONFIG.completion_timeout + CONFIG.retry_after)
    assert len(rig.hypervisor.begun) == 2
    assert rig.moved == {"requested": 1, "begun": 2, "failed": 1, "timed_out": 1, "retried": 1}


@pytest.mark.parametrize("steps", [[Step.PAUSED], [Step.PAUSED, Step.RESUMED]])
def test_a_boundary_outlives_the_time_a_completion_may_take(rig: Rig, steps: list[Step]) -> None:
    """Nobody but the client can tell whether the copy was made, so it is asked again and nothing is lifted."""
    rig.checkpoints.request("payload", 0)
    rig.tell(1, *steps)
    assert rig.tell(CONFIG.completion_timeout) == []
    assert rig.checkpoints.under_way
    assert rig.checkpoints.covered == 1
    assert rig.checkpoints.next_timeout() == 2 * CONFIG.completion_timeout
    assert [reason for reason, _ in rig.hypervisor.begun] == ["payload", "payload"]
    assert rig.tell(2 * CONFIG.completion_timeout) == []
    assert rig.moved == {"requested": 1, "begun": 1, "timed_out": 2}


def test_a_completion_at_the_last_instant_counts(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    rig.tell(1, Step.PAUSED)
    assert rig.tell(CONFIG.completion_timeout, Step.COMPLETED, Step.RESUMED) == [Step.COMPLETED, Step.RESUMED]
    assert "timed_out" not in rig.moved


# ------------------------------------------------------------------------------------ whose completion is a completion


def timed_out(rig: Rig) -> Micros:
    """A checkpoint whose machines paused and that is overdue; returns when."""
    rig.checkpoints.request("payload", 0)
    rig.tell(1, Step.PAUSED)
    assert rig.tell(CONFIG.completion_timeout) == []
    return CONFIG.completion_timeout


def test_a_late_completion_is_believed(rig: Rig) -> None:
    now = timed_out(rig)
    assert rig.tell(now + 1, Step.COMPLETED, Step.RESUMED) == [Step.COMPLETED, Step.RESUMED]
    assert rig.state() is State.RUNNING
    assert rig.checkpoints.served == 1
    assert rig.checkpoints.last_duration == now + 1


def test_a_late_failure_lifts_the_boundary_and_is_retried(rig: Rig) -> None:
    now = timed_out(rig)
    assert rig.tell(now + 1, Step.FAILED) == [Step.FAILED]
    assert rig.checkpoints.waiting == 1
    rig.tell(now + 1 + CONFIG.retry_after)
    assert rig.state() is State.REQUESTED
    assert rig.tell(now + 2 + CONFIG.retry_after, *WHOLE) == WHOLE


def test_the_pause_of_the_one_that_was_asked_for_again_says_that_the_first_did_not_happen(rig: Rig) -> None:
    now = timed_out(rig)
    assert rig.tell(now + 1, Step.PAUSED) == [Step.FAILED, Step.PAUSED]
    assert rig.tell(now + 2, Step.COMPLETED, Step.RESUMED) == [Step.COMPLETED, Step.RESUMED]
    assert rig.checkpoints.served == 1
    assert rig.checkpoints.last_duration == 1
    assert rig.moved == {
        "requested": 1, "begun": 2, "timed_out": 1, "retried": 1, "superseded": 1, "failed": 1, "completed": 1
    }  # fmt: skip


def test_a_completion_without_a_pause_is_nobodys(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    assert rig.tell(1, Step.COMPLETED) == []
    assert rig.state() is State.REQUESTED
    assert rig.tell(2, *WHOLE) == WHOLE
    assert rig.moved == {"requested": 1, "begun": 1, "out_of_place": 1, "completed": 1}


def test_a_second_pause_ends_the_first_attempt(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    rig.tell(1, Step.PAUSED)
    rig.checkpoints.request("flags", 2)
    assert rig.tell(3, Step.PAUSED) == [Step.FAILED, Step.PAUSED]
    assert rig.checkpoints.covered == 2
    assert rig.tell(4, Step.COMPLETED, Step.RESUMED) == [Step.COMPLETED, Step.RESUMED]
    assert rig.checkpoints.served == 2
    assert rig.moved == {
        "requested": 2, "begun": 1, "superseded": 1, "failed": 1, "unasked": 1, "completed": 1
    }  # fmt: skip


def test_a_pause_after_a_completion_means_that_the_machines_ran_meanwhile(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    assert rig.tell(1, Step.PAUSED, Step.COMPLETED, *WHOLE) == [Step.PAUSED, Step.COMPLETED, Step.RESUMED, *WHOLE]
    assert rig.moved == {"requested": 1, "begun": 1, "completed": 2, "resume_assumed": 1, "unasked": 1}


def test_machines_that_nobody_says_are_running_are_taken_to_run_after_a_while(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    rig.tell(1, Step.PAUSED, Step.COMPLETED)
    rig.checkpoints.request("payload", 2)
    assert rig.tell(CONFIG.completion_timeout) == []
    assert len(rig.hypervisor.begun) == 1
    assert rig.tell(1 + CONFIG.completion_timeout) == [Step.RESUMED]
    assert rig.state() is State.REQUESTED
    assert rig.checkpoints.counters["checkpoint.resume_assumed"] == 1


@pytest.mark.parametrize("step", [Step.COMPLETED, Step.RESUMED, Step.FAILED])
def test_a_step_that_the_state_does_not_allow_is_counted_and_no_more(rig: Rig, step: Step) -> None:
    assert rig.tell(1, step) == []
    assert rig.state() is State.RUNNING
    assert rig.moved == {"out_of_place": 1}


# ------------------------------------------------------------------------------------------- unasked, and the very end


def test_the_hypervisors_own_checkpoint_is_followed(rig: Rig) -> None:
    assert rig.tell(1000, Step.PAUSED) == [Step.PAUSED]
    assert rig.tell(4000, Step.COMPLETED, Step.RESUMED) == [Step.COMPLETED, Step.RESUMED]
    assert rig.hypervisor.begun == []
    assert rig.checkpoints.last_duration == 3000
    assert rig.checkpoints.by_reason == {UNASKED: 1}
    assert rig.moved == {"unasked": 1, "completed": 1}


def test_the_hypervisors_own_checkpoint_serves_what_waits_for_the_interval(rig: Rig) -> None:
    rig.checkpoints.request("payload", 0)
    rig.tell(1, *WHOLE)
    rig.checkpoints.request("flags", 2)
    assert rig.tell(3, *WHOLE) == WHOLE
    rig.tell(10 * CONFIG.min_interval)
    assert len(rig.hypervisor.begun) == 1
    assert rig.checkpoints.served == 2
    assert rig.checkpoints.by_reason == {"payload": 1, "flags": 1}


def test_the_hypervisors_own_checkpoint_that_fails_is_not_retried_and_delays_what_comes_soon(rig: Rig) -> None:
    rig.tell(0, Step.PAUSED, Step.FAILED)
    assert rig.state() is State.FAILED
    rig.tell(CONFIG.retry_after)
    assert rig.state() is State.RUNNING
    rig.checkpoints.request("payload", CONFIG.retry_after)
    assert rig.moved == {"unasked": 1, "failed": 1, "requested": 1, "begun": 1}


@pytest.mark.parametrize("before", [[], [Step.PAUSED], [Step.PAUSED, Step.COMPLETED], WHOLE, [Step.FAILED]])
@pytest.mark.parametrize("loss", [Step.LOST_PRIMARY, Step.LOST_SECONDARY])
def test_the_loss_of_a_machine_ends_everything_at_any_time(rig: Rig, before: list[Step], loss: Step) -> None:
    rig.checkpoints.request("payload", 0)
    rig.tell(1, *before)
    assert rig.tell(2, loss, *WHOLE) == [loss]
    assert rig.state() is State.FAILED_OVER
    rig.checkpoints.request("payload", 3)
    assert rig.tell(CONFIG.completion_timeout * 3, *WHOLE) == []
    assert rig.state() is State.FAILED_OVER
    assert rig.checkpoints.next_timeout() is None
    assert len(rig.hypervisor.begun) == 1
    assert (rig.checkpoints.waiting, rig.checkpoints.covered) == (0, 0)
    assert rig.checkpoints.counters["checkpoint." + loss.name.lower()] == 1
    assert rig.checkpoints.counters["checkpoint.ignored"] == 1


def test_an_owner_may_see_the_loss_first(rig: Rig) -> None:
    rig.checkpoints.lost(Step.LOST_PRIMARY)
    rig.checkpoints.lost(Step.LOST_SECONDARY)
    assert rig.state() is State.FAILED_OVER
    assert rig.moved == {"lost_primary": 1}
    with pytest.raises(UsageError, match="PAUSED"):
        rig.checkpoints.lost(Step.PAUSED)


# ------------------------------------------------------------------------------------------------- bounds and settings


def test_the_number_of_reasons_told_apart_is_bounded(rig: Rig) -> None:
    for number in range(1000):
        rig.checkpoints.request(f"reason {number}", number * CONFIG.min_interval)
        rig.tell(number * CONFIG.min_interval, *WHOLE)
    assert len(rig.checkpoints.by_reason) == MAX_REASONS + 1
    assert rig.checkpoints.by_reason[OTHER] == 1000 - MAX_REASONS
    for number in range(1000):
        rig.checkpoints.request(f"reason {number}", 1000 * CONFIG.min_interval)
    assert rig.checkpoints.waiting == 1000
    assert len(rig.checkpoints._waiting) == MAX_REASONS + 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: CheckpointConfig(min_interval=-1),
        lambda: CheckpointConfig(retry_after=0),
        lambda: CheckpointConfig(retry_after=2, retry_max=1),
        lambda: CheckpointConfig(completion_timeout=0),
        CommandClient,
    ],
)
def test_a_setting_that_cannot_be_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError):
        make()


# --------------------------------------------------------------------------------------------- machines in one process


class Machines:
    """Two dictionaries that are machines; a checkpoint copies one onto the other."""

    def __init__(self) -> None:
        self.primary: dict[str, int] = {}
        self.secondary: dict[str, int] = {}
        self.log: list[tuple[str, Micros]] = []
        self.works = True

    def copy(self, now: Micros) -> bool:
        self.log.append(("copy", now))
        if self.works:
            self.secondary = dict(self.primary)
        return self.works

    def pause(self, now: Micros) -> None:
        self.log.append(("pause", now))

    def resume(self, now: Micros) -> None:
        self.log.append(("resume", now))


def in_process(machines: Machines, pause_after: Micros = 0, duration: Micros = 0) -> InProcessClient:
    return InProcessClient(
        machines.copy, pause=machines.pause, resume=machines.resume, pause_after=pause_after, duration=duration
    )


def test_machines_in_this_process_are_paused_copied_and_resumed_at_the_times_stated() -> None:
    machines = Machines()
    checkpoints = Checkpoints(in_process(machines, pause_after=200, duration=3000))
    machines.primary["x"] = 1
    checkpoints.request("payload", 1000)
    assert checkpoints.next_timeout() == 1200
    assert checkpoints.advance(1199) == []
    assert checkpoints.advance(1200) == [Step.PAUSED]
    assert machines.secondary == {}
    assert checkpoints.next_timeout() == 4200
    assert checkpoints.advance(4200) == [Step.COMPLETED, Step.RESUMED]
    assert machines.secondary == {"x": 1}
    assert machines.log == [("pause", 1200), ("copy", 4200), ("resume", 4200)]
    assert checkpoints.last_pause == 3000


def test_machines_without_durations_are_done_in_one_step() -> None:
    checkpoints = Checkpoints(InProcessClient(lambda _: True))
    checkpoints.request("payload", 7)
    assert checkpoints.next_timeout() == 7
    assert checkpoints.advance(7) == WHOLE


def test_a_copy_that_fails_is_retried_and_the_machines_run_meanwhile() -> None:
    machines = Machines()
    machines.works = False
    checkpoints = Checkpoints(in_process(machines))
    checkpoints.request("payload", 0)
    assert checkpoints.advance(0) == [Step.PAUSED, Step.FAILED]
    assert machines.log[-1] == ("resume", 0)
    machines.works = True
    assert checkpoints.advance(CONFIG.retry_after) == []
    assert checkpoints.advance(CONFIG.retry_after) == WHOLE


def test_a_copy_that_takes_too_long_is_the_one_that_is_asked_for_again() -> None:
    machines = Machines()
    client = in_process(machines, duration=CONFIG.completion_timeout + 50)
    checkpoints = Checkpoints(client)
    checkpoints.request("payload", 0)
    checkpoints.advance(0)
    assert checkpoints.advance(CONFIG.completion_timeout) == []
    now = CONFIG.completion_timeout + 50
    assert checkpoints.advance(now) == [Step.COMPLETED, Step.RESUMED]
    assert checkpoints.advance(now + 10) == []
    assert checkpoints.state is State.RUNNING


def test_machines_in_this_process_may_checkpoint_unasked_and_get_lost() -> None:
    machines = Machines()
    client = in_process(machines, duration=10)
    checkpoints = Checkpoints(client)
    client.unasked(0)
    assert checkpoints.advance(0) == [Step.PAUSED]
    client.lost(Step.LOST_SECONDARY)
    assert client.next_timeout() == 0
    assert checkpoints.advance(50) == [Step.LOST_SECONDARY]
    assert client.next_timeout() is None
    assert ("copy", 50) not in machines.log


# --------------------------------------------------------------------------------------------- a command or a callback


def running(client: CommandClient) -> Command:
    command = client.take_command()
    assert command is not None
    return command


@pytest.fixture
def command() -> CommandClient:
    return CommandClient(["checkpoint", "--now"])


def test_a_command_is_handed_out_once_and_tells_of_its_steps_in_any_pieces(command: CommandClient) -> None:
    checkpoints = Checkpoints(command)
    checkpoints.request("payload", 0)
    job = running(command)
    assert job == Command(1, ("checkpoint", "--now"), "payload")
    assert command.take_command() is None
    steps = []
    for byte in b"paused\n\n completed\r\n":
        command.feed(job.serial, bytes([byte]))
        assert command.next_timeout() in (None, 0)
        steps += checkpoints.advance(1)
    assert steps == [Step.PAUSED, Step.COMPLETED]
    command.ended(job.serial, 0)
    assert checkpoints.advance(2) == [Step.RESUMED]
    assert command.counters.snapshot() == {"checkpoint.command_started": 1}


def test_a_command_that_says_nothing_has_failed_whatever_its_status_is(command: CommandClient) -> None:
    for status, counter in ((0, "checkpoint.command_silent"), (1, "checkpoint.command_failed")):
        command.begin("payload", 0)
        command.ended(running(command).serial, status)
        assert command.poll(0) == [Step.FAILED]
        assert command.counters[counter] == 1


@pytest.mark.parametrize("said", [b"paused\n", b"completed\n", b"completed\npaused\n", b"paused\nresumed\n", b"paus"])
def test_a_command_that_does_not_say_both_in_order_has_failed(command: CommandClient, said: bytes) -> None:
    checkpoints = Checkpoints(command)
    checkpoints.request("payload", 0)
    job = running(command)
    command.feed(job.serial, said)
    command.ended(job.serial, 0)
    steps = checkpoints.advance(1)
    assert Step.COMPLETED not in steps
    assert steps[-1] is Step.FAILED
    assert checkpoints.state is State.FAILED


def test_a_command_may_say_that_it_failed_or_that_a_machine_is_gone(command: CommandClient) -> None:
    command.begin("payload", 0)
    job = running(command)
    command.feed(job.serial, b"paused\nfailed\ncompleted\n")
    command.ended(job.serial, 1)
    assert command.poll(0) == [Step.PAUSED, Step.FAILED]
    command.begin("payload", 1)
    command.feed(running(command).serial, b"lost primary\n")
    assert command.poll(1) == [Step.LOST_PRIMARY]


def test_nonsense_from_a_command_is_counted_and_its_length_is_bounded(command: CommandClient) -> None:
    command.begin("payload", 0)
    job = running(command)
    command.feed(job.serial, b"hello\n")
    for _ in range(100):
        command.feed(job.serial, b"x" * 1000)
        assert len(command._line) <= MAX_LINE_BYTES
    command.feed(job.serial, b" paused\npaused\n")
    assert command.poll(0) == [Step.PAUSED]
    assert command.counters["checkpoint.command_unknown"] == 2


def test_a_command_that_floods_has_failed_and_is_not_listened_to(command: CommandClient) -> None:
    command.begin("payload", 0)
    job = running(command)
    command.feed(job.serial, b"paused\ncompleted\n" * MAX_STEPS)
    assert command.poll(0) == [Step.FAILED]
    command.feed(job.serial, b"paused\ncompleted\n")
    command.ended(job.serial, 0)
    assert command.poll(0) == []
    assert command.counters["checkpoint.command_flood"] == 1


def test_a_command_that_takes_too_long_is_killed_before_the_next_runs(command: CommandClient) -> None:
    checkpoints = Checkpoints(command)
    checkpoints.request("payload", 0)
    old = running(command)
    assert checkpoints.advance(CONFIG.completion_timeout) == [Step.FAILED]
    now = CONFIG.completion_timeout + CONFIG.retry_after
    checkpoints.advance(now)
    assert command.take_command() is None
    assert command.take_kill() == old.serial
    assert command.take_kill() is None
    command.ended(old.serial, -9)
    new = running(command)
    assert new.serial == old.serial + 1
    assert checkpoints.advance(now + 1) == []
    assert checkpoints.state is State.REQUESTED
    command.feed(old.serial, b"paused\ncompleted\n")
    assert checkpoints.advance(now + 2) == []
    command.feed(new.serial, b"paused\ncompleted\n")
    assert checkpoints.advance(now + 3) == [Step.PAUSED, Step.COMPLETED]
    assert command.counters["checkpoint.command_stale"] == 1
    assert command.counters["checkpoint.command_overdue"] == 1


def test_a_command_that_completes_just_before_it_is_killed_has_served_the_retry(command: CommandClient) -> None:
    checkpoints = Checkpoints(command)
    checkpoints.request("payload", 0)
    job = running(command)
    checkpoints.advance(CONFIG.completion_timeout)
    now = CONFIG.completion_timeout + CONFIG.retry_after
    checkpoints.advance(now)
    command.feed(job.serial, b"paused\ncompleted\n")
    command.ended(job.serial, -9)
    assert checkpoints.advance(now + 1) == WHOLE
    assert command.take_command() is None


def test_a_command_that_hangs_in_its_pause_makes_room_for_the_retry(command: CommandClient) -> None:
    checkpoints = Checkpoints(command)
    checkpoints.request("payload", 0)
    job = running(command)
    command.feed(job.serial, b"paused\n")
    assert checkpoints.advance(1) == [Step.PAUSED]
    assert checkpoints.advance(CONFIG.completion_timeout) == []
    now = CONFIG.completion_timeout
    assert command.take_kill() == job.serial
    command.ended(job.serial, -9)
    assert checkpoints.advance(now + 1) == []
    following = running(command)
    assert following.serial == job.serial + 1
    command.feed(following.serial, b"paused\ncompleted\n")
    assert checkpoints.advance(now + 2) == [Step.FAILED, Step.PAUSED, Step.COMPLETED]
    assert checkpoints.counters["checkpoint.failed"] == 1


def test_a_command_that_is_about_to_be_killed_may_still_say_that_it_has_completed(command: CommandClient) -> None:
    checkpoints = Checkpoints(command)
    checkpoints.request("payload", 0)
    job = running(command)
    command.feed(job.serial, b"paused\n")
    checkpoints.advance(1)
    now = CONFIG.completion_timeout
    assert checkpoints.advance(now) == []
    command.feed(job.serial, b"completed\n")
    command.ended(job.serial, -9)
    assert checkpoints.advance(now + 1) == [Step.COMPLETED]
    command.feed(running(command).serial, b"paused\ncompleted\n")
    assert checkpoints.advance(now + 2) == [Step.RESUMED, Step.PAUSED, Step.COMPLETED]


def test_a_command_that_is_killed_in_the_pause_fails_the_retry(command: CommandClient) -> None:
    checkpoints = Checkpoints(command)
    checkpoints.request("payload", 0)
    job = running(command)
    checkpoints.advance(CONFIG.completion_timeout)
    now = CONFIG.completion_timeout + CONFIG.retry_after
    checkpoints.advance(now)
    command.feed(job.serial, b"paused\n")
    command.ended(job.serial, -9)
    assert checkpoints.advance(now + 1) == [Step.PAUSED, Step.FAILED]
    assert command.take_command() is None
    checkpoints.advance(now + 1 + 2 * CONFIG.retry_after)
    assert running(command).serial == job.serial + 1


def test_a_callback_may_answer_at_once() -> None:
    seen: list[Command] = []

    def run(job: Command) -> None:
        seen.append(job)
        for step in WHOLE:
            client.report(job.serial, step)
        client.ended(job.serial, 0)

    client = CommandClient(run=run)
    checkpoints = Checkpoints(client)
    checkpoints.request("payload", 0)
    assert checkpoints.advance(0) == WHOLE
    assert client.take_command() is None
    assert [job.reason for job in seen] == ["payload"]
