"""Two `colo.checkpoint.CheckpointClient`: machines in this process, and a command that takes the checkpoint.

Sans-I/O: nothing is started here. The third is `colo.qemu.notify.NotifyClient`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, final

from colo.checkpoint import Step
from pystack import Counters, Micros, UsageError

__all__ = ["AT_ONCE", "Command", "CommandClient", "InProcessClient"]

AT_ONCE: Final[Micros] = 0
"""An instant that has passed, whatever the time is: there is something to poll."""

MAX_LINE_BYTES: Final = 256
"""The longest line of a command that is listened to."""

MAX_STEPS: Final = 64
"""How many steps a command may report between two polls."""

_WORDS: Final = {step.value.encode(): step for step in Step}


@final
class InProcessClient:
    """Machines that live in this process: both are paused, one is copied onto the other, both run on.

    Args:
        copy: makes the secondary a copy of the primary, ``copy(now)``, and returns whether it did.
        pause, resume: have both machines stand still, and run; ``pause(now)``.
        pause_after: how long after the beginning both stand still, in microseconds. Frames that were sent by then
        belong
            before the boundary.
        duration: how long both stand still, in microseconds; the copy is made at the end of it.

    Attributes:
        pause_after, duration: as given; may be changed at any time, and count from the next pause on.
    """

    __slots__ = ("_at", "_copy", "_pause", "_resume", "_standing", "_steps", "duration", "pause_after")

    def __init__(
        self,
        copy: Callable[[Micros], bool],
        *,
        pause: Callable[[Micros], None] | None = None,
        resume: Callable[[Micros], None] | None = None,
        pause_after: Micros = 0,
        duration: Micros = 0,
    ) -> None:
        self._copy = copy
        self._pause = pause
        self._resume = resume
        self.pause_after = pause_after
        self.duration = duration
        self._steps: list[Step] = []
        self._at: Micros | None = None  # of the next thing to do; None: nothing is under way
        self._standing = False

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Pause both machines after ``pause_after``; one that is under way already is the one that is asked for."""
        if self._at is None:
            self._at = now + self.pause_after

    def unasked(self, now: Micros) -> None:
        """Begin one without having been asked, as a hypervisor does that takes them periodically."""
        self.begin("", now)

    def lost(self, step: Step) -> None:
        """One machine is gone; ``step`` says which one. Whatever was under way is not finished."""
        self._steps.append(step)
        self._at = None
        self._standing = False

    def poll(self, now: Micros) -> list[Step]:
        """See `colo.checkpoint.CheckpointClient`. Calls ``pause``, ``copy`` and ``resume``."""
        while self._at is not None and now >= self._at:
            if not self._standing:
                self._standing = True
                self._at = now + self.duration
                if self._pause is not None:
                    self._pause(now)
                self._steps.append(Step.PAUSED)
            else:
                self._standing = False
                self._at = None
                copied = self._copy(now)
                if self._resume is not None:
                    self._resume(now)
                self._steps += (Step.COMPLETED, Step.RESUMED) if copied else (Step.FAILED,)
        steps, self._steps = self._steps, []
        return steps

    def next_timeout(self) -> Micros | None:
        """See `colo.checkpoint.CheckpointClient`."""
        return AT_ONCE if self._steps else self._at


class Command(NamedTuple):
    """One command to run.

    Attributes:
        serial: tells its results from those of an earlier one.
        argv: program and arguments.
        reason: why; for the command's environment, for instance.
    """

    serial: int
    argv: tuple[str, ...]
    reason: str


