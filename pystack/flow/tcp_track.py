"""What an observer knows of one TCP connection: both streams' numbers, and the state that they add up to.

Read before editing: RFC 9293 sections 3.3.2 (states), 3.5 (opening), 3.6.1 (ports used again) and 3.10.7; RFC 5961
sections 3 to 5 (what an end believes); RFC 7323 section 2 (scaled windows).

Numbers are absolute (`pystack.seq.unwrap`). The observer stands in the path of both directions, so that what an end
acknowledges, and the window that it offers, has passed before what relies on it. A segment outside of what its receiver
can have offered, or an acknowledgement of what was never sent, is counted and moves nothing: neither a forged nor a
late one spoils what is known.

A SYN that does not belong to the connection is a claim. Its receiver knows what to make of it: the claim comes true
when a SYN-ACK takes it up, and changes nothing until then. Only what has nothing left to protect believes it at once.
"""

from __future__ import annotations

from typing import Final, NamedTuple, final

from pystack.counters import Counters
from pystack.flow.tcp_state import OVER, SYNCHRONIZED, UNSET, Direction, EndState, State, end_state, state_of
from pystack.seq import MASK, unwrap
from pystack.wire.packet import ACK, FIN, RST, SYN, Packet
from pystack.wire.tcp import MAX_WINDOW_SCALE, TcpOptions, parse_options_untrusted

_ORIGIN: Final = 1 << 32
_UNSCALED: Final = 65_535  # the largest window without a scale
_RARE: Final = SYN | FIN | RST | ACK  # ACK alone of these is ordinary
_SLACK: Final = 2  # what may be sent beyond a window: a byte to probe it, and a FIN


@final
class Syn(NamedTuple):
    """What matters of a SYN. A claim is kept as this and not as a packet, whose frame may be long.

    Attributes:
        seq: its 32 bits. length: of the data that it carries (RFC 7413). options: all of them.
    """

    seq: int
    length: int
    options: TcpOptions


