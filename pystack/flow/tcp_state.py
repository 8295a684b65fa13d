"""The states of a TCP connection for an observer: of the whole, and of each of its ends (RFC 9293 section 3.3.2)."""

from __future__ import annotations

from enum import Enum
from typing import Final, final

from pystack.wire.tcp import TcpOptions

UNSET: Final = -1
"""A number that is not known yet. Absolute numbers start at 2**32, so that none is negative."""


class State(Enum):
    """Of a connection, as seen from between its ends. What each end has come to is an `EndState`."""

    NEW = "new"
    """Nothing is known; of TCP: met midway, one end heard."""
    SYN_SENT = "syn sent"
    SYN_RECEIVED = "syn received"
    """Both SYNs were seen, and not yet the acknowledgement of the second."""
    ESTABLISHED = "established"
    HALF_CLOSED = "half closed"
    """One end has sent its FIN: FIN-WAIT on its side, CLOSE-WAIT on the other, which may send on for long."""
    CLOSING = "closing"
    """Both have, and an acknowledgement is missing: CLOSING, LAST-ACK."""
    TIME_WAIT = "time wait"
    """Both FINs were acknowledged."""
    CLOSED = "closed"
    """It was reset."""


OVER: Final = frozenset({State.TIME_WAIT, State.CLOSED})
"""The states of a connection that lives no more."""

SYNCHRONIZED: Final = frozenset({State.ESTABLISHED, State.HALF_CLOSED, State.CLOSING})
"""The states of one that both ends have agreed on and that is not over."""


class EndState(Enum):
    """Of one end, by what has passed the observer: it may be one segment ahead of that."""

    UNHEARD = "unheard"
    """CLOSED or LISTEN: it has not said anything."""
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"
    CLOSED = "CLOSED"


@final
class Direction:
    """One end's stream, in absolute numbers.

    Attributes:
        iss: the SYN's number, UNSET when it was not seen. nxt: after the highest byte, SYN or FIN that was sent.
        ack: the highest acknowledgement that this end has sent. window: the last one that it offered, in bytes.
        right: the highest right edge of the windows that it offered, 0 before the first.
        scale: of its windows, UNSET until the SYNs have told.
        fin: the FIN's number, UNSET before. answered: whether it had acknowledged the other's FIN by then.
        options: of the SYN, None when it was not seen.
    """

    __slots__ = ("ack", "answered", "fin", "iss", "nxt", "options", "right", "scale", "window")

    def __init__(self) -> None:
        self.iss = self.nxt = self.ack = self.fin = self.scale = UNSET
        self.right = self.window = 0
        self.answered = False
        self.options: TcpOptions | None = None


def end_state(me: Direction, peer: Direction) -> EndState:
    """What the end that sends ``me`` has come to, unless the connection was reset."""
    if me.nxt == UNSET:
        return EndState.UNHEARD
    if peer.iss == UNSET and me.iss != UNSET and me.ack == UNSET:
        return EndState.SYN_SENT
    if peer.iss != UNSET and me.ack <= peer.iss:
        return EndState.SYN_SENT if me.iss != UNSET else EndState.UNHEARD
    heard = peer.fin != UNSET and me.ack > peer.fin
    if me.fin == UNSET:
        if me.iss != UNSET and peer.ack <= me.iss:
            return EndState.SYN_RECEIVED
        return EndState.CLOSE_WAIT if heard else EndState.ESTABLISHED
    acknowledged = peer.ack > me.fin
    if me.answered:
        return EndState.CLOSED if acknowledged else EndState.LAST_ACK
    if heard:
        return EndState.TIME_WAIT if acknowledged else EndState.CLOSING
    return EndState.FIN_WAIT_2 if acknowledged else EndState.FIN_WAIT_1


def state_of(one: Direction, other: Direction) -> State:
    """What both ends' numbers add up to, unless the connection is over."""
    if one.fin != UNSET and other.fin != UNSET:
        return State.TIME_WAIT if one.ack > other.fin and other.ack > one.fin else State.CLOSING
    if one.fin != UNSET or other.fin != UNSET:
        return State.HALF_CLOSED
    if one.iss != UNSET and other.iss != UNSET:
        return State.ESTABLISHED if one.ack > other.iss and other.ack > one.iss else State.SYN_RECEIVED
    both_heard = one.nxt != UNSET and other.nxt != UNSET
    if one.iss == other.iss:  # met midway
        return State.ESTABLISHED if both_heard else State.NEW
    # One SYN was missed: an acknowledgement by each end says that both have agreed, by one that there has been another.
    if one.ack != UNSET and other.ack != UNSET and both_heard:
        return State.ESTABLISHED
    return State.SYN_RECEIVED if one.ack != UNSET or other.ack != UNSET else State.SYN_SENT
