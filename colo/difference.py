"""Why a checkpoint is wanted: what the comparator found, in a form that a person can read."""

from __future__ import annotations

from typing import Final, NamedTuple

PAYLOAD: Final = "payload"
"""A byte of the stream is not the same."""
OPTIONS: Final = "options"
"""The options that a SYN or SYN-ACK negotiates are not the same, or one answers with another kind of segment."""
FLAGS: Final = "flags"
"""One side ends the stream, by FIN or RST, where the other does not."""
DATAGRAM: Final = "datagram"
"""A datagram (UDP, ICMP, another protocol) is not the same."""
RETRANSMISSION: Final = "retransmission"
"""The primary sent bytes again that are not the ones that were agreed on."""
INCARNATION: Final = "incarnation"
"""The primary opens a connection anew while frames of the old one are still held."""
TIMEOUT: Final = "timeout"
"""A frame of the primary was held for longer than ``compare_timeout``."""
QUEUE_FULL: Final = "queue_full"
"""More frames of the primary are held than the queue of a flow, or all together, may hold."""
SECONDARY_QUEUE_FULL: Final = "secondary_queue_full"
"""The secondary is further ahead of the primary than its queue may hold."""
TABLE_FULL: Final = "table_full"
"""There are more flows than the table may hold."""

REASONS: Final = (
    PAYLOAD, OPTIONS, FLAGS, DATAGRAM, RETRANSMISSION, INCARNATION, TIMEOUT, QUEUE_FULL, SECONDARY_QUEUE_FULL,
    TABLE_FULL
)  # fmt: skip

CONTEXT_BYTES: Final = 24
"""How many bytes before a difference are shown, and how many from it on."""


class Difference(NamedTuple):
    """One finding.

    Attributes:
        reason: one of `REASONS`.
        key: of the flow (`pystack.flow.key.directed_key` of the guest's frames), b"" when it concerns none.
        offset: where in the flow: bytes of the stream since the first one known (0 after a SYN), or datagrams before
        it. primary, secondary: the bytes of both sides around it, up to `CONTEXT_BYTES` before and after; for flags and
            options a short description in ASCII.
        before: how many bytes of ``primary`` and of ``secondary`` stand before ``offset``.
    """

    reason: str
    key: bytes = b""
    offset: int = 0
    primary: bytes = b""
    secondary: bytes = b""
    before: int = 0


def first_difference(one: bytes, other: bytes) -> int:
    """The index of the first byte that is not the same; the shorter length when there is none."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
