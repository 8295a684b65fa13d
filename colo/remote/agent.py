"""What the agent beside the secondary does with frames, before and after the loss of the primary. Sans-I/O.

    proxy   -- client -->  [kept while it stands still] -- [rewriter] -->  secondary
    proxy   <-- to_peer -- [rewriter] <-----------------------------------  secondary      paired
    client  <-- to_client -- [rewriter] <---------------------------------  secondary      alone

The rewriter lives here: the numbers that clients know outlive the host of the primary.
"""

from __future__ import annotations

from typing import Final, final

from colo.mirror import Mirror
from colo.remote.announce import Announcer
from pystack import Counters, Micros
from pystack.flow.key import directed_key
from pystack.flow.rewriter import Rewriter, RewriterConfig
from pystack.flow.tracker import Timeouts, Tracker
from pystack.wire.packet import PROTO_TCP, SYN, Packet, parse_untrusted

_MAX_SYNS: Final = 1024
_TIMEOUTS: Final = Timeouts(established=432_000 * 1_000_000)  # as in colo.proxy


@final
class Agent:
    """Translates between a secondary and clients that know the primary's numbers.

    Attributes:
        epoch: counts the copies that the secondary has become, from 0; -1 before the first.
        alone: the primary is gone. announcer: knows the machine's addresses. counters: of all parts.
    """

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.epoch = -1
        self.alone = False
        self.announcer = Announcer()
        self.rewriter = Rewriter(RewriterConfig(), counters)
        self.mirror = Mirror(counters)
        self._tracker = Tracker(timeouts=_TIMEOUTS, counters=counters)
        self._stands = False
        self._to_machine: list[bytes] = []
        self._out: list[bytes] = []
        self._syns: dict[bytes, bytes] = {}  # of the secondary, by flow, until the primary's own is known

    def from_client(self, frame: bytes, now: Micros) -> None:
        """Take a frame of the client's network."""
        if self._stands:
            self.mirror.hold(frame)  # it is to be read in the numbers of the epoch in which it is heard
            return
        packet = self._parse_untrusted(frame)
        if packet is None:
            return
        flow = self._tracker.observe(packet, now)
        if flow is not None:
            self.mirror.note_client(flow.key, packet)
        if not packet.version:
            self._to_machine.append(frame)
        elif (translated := self.rewriter.to_secondary(packet, now)) is not None:
            self._to_machine.append(translated)

    def observe_primary(self, epoch: int, head: bytes, now: Micros) -> None:
        """Take headers of the primary. What it said in an earlier epoch, the secondary has said too by now."""
        if self.alone or epoch != self.epoch:
            self.counters.bump("remote.primary_late")
            return
        packet = self._parse_untrusted(head)
        if packet is not None:
            if packet.flags & SYN:
                self._tracker.observe(packet, now)  # the secondary's own may come first, and is in other numbers then
            self.rewriter.observe_primary(packet, now)
            self._to_machine += self.rewriter.take_waiting()
            if packet.flags & SYN and (syn := self._syns.pop(directed_key(packet), None)) is not None:
                self._out.append(syn)

    def from_secondary(self, frame: bytes, now: Micros) -> None:
        """Take a frame of the machine."""
        packet = self._parse_untrusted(frame)
        if packet is None:
            return
        self.announcer.learn_untrusted(packet)
        if packet.version:
            frame = self.rewriter.from_secondary(packet, now)
            self._to_machine += self.rewriter.take_waiting()
            seen = self._parse_untrusted(frame) if frame is not packet.frame else packet
            if seen is not None and (self.alone or packet.proto != PROTO_TCP or not packet.flags & SYN):
                self._tracker.observe(seen, now)
            if packet.proto == PROTO_TCP and packet.flags & SYN and not self.alone and self._keep_syn(packet, frame):
                return
        self._out.append(frame)

    def _keep_syn(self, packet: Packet, frame: bytes) -> bool:
        """Whether a SYN of the secondary waits here for the primary's.

        The proxy releases the primary's when it has the secondary's. From then on the client lives with a number which,
        if its host is lost in that moment, the proxy can tell nobody any more.
        """
        if self.rewriter.translates(packet):
            return False
        key = directed_key(packet)
        if key in self._syns or len(self._syns) < _MAX_SYNS:
            self._syns[key] = frame
        else:
            self.counters.bump("remote.syn_dropped")
        return True

    def _parse_untrusted(self, frame: bytes) -> Packet | None:
        return parse_untrusted(frame, 0, self.counters) if frame else None

    def to_machine(self) -> list[bytes]:
        """Frames for the machine, taken."""
        frames, self._to_machine = self._to_machine, []
        return frames

    def output(self) -> list[bytes]:
        """Frames for the proxy, and once alone for the client's network, taken."""
        frames, self._out = self._out, []
        return frames

    # ------------------------------------------------------------------------------------------------------- events

    def stopped(self) -> None:
        """The machine stands still for a checkpoint."""
        self._stands = True

    def copied(self, now: Micros) -> None:
        """It is a copy of the primary, and runs. All that it had sent before was fed."""
        self.epoch += 1
        self._syns.clear()
        self.rewriter.checkpoint()
        self._to_machine += self.rewriter.take_waiting()
        self._go_on(now)

    def continued(self, now: Micros) -> None:
        """Nothing has come of a checkpoint: it runs as before."""
        self._go_on(now)

    def fail_over(self, now: Micros) -> None:
        """The primary is gone, and the machine has made up its mind about a copy that it was given."""
        self.alone = True
        self._out += self._syns.values()
        self._syns.clear()
        self.rewriter.failover(now)
        for packet in self.mirror.last_words(self._tracker):
            # A machine that was not heard may have gone to long pauses between its tries: this wakes it.
            translated = self.rewriter.to_secondary(packet, now)
            if translated is not None:
                self._to_machine.append(translated)
        self._go_on(now)
        self.announcer.begin(now)

    def _go_on(self, now: Micros) -> None:
        self._stands = False
        for frame in self.mirror.take_waiting():
            self.from_client(frame, now)

    def tick(self, now: Micros) -> None:
        """See to timeouts."""
        self._tracker.tick(now)
        self.rewriter.tick(now)
        for flow in self._tracker.take_ended():
            self.rewriter.forget(flow.key)
            self.mirror.forget(flow.key)
        self._out += self.announcer.due(now)

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""
        instants = [self._tracker.next_timeout(), self.rewriter.next_timeout(), self.announcer.next_timeout()]
        return min((instant for instant in instants if instant is not None), default=None)
