"""What stands in the proxy where a rewriter does when the secondary is on another host: it translates nothing.

The agent there translates, so that what is known of every connection outlives the whole host of the primary. What it
must know of the primary's segments is told to it as their headers: of SYNs always, of others when the timestamp clock
(RFC 7323) of their connection has moved on. So the agent knows every timestamp that a client may have seen, except what
was on its way when the host was lost; the time that it takes to notice the loss is longer than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

from pystack import Micros
from pystack.flow import translate
from pystack.flow.key import directed_key
from pystack.wire.packet import PROTO_TCP, SYN, Packet

_MAX_FLOWS: Final = 16_384
_MAX_HEAD: Final = 512


@final
class Recorder:
    """Has the methods of `pystack.flow.rewriter.Rewriter` that a `colo.proxy.Proxy` calls.

    Attributes:
        record: set while there is an agent: takes the epoch and the headers of a segment.
    """

    def __init__(self) -> None:
        self.record: Callable[[int, bytes], None] | None = None
        self._epoch = -1
        self._clocks: dict[bytes, int] = {}  # by flow and direction: the last timestamp that was told

    def begin(self, record: Callable[[int, bytes], None]) -> None:
        """An agent is there, which knows nothing yet; the next checkpoint begins its epoch 0."""
        self.record = record
        self._epoch = -1
        self._clocks.clear()

    def end(self) -> None:
        """It is gone."""
        self.record = None

    def observe_primary(self, packet: Packet, now: Micros) -> None:  # noqa: ARG002 - the rewriter's form
        """Tell of it if it says something new."""
        if self.record is None or self._epoch < 0 or packet.proto != PROTO_TCP or packet.is_fragment:
            return
        if not packet.flags & SYN:
            stamps = translate.timestamps_untrusted(packet)
            if stamps is None:
                return
            key = directed_key(packet)
            if self._clocks.get(key) == stamps[0]:
                return
            if len(self._clocks) >= _MAX_FLOWS:
                self._clocks.clear()  # all are told again
            self._clocks[key] = stamps[0]
        head = headers(packet)
        if len(head) <= _MAX_HEAD:
            self.record(self._epoch, head)

    def to_secondary(self, packet: Packet, now: Micros) -> bytes | None:  # noqa: ARG002 - as above
        """As it is."""
        return packet.frame

    def from_secondary(self, packet: Packet, now: Micros) -> bytes:  # noqa: ARG002 - as above
        """As it is."""
        return packet.frame

    def take_waiting(self) -> list[bytes]:
        """Nothing waits here."""
        return []

    def checkpoint(self) -> None:
        """What is observed from here on is of the next epoch."""
        self._epoch += 1
        self._clocks.clear()

    def failover(self, now: Micros) -> None:
        """The agent's matter."""

    def forget(self, key: bytes) -> None:
        """The agent sees for itself which connections are over."""

    def tick(self, now: Micros) -> None:
        """Nothing."""

    def next_timeout(self) -> Micros | None:
        """Never."""
        return None


def headers(packet: Packet) -> bytes:
    """The frame of ``packet``, a TCP segment, without its payload, and with an IP header that counts none."""
    head, l3 = bytearray(packet.frame[: packet.payload]), packet.l3
    if packet.version == 4:
        head[l3 + 2 : l3 + 4] = (len(head) - l3).to_bytes(2, "big")
    else:
        head[l3 + 4 : l3 + 6] = (len(head) - l3 - 40).to_bytes(2, "big")
    return bytes(head)
