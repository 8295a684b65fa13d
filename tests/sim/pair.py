"""One simulated pair: a client, two replicas, the proxy and checkpoints, all from one seed.

    scenario = PairScenario.of(seed)
    run(scenario)                           # raises Violation if a promise is broken

The promises: output commit, checked on every frame that leaves by an `Auditor` that knows nothing of how the comparator
works; and the service that the client sees: every connection, whoever opened it, is answered exactly, is never reset,
does not stand still and leaves nothing behind, whoever dies, and when.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface
from random import Random
from typing import Any, Final

from colo.checkpoint import CheckpointConfig
from colo.clients import InProcessClient
from colo.compare import CompareConfig
from colo.proxy import Proxy, ProxyConfig, Role
from colo.replica import Replica
from colo.service import DIAL_PORT, ECHO_PORT, HTTP_PORT, SINK_PORT, WebService, body_bytes
from pystack.clock import MILLISECOND, SECOND, Micros
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.frame import LinkInfo, TxFrame
from pystack.link import memory
from pystack.link.impair import ImpairLink, Impairment
from pystack.link.memory import MemoryLink
from pystack.stack import Stack, StackConfig
from pystack.tcp.config import TcpConfig
from pystack.testing.world import Talker, World
from tests.sim.answers import dialled, expected, request, wrong_answer
from tests.sim.auditor import Auditor
from tests.sim.framed import FramedComparator
from tests.sim.late_client import LateClient
from tests.sim.pair_scenario import PairScenario
from tests.sim.scenario import Violation

__all__ = ["Pair", "PairScenario", "run"]

_GUEST: Final = "10.0.0.2/24"
_GUEST_ADDRESS: Final = IPv4Interface(_GUEST).ip.packed
_GUEST_MAC: Final = bytes.fromhex("525400123456")
_SECONDS: Final = 240  # for every answer to be there
_CLOSING_SECONDS: Final = 600  # for all that was opened to be gone, after that
_MAX_STEPS: Final = 60_000
_BATCH: Final = 64


class _Machine:
    """A replica and its end of a link."""

    def __init__(self, replica: Replica, link: MemoryLink) -> None:
        self.replica = replica
        self.link = link
        self.unsent: list[TxFrame] = []
        self.alive = True
        self.flipping = False

    def step(self, now: Micros, auditor: Auditor, number: int) -> bool:
        replica = self.replica
        if not self.alive or replica.standing:
            return False
        received = self.link.recv(now, _BATCH)
        for frame in received:
            replica.receive(frame, now)
        due = replica.next_timeout()
        if due is not None and due <= now:
            replica.tick(now)
        replica.service.step(replica.stack, replica.identity, now)
        self.unsent += replica.frames(now, _BATCH)
        frames = [(b"".join(frame),) for frame in self.unsent]
        sent = [(auditor.flipped(frame),) for (frame,) in frames] if self.flipping else frames
        accepted = self.link.send(sent, now)
        for (frame,) in frames[:accepted]:
            auditor.said(number, frame)
        del self.unsent[:accepted]
        return bool(received or accepted)

    def next_timeout(self) -> Micros | None:
        return self.replica.next_timeout() if self.alive else None


@dataclass
class _Call:
    """One connection of the client, from before it is opened."""

    kind: str
    sizes: tuple[int, ...]
    shut: str
    again: bool = False
    talker: Talker | None = None

    @property
    def is_done(self) -> bool:
        talker = self.talker
        if talker is None or self.again:
            return False
        whole = len(talker.received) >= len(expected(self.kind, self.sizes)[0])
        return talker.closed or (whole and (talker.eof or self.shut != "sent"))

    @property
    def talks(self) -> Talker:
        """Its end, once it is opened."""
        assert self.talker is not None
        return self.talker


class Pair:
    """The whole world of one scenario."""

    primary_link: ImpairLink
    secondary_link: ImpairLink
    _paused = False

    def __init__(self, scenario: PairScenario) -> None:
        self.scenario = scenario
        self.random = Random(scenario.seed ^ 0x5EED)
        large = scenario.offload
        self.info = LinkInfo(
            mtu=scenario.mtu, vnet_hdr_len=12 if large else 0, rx_checksum=large, tx_checksum=large, tso4=large
        )
        self.world = World(scenario.seed)
        tcp = TcpConfig(timestamps=scenario.timestamps, sack=scenario.sack, rto_max=2 * SECOND)
        self.client = self.world.host("10.0.0.1/24", info=self.info, tcp=tcp)
        near, self.client.link = memory.pair(self.info)
        self.client_link = self._impaired(near, 0)
        self.machines = [self._machine(0), self._machine(1)]
        self.auditor = Auditor(self.info.vnet_hdr_len)
        self.checkpoint_client = LateClient(
            InProcessClient(
                self._copy,
                pause=self._pause,
                resume=self._resume,
                pause_after=scenario.pause,
                duration=scenario.duration,
            ),
            scenario.told_after,
        )
        self.proxy = self._proxy()
        self.proxy.drain = self._drain
        self.unsent: list[list[TxFrame]] = [[], [], []]
        self.calls = [self._call(index) for index in range(len(scenario.sizes))]
        self.dialled = self.world.serve(self.client, DIAL_PORT, shut="eof")
        self.datagrams = self.client.stack.udp_bind()
        self.pings = self.client.stack.ping_open()
        self._plan()

    # ------------------------------------------------------------------------------------------------------ building

    def _proxy(self) -> Proxy:
        vnet_hdr_len = self.info.vnet_hdr_len
        compare = CompareConfig(
            vnet_hdr_len=vnet_hdr_len, compare_timeout=300 * MILLISECOND, scan_cycle=100 * MILLISECOND
        )
        patience = self.scenario.patience
        checkpoint = CheckpointConfig(
            retry_after=5 * MILLISECOND, retry_max=50 * MILLISECOND, completion_timeout=patience
        )
        config = ProxyConfig(vnet_hdr_len=vnet_hdr_len, compare=compare, checkpoint=checkpoint)
        counters = Counters()
        framed: Any = FramedComparator(compare, counters, self.random) if self.scenario.framed else None
        return Proxy(config, self.checkpoint_client, counters, comparator=framed)

    def _impaired(self, link: MemoryLink, index: int) -> ImpairLink:
        scenario = self.scenario
        impairment = Impairment(
            loss=scenario.loss[index],
            reorder=scenario.reorder[index],
            duplicate=scenario.duplicate[index],
            delay=scenario.delay[index],
        )
        return ImpairLink(link, impairment, seed=self.random.getrandbits(64))

    def _machine(self, number: int) -> _Machine:
        scenario = self.scenario
        tcp = TcpConfig(
            timestamps=scenario.timestamps,
            sack=scenario.sack,
            nagle=scenario.nagle[number],
            delayed_ack=scenario.delayed_ack[number],
            send_buffer=scenario.send_buffer[number],
            receive_buffer=scenario.receive_buffer[number],
            mss=scenario.secondary_mss if number else 0,
            rto_max=2 * SECOND,
        )
        stack = Stack(
            StackConfig(mac=_GUEST_MAC, addresses=(IPv4Interface(_GUEST),), tcp=tcp),
            self.info,
            seed=self.random.getrandbits(128),
        )
        far, near = memory.pair(self.info)
        machine = _Machine(Replica(stack, WebService(stack), identity=number + 1), near)
        setattr(self, "primary_link" if not number else "secondary_link", self._impaired(far, number + 1))
        return machine

    def _call(self, index: int) -> _Call:
        scenario = self.scenario
        again = scenario.again[index]
        kind = scenario.kinds[index]
        shut = "eof" if again else "sent" if scenario.close[index] or kind == "sink" else "never"
        call = _Call(kind, scenario.sizes[index], shut, again)
        self.world.at(scenario.opens[index], lambda: self._open(call))
        return call

    def _open(self, call: _Call, local_port: int = 0) -> None:
        port = {"echo": ECHO_PORT, "sink": SINK_PORT}.get(call.kind, HTTP_PORT)
        connection = self.client.stack.connect((_GUEST_ADDRESS, port), self.world.now, local_port=local_port)
        call.talker = Talker(self.world, connection, request(call.kind, call.sizes), shut=call.shut)

    def _open_again(self) -> bool:
        """Use the four-tuples of connections that are over once more, where that is asked for."""
        opened = False
        for call in self.calls[:]:
            if self.proxy.role is Role.SECONDARY_ALONE and call.talker is not None and not call.talker.eof:
                call.again = False  # which does not close
            if call.again and call.talker is not None and call.talker.closed:
                call.again = False
                following = _Call("same", (2000,), "sent")
                try:
                    self._open(following, call.talker.connection.local_port)
                except UsageError:  # both ends closed at once, and the client's waits (TIME-WAIT)
                    continue
                self.calls.append(following)
                opened = True
        return opened

    def _plan(self) -> None:
        scenario = self.scenario
        at = self.world.at
        number, instant, how_long = scenario.standstill
        if instant:
            at(instant, lambda: self._stand(number, how_long))
        if scenario.dies < 2:
            at(scenario.dies_at, self._die)
        for moment in scenario.unasked:
            at(moment, lambda: self.checkpoint_client.unasked(self.world.now))
        if scenario.flip:
            at(scenario.flip, lambda: setattr(self.machines[0], "flipping", True))
        if scenario.reset:
            at(scenario.reset, self._reset)
        for size in scenario.datagrams:
            at(self.random.randrange(60_000), lambda size=size: self._send_datagram(size))  # type: ignore[misc]
        for seq in range(scenario.pings):
            at(self.random.randrange(60_000), lambda seq=seq: self._ping(seq))  # type: ignore[misc]

    # ------------------------------------------------------------------------------------------------------ happenings

    def _send_datagram(self, size: int) -> None:
        self.datagrams.send(body_bytes(b"datagram", 0, size), self.world.now, to=(_GUEST_ADDRESS, ECHO_PORT))

    def _ping(self, seq: int) -> None:
        self.pings.send_echo(_GUEST_ADDRESS, seq, b"ping %d" % seq, self.world.now)

    def _stand(self, number: int, how_long: Micros) -> None:
        replica = self.machines[number].replica
        if not replica.standing:
            replica.standing = True
            self.world.after(how_long, lambda: setattr(replica, "standing", self._paused))

    def _pause(self, _now: Micros) -> None:
        self._paused = True
        for machine in self.machines:
            machine.replica.standing = True

    def _resume(self, _now: Micros) -> None:
        self._paused = False
        for machine in self.machines:
            machine.replica.standing = False

    def _copy(self, _now: Micros) -> bool:
        primary, secondary = self.machines
        if not primary.alive or not secondary.alive or self.random.random() < self.scenario.failing:
            return False
        secondary.replica.restore(primary.replica.snapshot())
        secondary.unsent = list(primary.unsent)
        self.auditor.copied()
        return True

    def _die(self) -> None:
        self.machines[self.scenario.dies].alive = False
        self.world.after(self.scenario.noticed_after, self._notice)

    def _notice(self) -> None:
        now = self.world.now
        # Whether the last copy was made is known of a secondary before it carries on.
        self.checkpoint_client.hurry(now)
        self._proxy_step(now)
        if self.scenario.dies == 0:
            self.proxy.primary_failed(now)
        else:
            self.proxy.secondary_failed(now)
        self._resume(now)

    def _reset(self) -> None:
        """One machine resets a connection by itself: the other does not."""
        machine = self.machines[self.scenario.reset_by]
        for connection in machine.replica.stack._connections.values():  # a fault of the machine, from inside
            connection.abort()
            return

    # ------------------------------------------------------------------------------------------------------ the loop

    def _feed(self, link: ImpairLink, number: int, now: Micros, until: Micros | None = None) -> bool:
        feed = (self.proxy.from_client, self.proxy.from_primary, self.proxy.from_secondary)[number]
        frames = link.recv(now if until is None else until, _BATCH)
        for frame in frames:
            feed(frame, now)
        return bool(frames)

    def _drain(self, now: Micros) -> None:
        """Everything that was sent before the pause, what is under way included: as a marker behind it would tell."""
        for number, link in ((1, self.primary_link), (2, self.secondary_link)):
            while self._feed(link, number, now, now + SECOND):
                pass

    def _proxy_step(self, now: Micros) -> bool:
        proxy = self.proxy
        links = (self.client_link, self.primary_link, self.secondary_link)
        dues = [link.next_timeout() for link in links]
        moved = any(due is not None and due <= now for due in dues)  # what a link lets go is somebody's to take
        for number, link in enumerate(links):
            moved |= self._feed(link, number, now)
        proxy.tick(now)
        alone = proxy.role is Role.PRIMARY_ALONE
        to_client = proxy.to_client()
        for frame in to_client:
            if not alone:
                # What a broken machine repeats is noticed as long as what it repeats is remembered, and counted after
                # that.
                forgotten = self.machines[0].flipping and proxy.counters["compare.retransmission_unverified"] > 0
                self.auditor.check(frame, payload=not forgotten)
        for queue, frames in zip(self.unsent, (to_client, proxy.to_primary(), proxy.to_secondary()), strict=True):
            queue += [(frame,) for frame in frames]
        for number, (queue, link) in enumerate(zip(self.unsent, links, strict=True)):
            if number and not self.machines[number - 1].alive:
                queue.clear()
            accepted = link.send(queue, now)
            del queue[:accepted]
            moved |= bool(accepted)
        return moved

    def step(self) -> bool:
        """Everything that can happen now, once."""
        now = self.world.now
        moved = self.world.step() | self._open_again()
        for number, machine in enumerate(self.machines):
            moved |= machine.step(now, self.auditor, number)
        return self._proxy_step(now) or moved

    def next_instant(self) -> Micros | None:
        """When something happens by itself."""
        instants = [self.world.next_instant(), self.proxy.next_timeout()]
        instants += [machine.next_timeout() for machine in self.machines]
        instants += [link.next_timeout() for link in (self.client_link, self.primary_link, self.secondary_link)]
        return min((instant for instant in instants if instant is not None), default=None)

    # ----------------------------------------------------------------------------------------------------- the promises

    @property
    def answered(self) -> bool:
        """Whether every connection has got its whole answer, and has closed if it was to."""
        asked = sum(call.kind == "dial" for call in self.calls)
        closed = sum(talker.closed for talker in self.dialled.talkers)
        return all(call.is_done for call in self.calls) and (closed >= asked or self.scenario.broken)

    def left_over(self) -> dict[str, int]:
        """What is still there of what was opened, sent or held."""
        comparator = self.proxy.comparator
        left = {
            "connections of the client": self.client.stack.sizes()["connections"],
            "held frames": comparator.held_frames,
            "held bytes": comparator.held_bytes,
            "frames kept aside": len(self.proxy._aside),
            "frames kept for the machines": len(self.proxy.mirror.waiting),
        }
        for name, machine in zip(("primary", "secondary"), self.machines, strict=True):
            if machine.alive:
                left[f"connections of the {name}"] = machine.replica.stack.sizes()["connections"]
        return {name: count for name, count in left.items() if count}

    def _go_on(self, seconds: int, until: str) -> bool:
        """Let time go by until the promise ``until`` is kept; False when it is not within ``seconds``."""
        end = self.world.now + seconds * SECOND
        for _ in range(_MAX_STEPS):
            moved = self.step()
            if self.answered if until == "answered" else not self.left_over():
                return True
            if moved:
                continue
            instant = self.next_instant()
            if instant is None or instant > end:
                return False
            self.world.clock.jump_to(instant)
            self.client.stack.tick(self.world.now)
        return False

    def run(self) -> None:
        """Until all is answered, and then until nothing of it is left.

        Raises:
            Violation: it does not come to an end.
        """
        proxy = self.proxy
        if not self._go_on(_SECONDS, "answered") and not self.scenario.broken:
            stuck = [index for index, call in enumerate(self.calls) if not call.is_done]
            raise Violation(
                f"connections {stuck} stand still at {self.world.now} us: {proxy.role}, {proxy.differences}"
            )
        if self.scenario.broken:
            return  # what a broken machine owes its client cannot be told
        for call in self.calls:
            call.talks.connection.shutdown()
        if not self._go_on(_CLOSING_SECONDS, "gone"):
            raise Violation(f"left at {self.world.now} us: {self.left_over()}, {proxy.role}, {proxy.differences}")

    def judge(self) -> None:
        """Hold what the client received against what it is owed.

        Raises:
            Violation: there is a difference.
        """
        for index, call in enumerate(self.calls):
            talker = call.talks
            if talker.connection.error is not None:
                raise Violation(f"connection {index} ended with {talker.connection.error}")
            wrong = wrong_answer(call.kind, call.sizes, bytes(talker.received))
            if wrong:
                raise Violation(f"connection {index}: {wrong}")
        ordered = {
            call.talks.connection.local_port: dialled(call.sizes[0]) for call in self.calls if call.kind == "dial"
        }
        for talker in self.dialled.talkers:
            if talker.connection.error is not None:
                raise Violation(f"a connection that the guest opened ended with {talker.connection.error}")
            if ordered.pop(talker.connection.remote_port, None) != bytes(talker.received):
                raise Violation(f"{len(talker.received)} bytes that nobody asked the guest for")
        while (datagram := self.datagrams.take()) is not None:
            size = len(datagram.payload)
            if size not in self.scenario.datagrams or datagram.payload != body_bytes(b"datagram", 0, size):
                raise Violation(f"a datagram of {size} bytes that was not sent")


def run(scenario: PairScenario) -> Pair:
    """Run one scenario.

    Raises:
        Violation: a promise was broken.
    """
    pair = Pair(scenario)
    pair.run()
    if not scenario.broken:
        pair.judge()
    return pair
