"""A tracker between the two ends of one connection, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pystack.counters import Counters
from pystack.flow.key import flow_key
from pystack.flow.tcp_state import Direction, EndState
from pystack.flow.tcp_track import TcpTrack
from pystack.flow.tracker import State, TrackedFlow, Tracker
from pystack.testing.frames import Crafter
from pystack.wire import tcp
from pystack.wire.packet import ACK, FIN, SYN, Packet, parse_untrusted
from tests.unit.flow.rewriting import Lane

CLIENT = Crafter("10.0.0.9", "10.0.0.2")
SERVER = Crafter("10.0.0.2", "10.0.0.9")


def parse(frame: bytes, vnet_hdr_len: int = 0) -> Packet:
    """A frame that must parse."""
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    assert packet is not None
    return packet


@dataclass
class Watch:
    """A tracker, and what the two ends of one connection say; offsets count from each end's SYN.

    Attributes:
        lane: addresses, ports and tags; its guest is the server.
    """

    client_iss: int = 100
    server_iss: int = 0xFFFF_FFF0
    tracker: Tracker = field(default_factory=Tracker)
    lane: Lane = field(default_factory=Lane)
    now: int = 0
    flow: TrackedFlow | None = None

    def client(self, offset: int, flags: int, ack: int = 0, payload: bytes = b"", **fields: Any) -> State:
        """A segment of the client; returns the connection's state after it."""
        return self._feed(False, self.client_iss + offset, self.server_iss + ack, flags, payload, fields)

    def server(self, offset: int, flags: int, ack: int = 0, payload: bytes = b"", **fields: Any) -> State:
        """A segment of the server."""
        return self._feed(True, self.server_iss + offset, self.client_iss + ack, flags, payload, fields)

    def _feed(self, outward: bool, seq: int, ack: int, flags: int, payload: bytes, fields: dict[str, Any]) -> State:
        frame = self.lane.segment(
            outward=outward, seq=seq, ack=ack if flags & ACK else 0, flags=flags, payload=payload, **fields
        )
        flow = self.tracker.observe(parse(frame), self.now)
        self.tracker._check()
        if flow is not None:
            self.flow = flow
        return self.tracked.state

    @property
    def tracked(self) -> TrackedFlow:
        """The flow, which must be known."""
        assert self.flow is not None
        return self.flow

    @property
    def track(self) -> TcpTrack:
        """What is known of the connection."""
        assert self.tracked.tcp is not None
        return self.tracked.tcp

    @property
    def clients(self) -> Direction:
        """The client's stream."""
        return self.track.ends[self._client_side()]

    @property
    def servers(self) -> Direction:
        """The server's stream."""
        return self.track.ends[1 - self._client_side()]

    @property
    def ends(self) -> tuple[EndState, EndState]:
        """What the client and the server have come to."""
        side = self._client_side()
        return self.track.end_state(side), self.track.end_state(1 - side)

    def _client_side(self) -> int:
        return flow_key(parse(self.lane.segment(outward=False, flags=ACK)))[1]

    @property
    def counters(self) -> Counters:
        return self.tracker.counters

    def counted(self) -> dict[str, int]:
        """What was counted of TCP."""
        return {name: value for name, value in self.counters.snapshot().items() if name.startswith("flow.tcp_")}

    def open(self) -> None:
        """The client opens it."""
        assert self.client(0, SYN, options=tcp.build_options(mss=1460, window_scale=7)) is State.SYN_SENT
        assert self.server(0, SYN | ACK, 1, options=tcp.build_options(mss=1400, window_scale=2)) is State.SYN_RECEIVED
        assert self.client(1, ACK, 1) is State.ESTABLISHED

    def close(self) -> None:
        """The client closes it first."""
        assert self.client(1, FIN | ACK, 1) is State.HALF_CLOSED
        assert self.server(1, ACK, 2) is State.HALF_CLOSED
        assert self.server(1, FIN | ACK, 2) is State.CLOSING
        assert self.client(2, ACK, 2) is State.TIME_WAIT


def opened(**fields: Any) -> Watch:
    """One that is established."""
    watch = Watch(**fields)
    watch.open()
    return watch


def syns(count: int, start: int = 0) -> Iterator[Packet]:
    """SYNs to one port from spoofed addresses, made by patching one frame."""
    base = CLIENT.tcp(flags=SYN, sport=1, dport=80, options=tcp.build_options(mss=1460, window_scale=7))
    counters = Counters()
    for number in range(start, start + count):
        packet = parse_untrusted(base[:26] + (0x0B00_0000 + number).to_bytes(4, "big") + base[30:], 0, counters)
        assert packet is not None
        yield packet
