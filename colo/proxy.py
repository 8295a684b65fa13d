"""The proxy: a client's network on one side, two machines on the other.

No byte leaves that only one of the machines stands for.

    client  -- from_client --> [mirror] --+--------------------> to_primary    primary
                                          +-- [rewriter] ------> to_secondary  secondary
    client  <-- to_client -- [comparator] <---- from_primary ---------------- primary
                                          <---- [rewriter] <-- from_secondary secondary

Sans-I/O. Its driver moves frames, calls `Proxy.tick` soon after every batch and at once when the proxy `asks`, and
sets `Proxy.drain`, by which everything that both machines had sent before they stood still is fed before the boundary
is drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol, final

from colo.checkpoint import CheckpointClient, CheckpointConfig, Checkpoints, State, Step
from colo.compare import Comparator, CompareConfig, Difference, Mode
from colo.mirror import Mirror
from colo.policy import PERIODIC, Policy, PolicyConfig
from pystack import Counters, Micros
from pystack.flow.key import flow_key
from pystack.flow.rewriter import Rewriter, RewriterConfig
from pystack.flow.tracker import Timeouts, Tracker
from pystack.wire.packet import FIN, PROTO_TCP, RST, SYN, Packet, parse_untrusted

JOIN: Final = "join"
"""The reason of the checkpoint by which a secondary joins."""

_REMEMBERED: Final = 64
_NO_LUCK: Final = 2  # checkpoints that fail, one after the other
_RARE: Final = SYN | FIN | RST
_TIMEOUTS: Final = Timeouts(established=432_000 * 1_000_000)
"""An offset dies with the tracker's flow, and without it a connection that a survivor took over: after five days of
silence, as Linux's connection tracking has it."""


class Role(Enum):
    """Who answers the client."""

    PAIR = "pair"
    PRIMARY_ALONE = "primary alone"
    SECONDARY_ALONE = "secondary alone"


