"""Checkpoints: when one is asked for, where it stands, and what its owner must do about it.

Sans-I/O. A `CheckpointClient` knows how to take one; `Checkpoints` decides when it is asked to, and turns what it
reports into steps that the owner can follow blindly. They come in this order and no other:

    PAUSED  COMPLETED  RESUMED      the ordinary one
    PAUSED  RESUMED    COMPLETED    both run on while the state is still under way
    [PAUSED [RESUMED]]  FAILED      it did not happen; whatever boundary was drawn is lifted
    LOST_PRIMARY or LOST_SECONDARY  the last step there is

What a completion means
-----------------------
``COMPLETED`` always means: the secondary equals the primary *at the last PAUSED*. Until the client has said whether
that came true, by COMPLETED or by FAILED, nobody can know what the secondary is: a copy, or what it was. Hence the
rule: *a boundary that was drawn stands until the client says what came of it*, however long that takes. Nothing is
judged across it meanwhile, and nothing leaves. One that takes longer than ``completion_timeout`` after its pause is
counted (``checkpoint.timed_out``) and asked for again; what comes first decides: its own late completion, which is
believed, its failure, or the next pause. Since a client reports steps in the order in which they happened, a second
PAUSED without a completion before it says that the first attempt did not happen (the owner sees FAILED, PAUSED).

One that has not even paused in time has drawn no boundary: it has failed, and is retried.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol, final

from pystack import Counters, Micros, UsageError

__all__ = ["CheckpointClient", "CheckpointConfig", "Checkpoints", "State", "Step"]

_MILLISECOND: Final = 1_000
_SECOND: Final = 1_000_000

MAX_REASONS: Final = 32
"""How many distinct reasons are told apart; all others are `OTHER`."""

OTHER: Final = "other"
"""The reason that stands for all beyond `MAX_REASONS`."""

UNASKED: Final = "unasked"
"""The reason of a checkpoint that serves no request: the hypervisor's own."""


class State(Enum):
    """Where the pair is."""

    RUNNING = "running"
    """Both machines run; a checkpoint may begin at any time."""
    REQUESTED = "requested"
    """The client was asked for one. Both machines still run."""
    PAUSED = "paused"
    """Both machines stand still."""
    RESUMED = "resumed"
    """Both run again, but the completion is awaited, or ``min_interval`` since the beginning has not passed."""
    FAILED = "failed"
    """The last one did not happen, and the next may not begin yet. Both run as far as is known."""
    FAILED_OVER = "failed over"
    """One machine is gone. Terminal."""


class Step(Enum):
    """What happened to a checkpoint, or to the pair."""

    PAUSED = "paused"
    """Both machines stand still: everything they sent before is in the links. Drain them, then draw the boundary."""
    COMPLETED = "completed"
    """The secondary is now a copy of the primary, as it was at the last `PAUSED`."""
    RESUMED = "resumed"
    """Both run."""
    FAILED = "failed"
    """This checkpoint did not happen."""
    LOST_PRIMARY = "lost primary"
    LOST_SECONDARY = "lost secondary"


class CheckpointClient(Protocol):
    """Something that can take a checkpoint."""

    def begin(self, reason: str, now: Micros) -> None:
        """Ask for a checkpoint; returns at once.

        Called again only after a `Step.FAILED` of the client's own, or when it has not completed in time. In that case
        the earlier attempt may still be under way, and the client may join the two. Whether a copy was made that a
        PAUSED has announced is the client's to find out and to tell: by COMPLETED or FAILED, or by the next PAUSED.
        """

    def poll(self, now: Micros) -> list[Step]:
        """What happened since the last call, in order.

        A client may report steps that nobody asked for: the hypervisor's own periodic checkpoint.
        """

    def next_timeout(self) -> Micros | None:
        """When `poll` may have something to tell; None when that is not a matter of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints may begin, and how long they may take; in microseconds.

    Attributes:
        min_interval: between the beginnings of two. The default lets checkpoints of 3 ms take a third of the time at
        most. retry_after: between a failure and the next attempt, doubled for each further failure up to retry_max.
        completion_timeout: between the beginning of one and its completion, after which it is asked for again (and has
            failed, if the machines have not even paused); and, after a completion, until the machines are taken to run
            although nobody said so.

    Raises:
        UsageError: for a time that cannot be.
    """

    min_interval: Micros = 10 * _MILLISECOND
    retry_after: Micros = 100 * _MILLISECOND
    retry_max: Micros = 5 * _SECOND
    completion_timeout: Micros = 10 * _SECOND

    def __post_init__(self) -> None:
        if self.min_interval < 0:
            raise UsageError(f"min_interval is {self.min_interval} us; it cannot be negative")
        if not 0 < self.retry_after <= self.retry_max:
            raise UsageError(f"retry_after is {self.retry_after} us; it must be above 0 and at most retry_max")
        if self.completion_timeout <= 0:
            raise UsageError(f"completion_timeout is {self.completion_timeout} us; it must be above 0")


