"""The demonstration with a real client in a namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TextIO

from pystack.cli import signals
from pystack.cli.demo import steps
from pystack.cli.demo.steps import Begin, End
from pystack.cli.options import Settings
from pystack.cli.run import guest_network
from pystack.counters import Counters
from pystack.drivers.namespace import CommandGuest, GuestNetwork

_CLIENT = "pystack.cli.demo.client"


def run(settings: Settings, port: int, heading: str, svg: Path | None) -> int:
    """Show it; the exit status says whether all went well.

    Raises:
        UsageError: there can be no namespace with a TAP.
    """
    network = guest_network(settings, ifname="tap0", tun_device="/dev/net/tun")
    with contextlib.ExitStack() as undo:
        guest, lines = _start_client(network, port, undo)
        from pystack.cli.demo.show import Show  # noqa: PLC0415 - rich, asyncio and the stack, meanwhile: see `run`
        from pystack.cli.demo.watch import Watch  # noqa: PLC0415
        from pystack.cli.serving import Session  # noqa: PLC0415
        from pystack.cli.waiting import command_status  # noqa: PLC0415
        from pystack.link.tap import TapLink  # noqa: PLC0415

        link = TapLink.from_fd(guest.tap(), mtu=settings.mtu)
        session = undo.enter_context(Session(settings, link, Counters(), guest=settings.plan.configured))
        undo.enter_context(signals.held())
        guest.execute()
        with Show(heading) as show:
            show.say(f"The guest: {network.name} in a network namespace; it sees this host as {network.gateway}.")
            watch = Watch(show, session)

            async def work() -> int:
                reader = asyncio.StreamReader()
                loop = asyncio.get_running_loop()
                pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), lines)
                status = asyncio.create_task(command_status(guest))
                async with watch.refreshing():
                    while line := await reader.readline():
                        told = json.loads(line)
                        watch.hear(Begin(**told) if "label" in told else End(**told))
                pipe.close()
                return await status

            status = session.serve(work)
        show.finish(session.gateway.stats(), svg)
        return status


def _start_client(network: GuestNetwork, port: int, undo: contextlib.ExitStack) -> tuple[CommandGuest, TextIO]:
    """The client's process, and the pipe on which it tells of its steps."""
    told, tell = os.pipe()
    lines = undo.enter_context(os.fdopen(told, encoding="utf-8"))
    os.set_inheritable(tell, True)
    arguments = (str(network.gateway), str(port), str(steps.NAMESPACE_BYTES), str(tell))
    try:
        guest = CommandGuest.start([sys.executable, "-m", _CLIENT, *arguments], network, nameservers=())
    finally:
        os.close(tell)
    undo.callback(guest.close)
    return guest, lines
