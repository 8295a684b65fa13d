"""What is known of one connection's numbers on the two machines, and what follows from it.

Read before editing: RFC 9293 section 3.5 (the handshake), RFC 7323 section 5 (PAWS), RFC 6191 (reuse of a four-tuple),
docs/reference/rewriter.md.

The offset is the secondary's initial sequence number (ISS) minus the primary's. A connection that the client opens is
told from an earlier one on the same ports by the client's ISS, which both machines acknowledge in their SYN-ACK; of
one that the guest opens the latest ISS of the one machine belongs to the latest of the other, because that is the
socket which the peer's SYN-ACK will reach.
"""

from __future__ import annotations

from typing import Final, Protocol, final

from pystack.clock import Micros
from pystack.seq import MASK
from pystack.timers import NEVER

UNKNOWN: Final = -1
_HALF: Final = 0x8000_0000

CLIENT_FIN: Final = 1
GUEST_FIN: Final = 2
BOTH_FINS: Final = CLIENT_FIN | GUEST_FIN


class Owner(Protocol):
    """The table that a flow is in."""

    def expired(self, flow: Offsets) -> None:
        """Remove ``flow``."""


@final
class Offsets:
    """One flow. Initial numbers, timestamps and ``peer_iss`` are `UNKNOWN` (-1) until seen.

    Attributes:
        key: in the table: `pystack.flow.key.flow_key` and a byte for which end is the guest. output_key, input_key: the
            directed ones.
        peer_iss: the client's ISS; UNKNOWN for a connection that the guest opened. p_iss, s_iss: the machines'.
        p_ts, s_ts: TSval of the machines' SYN or SYN-ACK.
        seq_offset, ts_offset: what is added toward the secondary, modulo 2**32. 0 while not known.
        known: nothing is to be learnt any more. settled: the short way is open.
        frozen: a checkpoint made the offsets zero. void_iss: the secondary's ISS before it, which means nothing now.
        high_ts: the highest TSval that the client may have seen of the primary; UNKNOWN when it does not matter.
        next_peer_iss, next_s_iss, next_s_ts: of a SYN on the same ports with another ISS, until a machine accepts it.
        opened: the client has acknowledged a SYN. fins: whose FIN was seen. reset_at: when the last RST was; UNKNOWN if
            there was none, or it was not believed.
        epoch: of the table when it was last looked at. owner: that table. deadline, armed_at: see `pystack.timers`.
    """

    __slots__ = (
        "armed_at", "deadline", "epoch", "fins", "frozen", "high_ts", "input_key", "key", "known", "next_peer_iss",
        "next_s_iss", "next_s_ts", "opened", "output_key", "owner", "p_iss", "p_ts", "peer_iss", "reset_at", "s_iss",
        "s_ts", "seq_offset", "settled", "ts_offset", "void_iss",
    )  # fmt: skip

    def __init__(self, key: bytes, output_key: bytes, input_key: bytes, epoch: int, owner: Owner) -> None:
        self.key = key
        self.output_key = output_key
        self.input_key = input_key
        self.epoch = epoch
        self.owner = owner
        self.deadline: Micros = NEVER
        self.armed_at: Micros = NEVER
        self.begin(UNKNOWN)

    def on_timer(self, now: Micros) -> None:  # noqa: ARG002 - of `pystack.timers.TimerOwner`
        """It was silent for too long."""
        self.owner.expired(self)

    def begin(self, peer_iss: int) -> None:
        """Be a new incarnation of which nothing is known but who opens it."""
        self.peer_iss = peer_iss
        self.p_iss = self.s_iss = self.p_ts = self.s_ts = self.void_iss = self.high_ts = UNKNOWN
        self.next_peer_iss = self.next_s_iss = self.next_s_ts = UNKNOWN
        self.seq_offset = self.ts_offset = self.fins = 0
        self.reset_at: Micros = UNKNOWN
        self.known = self.opened = self.settled = self.frozen = False

    def begin_next(self) -> None:
        """Be the incarnation whose SYN waited."""
        s_iss, s_ts = self.next_s_iss, self.next_s_ts
        self.begin(self.next_peer_iss)
        self.s_iss, self.s_ts = s_iss, s_ts

    @property
    def is_over(self) -> bool:
        """Whether its numbers need not outlive a new SYN."""
        return self.reset_at >= 0 or self.fins == BOTH_FINS

    def includes(self, iss: int, known_iss: int, peer_iss: int) -> bool:
        """Whether a machine's SYN (``peer_iss`` UNKNOWN) or SYN-ACK is of the present incarnation.

        Args:
            iss: of the segment. known_iss: what the same machine's ISS was until now.
        """
        if iss == known_iss and peer_iss in (UNKNOWN, self.peer_iss):
            return True
        if peer_iss >= 0 and self.peer_iss >= 0:
            return peer_iss == self.peer_iss
        # Of one that the guest opens the latest numbers count until it is open; both ends may open at the same time.
        return not self.is_over and not self.opened

    def note_primary(self, iss: int, tsval: int) -> bool:
        """The primary's ISS; returns whether the offset became known or changed by it."""
        if iss == self.p_iss:
            return False
        self.p_iss, self.p_ts = iss, tsval
        self.high_ts = tsval
        self.frozen = False
        return self._pair()

    def note_secondary(self, iss: int, tsval: int) -> bool:
        """The secondary's ISS; returns whether the offset became known or changed by it.

        After a checkpoint the secondary has the primary's number, whatever a late segment of its own may say.
        """
        if iss == self.s_iss or iss == self.void_iss:
            return False
        self.s_iss, self.s_ts = iss, tsval
        return not self.frozen and self._pair()

    def _pair(self) -> bool:
        if self.p_iss < 0 or self.s_iss < 0:
            return False
        self.seq_offset = (self.s_iss - self.p_iss) & MASK
        self.ts_offset = (self.s_ts - self.p_ts) & MASK if self.s_ts >= 0 and self.p_ts >= 0 else 0
        self.known = True
        return True

    def note_acknowledged(self, iss: int, tsecr: int) -> bool:
        """What the client's first acknowledgement says of the primary: its ISS, and its TSval (0: none).

        Equal initial numbers mean that the client answers this very machine, or a copy: then so are the clocks equal,
        and a TSecr that differs merely echoes another transmission of the SYN-ACK.
        """
        self.frozen = False
        learnt = self.note_primary(iss, tsecr or UNKNOWN)
        if self.seq_offset == 0:
            self.ts_offset = 0
        return learnt

    def is_first_ack(self, seq: int) -> bool:
        """Whether a client's segment with ``seq`` can belong to the handshake: within the first, unscaled, window."""
        return (seq - self.peer_iss - 1) & MASK < 0x10000

    def zero(self) -> None:
        """The secondary has become a copy of the primary.

        A primary that had not answered yet may choose its number afterwards, and so may the copy: then both are learnt
        anew from what they send from now on.
        """
        self.seq_offset = self.ts_offset = 0
        self.void_iss = self.s_iss if self.s_iss != self.p_iss else UNKNOWN
        self.s_iss, self.s_ts = self.p_iss, self.p_ts
        self.next_s_iss = self.next_s_ts = UNKNOWN
        self.frozen = True
        self.known |= self.p_iss >= 0

    def accept_zero(self) -> None:
        """Leave the numbers as they are from now on."""
        self.known = True

    def saw_primary_clock(self, tsval: int) -> None:
        """The primary's TSval, sent or echoed, when ``high_ts`` is kept."""
        if 0 < (tsval - self.high_ts) & MASK < _HALF:
            self.high_ts = tsval

    def lift(self, tsval: int) -> bool:
        """After a failover: never fall behind what the client saw; returns whether the clock had to be moved.

        A move is permanent, so that the clock that the client sees never runs backwards; once the survivor's own time
        has passed ``high_ts`` there is nothing more to look after.
        """
        behind = (self.high_ts - tsval + self.ts_offset) & MASK
        if 0 < behind < _HALF:
            self.ts_offset = (self.ts_offset - behind) & MASK
            return True
        if behind:
            self.high_ts = UNKNOWN
        return False