@final
class CommandClient:
    """A command, or a callback, that takes one checkpoint each time it is run.

    It tells what happens on its standard output, one of ``paused``, ``completed``, ``resumed``, ``failed``, ``lost
    primary``, ``lost secondary`` a line, when it happens. ``paused`` and ``completed`` are a must: without the first
    there is no boundary between what the checkpoint covers and what it does not, so that a command that ends without
    having said both has failed, whatever its status is. ``resumed`` is implied by its end.

    The driver runs what `take_command` hands out, ends what `take_kill` names, and gives `feed` its output and `ended`
    its status. With ``run`` that is called instead of handing out, and may answer by `report`.

    One command runs at a time. When another is wanted before it has ended, as it took too long, it is to be killed, and
    the other starts when it has ended.

    Attributes:
        counters: ``checkpoint.command_*``.
    """

    __slots__ = (
        "_again", "_argv", "_completed", "_handed_out", "_kill", "_line", "_mute", "_paused", "_run", "_running",
        "_serial", "_skip", "_steps", "counters",
    )  # fmt: skip

    def __init__(
        self,
        argv: Sequence[str] = (),
        *,
        run: Callable[[Command], None] | None = None,
        counters: Counters | None = None,
    ) -> None:
        if not argv and run is None:
            raise UsageError("a command or a callback is needed to take checkpoints")
        self.counters = Counters() if counters is None else counters
        self._argv = tuple(argv)
        self._run = run
        self._serial = 0
        self._running: Command | None = None  # or waits to be taken
        self._handed_out = False
        self._kill: int | None = None
        self._again: str | None = None  # the reason of the one that starts when this one has ended
        self._line = bytearray()
        self._skip = False  # the rest of a line that is too long
        self._mute = False  # this command is not listened to any more
        self._paused = False  # since the last `begin`
        self._completed = False
        self._steps: list[Step] = []

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Have the command run; see `colo.checkpoint.CheckpointClient`."""
        self._paused = self._completed = False
        if self._running is None:
            self._start(reason)
        elif self._handed_out:
            if self._again is None:
                self.counters.bump("checkpoint.command_overdue")
                self._kill = self._running.serial
            self._again = reason

    def _start(self, reason: str) -> None:
        self._serial += 1
        self._line.clear()
        self._skip = self._mute = False
        self._running = Command(self._serial, self._argv, reason)
        self._handed_out = self._run is not None
        self.counters.bump("checkpoint.command_started")
        if self._run is not None:
            self._run(self._running)

    def take_command(self) -> Command | None:
        """What to run now, once; None when there is nothing."""
        if self._handed_out or self._running is None:
            return None
        self._handed_out = True
        return self._running

    def take_kill(self) -> int | None:
        """The serial of the command to end, once; None when there is none. `ended` must still be called."""
        kill, self._kill = self._kill, None
        return kill

    def _is_stale(self, serial: int) -> bool:
        if self._running is not None and serial == self._running.serial:
            return False
        self.counters.bump("checkpoint.command_stale")
        return True

    def feed(self, serial: int, data: bytes) -> None:
        """Take a part of the command's output, cut anywhere."""
        if self._is_stale(serial):
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._extend(line)
            word = bytes(self._line).strip()
            self._line.clear()
            skipped, self._skip = self._skip, False
            step = _WORDS.get(word)
            if step is None or skipped:
                if word or skipped:
                    self.counters.bump("checkpoint.command_unknown")
            else:
                self.report(serial, step)
        self._extend(rest)

    def _extend(self, data: bytes) -> None:
        if len(self._line) + len(data) > MAX_LINE_BYTES:
            self._skip = True
            self._line.clear()
        if not self._skip:
            self._line += data

    def report(self, serial: int, step: Step) -> None:
        """The command or callback says that ``step`` happened."""
        if self._is_stale(serial) or self._mute:
            return
        if len(self._steps) >= MAX_STEPS:
            # To leave out a single one would tell a lie about the rest.
            self.counters.bump("checkpoint.command_flood")
            self._mute = True
            self._steps = [Step.FAILED]
            self._paused = self._completed = False
            return
        if step is Step.PAUSED:
            self._paused, self._completed = True, False
        elif step is Step.COMPLETED:
            self._completed = self._paused
        elif step is Step.RESUMED and self._completed:
            self._paused = False
        elif step is Step.FAILED:
            self._paused = self._completed = False
            self._mute = True
        self._steps.append(step)

    def ended(self, serial: int, status: int) -> None:
        """The command has ended with the exit status ``status``, negative for a signal; or could not be started."""
        if self._is_stale(serial):
            return
        self._running = self._kill = None
        again, self._again = self._again, None
        if status:
            self.counters.bump("checkpoint.command_failed")
        if self._completed:
            if self._paused:
                self._steps.append(Step.RESUMED)
        elif again is not None and not self._paused:
            self._start(again)
        elif not self._mute:
            if not status:
                self.counters.bump("checkpoint.command_silent")
            self._steps.append(Step.FAILED)

    def poll(self, now: Micros) -> list[Step]:  # noqa: ARG002 - the protocol's form
        """See `colo.checkpoint.CheckpointClient`."""
        steps, self._steps = self._steps, []
        return steps

    def next_timeout(self) -> Micros | None:
        """See `colo.checkpoint.CheckpointClient`."""
        return AT_ONCE if self._steps else None


@final
class Nobody:
    """The client of a proxy that has no secondary yet: nothing is ever asked of it."""

    def begin(self, reason: str, now: Micros) -> None:
        """Nothing."""

    def poll(self, now: Micros) -> list[Step]:  # noqa: ARG002 - the protocol's form
        """Nothing."""
        return []

    def next_timeout(self) -> Micros | None:
        """Never."""
        return None