class Translator(Protocol):
    """What a proxy needs of a `pystack.flow.rewriter.Rewriter`, where it says what each does."""

    def observe_primary(self, packet: Packet, now: Micros) -> None:
        """Learn from what the primary sends."""

    def from_secondary(self, packet: Packet, now: Micros) -> bytes:
        """As the client must see it."""

    def to_secondary(self, packet: Packet, now: Micros) -> bytes | None:
        """As the secondary must see it; None: it waits."""

    def take_waiting(self) -> list[bytes]:
        """What need not wait any longer."""

    def checkpoint(self) -> None:
        """The secondary is a copy."""

    def failover(self, now: Micros) -> None:
        """The primary is gone."""

    def forget(self, key: bytes) -> None:
        """A connection is over."""

    def tick(self, now: Micros) -> None:
        """Time has passed."""

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConfig:
    """What a proxy is made with.

    Attributes:
        vnet_hdr_len: bytes of virtio_net_hdr in front of every frame, on all three links.
        compare, checkpoint, policy: of the parts. max_waiting: frames kept for machines that stand still, from each
        side. give_up_after: how long checkpoints may fail, microseconds, before there is no hope; see `Proxy`.
    """

    vnet_hdr_len: int = 0
    compare: CompareConfig = field(default_factory=CompareConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    max_waiting: int = 4096
    give_up_after: Micros = 3_000_000


@final
class Proxy:
    """Mirror, rewriter, comparator, checkpoints and policy, composed.

    Attributes:
        drain: set by the driver: feeds everything that the links of both machines hold. Called when both stand still.
        mark: set by a driver that would rather not read from them then: called in place of ``drain``, which comes when
            it is known what the checkpoint has become, and feeds what the links had held at that time.
        hopeless: set by who owns the machines: called when one checkpoint after the other has failed for
            ``give_up_after``, and again with each that fails then. Clients wait for them: end the secondary, and they
            need not.
        alone (an argument): there is no secondary yet; see `join`.
        counters: of all parts; ``proxy.*`` of this one. role: who answers. differences: the last ones, newest at the
        end. comparator, checkpoints, policy, tracker, rewriter: the parts, to be looked at.
    """

    def __init__(
        self,
        config: ProxyConfig,
        client: CheckpointClient,
        counters: Counters | None = None,
        *,
        comparator: Comparator | None = None,
        rewriter: Translator | None = None,
        alone: bool = False,
    ) -> None:
        counters = Counters() if counters is None else counters
        self.counters = counters
        self._config = config
        self._vnet_hdr_len = config.vnet_hdr_len
        self._max_waiting = config.max_waiting
        self.role = Role.PAIR
        self.comparator = comparator or Comparator(config.compare, counters)
        assert self.comparator.config.vnet_hdr_len == config.vnet_hdr_len
        assert not self.comparator.config.framed
        self.checkpoints = Checkpoints(client, config.checkpoint, counters)
        self.policy = Policy(config.policy, counters)
        self.tracker = Tracker(timeouts=_TIMEOUTS, counters=counters)
        own = Rewriter(RewriterConfig(vnet_hdr_len=config.vnet_hdr_len), counters)
        self.rewriter: Translator = own if rewriter is None else rewriter
        self.mirror = Mirror(counters, config.max_waiting, config.vnet_hdr_len)
        self.differences: deque[Difference] = deque(maxlen=_REMEMBERED)
        self.drain: Callable[[Micros], None] | None = None
        self.mark: Callable[[], None] | None = None
        self.hopeless: Callable[[], None] | None = None
        self._marked = False
        self._chosen_mode = Mode.COMPARE
        self._standing = False  # both machines, for a checkpoint: what comes from them is kept aside
        self._deaf = False  # both machines: what comes for them is kept, until they run
        self._aside: list[tuple[bool, bytes]] = []  # from machines that run again before the copy is known to be made
        self._to_client: list[bytes] = []
        self._to_primary: list[bytes] = []
        self._to_secondary: list[bytes] = []
        self._joining = False
        self._settles = False  # another checkpoint follows the one that lets the secondary join
        if alone:
            self.role = Role.PRIMARY_ALONE
            self.comparator.pass_through(0)

    @property
    def protected(self) -> bool:
        """Whether the client's connections survive the loss of either machine."""
        return self.role is Role.PAIR and not self._joining

    # ------------------------------------------------------------------------------------------------------- frames

    def from_client(self, frame: bytes, now: Micros) -> None:
        """Take a frame of the client's network."""
        if self._deaf:
            self.mirror.hold(frame)
        else:
            self._deliver(frame, now)

    def _deliver(self, frame: bytes, now: Micros) -> None:
        """Give a client's frame to whoever runs."""
        if self.role is not Role.SECONDARY_ALONE:
            self._to_primary.append(frame)
        packet = self._parse_untrusted(frame)
        if packet is None:
            return
        flow = self.tracker.observe(packet, now)
        if not packet.version:
            self.mirror.learn_untrusted(packet)
        if self.role is Role.PRIMARY_ALONE:
            return
        if flow is not None:
            self.mirror.note_client(flow.key, packet)
        if self._joining:
            return  # who joins hears from the copy on
        if not packet.version:
            self._to_secondary.append(frame)
            return
        translated = self.rewriter.to_secondary(packet, now)
        if translated is not None:
            self._to_secondary.append(translated)

    def from_primary(self, frame: bytes, now: Micros) -> None:
        """Take a frame of the primary."""
        if self.role is Role.SECONDARY_ALONE:
            self.counters.bump("proxy.primary_ignored")
        elif self._standing:
            self._put_aside(True, frame)
        else:
            packet = self._parse_untrusted(frame)
            if packet is not None:
                self.tracker.observe(packet, now)
                self.rewriter.observe_primary(packet, now)
                self._to_secondary += self.rewriter.take_waiting()
            self.comparator.primary(frame, now, packet)

    def from_secondary(self, frame: bytes, now: Micros) -> None:
        """Take a frame of the secondary."""
        if self.role is Role.PRIMARY_ALONE:
            self.counters.bump("proxy.secondary_ignored")
            return
        if self._standing:
            self._put_aside(False, frame)
            return
        packet = self._parse_untrusted(frame)
        if packet is None:
            self.counters.bump("proxy.secondary_malformed")
            if self.role is Role.PAIR:
                self.comparator.secondary(frame, now)
            return
        parsed: Packet | None = packet
        if packet.version:
            frame = self.rewriter.from_secondary(packet, now)
            self._to_secondary += self.rewriter.take_waiting()
            if frame is not packet.frame:
                parsed = _translated(packet, frame)
            if packet.proto == PROTO_TCP and self.role is Role.PAIR and not packet.flags & (SYN | RST):
                self._repeat_client(packet, frame, now)
        elif self.role is Role.PAIR and (answer := self.mirror.answer_untrusted(packet)) is not None:
            self._to_secondary.append(answer)
        if self.role is Role.PAIR:
            self.comparator.secondary(frame, now, parsed)
        else:
            self.tracker.observe(packet, now)
            self._to_client.append(frame)

    def _repeat_client(self, packet: Packet, frame: bytes, now: Micros) -> None:
        """Give the secondary the client's last word again, if ``frame``, its translated segment, asks for it."""
        key, _ = flow_key(packet)
        seq = int.from_bytes(frame[packet.l4 + 4 : packet.l4 + 8], "big")
        repeated = self.mirror.repeat_for(key, seq, packet.payload_len)
        if repeated is not None:
            translated = self.rewriter.to_secondary(repeated, now)
            if translated is not None:
                self._to_secondary.append(translated)

    def _parse_untrusted(self, frame: bytes) -> Packet | None:
        return parse_untrusted(frame, self._vnet_hdr_len, self.counters) if frame else None

    def _put_aside(self, primary: bool, frame: bytes) -> None:
        if len(self._aside) < 2 * self._max_waiting:
            self._aside.append((primary, frame))
        else:
            self.counters.bump("proxy.dropped")

    def to_client(self) -> list[bytes]:
        """Frames for the client's network, taken."""
        released = self.comparator.take_released()
        if released:
            self._to_client += map(bytes, released)
        frames, self._to_client = self._to_client, []
        return frames

    def to_primary(self) -> list[bytes]:
        """Frames for the primary, taken."""
        frames, self._to_primary = self._to_primary, []
        return frames

    def to_secondary(self) -> list[bytes]:
        """Frames for the secondary, taken."""
        frames, self._to_secondary = self._to_secondary, []
        return frames

    # --------------------------------------------------------------------------------------------------------- time

    def tick(self, now: Micros) -> None:
        """See to timeouts, checkpoints and the mode, after everything that the links had was fed."""
        self.comparator.tick(now)
        self.tracker.tick(now)
        self.rewriter.tick(now)
        for flow in self.tracker.take_ended():
            self.rewriter.forget(flow.key)
            self.mirror.forget(flow.key)
        if self.role is not Role.PAIR:
            self.comparator.take_requests()
            return
        self._see_to_requests(now)
        for step in self.checkpoints.advance(now):
            self._step(step, now)
        if self.protected:
            self.policy.on_table(self.tracker.live, self.comparator.config.max_flows, now)
            mode = self.policy.choose(now)
            if mode is not self._chosen_mode:
                self._chosen_mode = mode
                self.comparator.set_mode(mode)

    def _see_to_requests(self, now: Micros) -> None:
        for difference in self.comparator.take_requests():
            self.differences.append(difference)
            self.checkpoints.request(difference.reason, now)
            self.policy.on_request(difference.reason, now)
        due = self.policy.next_checkpoint(now)
        if due is not None and due <= now:
            self.checkpoints.request(PERIODIC, now)
            self.policy.on_request(PERIODIC, now)

    @property
    def asks(self) -> bool:
        """Whether `tick` has something to do at once: there is a reason for a checkpoint."""
        return self.comparator.asks

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""
        instants = [self.comparator.next_timeout(), self.tracker.next_timeout(), self.rewriter.next_timeout()]
        if self.role is Role.PAIR:
            instants += [self.checkpoints.next_timeout(), self.policy.next_checkpoint(0)]
        return min((instant for instant in instants if instant is not None), default=None)

    # --------------------------------------------------------------------------------------------------- checkpoints

    def quiesce(self) -> None:
        """Keep what the client sends until the checkpoint that is to begin has come to its end, one way or the other.

        A machine that hears nothing soon says nothing. What is stopped then has taken in all that it was given, and no
        link is full: QEMU's virtio-net goes on with what it could not send, also while its machine stands still, and
        what it writes into the guest's memory meanwhile is in no copy.
        """
        if self.role is Role.PAIR:
            self._deaf = True

    def _step(self, step: Step, now: Micros) -> None:
        match step:
            case Step.PAUSED:
                # Everything that they sent before they stood still is in the links by now, and belongs to this epoch.
                self._deaf = True
                if self.mark is not None:
                    self._marked = True
                    self.mark()
                else:
                    self._drain(now)
                    self._standing = True
            case Step.COMPLETED:
                # The secondary is where the primary is: one space of numbers, one stream each.
                self._drain_marked(now)
                self.comparator.commit(now)
                if self._joining:
                    self._joining = False
                    if self._settles:
                        self.checkpoints.request(JOIN, now)
                self.rewriter.checkpoint()
                self._to_secondary += self.rewriter.take_waiting()
                self.policy.on_completed(self.checkpoints.last_duration, now)
                self._feed_aside(now)
            case Step.FAILED:
                self._drain_marked(now)
                self.comparator.abort(now)
                self._feed_aside(now)
                self._hear_again(now)
                self._look_for_hope(now)
            case Step.LOST_PRIMARY:
                self.primary_failed(now)
            case Step.LOST_SECONDARY:
                self.secondary_failed(now)
            case Step.RESUMED:
                self._hear_again(now)

    def _look_for_hope(self, now: Micros) -> None:
        """A checkpoint has failed. A first one may take long to; a second one says that it is no matter of luck."""
        checkpoints = self.checkpoints
        if checkpoints.state is not State.FAILED or self._joining or checkpoints.failures < _NO_LUCK:
            return
        if now - checkpoints.failing_since >= self._config.give_up_after:
            self.counters.bump("proxy.hopeless")
            if self.hopeless is not None:
                self.hopeless()

    def _drain(self, now: Micros) -> None:
        if self.drain is not None:
            self.drain(now)

    def _drain_marked(self, now: Micros) -> None:
        if self._marked:
            self._marked = False
            self._drain(now)

    def _feed_aside(self, now: Micros) -> None:
        """What a checkpoint covers is known: feed what the machines have sent after it."""
        self._standing = False
        aside, self._aside = self._aside, []
        for primary, frame in aside:
            if primary:
                self.from_primary(frame, now)
            else:
                self.from_secondary(frame, now)

    def _hear_again(self, now: Micros) -> None:
        """Both machines run: deliver what the client has sent meanwhile."""
        self._deaf = False
        for frame in self.mirror.take_waiting():
            self._deliver(frame, now)

    # ------------------------------------------------------------------------------------------------------ failover

    def primary_failed(self, now: Micros) -> None:
        """The primary is gone: what only it had said dies with it, and the secondary carries every connection on."""
        if self.role is not Role.PAIR:
            return
        self.counters.bump("proxy.primary_failed")
        self._drain_marked(now)
        self._to_client += map(bytes, self.comparator.take_released())  # these were covered
        survivors = self.comparator.drop_held()
        self.role = Role.SECONDARY_ALONE
        self.checkpoints.lost(Step.LOST_PRIMARY)
        self.rewriter.failover(now)
        self._to_client += survivors
        self._to_primary.clear()
        for packet in self.mirror.last_words(self.tracker):
            # A secondary that was not heard may have gone to long pauses between its tries: this wakes it.
            translated = self.rewriter.to_secondary(packet, now)
            if translated is not None:
                self._to_secondary.append(translated)
        self._feed_aside(now)
        self._hear_again(now)

    def join(self, client: CheckpointClient, now: Micros, *, live: bool = False) -> None:
        """A secondary joins a primary that was alone: by a checkpoint of ``client``, from which on both are compared.

        Until then everything of the primary leaves at once, as before. Does nothing unless the primary is alone.

        Args:
            live: the primary hears its clients while it is copied for this. What it had been given and not read yet
                when it was stopped is in no copy, so that another checkpoint follows at once, before which it comes to
                rest: otherwise a client to whom that matters waits until somebody's patience ends.
        """
        if self.role is not Role.PRIMARY_ALONE:
            return
        self.counters.bump("proxy.joined")
        self.role = Role.PAIR
        self._joining, self._settles = True, live
        taken = self.checkpoints.by_reason
        self.checkpoints = Checkpoints(client, self._config.checkpoint, self.counters)
        self.checkpoints.by_reason = taken
        self.policy = Policy(self._config.policy, self.counters)
        self._chosen_mode = Mode.COMPARE
        self.comparator.set_mode(Mode.COMPARE)  # from the checkpoint on
        self.checkpoints.request(JOIN, now)

    def secondary_failed(self, now: Micros) -> None:
        """The secondary is gone: the primary carries on, and what was held leaves."""
        if self.role is not Role.PAIR:
            return
        self.counters.bump("proxy.secondary_failed")
        self._drain_marked(now)
        self.comparator.pass_through(now)
        self.role = Role.PRIMARY_ALONE
        self._joining = False
        self.checkpoints.lost(Step.LOST_SECONDARY)
        self._to_secondary.clear()
        self._feed_aside(now)
        self._hear_again(now)


def _translated(packet: Packet, frame: bytes) -> Packet | None:
    """``packet`` of the secondary as it is in ``frame``, which differs in its numbers; None: parse it again."""
    if packet.proto != PROTO_TCP or packet.flags & _RARE or packet.is_fragment:
        return None
    packet.frame = frame
    packet.seq = int.from_bytes(frame[packet.l4 + 4 : packet.l4 + 8], "big")
    return packet
