"""QEMU's monitor protocol (QMP): commands that answer or say why not, and events as they happen.

The protocol is qemu.qmp's, QEMU's own library; here are its names for what colo does with a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, final

from pystack import LinkError, UsageError
from pystack.link import sockets

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

EventHandler: TypeAlias = Callable[[str, dict[str, Any]], None]
"""(name, data) of an event; called in the order in which QEMU sent them."""

_CONNECT_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.01
_COMMAND_SECONDS: Final = 10.0
_GREETING_SECONDS: Final = 3.0
_PARTING_SECONDS: Final = 1.0


class MonitorError(LinkError):
    """QEMU refused a command, or does not answer any more."""


class Refused(MonitorError):
    """QEMU answers, and refuses."""


@final
class Monitor:
    """The QMP connection to one machine.

    Args:
        name: of the machine, for messages.
        happened: called for every event; `RESET`, for instance, which a replica must never show.
    """

    def __init__(self, name: str, happened: EventHandler) -> None:
        self.name = name
        self._happened = happened
        self._client: QMPClient | None = None
        self._listening: asyncio.Task[None] | None = None
        self._parting: asyncio.Task[None] | None = None

    async def connect(self, path: Path, alive: Callable[[], bool]) -> None:
        """Reach the monitor at ``path``, which may not be there yet.

        Raises:
            MonitorError: the machine is not ``alive()`` any more, or there is no monitor within 10 seconds.
        """
        from qemu.qmp import ConnectError, QMPClient  # noqa: PLC0415 - for those who have a machine

        _silence(QMPClient)
        deadline = asyncio.get_running_loop().time() + _CONNECT_SECONDS
        while True:
            client = QMPClient(self.name)
            try:
                await client.connect(str(path))
                break
            except ConnectError:
                if not alive():
                    raise MonitorError(f"{self.name}: QEMU ended before its monitor was there.") from None
                if asyncio.get_running_loop().time() > deadline:
                    raise MonitorError(f"{self.name}: QEMU's monitor does not answer.") from None
                await asyncio.sleep(_RETRY_SECONDS)
        self._client = client
        self._listening = asyncio.create_task(self._listen(client))

    async def reach(self, address: sockets.Address) -> None:
        """Reach the monitor that somebody else's machine has at ``address`` now.

        Raises:
            UsageError: nobody is there, or it is no monitor, or one that is busy with another client.
        """
        from qemu.qmp import ConnectError, QMPClient  # noqa: PLC0415 - as above

        _silence(QMPClient)
        where = sockets.text(address)
        client = QMPClient(self.name)
        try:
            target = address if isinstance(address, tuple) else str(address)
            await asyncio.wait_for(client.connect(target), _GREETING_SECONDS)
        except TimeoutError:
            raise UsageError(
                f"{self.name}: {where} does not greet as QMP does; give the machine a -qmp of its own for this, since"
                " each serves one client."
            ) from None
        except ConnectError as error:
            if isinstance(error.exc, OSError):
                why = (error.exc.strerror or str(error.exc)).lower()
                raise UsageError(f"{self.name}: there is no QMP at {where} ({why}); is that machine running?") from None
            raise UsageError(f"{self.name}: what answers at {where} is no QMP: name a -qmp socket of QEMU.") from None
        self._client = client
        self._listening = asyncio.create_task(self._listen(client))

    async def gone(self) -> None:
        """Return when the connection has ended, whoever ended it."""
        from qemu.qmp import Runstate  # noqa: PLC0415 - as above

        client = self._client
        while client is not None and client.runstate is Runstate.RUNNING:
            await client.runstate_changed()

    async def _listen(self, client: QMPClient) -> None:
        async for event in client.events:
            data = event.get("data", {})
            self._happened(str(event["event"]), data if isinstance(data, dict) else {})

    async def execute(self, command: str, seconds: float = _COMMAND_SECONDS, **arguments: object) -> Any:
        """Have QEMU execute ``command``, underscores for hyphens in the names of ``arguments``; returns its answer.

        Raises:
            Refused: by QEMU.
            MonitorError: QEMU is gone, or does not answer within ``seconds``.
        """
        from qemu.qmp import ExecuteError, QMPError  # noqa: PLC0415 - as above

        if self._client is None:
            raise MonitorError(f"{self.name}: there is no QEMU.")
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return await asyncio.wait_for(self._client.execute(command, named or None), seconds)
        except ExecuteError as error:
            raise Refused(f"{self.name}: QEMU refuses {command}: {error}.") from None
        except TimeoutError:
            raise MonitorError(f"{self.name}: QEMU does not answer {command} within {seconds:g} s.") from None
        except (QMPError, OSError, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            raise MonitorError(f"{self.name}: QEMU is gone.") from None

    async def hand_over(self, name: str, sock: socket.socket) -> None:
        """Give QEMU the connection ``sock``, which it knows as ``fd:name`` from then on; ours may be closed.

        Raises:
            MonitorError: QEMU refuses, or is gone.
        """
        from qemu.qmp import QMPError  # noqa: PLC0415 - as above

        if self._client is None:
            raise MonitorError(f"{self.name}: there is no QEMU.")
        try:
            self._client.send_fd_scm(sock.fileno())
        except (QMPError, OSError) as error:
            raise MonitorError(f"{self.name}: QEMU does not take a connection: {error}.") from None
        await self.execute("getfd", fdname=name)

    async def close(self) -> None:
        """Part with the monitor; may be repeated."""
        client, self._client = self._client, None
        if client is not None:
            self._parting = asyncio.create_task(_part(client))
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
            self._listening = None
        if self._parting is not None:  # to its end, though nobody may wait for that: else its library complains
            await asyncio.wait({self._parting}, timeout=_PARTING_SECONDS)


def _silence(client: type[QMPClient]) -> None:
    """What the library would log is raised as well; and it takes it for a fault of its own when nobody waits for it."""
    logging.getLogger(client.__module__.rpartition(".")[0]).setLevel(logging.CRITICAL + 1)


async def _part(client: QMPClient) -> None:
    with contextlib.suppress(Exception):  # whatever it ended with, it has ended
        await client.disconnect()
