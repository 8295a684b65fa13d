"""A gateway at work on a link: what `run`, `attach` and `vm` have in common once they have a link."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Self, final

import click

from pystack.cli.options import Settings
from pystack.counters import Counters
from pystack.drivers import hot
from pystack.drivers.aio import Driver, monotonic
from pystack.drivers.hostio import HostIO
from pystack.drivers.resolvers import RESOLV_CONF
from pystack.link.base import Link
from pystack.slirp.gateway import Gateway, GatewayConfig

if TYPE_CHECKING:
    from pystack.link.capture import CaptureLink

_DNS_PORT: Final = 53
_SETTLE_SECONDS: Final = 0.02
_LINGER_SECONDS: Final = 3.0


@final
class Session:
    """A gateway, its host sockets, and the driver between them and a link. A context manager; it owns the link.

    Args:
        link_counters: where the link counts; what wraps it does too. Attribute as well, beside the gateway's own.
        guest: the guest's address, 4 bytes, when we configured it ourselves.

    Raises:
        UsageError: a published port is taken, the capture cannot be written, a fault makes no sense.
    """

    def __init__(self, settings: Settings, link: Link, link_counters: Counters, *, guest: bytes | None = None) -> None:
        self.settings = settings
        self.link_counters = link_counters
        self._capture: CaptureLink | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(link.close)
            # Closed twice in the end, which every link allows.
            self.link = self._with_capture(self._with_faults(link))
            undo.callback(self.link.close)
            self.gateway = Gateway(
                GatewayConfig(
                    plan=settings.plan,
                    allow_host_loopback=settings.allow_host_loopback,
                    dns=settings.dns,
                    resolvers=tuple((address, _DNS_PORT) for address in settings.resolvers),
                    guest=guest,
                ),
                self.link.info,
                seed=secrets.randbits(128),
            )
            self.hostio = HostIO(
                self.gateway, publish=settings.publish, resolv_conf=None if settings.resolvers else RESOLV_CONF
            )
            undo.callback(self.hostio.close)
            self.driver = Driver(self.gateway, self.link, self.hostio)
            self._undo = undo.pop_all()

    def _with_faults(self, link: Link) -> Link:
        settings = self.settings
        if settings.impair is None:
            return link
        from pystack.link.impair import ImpairLink  # noqa: PLC0415 - for those who ask for it, here and below

        seed = secrets.randbits(64) if settings.seed is None else settings.seed
        return ImpairLink(link, settings.impair, seed=seed, counters=self.link_counters)

    def _with_capture(self, link: Link) -> Link:
        """The capture is of what the gateway sees: after the faults on the way in, before those on the way out."""
        path = self.settings.capture
        if path is None:
            return link
        from pystack.link.capture import CaptureLink, origin_of  # noqa: PLC0415
        from pystack.link.pcapng import PcapngWriter  # noqa: PLC0415

        writer = PcapngWriter.create(path)
        self._capture = CaptureLink(link, writer, origin=origin_of(monotonic()), counters=self.link_counters)
        return self._capture

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def serve(self, until: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Serve until ``until()`` has ended and what the guest sent before is delivered; returns what it returned.

        Raises:
            PystackError: the link or the host side failed.
        """
        status = hot.run(self._serve(until()))
        if self._capture is not None and self._capture.failure:
            click.echo(f"pystack: {self._capture.failure}", err=True)
        if self.settings.stats or self.settings.stats_json is not None:
            from pystack.cli import stats  # noqa: PLC0415 - tables are for those who ask for them

            stats.report(self)
        return status

    async def _serve(self, until: Coroutine[Any, Any, int]) -> int:
        driving = asyncio.create_task(self.driver.run(), name="driver")
        waiting = asyncio.create_task(until, name="until")
        try:
            await asyncio.wait({driving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if driving.done():
                driving.result()
            await self._settle(driving)
            return waiting.result()
        finally:
            for task in (driving, waiting):
                task.cancel()
            await asyncio.gather(driving, waiting, return_exceptions=True)

    async def _settle(self, driving: asyncio.Task[None]) -> None:
        """Go on until the guest's last words are with the host: its kernel still sends what a program left to it."""
        driver, flows = self.driver, self.gateway.tcp
        deadline = monotonic() + int(_LINGER_SECONDS * 1e6)
        moved = -1
        while not driving.done() and monotonic() < deadline:
            if moved == driver.frames_moved and all(flow.guest_eof for flow in flows.flows()):
                return
            moved = driver.frames_moved
            await asyncio.sleep(_SETTLE_SECONDS)