@final
class Checkpoints:
    """The state machine between those who want a checkpoint and the client that takes it.

    A request is served by a checkpoint whose pause comes after it. Until then, requests are merged: all that wait are
    served by the same one. A request that comes after the pause waits for exactly one more. Requests of a checkpoint
    that fails wait again, so that it is retried for as long as any is left, and none is lost.

    Attributes:
        state: see `State`. counters: ``checkpoint.*``. client, config: as given.
        last_duration, total_duration: from the beginning (the pause, for one that was not asked for) to the completion,
        in
            microseconds: what a frame waits that needed it.
        last_pause, total_pause: how long both machines stood still, in microseconds.
        by_reason: how many have completed for which reason; the first one that a checkpoint serves counts. The values
        add
            up to the counter ``checkpoint.completed``. Bounded, see `MAX_REASONS`.
        waiting: requests that no pause has come after. covered: requests before the pause that stands.
        served: requests before a pause whose checkpoint has completed.
        failures: how many have failed since the last one that completed. failing_since: when the first of these began.
    """

    __slots__ = (
        "_asked_again", "_backoff", "_began_at", "_completed", "_covered", "_deadline", "_delayed", "_not_before",
        "_paused_at", "_reason", "_retrying", "_waiting", "by_reason", "client", "config", "counters", "failing_since",
        "failures", "last_duration", "last_pause", "served", "state", "total_duration", "total_pause",
    )  # fmt: skip

    def __init__(
        self, client: CheckpointClient, config: CheckpointConfig | None = None, counters: Counters | None = None
    ) -> None:
        self.client = client
        self.config = CheckpointConfig() if config is None else config
        self.counters = Counters() if counters is None else counters
        self.state = State.RUNNING
        self.by_reason: dict[str, int] = {}
        self.last_duration: Micros = 0
        self.total_duration: Micros = 0
        self.last_pause: Micros = 0
        self.total_pause: Micros = 0
        self.served = 0
        self.failures = 0
        self.failing_since: Micros = 0
        self._waiting: dict[str, int] = {}  # reason: how many requests, in the order of the first of each
        self._covered: dict[str, int] = {}
        self._reason = UNASKED
        self._completed = True  # nothing is under way, or what is has completed and waits for RESUMED
        self._delayed = False  # counted already
        self._retrying = False
        self._asked_again = False  # for one that stands between its pause and its completion for too long
        self._backoff = self.config.retry_after
        self._began_at: Micros = 0
        self._paused_at: Micros = 0
        self._deadline: Micros = 0
        self._not_before: Micros | None = None  # when the next may begin; None: at any time

    # --------------------------------------------------------------------------------------------------------- requests

    def request(self, reason: str, now: Micros) -> None:
        """Ask for a checkpoint of everything up to now. It begins at once where it may."""
        if self.state is State.FAILED_OVER:
            self.counters.bump("checkpoint.ignored")
            return
        self.counters.bump("checkpoint.requested")
        if self._waiting:
            self.counters.bump("checkpoint.merged")
        _count(self._waiting, reason, 1)
        self._begin_if_due(now)

    @property
    def waiting(self) -> int:
        """See the class."""
        return sum(self._waiting.values())

    @property
    def covered(self) -> int:
        """See the class."""
        return sum(self._covered.values())

    @property
    def under_way(self) -> bool:
        """Whether one has begun and has neither completed nor failed."""
        return not self._completed

    def _begin_if_due(self, now: Micros) -> None:
        state = self.state
        if not self._waiting or not self._completed or state is State.PAUSED or state is State.FAILED_OVER:
            return
        if self._not_before is not None and now < self._not_before:
            if state is not State.FAILED and not self._delayed:
                self._delayed = True
                self.counters.bump("checkpoint.delayed")
            return
        if self._retrying:
            self.counters.bump("checkpoint.retried")
        self.counters.bump("checkpoint.begun")
        self._start(now)
        self.state = State.REQUESTED
        self.client.begin(self._reason, now)

    def _start(self, now: Micros) -> None:
        """One is under way from here on, whoever began it."""
        self._completed = self._delayed = self._retrying = self._asked_again = False
        self._reason = next(iter(self._waiting), UNASKED)
        self._began_at = now
        self._deadline = now + self.config.completion_timeout
        self._not_before = now + self.config.min_interval

    # ------------------------------------------------------------------------------------------------------------ steps

    def advance(self, now: Micros) -> list[Step]:
        """Hear what the client has to tell, look at the time, and begin what is due.

        Returns:
            What the owner must act on, in the order that the module's description gives.
        """
        steps: list[Step] = []
        if self.state is State.FAILED_OVER:
            return steps
        for step in self.client.poll(now):
            match step:
                case Step.PAUSED:
                    self._on_paused(now, steps)
                case Step.COMPLETED:
                    self._on_completed(now, steps)
                case Step.RESUMED:
                    self._on_resumed(now, steps)
                case Step.FAILED if not self._completed:
                    self._fail(now, steps)
                case Step.FAILED:
                    self.counters.bump("checkpoint.out_of_place")
                case Step.LOST_PRIMARY | Step.LOST_SECONDARY:
                    self.lost(step)
                    steps.append(step)
                    return steps
        self._look_at_the_time(now, steps)
        self._begin_if_due(now)
        return steps

    def _on_paused(self, now: Micros, steps: list[Step]) -> None:
        if not self._completed and self.state is not State.REQUESTED:
            self.counters.bump("checkpoint.superseded")
            self._fail(now, steps)
        elif self.state is State.PAUSED:
            self._assume_resumed(now, steps)
        if self.state is not State.REQUESTED:
            if self._asked_again:
                self.counters.bump("checkpoint.retried")
                self.counters.bump("checkpoint.begun")
            else:
                self.counters.bump("checkpoint.unasked")
            self._start(now)
        self.state = State.PAUSED
        self._reason = next(iter(self._waiting), UNASKED)
        self._covered, self._waiting = self._waiting, {}
        self._paused_at = now
        steps.append(Step.PAUSED)

    def _on_completed(self, now: Micros, steps: list[Step]) -> None:
        if self._completed or self.state is State.REQUESTED:
            self.counters.bump("checkpoint.out_of_place")
            return
        self.counters.bump("checkpoint.completed")
        self._completed = True
        self.failures = 0
        self._backoff = self.config.retry_after
        self._deadline = now + self.config.completion_timeout  # for RESUMED
        self.last_duration = now - self._began_at
        self.total_duration += self.last_duration
        self.served += self.covered
        self._covered.clear()
        _count(self.by_reason, self._reason, 1)
        steps.append(Step.COMPLETED)

    def _on_resumed(self, now: Micros, steps: list[Step]) -> None:
        if self.state is not State.PAUSED:
            self.counters.bump("checkpoint.out_of_place")
            return
        self.state = State.RESUMED
        self.last_pause = now - self._paused_at
        self.total_pause += self.last_pause
        steps.append(Step.RESUMED)

    def _assume_resumed(self, now: Micros, steps: list[Step]) -> None:
        self.counters.bump("checkpoint.resume_assumed")
        self._on_resumed(now, steps)

    def _fail(self, now: Micros, steps: list[Step]) -> None:
        """What was under way did not happen; its requests wait again, before all others."""
        self.counters.bump("checkpoint.failed")
        if not self.failures:
            self.failing_since = self._began_at
        self.failures += 1
        self.state = State.FAILED
        self._completed = True
        again, self._covered = self._covered, {}
        for reason, count in self._waiting.items():
            _count(again, reason, count)
        self._waiting = again
        self._retrying = bool(again)
        self._not_before = max(self._began_at + self.config.min_interval, now + self._backoff)
        self._backoff = min(2 * self._backoff, self.config.retry_max)
        steps.append(Step.FAILED)

    def lost(self, step: Step) -> None:
        """One machine is gone: the end. For an owner that saw it before the client did; may be repeated.

        Raises:
            UsageError: if ``step`` is neither of the two that say so.
        """
        if step is Step.LOST_PRIMARY:
            name = "checkpoint.lost_primary"
        elif step is Step.LOST_SECONDARY:
            name = "checkpoint.lost_secondary"
        else:
            raise UsageError(f"{step.name} is not the loss of a machine")
        if self.state is not State.FAILED_OVER:
            self.counters.bump(name)
            self.state = State.FAILED_OVER
            self._completed = True
            self._waiting.clear()
            self._covered.clear()

    # ------------------------------------------------------------------------------------------------------------- time

    def _look_at_the_time(self, now: Micros, steps: list[Step]) -> None:
        if not self._completed:
            if now >= self._deadline:
                self._overdue(now, steps)
        elif self.state is State.PAUSED and now >= self._deadline:
            self._assume_resumed(now, steps)
        rests = self.state is State.RESUMED or self.state is State.FAILED
        if rests and self._completed and (self._not_before is None or now >= self._not_before):
            self._not_before = None
            self.state = State.RUNNING

    def _overdue(self, now: Micros, steps: list[Step]) -> None:
        """It takes too long."""
        self.counters.bump("checkpoint.timed_out")
        if self.state is State.REQUESTED:
            self._fail(now, steps)
            return
        # The boundary stands: only the client can tell what the secondary is now.
        self._asked_again = True
        self._deadline = now + self.config.completion_timeout
        self.client.begin(self._reason, now)

    def next_timeout(self) -> Micros | None:
        """When `advance` has something to do; None when that is not a matter of time."""
        if self.state is State.FAILED_OVER:
            return None
        client = self.client.next_timeout()
        if not self._completed or self.state is State.PAUSED:
            own: Micros | None = self._deadline
        else:
            own = self._not_before
        if client is None or own is None:
            return own if client is None else client
        return min(client, own)


def _count(reasons: dict[str, int], reason: str, by: int) -> None:
    """Add to one of a bounded number of reasons."""
    if reason not in reasons and len(reasons) >= MAX_REASONS:
        reason = OTHER
    reasons[reason] = reasons.get(reason, 0) + by
