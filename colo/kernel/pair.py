"""Two replicas and a client, each in a namespace with the kernel's TCP, and the proxy between their TAPs.

Nobody can copy a kernel's TCP, so there are no checkpoints here: what the two say must be the same, and it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from random import Random
from typing import IO, Any, Final, final

from colo.checkpoint import Step
from colo.compare import CompareConfig
from colo.drive import ProxyDriver
from colo.kernel import files
from colo.proxy import Proxy, ProxyConfig
from pystack import Counters, Micros, TapLink, UsageError
from pystack.drivers import hot
from pystack.drivers.namespace import CommandGuest, GuestNetwork

PORT: Final = 80
_GUEST: Final = IPv4Interface("10.77.0.2/24")
_CLIENT: Final = IPv4Interface("10.77.0.1/24")
_GATEWAY: Final = IPv4Address("10.77.0.254")  # nobody: all traffic stays on the link
_GUEST_MAC: Final = bytes.fromhex("525400123456")
_CLIENT_MAC: Final = bytes.fromhex("525400000001")
_START_SECONDS: Final = 30.0  # for Python and its libraries, on a slow host


@contextlib.contextmanager
def _inherited(descriptor: int) -> Iterator[None]:
    """Who is started meanwhile gets ``descriptor``, and afterwards nobody here has it."""
    os.set_inheritable(descriptor, True)
    try:
        yield
    finally:
        os.close(descriptor)


@final
class NoCheckpoints:
    """A `colo.checkpoint.CheckpointClient` that always fails, and says why it was asked."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._steps: list[Step] = []

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Fail."""
        self.reasons.append(reason)
        self._steps.append(Step.FAILED)

    def poll(self, now: Micros) -> list[Step]:  # noqa: ARG002 - the protocol's form
        """The failure."""
        steps, self._steps = self._steps, []
        return steps

    def next_timeout(self) -> Micros | None:
        """At once while there is a failure to tell."""
        return 0 if self._steps else None


@dataclass(slots=True)
class Outcome:
    """What came of it.

    Attributes:
        connections: what the client said of each. received: bytes in all. killed_at: bytes that had arrived when the
            primary was killed, -1 when it was not. seconds: of the whole. asked: reasons for which a checkpoint was
            wanted.
    """

    connections: list[dict[str, Any]] = field(default_factory=list)
    received: int = 0
    killed_at: int = -1
    seconds: float = 0.0
    asked: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Of the connections that did not end well, what happened."""
        return [f"connection {one['connection']}: {one['failure']}" for one in self.connections if one["failure"]]

    @property
    def longest_silence(self) -> float:
        """Seconds, of any connection between two reads."""
        return max((float(one["silence"]) for one in self.connections), default=0.0)


@final
class KernelPair:
    """Runs one demonstration.

    Args:
        connections: of the client, all at once. size: bytes over each. kill: when to kill the primary, as a share of
            all bytes; None: never.
        tell: called a few times a second with the bytes that have arrived and the proxy.
    """

    def __init__(
        self, connections: int, size: int, kill: float | None, tell: Callable[[int, Proxy], None] | None = None
    ) -> None:
        self._connections = connections
        self._size = size
        self._kill_at = None if kill is None else int(connections * size * kill)
        self._tell = tell
        self._undo = contextlib.ExitStack()
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Do it.

        Raises:
            UsageError: the system refuses namespaces or TAPs, there is no room for the files, or a server or the client
                could not be started.
        """
        with self._undo:
            folder = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="colo-demo-")))
            served = files.count(self._connections, self._size)
            files.write(folder, served, self._size)
            ready, (primary, secondary) = self._servers(folder)
            client, lines = self._client(served)
            links = [self._link(guest) for guest in (client, primary, secondary)]
            if len({link.info for link in links}) != 1:
                raise UsageError("The TAPs of the three namespaces differ in what they can do: this should not be.")
            for guest in (primary, secondary):
                guest.execute()
            self._await(ready)
            hot.run(self._drive(links, client, primary, lines))
        return self.outcome

    def _servers(self, folder: Path) -> tuple[int, list[CommandGuest]]:
        """Both web servers, and where each says that it listens."""
        ready, tell = os.pipe()
        self._undo.callback(os.close, ready)
        server = [sys.executable, "-m", "colo.kernel.server", str(PORT), str(folder), str(tell)]
        with _inherited(tell):
            return ready, [self._start(server, _GUEST, _GUEST_MAC) for _ in range(2)]

    def _client(self, served: int) -> tuple[CommandGuest, IO[str]]:
        """The client, and what it tells; its end is the end of the pipe."""
        told, tell = os.pipe()
        lines = self._undo.enter_context(os.fdopen(told, encoding="utf-8"))
        arguments = [_GUEST.ip, PORT, self._connections, served, self._size, tell]
        with _inherited(tell):
            client = self._start(
                [sys.executable, "-m", "colo.kernel.client", *map(str, arguments)], _CLIENT, _CLIENT_MAC
            )
        return client, lines

    def _await(self, ready: int) -> None:
        """Both servers listen."""
        for _ in range(2):
            heard, _, _ = select.select([ready], [], [], _START_SECONDS)
            if not heard or not os.read(ready, 1):
                raise UsageError(
                    "A web server did not start in its namespace: see what it wrote above, or try a host less busy."
                )

    def _start(self, command: list[str], address: IPv4Interface, mac: bytes) -> CommandGuest:
        network = GuestNetwork(address=address, gateway=_GATEWAY, mac=mac, queue_frames=8192)
        guest = CommandGuest.start(command, network, nameservers=())
        self._undo.callback(guest.close)
        return guest

    def _link(self, guest: CommandGuest) -> TapLink:
        link = TapLink.from_fd(guest.tap(), mtu=1500)
        self._undo.callback(link.close)
        return link

    async def _drive(self, links: list[TapLink], client: CommandGuest, primary: CommandGuest, lines: Any) -> None:
        info = links[0].info
        checkpoints = NoCheckpoints()
        compare = CompareConfig(vnet_hdr_len=info.vnet_hdr_len, max_queue_size=8192)
        proxy = Proxy(ProxyConfig(vnet_hdr_len=info.vnet_hdr_len, compare=compare), checkpoints, Counters())
        driver = ProxyDriver(proxy, *links)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), lines)
        driving = asyncio.create_task(driver.run())
        begun = time.monotonic()
        client.execute()
        try:
            while line := await reader.readline():
                self._hear(json.loads(line), driver, primary)
                if driving.done():
                    driving.result()
        finally:
            pipe.close()
            driving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await driving
        self.outcome.seconds = time.monotonic() - begun
        self.outcome.asked = checkpoints.reasons
        if len(self.outcome.connections) != self._connections:
            raise UsageError("The client in its namespace did not finish; run it with fewer --connections.")

    def _hear(self, told: dict[str, Any], driver: ProxyDriver, primary: CommandGuest) -> None:
        if "connection" in told:
            self.outcome.connections.append(told)
            return
        self.outcome.received = int(told["received"])
        if self._kill_at is not None and self.outcome.killed_at < 0 and self.outcome.received >= self._kill_at:
            self.outcome.killed_at = self.outcome.received
            primary.send_signal(signal.SIGKILL)
            driver.lose_primary()
        if self._tell is not None:
            self._tell(self.outcome.received, driver.proxy)


def random_share(seed: int | None) -> float:
    """When to kill: somewhere between a tenth and nine tenths."""
    return Random(seed).uniform(0.1, 0.9)  # noqa: S311 - a moment, not a secret
