"""The states of a connection (RFC 9293 section 3.3.2)."""

from __future__ import annotations

from typing import Final

# Plain integers and not an IntEnum: the receive path compares them for every segment.
CLOSED: Final = 0
LISTEN: Final = 1
SYN_SENT: Final = 2
SYN_RECEIVED: Final = 3
ESTABLISHED: Final = 4
FIN_WAIT_1: Final = 5
FIN_WAIT_2: Final = 6
CLOSE_WAIT: Final = 7
CLOSING: Final = 8
LAST_ACK: Final = 9
TIME_WAIT: Final = 10

NAMES: Final = (
    "CLOSED",
    "LISTEN",
    "SYN-SENT",
    "SYN-RECEIVED",
    "ESTABLISHED",
    "FIN-WAIT-1",
    "FIN-WAIT-2",
    "CLOSE-WAIT",
    "CLOSING",
    "LAST-ACK",
    "TIME-WAIT",
)

TRANSITIONS: Final[frozenset[tuple[int, int]]] = frozenset(
    {
        (CLOSED, SYN_SENT),
        (CLOSED, SYN_RECEIVED),  # a SYN for a listener makes a connection of its own
        (SYN_SENT, SYN_RECEIVED),  # simultaneous open
        (SYN_SENT, ESTABLISHED),
        (SYN_RECEIVED, ESTABLISHED),  # where a FIN that is queued or comes along leads on at once
        (ESTABLISHED, FIN_WAIT_1),
        (ESTABLISHED, CLOSE_WAIT),
        (FIN_WAIT_1, FIN_WAIT_2),
        (FIN_WAIT_1, CLOSING),  # a FIN that also acknowledges ours goes by FIN-WAIT-2
        (FIN_WAIT_2, TIME_WAIT),
        (CLOSE_WAIT, LAST_ACK),
        (CLOSING, TIME_WAIT),
        (LAST_ACK, CLOSED),
        (TIME_WAIT, CLOSED),
    }
    # RST, an abort or a timeout ends any state.
    | {(state, CLOSED) for state in range(SYN_SENT, TIME_WAIT)}
)
"""Every change of state that may happen (RFC 9293 figure 5, plus its notes). Tests hold each change against it."""