@final
class TcpTrack:
    """Both ends, numbered as in `pystack.flow.key.flow_key`. Constant time and space.

    Attributes:
        ends: what each end has sent. state: see `State`. opener: the end that sent the first SYN, or was heard first.
        incarnation: how many connections there have been on these ports before this one.
    """

    __slots__ = ("_claim", "_reset", "ends", "incarnation", "opener", "state")

    def __init__(self, opener: int) -> None:
        self.opener = opener
        self.state = State.NEW
        self.ends = (Direction(), Direction())
        self.incarnation = 0
        self._claim: tuple[int, Syn] | None = None  # the end and its SYN
        self._reset: tuple[int, int] | None = None  # the end that has reset it, and at which number

    def end_state(self, direction: int) -> EndState:
        """What the end ``direction`` has come to."""
        if self.state is State.CLOSED:
            return EndState.CLOSED
        return end_state(self.ends[direction], self.ends[1 - direction])

    def observe(self, packet: Packet, direction: int, counters: Counters) -> State:
        """Note a segment of the end ``direction``; returns the state after it."""
        flags = packet.flags
        me, peer = self.ends[direction], self.ends[1 - direction]
        # The segment that counts: the next one of an open connection, which acknowledges what was sent.
        if flags & _RARE == ACK and self.state is State.ESTABLISHED and packet.seq == me.nxt & MASK:
            ack = me.ack + (packet.ack - me.ack & MASK)
            end = me.nxt + packet.end - packet.payload
            if me.ack >= 0 and ack <= peer.nxt and 0 <= peer.ack <= me.nxt and end <= peer.right and me.scale >= 0:
                me.nxt = end
                me.ack = ack
                me.window = window = packet.window << me.scale
                if ack + window > me.right:
                    me.right = ack + window
                return State.ESTABLISHED
        return self.observe_slowly(packet, direction, counters)

    def observe_slowly(self, packet: Packet, direction: int, counters: Counters) -> State:
        """`observe` without its shortcut: every segment, as the RFC goes through it."""
        flags = packet.flags
        me, peer = self.ends[direction], self.ends[1 - direction]
        if flags & RST:
            self._on_rst(packet, me, peer, direction, counters)
        elif flags & SYN:
            if flags & FIN:
                counters.bump("flow.tcp_bad_flags")
            else:
                self._on_syn(packet, direction, counters)
        else:
            self._on_segment(packet, me, peer, direction, counters)
        return self.state

    def _check(self) -> None:
        """The invariants, for tests."""
        for me, peer in (self.ends, self.ends[::-1]):
            assert UNSET <= me.iss < me.nxt or me.iss == me.nxt == UNSET
            assert me.fin == UNSET or me.iss < me.fin == me.nxt - 1
            assert me.ack == UNSET or peer.iss < me.ack
            assert me.iss == UNSET or me.options is not None
            assert peer.nxt == UNSET or me.ack <= peer.nxt
            assert me.right >= 0
            assert 0 <= me.window <= 65_535 << MAX_WINDOW_SCALE
        one, other = self.ends
        if self.state is State.TIME_WAIT:
            assert one.ack > other.fin > UNSET
            assert other.ack > one.fin > UNSET
        if self.state is State.CLOSED:
            assert self._reset is not None

    # -------------------------------------------------------------------------------------------------------- segments

    def _on_segment(self, packet: Packet, me: Direction, peer: Direction, direction: int, counters: Counters) -> None:
        """RFC 9293 section 3.10.7.4, first and fifth to eighth check, as far as they can be seen from outside."""
        flags = packet.flags
        if not flags & ACK:
            counters.bump("flow.tcp_bad_flags")  # no end believes it
            return
        seq = _number(packet.seq, me, peer)
        end = seq + packet.end - packet.payload + (flags & FIN)
        if not _is_plausible(me, peer, seq, end):
            counters.bump("flow.tcp_out_of_window")
            return
        if self.state is State.CLOSED and not self._is_alive(direction, end, counters):
            return
        if peer.ack > me.fin != UNSET and end > me.fin + 1:
            counters.bump("flow.tcp_after_fin")
            return
        if not _note_ack(packet, me, peer, scaled=True):
            counters.bump("flow.tcp_bad_ack")
            return
        if end > me.nxt:
            me.nxt = max(end, peer.ack)  # the first word that is heard may be a late one
            if me.fin != UNSET:
                # The FIN had been made up, or has died with the machine that sent it: the stream goes on past it.
                counters.bump("flow.tcp_fin_moved")
                me.fin = UNSET
        if flags & FIN and me.fin == UNSET:
            _note_fin(me, peer, end, counters)
        if self.state is not State.TIME_WAIT:
            self.state = state_of(*self.ends)

    def _is_alive(self, direction: int, end: int, counters: Counters) -> bool:
        """Whether the end that is said to have reset the connection sends on: the RST was not its own."""
        if self._reset is None or self._reset[0] != direction or end <= self._reset[1]:
            return False
        counters.bump("flow.tcp_revived")
        self._reset = None
        self.state = state_of(*self.ends)
        return True

    def _on_rst(self, packet: Packet, me: Direction, peer: Direction, direction: int, counters: Counters) -> None:
        """A reset counts where its receiver would look at it (RFC 9293 section 3.10.7.4): within the window.

        Of a SYN that is refused it must acknowledge that (section 3.10.7.3).
        """
        if self.state in OVER:
            return
        seq = _number(packet.seq, me, peer)
        if peer.ack != UNSET:
            is_in_place = peer.ack <= seq <= max(peer.right, me.nxt)
        elif me.nxt != UNSET:
            is_in_place = (me.iss if me.iss != UNSET else me.nxt) <= seq <= me.nxt
        else:
            ack = _number(packet.ack, peer, me)
            least = peer.nxt if peer.iss == UNSET else peer.iss + 1
            is_in_place = bool(packet.flags & ACK) and least <= ack <= peer.nxt
        if is_in_place:
            self.state = State.CLOSED
            self._reset = (direction, seq)
        else:
            counters.bump("flow.tcp_bad_rst")

    # ------------------------------------------------------------------------------------------------------------ SYNs

    def _on_syn(self, packet: Packet, direction: int, counters: Counters) -> None:
        """A SYN or a SYN-ACK: of this connection, of the next one, or of none."""
        me, peer = self.ends[direction], self.ends[1 - direction]
        is_answer = bool(packet.flags & ACK)
        if me.iss != UNSET and packet.seq == me.iss & MASK and self.state is not State.CLOSED:
            counters.bump("flow.tcp_syn_again")
            if is_answer and self.state is not State.TIME_WAIT and _note_ack(packet, me, peer, scaled=False):
                self.state = state_of(*self.ends)
            return
        options = parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, counters)
        syn = Syn(packet.seq, packet.end - packet.payload, options)
        if is_answer:
            self._on_syn_ack(packet, syn, direction, counters)
        elif self.state in OVER and not self._is_old(syn, me, peer):
            self._renew(direction, counters)
            self._note_syn(syn, direction)
        elif me.nxt == UNSET and peer.ack == UNSET and self.state not in SYNCHRONIZED and self.state not in OVER:
            # The first word of this end: of the connection's opener, or of both at once.
            self._note_syn(syn, direction)
        else:
            counters.bump("flow.tcp_syn_in_connection")
            self._claim = (direction, syn)

    def _on_syn_ack(self, packet: Packet, syn: Syn, direction: int, counters: Counters) -> None:
        if self._claim is not None:
            claimant, claim = self._claim
            if claimant != direction and 0 < (packet.ack - claim.seq & MASK) <= 1 + claim.length:
                self._renew(claimant, counters)
                self._note_syn(claim, claimant)
        if self.state in OVER or self.state in SYNCHRONIZED or not self._note_answer(packet, syn, direction):
            counters.bump("flow.tcp_stray_syn_ack")

    def _is_old(self, syn: Syn, me: Direction, peer: Direction) -> bool:
        """Whether a SYN has a number of the connection that is over: late rather than new (RFC 9293 section 3.6.1)."""
        if self.state is State.CLOSED and (me.iss == UNSET or peer.iss == UNSET):
            return False  # it was refused, or met midway: nothing to protect, and it may well be said again
        seq = _number(syn.seq, me, peer)
        first = me.iss if me.iss != UNSET else me.nxt - _UNSCALED
        return first <= seq < me.nxt

    def _renew(self, opener: int, counters: Counters) -> None:
        """The ports are used again (RFC 9293 section 3.6.1)."""
        counters.bump("flow.reused")
        self.incarnation += 1
        self.opener = opener
        self.state = State.NEW
        self.ends = (Direction(), Direction())
        self._claim = self._reset = None

    def _note_syn(self, syn: Syn, direction: int) -> None:
        """This connection's SYN of the end ``direction``, which has not been heard before."""
        me, peer = self.ends[direction], self.ends[1 - direction]
        me.iss = _number(syn.seq, me, peer)
        me.nxt = me.iss + 1 + syn.length
        me.options = syn.options
        if not me.iss < peer.ack <= me.nxt:
            peer.ack = UNSET
            peer.right = peer.window = 0
        _settle_scales(me, peer)
        if peer.iss == UNSET:
            self.opener = direction
        self.state = state_of(*self.ends)

    def _note_answer(self, packet: Packet, syn: Syn, direction: int) -> bool:
        """A SYN-ACK of a connection that is being opened; False when it does not answer the SYN that was seen.

        With another ISS than before the end has forgotten its first answer, or that was not its own: this one counts.
        """
        me, peer = self.ends[direction], self.ends[1 - direction]
        ack = _number(packet.ack, peer, me)
        if peer.iss != UNSET and not peer.iss < ack <= peer.nxt:
            return False
        if me.nxt != UNSET and me.iss == UNSET:
            return False  # its stream was met midway: a SYN comes too late
        if me.iss != UNSET:
            me.nxt = me.fin = peer.ack = UNSET  # of another stream
        self._note_syn(syn, direction)
        _note_ack(packet, me, peer, scaled=False)
        if peer.iss == UNSET:  # its SYN was missed
            self.opener = 1 - direction
        self.state = state_of(*self.ends)
        return True


