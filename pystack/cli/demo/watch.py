"""Carries what the client tells and what the gateway counts to what a person sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, final

from pystack.cli.demo.show import Show
from pystack.cli.demo.steps import Begin, End
from pystack.cli.serving import Session

_REFRESH_SECONDS: Final = 0.1


@final
class Watch:
    """Follows the step under way by the bytes that the gateway has carried since it began."""

    def __init__(self, show: Show, session: Session) -> None:
        self._show = show
        self._session = session
        self._to_guest = True
        self._before = 0

    def hear(self, what: Begin | End) -> None:
        """The client begins or ends a step."""
        if isinstance(what, Begin):
            self._to_guest = what.to_guest
            self._before = self._carried()
            self._show.begin(what)
        else:
            self._show.end(what)

    @asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Within this, the picture is kept up to date."""
        task = asyncio.create_task(self._refresh())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            self._show.carried(self._carried() - self._before)

    def _carried(self) -> int:
        stats = self._session.gateway.stats()
        return stats.bytes_to_guest if self._to_guest else stats.bytes_to_host
