"""What is known of the two streams of one TCP connection: where they are, and what waits.

`colo.tcp_release` decides what may leave by it, `colo.tcp_flow` keeps it up to date.
"""

from __future__ import annotations

from typing import Final

from colo.early import Early
from colo.held import DATA, PAYLOAD, START, STOP, Outbox, Piece, Record
from colo.negotiated import Negotiated
from pystack import Micros
from pystack.seq import unwrap
from pystack.wire.packet import ACK, Packet

UNSET: Final = -1
NOTHING: Final[Piece] = ()
"""What is in `TcpState.single` when nothing waits, on either side."""
_OF_PRIMARY: Final = 9  # fields of what is in `single`; a piece of the secondary has six
_ORIGIN: Final = 1 << 32  # added to the first number seen, so that what lies before it is not negative


class LaneState:
    """What the lanes look at of every connection, in a base class, whose slots come first in an object.

    Memory is what a frame costs where connections are many: this, with the object's head, is two lines of a cache,
    where among the others, which the interpreter sorts by name, it would be five.

    Attributes:
        p_open, s_open: whether a side's ordinary frames may take the lane. p_told, s_told: the last acknowledgement and
            window that it told, as in the header; -1 when they are not to be compared.
        single: with most connections no more than one piece waits, of one side, and then it is here and in no list:
            `NOTHING` if none does; (start, stop, data, payload, told, low, high, since, position) of the primary's, see
            `colo.held`; a `Piece` of the secondary; None when one has to look into ``held_many`` and ``ahead_many``,
            which are empty otherwise.
        armed: whether the comparator's clock watches the connection.
    """

    __slots__ = ("armed", "p_nxt", "p_open", "p_told", "s_nxt", "s_open", "s_told", "single")

    armed: bool
    p_nxt: int
    p_open: bool
    p_told: int
    s_nxt: int
    s_open: bool
    s_told: int
    single: Piece | None


class TcpState(LaneState):
    """One connection's output of both machines. See the text of `colo.tcp_flow` for the names.

    Attributes:
        held: frames of the primary that wait, in its order.
        diverged: a difference was found, and only a checkpoint can tell how it goes on: nothing is compared.
        ended: both sides have ended the stream, and the primary's end was released.
    """

    __slots__ = (
        "_ack_near",
        "_base",
        "_below",
        "_debt",
        "_early_p",
        "_early_s",
        "_first",
        "_iss_p",
        "_iss_s",
        "_near",
        "_next_s",
        "_p_top_ack",
        "_p_top_right",
        "_rst_s_own",
        "_shift",
        "_syn_p",
        "_syn_s",
        "ahead_many",
        "diverged",
        "ended",
        "fin_p",
        "fin_s",
        "held_many",
        "key",
        "limit",
        "out",
        "p_ack",
        "p_right",
        "rst_p",
        "rst_s",
        "rst_s_frame",
        "s_ack",
        "s_right",
    )  # fmt: skip

    def __init__(self, key: bytes, out: Outbox, limit: int) -> None:
        self.key = key
        self.out = out
        self.limit = limit  # pieces of the secondary that may be ahead, and frames of the primary before help is asked
        self.single = None
        # Lists, short as they are: an empty one is a tenth of a deque, and there is one pair for every connection.
        self.held_many: list[Record] = []
        self.ahead_many: list[Piece] = []
        self.armed = False
        self._ack_near = self._near = UNSET
        self._next_s: list[tuple[Packet, bytes, int, int, int, Micros]] = []
        self._forget()

    def _forget(self) -> None:
        """Know nothing of either stream. ``held`` stays, as do the frames in ``_next_s``."""
        self.ahead.clear()
        self.p_open = self.s_open = False
        self.p_nxt = self.s_nxt = UNSET
        self._base = UNSET  # of what lies below nothing is known
        self._first = UNSET  # where the stream begins, or began to be followed: differences are told from there on
        self.p_ack = self._p_top_ack = self.s_ack = UNSET
        self.p_told = self.s_told = -1
        self.p_right = self._p_top_right = self.s_right = 0
        self._shift = 0
        self._iss_p = self._iss_s = -1  # as in the header
        self._syn_p: Negotiated | None = None
        self._syn_s: Negotiated | None = None
        self.fin_p = self.fin_s = self.rst_p = self.rst_s = UNSET
        self.rst_s_frame: bytes = b""
        self._rst_s_own = UNSET  # where it is if it bears the secondary's own number, as QEMU's rewriter lets it pass
        self._early_p: Early | None = None  # beyond a gap of the primary's stream
        self._early_s: Early | None = None
        self._below: Early | None = None  # what the secondary repeats from before this comparison began
        self._debt: Record | None = None  # the last frame that went out with a smaller window than the primary's
        self.diverged = False
        self.ended = False

    # -------------------------------------------------------------------------------------------------- what is waiting

    @property
    def held(self) -> list[Record]:
        """See the class."""
        if self.single is not None:
            self.unfold()
        return self.held_many

    @property
    def ahead(self) -> list[Piece]:
        """Pieces that one side has sent and the other has not, in order and without a gap."""
        if self.single is not None:
            self.unfold()
        return self.ahead_many

    def unfold(self) -> None:
        """Put what is alone in ``single`` into the lists, where everything but the lanes looks for it."""
        single, self.single = self.single, None
        if single and len(single) == _OF_PRIMARY:
            start, stop, data, payload, told, low, high, since, position = single
            ack = self._unwrap_ack(told >> 32, self.p_ack)
            right = ack + ((told & 0xFFFF) << self._shift)
            record: Record = (start, stop, data, payload, ack, right, ACK, low, high, since, position, None)
            self.ahead_many.append(record)
            self.held_many.append(record)
        elif single:
            self.ahead_many.append(single)

    def _fold(self) -> None:
        """The opposite, when nothing waits."""
        if self.single is None and not self.held_many and not self.ahead_many:
            self.single = NOTHING

    # ---------------------------------------------------------------------------------------------------------- numbers

    def _unwrap(self, seq: int, near: int) -> int:
        if near == UNSET:
            if self._near == UNSET:
                self._near = seq + _ORIGIN
            near = self._near
        return unwrap(seq, near)

    def _unwrap_ack(self, ack: int, near: int) -> int:
        if near == UNSET:
            if self._ack_near == UNSET:
                self._ack_near = ack + _ORIGIN
            near = self._ack_near
        return unwrap(ack, near)


def trimmed(piece: Piece, start: int) -> Piece:
    """A piece without what lies before ``start``."""
    skip = start - piece[START]
    return piece if skip <= 0 else (start, piece[STOP], piece[DATA], piece[PAYLOAD] + skip, *piece[4:])