# ------------------------------------------------------------------------------------------------------------- numbers


def _number(seq: int, of: Direction, peer: Direction) -> int:
    """The absolute number of ``seq`` in the stream ``of``, next to what is known of that stream."""
    near = of.nxt if of.nxt != UNSET else peer.ack
    return seq + _ORIGIN if near == UNSET else unwrap(seq, near)


def _is_plausible(me: Direction, peer: Direction, seq: int, end: int) -> bool:
    """Whether a segment can belong here (RFC 9293 section 3.4, by the windows that the peer has offered so far)."""
    nxt, acked = me.nxt, peer.ack
    if acked == UNSET:
        if nxt == UNSET:
            return True
        # The peer was not heard: after a SYN little may be on its way; of a stream met midway, whatever fits.
        reach = _UNSCALED if me.iss != UNSET else _UNSCALED << MAX_WINDOW_SCALE
        return nxt - reach <= end and seq >= (me.iss if me.iss != UNSET else 0) and end <= nxt + reach
    right = max(nxt, peer.right)
    reach = max(_UNSCALED, peer.right - acked)
    return acked - reach <= end <= right + _SLACK


def _note_fin(me: Direction, peer: Direction, end: int, counters: Counters) -> None:
    """The first FIN of a stream ends it, unless its receiver has acknowledged more, or it stands before the SYN."""
    if peer.ack > end or end <= me.iss + 1:
        counters.bump("flow.tcp_bad_fin")
        return
    if end < me.nxt:
        # What went further had been made up, or has died with the machine that sent it.
        counters.bump("flow.tcp_shortened")
        me.nxt = end
    me.fin = end - 1
    me.answered = peer.fin != UNSET and me.ack > peer.fin


def _note_ack(packet: Packet, me: Direction, peer: Direction, *, scaled: bool) -> bool:
    """The acknowledgement and the window of a segment; False when it acknowledges what was not sent."""
    ack = _number(packet.ack, peer, me)
    if ack <= peer.iss:
        return False
    if peer.nxt != UNSET and ack > peer.nxt:
        # Of a connection that was met midway some may have passed before; not more than was offered.
        if peer.iss != UNSET or peer.fin != UNSET or ack > me.right:
            return False
        peer.nxt = ack
    if ack < me.ack:
        return True  # a late one: its window is of the past
    me.ack = ack
    window = packet.window << _shift(me) if scaled else packet.window
    me.window = window
    if ack + window > me.right:
        me.right = ack + window
    return True


def _shift(me: Direction) -> int:
    """By how much this end's windows are scaled, at most, as long as that is not known."""
    if me.scale != UNSET:
        return me.scale
    if me.options is None:
        return MAX_WINDOW_SCALE
    return me.options.window_scale or 0


def _settle_scales(me: Direction, peer: Direction) -> None:
    """Both SYNs must have the option, or none counts (RFC 7323 section 2.2)."""
    if me.options is None or peer.options is None:
        return
    mine, other = me.options.window_scale, peer.options.window_scale
    me.scale, peer.scale = (0, 0) if mine is None or other is None else (mine, other)
