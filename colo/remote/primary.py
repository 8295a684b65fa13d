"""`colo proxy`: the proxy on the primary's host, while its secondary is on another one."""

from __future__ import annotations

import asyncio  # noqa: TID251
import contextlib
import secrets  # noqa: TID251
import socket  # noqa: TID251
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from colo.address import Address
from colo.checkpoint import CheckpointConfig
from colo.clients import Nobody
from colo.drive import ProxyDriver
from colo.proxy import Proxy, ProxyConfig
from colo.qemu.machine import Machine
from colo.qemu.qmp import Monitor
from colo.remote.common import allowed, gone, reach
from colo.remote.copy_partner import CopyPartner
from colo.remote.guest import OwnGuest
from colo.remote.links import RemoteLink, open_client, open_machine
from colo.remote.partner import Hooks, Partner
from colo.remote.recorder import Recorder
from colo.remote.records import TOKEN_BYTES, Engine, Hello, Purpose, State, encode_hello
from colo.remote.session import no_delay, read_hello
from colo.remote.x_colo_partner import XColoPartner
from pystack import Counters, PystackError, UsageError
from pystack.drivers.aio import monotonic
from pystack.link import sockets

_AGAIN_SECONDS: Final = 0.5
_CHECKPOINTS: Final = CheckpointConfig(completion_timeout=60_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class YourPrimary:
    """A machine that somebody else runs.

    Attributes:
        machine: where its card connects to. qmp: its monitor.
    """

    machine: Address
    qmp: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class PrimarySide:
    """What `colo proxy` is told.

    Attributes:
        client: the clients' network. primary: the person's machine, or what one of our own is.
        secondary: the agent. heartbeat_ms, detect_ms: see `colo.remote.records.Beat`. witness: see
        `colo.remote.common.allowed`; "" for none.
    """

    client: str
    primary: YourPrimary | OwnGuest
    secondary: Address
    heartbeat_ms: int = 250
    detect_ms: int = 1000
    witness: str = ""


@final
class ProxySide:
    """Serves clients by the primary, protected by whichever agent is there.

    Attributes:
        proxy, driver: at work once `run` has begun. counters: of everything.
    """

    def __init__(self, config: PrimarySide, say: Callable[[str], None], counters: Counters) -> None:
        self.config = config
        self.counters = counters
        self._say = say
        self._said = ""
        self._undo = contextlib.ExitStack()
        own = config.primary
        self._own = Machine(own.guest, "vm1", own.directory, counters) if isinstance(own, OwnGuest) else None
        self._monitor = Monitor("the primary", lambda _name, _data: None) if self._own is None else self._own.monitor
        self._partner: Partner | None = None
        self._lost: asyncio.Event = asyncio.Event()  # the partner
        self._why = ""
        self._ready = False
        self._recorder = Recorder()
        self._directory = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="colo-")))
        client = open_client(config.client, counters)
        self._undo.callback(client.close)
        if isinstance(config.primary, OwnGuest):
            assert self._own is not None
            machine = self._own.link
        else:
            machine = open_machine(config.primary.machine, counters)
        self._undo.callback(machine.close)
        self.proxy = Proxy(
            ProxyConfig(checkpoint=_CHECKPOINTS), Nobody(), counters, rewriter=self._recorder, alone=True
        )
        self.proxy.hopeless = self._give_up_secondary
        self.driver = ProxyDriver(self.proxy, client, machine)
        self.driver.freeze()

    async def run(self, stopped: Callable[[], Coroutine[Any, Any, int]]) -> int:
        """Serve until ``stopped()`` returns.

        Raises:
            UsageError: the machine or the agent is of no use.
            PystackError: the primary is gone.
        """
        driving = asyncio.create_task(self.driver.run())
        waiting = asyncio.create_task(stopped())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait({driving, waiting, working}, return_when=asyncio.FIRST_COMPLETED)
            if driving.done():
                driving.result()
            if working.done():
                working.result()
            return 0
        finally:
            for task in (driving, waiting, working):
                task.cancel()
            await asyncio.gather(driving, waiting, working, return_exceptions=True)
            if self._partner is not None:
                self._partner.close(bye="colo proxy was ended")
            if self._own is not None:
                await self._own.kill()
            await self._monitor.close()
            self._undo.close()

    async def _work(self) -> None:
        if self._own is not None:
            await self._own.start()
        elif isinstance(self.config.primary, YourPrimary):
            await reach(self._monitor, self.config.primary.qmp, self._say)
        self._say("serving by the primary alone; looking for the secondary.")
        pairing = asyncio.create_task(self._pair())
        ending = asyncio.create_task(gone(self._monitor))
        try:
            await asyncio.wait({pairing, ending}, return_when=asyncio.FIRST_COMPLETED)
            if pairing.done():
                pairing.result()
            self._lose_primary(ending.result())
        finally:
            pairing.cancel()
            ending.cancel()
            await asyncio.gather(pairing, ending, return_exceptions=True)

    def _lose_primary(self, why: str) -> None:
        """Serve no more, and let the agent carry on if its machine is a copy.

        Raises:
            PystackError: always.
        """
        self._undo.close()  # the client's link first: nothing more leaves here
        partner, self._partner = self._partner, None
        if partner is None or not self.proxy.protected:
            raise PystackError(f"The primary is lost ({why}), and nobody can carry on: the service is lost.")
        partner.stand_down()
        raise PystackError(
            f"The primary is lost ({why}): the secondary at {self.config.secondary} was told to carry on."
        )

    # ------------------------------------------------------------------------------------------------- one agent

    async def _pair(self) -> None:
        """Find an agent, let its machine join, and again when it is lost."""
        while True:
            try:
                sock, hello = await self._greet()
            except PystackError as error:
                if isinstance(error, _WrongAgent):
                    raise
                if isinstance(error, _ServesAlready) and not self.counters["engine.joined"]:
                    raise
                self._once(str(error).rstrip("."))
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            await self._live_with(sock, hello)

    def _once(self, text: str) -> None:
        """Say it unless it was the last thing said: the agent is tried again and again."""
        if text != self._said:
            self._said = text
            self._say(f"no secondary: {text}; trying again.")

    async def _greet(self) -> tuple[socket.socket, Hello]:
        """Reach an agent that has a fresh machine.

        Raises:
            PystackError: there is none.
        """
        config = self.config
        sock = await asyncio.to_thread(sockets.connect, config.secondary.where)
        try:
            no_delay(sock)
            token = secrets.token_bytes(TOKEN_BYTES)
            engine = Engine.X_COLO if self._own is None else Engine.STOP_COPY
            hello = Hello(Purpose.RECORDS, State.FRESH, engine, token, config.heartbeat_ms, config.detect_ms)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(sock, encode_hello(hello))
            theirs = await read_hello(sock)
            if theirs.state == State.SERVING:
                raise _ServesAlready(
                    f"The agent at {config.secondary} serves clients itself: end it before this machine serves them."
                )
            if theirs.engine != engine:
                raise _WrongAgent(
                    f"The agent at {config.secondary} runs {_WHOSE[theirs.engine == Engine.STOP_COPY]}, and this proxy "
                    f"{_WHOSE[self._own is not None]}: give both --guest, or neither."
                )
            if theirs.state != State.FRESH:
                raise PystackError(f"The agent at {config.secondary} has no fresh machine: start both of them anew.")
        except OSError as error:
            sock.close()
            raise PystackError(f"The agent at {config.secondary} does not listen: {error}.") from None
        except BaseException:
            sock.close()
            raise
        return sock, hello

    async def _live_with(self, sock: socket.socket, hello: Hello) -> None:
        self._lost.clear()
        self._ready, self._said = False, ""
        hooks = Hooks(
            self._on_ready, self._attach, self.driver.quiesce, self.driver.hold, self.driver.wake, self._on_lost
        )
        partner = self._partner = self._partner_of(sock, hello, hooks)
        await self._lost.wait()
        self._recorder.end()
        if partner.joined and not partner.said_goodbye:
            await allowed(self.config.witness, "primary", self._say)
        self._partner = None
        self.driver.lose_secondary()
        self.proxy.secondary_failed(monotonic())  # one that had not joined yet
        self.driver.wake()
        await partner.free_primary()
        partner.link.close()
        self._say(f"the secondary is lost: {self._why}; the primary goes on alone.")
        await asyncio.sleep(_AGAIN_SECONDS)

    def _partner_of(self, sock: socket.socket, hello: Hello, hooks: Hooks) -> Partner:
        where = self.config.secondary
        if self._own is not None:
            return CopyPartner(sock, hello, where, self._own, hooks, self.counters)
        return XColoPartner(sock, hello, where, self._monitor, self._directory / "migrate", hooks, self.counters)

    def _on_ready(self) -> None:
        if self._ready or self._partner is None:
            return
        self._ready = True
        self._recorder.begin(self._partner.record)
        self.proxy.join(self._partner, monotonic(), live=self._partner.live)
        self.driver.wake()

    def _attach(self, link: RemoteLink) -> None:
        self.driver.attach_secondary(link)
        self._say("protected: the secondary is in step with the primary.")

    def _give_up_secondary(self) -> None:
        """Checkpoints fail, and clients wait for them: they need not when there is no secondary."""
        if self._partner is not None:
            self._partner.lose("its checkpoints fail")

    def _on_lost(self, why: str) -> None:
        self._why = why
        self._lost.set()


_WHOSE: Final = ("a machine of yours", "machines of its own")


class _ServesAlready(UsageError):
    """The agent serves clients."""


class _WrongAgent(UsageError):
    """The agent takes checkpoints by another engine."""
