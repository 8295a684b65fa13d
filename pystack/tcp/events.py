"""What an endpoint tells its owner, as bits of one plain integer (an IntFlag costs thirty times as much).

Events are edges that were collected since the last drain: an endpoint appears at most once per drain, with the union.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

OPEN: Final = 1
"""The connection is established."""
DATA: Final = 2
"""There is something to read."""
SENT: Final = 4
"""Data was acknowledged: there is more send space."""
EOF: Final = 8
"""The peer's FIN was reached in order; what came before it may still be unread."""
CLOSED: Final = 16
"""The connection is over: both directions closed in order, or ``error`` says why not. Unread data stays readable."""
ACCEPT: Final = 32
"""A listener has children to take (or, the catch-all one, connections that wait to be accepted or refused)."""
SOFT_ERROR: Final = 64
"""An ICMP error that does not end the connection was noted in ``soft_error``."""
DATAGRAM: Final = 128
"""A datagram endpoint has something to read."""
URGENT: Final = 256
"""The urgent pointer moved: ``urgent_until`` is the absolute offset it points at (RFC 9293 section 3.8.5)."""


class TcpError(Enum):
    """Why a connection ended other than by an orderly close (RFC 9293 section 3.9.1: MUST-12)."""

    REFUSED = "connection refused"
    RESET = "connection reset by peer"
    TIMED_OUT = "connection timed out"
    UNREACHABLE = "destination unreachable"
    ABORTED = "connection aborted"
