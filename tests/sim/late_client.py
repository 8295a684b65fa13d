"""A checkpoint client whose news come late: both machines run again before anybody is told that the copy was made."""

from __future__ import annotations

from colo.checkpoint import Step
from colo.clients import InProcessClient
from pystack.clock import Micros


class LateClient:
    """Tells of everything from the end of a pause on ``after`` microseconds later than ``inner`` does."""

    def __init__(self, inner: InProcessClient, after: Micros) -> None:
        self._inner = inner
        self._after = after
        self._news: list[tuple[Micros, Step]] = []

    def begin(self, reason: str, now: Micros) -> None:
        self._inner.begin(reason, now)

    def unasked(self, now: Micros) -> None:
        self._inner.unasked(now)

    def hurry(self, now: Micros) -> None:
        """Tell everything at the next `poll`: for somebody who has to decide who carries on."""
        self._news = [(now, step) for _, step in self._news]

    def poll(self, now: Micros) -> list[Step]:
        if not self._news:  # one thing after the other: a pause that nobody was told of yet lasts until then
            late = False
            for step in self._inner.poll(now):
                late |= step is not Step.PAUSED
                self._news.append((now + self._after if late else now, step))
        told = [step for at, step in self._news if at <= now]
        self._news = [news for news in self._news if news[0] > now]
        return told

    def next_timeout(self) -> Micros | None:
        return self._news[0][0] if self._news else self._inner.next_timeout()
