"""What an observer knows of one TCP connection: both streams' numbers, and the state that they add up to.

Numbers are absolute (`pystack.seq.unwrap`). A segment far outside what its receiver can have offered is counted and
moves nothing, so that neither a forged nor a late one spoils what is known (RFC 9293 section 3.4, RFC 5961 section
3.2).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, final

from pystack.counters import Counters
from pystack.seq import unwrap
from pystack.wire.packet import ACK, FIN, RST, SYN, Packet
from pystack.wire.tcp import TcpOptions, parse_options_untrusted

UNSET: Final = -1
_ORIGIN: Final = 1 << 32
_MAX_WINDOW: Final = 1 << 30  # RFC 7323 section 2.3
_SLACK: Final = 66_000  # the largest unscaled window: what a connection that was met midway may have offered at least


class State(Enum):
    """Of a connection, as seen from between its ends (RFC 9293 section 3.3.2)."""

    NEW = "new"
    """Nothing is known; of TCP: met midway, one end heard."""
    SYN_SENT = "syn sent"
    SYN_RECEIVED = "syn received"
    """Both SYNs were seen, and not yet the acknowledgement of the second."""
    ESTABLISHED = "established"
    CLOSING = "closing"
    """One end has sent its FIN: FIN-WAIT and CLOSE-WAIT; or both, and an acknowledgement is missing: LAST-ACK,
    CLOSING."""
    TIME_WAIT = "time wait"
    """Both FINs were acknowledged."""
    CLOSED = "closed"
    """It was reset."""


@final
class Direction:
    """One end's stream.

    Attributes:
        iss: the SYN's number, UNSET when it was not seen. nxt: after the highest byte, SYN or FIN that was sent.
        ack: the highest acknowledgement that this end has sent. right: the right edge of the window that it offers.
        fin: the FIN's number, UNSET before. options: of the SYN, None when it was not seen.
    """

    __slots__ = ("ack", "fin", "iss", "nxt", "options", "right", "scale")

    def __init__(self) -> None:
        self.iss = self.nxt = self.ack = self.fin = UNSET
        self.right = 0
        self.scale = 0
        self.options: TcpOptions | None = None


@final
class TcpTrack:
    """Both ends, numbered as in `pystack.flow.key.flow_key`.

    Attributes:
        ends: what each end has sent. state: see `State`. opener: the end that sent the first SYN, or was heard first.
    """

    __slots__ = ("_near", "ends", "opener", "state")

    def __init__(self, opener: int) -> None:
        self.opener = opener
        self.state = State.NEW
        self.ends = (Direction(), Direction())
        self._near = [UNSET, UNSET]

    def observe(self, packet: Packet, direction: int, counters: Counters) -> State:
        """Note a segment of the end ``direction``; returns the state after it."""
        flags = packet.flags
        if flags & SYN:
            if not flags & RST:
                self._on_syn(packet, direction, counters)
            return self.state
        me, peer = self.ends[direction], self.ends[1 - direction]
        seq = self._unwrap(packet.seq, me.nxt, direction)
        length = packet.end - packet.payload + (flags & FIN)
        if not self._plausible(me, peer, seq, length):
            counters.bump("flow.tcp_out_of_window")
            return self.state
        if flags & RST:
            return self._on_rst(me, peer, seq, counters)
        if me.nxt == UNSET or seq + length > me.nxt:
            me.nxt = seq + length
        if flags & FIN and me.fin == UNSET:
            me.fin = seq + length - 1
        if flags & ACK:
            self._on_ack(packet, me, peer, direction, counters)
        return self._advance()

    def _on_syn(self, packet: Packet, direction: int, counters: Counters) -> None:
        me, peer = self.ends[direction], self.ends[1 - direction]
        flags = packet.flags
        if me.iss != UNSET and packet.seq == me.iss & 0xFFFF_FFFF:
            counters.bump("flow.tcp_syn_again")
        elif not flags & ACK and self.state in (State.ESTABLISHED, State.CLOSING):
            # Only an end that has forgotten the connection sends one, and it will be challenged (RFC 5961 section 4).
            counters.bump("flow.tcp_syn_in_connection")
            return
        else:
            if not flags & ACK and (me.nxt != UNSET or self.state in (State.TIME_WAIT, State.CLOSED)):
                self._renew(direction)
                me, peer = self.ends[direction], self.ends[1 - direction]
            me.iss = self._unwrap(packet.seq, UNSET, direction)
            me.nxt = max(me.nxt, me.iss + 1 + packet.end - packet.payload)
            me.options = parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, counters)
            if self.state is State.NEW and not flags & ACK:
                self.opener = direction
        if flags & ACK:
            self._on_ack(packet, me, peer, direction, counters, scaled=False)
        if me.options is not None and peer.options is not None:
            both = me.options.window_scale is not None and peer.options.window_scale is not None
            me.scale = (me.options.window_scale or 0) if both else 0
            peer.scale = (peer.options.window_scale or 0) if both else 0
        if self.state in (State.NEW, State.SYN_SENT):
            self.state = State.SYN_RECEIVED if peer.iss != UNSET else State.SYN_SENT

    def _renew(self, opener: int) -> None:
        """The four-tuple is used anew (RFC 9293 section 3.6.1)."""
        self.opener = opener
        self.state = State.NEW
        self.ends = (Direction(), Direction())
        self._near = [UNSET, UNSET]

    def _on_ack(
        self, packet: Packet, me: Direction, peer: Direction, direction: int, counters: Counters, *, scaled: bool = True
    ) -> None:
        ack = self._unwrap(packet.ack, peer.nxt, 1 - direction)
        if peer.nxt != UNSET and ack > peer.nxt + _MAX_WINDOW:
            counters.bump("flow.tcp_bad_ack")
            return
        if ack > me.ack:
            me.ack = ack
        right = ack + (packet.window << (me.scale if scaled else 0))
        if right > me.right:
            me.right = right

    def _plausible(self, me: Direction, peer: Direction, seq: int, length: int) -> bool:
        """Whether a segment can belong here: around what was sent, and within what the peer can have offered."""
        if me.nxt == UNSET:
            return True
        return me.nxt - _MAX_WINDOW <= seq and seq + length <= max(peer.right, me.nxt) + _SLACK + (1 if length else 0)

    def _on_rst(self, me: Direction, peer: Direction, seq: int, counters: Counters) -> State:
        """A reset counts where its receiver would take it, from its next byte on (RFC 5961 section 3.2).

        Of a SYN that is refused the number is 0, or nothing is known of the end that refuses it.
        """
        expected = max(peer.ack, UNSET)
        if me.nxt == UNSET or self.state in (State.SYN_SENT, State.NEW) or expected <= seq <= max(peer.right, me.nxt):
            self.state = State.CLOSED
        else:
            counters.bump("flow.tcp_bad_rst")
        return self.state

    def _advance(self) -> State:
        """What all numbers together say."""
        one, other = self.ends
        state = self.state
        if state in (State.CLOSED, State.TIME_WAIT):
            return state
        if one.fin != UNSET and other.fin != UNSET and one.ack > other.fin and other.ack > one.fin:
            self.state = State.TIME_WAIT
        elif one.fin != UNSET or other.fin != UNSET:
            self.state = State.CLOSING
        elif one.iss != UNSET and other.iss != UNSET:
            if one.ack > other.iss and other.ack > one.iss:
                self.state = State.ESTABLISHED
        elif one.nxt != UNSET and other.nxt != UNSET:
            self.state = State.ESTABLISHED  # met midway, and both were heard
        return self.state

    def _unwrap(self, seq: int, near: int, direction: int) -> int:
        """The absolute number of ``seq`` in the stream of the end ``direction``."""
        if near == UNSET:
            if self._near[direction] == UNSET:
                self._near[direction] = seq + _ORIGIN
            near = self._near[direction]
        return unwrap(seq, near)
