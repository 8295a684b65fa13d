"""Whether to compare or to take checkpoints periodically, and when the next periodic one is due.

Sans-I/O, integers only: every answer is a function of what was told and of ``now``.

Comparing pays while the two machines answer alike for longer than a checkpoint costs. It does not when their answers
differ by nature (a hardware random source, hash randomisation), nor for more connections than can be tracked. Then
simple checkpointing is cheaper: the primary's output is buffered and leaves with the next periodic checkpoint.

What the owner does::

    for finding in comparator.take_requests():          checkpoints.request(reason, now); policy.on_request(reason, now)
    due = policy.next_checkpoint(now); due <= now:      the same with the reason PERIODIC
    on Step.COMPLETED:                                  policy.on_completed(checkpoints.last_duration, now)
    now and then:                                       policy.on_table(live, capacity, now)
    after any of these:                                 comparator.set_mode(policy.choose(now))
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final

from colo.compare import Mode
from colo.difference import TABLE_FULL
from pystack import Counters, Micros, UsageError

__all__ = ["PERIODIC", "Mode", "Policy", "PolicyConfig"]

_MILLISECOND: Final = 1_000
_SECOND: Final = 1_000_000

PERIODIC: Final = "periodic"
"""The reason of the checkpoints that `Policy.next_checkpoint` asks for."""

UNCOUNTED: Final = frozenset({PERIODIC, TABLE_FULL, "unasked", "other"})
"""The reasons that do not tell of a difference. All others do, a frame that was held for too long included."""

COST_CHECKPOINTS: Final = 4
"""Over how many checkpoints, if they take longer than ``window``, their share of the time is looked at."""

Choice: TypeAlias = Literal["compare", "periodic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """When comparing does not pay, and when to try it again; times in microseconds.

    Attributes:
        forced: "compare" or "periodic", whatever happens; None for what pays.
        periodic_interval: from the completion of a periodic checkpoint to the beginning of the next. A buffered answer
            waits for half of it on average and for all of it at worst: 100 ms is what a person does not notice, and
            takes 3 % of the machines' time where a checkpoint takes 3 ms.
        window, max_rate: more checkpoints than max_rate within window that differences have caused mean periodic mode.
            0 stands for the rate of periodic mode itself, window / periodic_interval, and is replaced by it: above
            that, comparing takes more checkpoints than not comparing.
        max_share_percent: so does more than this share of the time spent in such checkpoints, within the window or, if
            they are that long, within the time of `COST_CHECKPOINTS` of them. At 50 % the machines differ again in less
            time than a checkpoint takes.
        hold, hold_max: how long periodic mode is kept before comparing is tried again. A relapse doubles it up to
            hold_max. Each trial costs at most max_rate checkpoints.
        peace: how long comparing must have gone well for the next fall not to be a relapse; each such time halves hold
            again.
        table_back_percent: how full the table may be, having been full, for comparing to be tried again.

    Raises:
        UsageError: for a value that cannot be.
    """

    forced: Choice | None = None
    periodic_interval: Micros = 100 * _MILLISECOND
    window: Micros = 2 * _SECOND
    max_rate: int = 0
    max_share_percent: int = 50
    hold: Micros = 5 * _SECOND
    hold_max: Micros = 300 * _SECOND
    peace: Micros = 60 * _SECOND
    table_back_percent: int = 80

    def __post_init__(self) -> None:
        if self.forced not in (None, "compare", "periodic"):
            raise UsageError(f"the mode is {self.forced!r}; it must be 'compare', 'periodic' or not be given")
        for name in ("periodic_interval", "window", "hold", "peace"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.max_rate < 0:
            raise UsageError(f"max_rate is {self.max_rate}; it must be 0 or above")
        if not self.max_rate:
            object.__setattr__(self, "max_rate", max(self.window // self.periodic_interval, 1))
        if self.hold_max < self.hold:
            raise UsageError(f"hold_max is {self.hold_max} us; it must be at least hold, {self.hold} us")
        for name in ("max_share_percent", "table_back_percent"):
            if not 0 < getattr(self, name) <= 100:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be between 1 and 100")


@final
class Policy:
    """Chooses between `Mode.COMPARE` and `Mode.PERIODIC`.

    One checkpoint counts as caused by differences when one was reported since the last completion, however many there
    were.

    Attributes:
        mode: what `choose` said last. why: what it went periodic for, "differences", "table" or "choice"; "" in compare
            mode. since: when that began, None before the first switch.
        hold: how long the next or present periodic mode is kept at least, in microseconds.
        forced: the person's choice; may be changed at any time.
        table_is_full: whether more connections live than can be tracked, as far as was told.
        mean_duration: of checkpoints, weighted towards the last eight, in microseconds.
        counters: ``policy.*``.
    """

    __slots__ = (
        "_asked", "_completed_at", "_differs", "_overflowed", "_peaceful_since", "_recent", "_relapsing", "config",
        "counters", "forced", "hold", "mean_duration", "mode", "since", "table_is_full", "why",
    )  # fmt: skip

    def __init__(self, config: PolicyConfig | None = None, counters: Counters | None = None) -> None:
        self.config = PolicyConfig() if config is None else config
        self.counters = Counters() if counters is None else counters
        self.forced: Choice | None = self.config.forced
        self.mode = Mode.COMPARE
        self.why = ""
        self.since: Micros | None = None
        self.hold: Micros = self.config.hold
        self.table_is_full = False
        self.mean_duration: Micros = 0
        self._differs = False  # a difference was reported since the last completion
        self._recent: deque[tuple[Micros, Micros]] = deque(maxlen=self.config.max_rate + 1)
        self._completed_at: Micros | None = None
        self._asked = False  # for a periodic checkpoint that has not completed
        self._overflowed = False  # a connection found no room since the last completion
        self._relapsing = False  # periodic mode was left, and peace has not come since
        self._peaceful_since: Micros = 0

    # ----------------------------------------------------------------------------------------------------- what is told

    def on_request(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - every event has its time
        """A checkpoint was asked for."""
        if reason == PERIODIC:
            self._asked = True
        elif reason == TABLE_FULL:
            self.table_is_full = self._overflowed = True
        elif reason not in UNCOUNTED:
            self._differs = True

    def on_completed(self, duration: Micros, now: Micros) -> None:
        """A checkpoint has completed that took ``duration``, whoever asked for it."""
        first = self._completed_at is None
        self.mean_duration = duration if first else (7 * self.mean_duration + duration) // 8
        self._completed_at = now
        self._asked = self._overflowed = False
        if self._differs:
            self._differs = False
            self._recent.append((now, duration))

    def on_table(self, live: int, capacity: int, now: Micros) -> None:  # noqa: ARG002 - every event has its time
        """``live`` of at most ``capacity`` connections are tracked.

        A connection that found no room (the reason ``table_full``) outweighs a table that looks empty again, until a
        checkpoint has completed.
        """
        if live >= capacity:
            self.table_is_full = True
        elif live * 100 < capacity * self.config.table_back_percent:
            self.table_is_full = self._overflowed

    # ------------------------------------------------------------------------------------------------- what comes of it

    def recent(self, now: Micros) -> int:
        """Checkpoints caused by differences within the window that ends now; at most ``max_rate`` + 1."""
        since = now - self.config.window
        return sum(at > since for at, _ in self._recent)

    def is_too_dear(self, now: Micros) -> bool:
        """Whether differences cause more or longer checkpoints than pays."""
        if not self._recent:
            return False
        if self.recent(now) > self.config.max_rate:
            return True
        span = max(self.config.window, COST_CHECKPOINTS * self.mean_duration)
        spent = sum(duration for at, duration in self._recent if at > now - span)
        return spent * 100 > span * self.config.max_share_percent

    def choose(self, now: Micros) -> Mode:
        """What pays from now on."""
        if self.mode is Mode.COMPARE:
            self._look_for_peace(now)
            if self.forced is not None:
                why = "choice" if self.forced == "periodic" else ""
            elif self.table_is_full:
                why = "table"
            else:
                why = "differences" if self.is_too_dear(now) else ""
            if why:
                self._go_periodic(why, now)
        elif self._pays_again(now):
            self._go_comparing(now)
        return self.mode

    def _look_for_peace(self, now: Micros) -> None:
        times = (now - self._peaceful_since) // self.config.peace
        if times > 0:
            self._peaceful_since += times * self.config.peace
            self._relapsing = False
            self.hold = max(self.hold >> min(times, 62), self.config.hold)

    def _go_periodic(self, why: str, now: Micros) -> None:
        match why:
            case "choice":
                self.counters.bump("policy.to_periodic.choice")
            case "table":
                self.counters.bump("policy.to_periodic.table")
            case _:
                self.counters.bump("policy.to_periodic.differences")
        if self._relapsing and why != "choice":
            self.counters.bump("policy.relapsed")
            self.hold = min(2 * self.hold, self.config.hold_max)
        self.mode, self.why, self.since = Mode.PERIODIC, why, now
        self._recent.clear()

    def _pays_again(self, now: Micros) -> bool:
        if self.forced is not None:
            return self.forced == "compare"
        if self.why == "choice":
            return True
        return not self.table_is_full and (self.since is None or now - self.since >= self.hold)

    def _go_comparing(self, now: Micros) -> None:
        self.counters.bump("policy.to_compare")
        self._relapsing = self._relapsing or self.why != "choice"
        self.mode, self.why, self.since = Mode.COMPARE, "", now
        self._peaceful_since = now
        self._differs = False
        self._recent.clear()  # what was wanted in periodic mode does not count against comparing

    def next_checkpoint(self, now: Micros) -> Micros | None:
        """When the next periodic checkpoint is due; None while none is, or one was asked for and has not completed.

        The last one is due after the return to compare mode: that takes effect at a commit, with both machines in step.
        """
        done = self._completed_at
        if self._asked or self.since is None:
            return None
        if self.mode is Mode.COMPARE:
            return now if done is None or done <= self.since else None
        return self.since if done is None else max(done + self.config.periodic_interval, self.since)
