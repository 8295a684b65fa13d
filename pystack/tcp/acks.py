"""What the acknowledgement field does: RFC 9293 section 3.10.7.4 step 5, and everything that hangs on it.

Read with it: RFC 5681 and 6582 (duplicate ACKs, recovery), RFC 6675 (SACK), RFC 6298 (samples), RFC 5961 section 5.
"""

from __future__ import annotations

from typing import Final

from pystack.clock import SECOND, Micros
from pystack.seq import MASK, unwrap
from pystack.tcp import events
from pystack.tcp.rto import AFTER_LOST_SYN
from pystack.tcp.sack import DUP_THRESH
from pystack.tcp.state import CLOSING, ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, LAST_ACK, SYN_RECEIVED
from pystack.tcp.tcb import Connection
from pystack.timers import NEVER
from pystack.wire.packet import FIN, SYN, Packet
from pystack.wire.tcp import TcpOptions

_SAMPLE_EVERY: Final[Micros] = 5_000
"""RFC 6298 section 3 wants one sample per round trip. Below this pause more of them cannot move an RTO with a minimum
of tens of milliseconds, and would cost every small exchange."""


def ack_field(c: Connection, p: Packet, seq: int, options: TcpOptions, now: Micros) -> bool:
    """Step 5. False when the segment ends here."""
    una = c.snd_una
    ack = unwrap(p.ack, una)
    window = p.window if p.flags & SYN else p.window << c.snd_wscale  # RFC 7323 section 2.2
    if c.state == SYN_RECEIVED:
        if c.deferred or not una < ack <= c.snd_max:
            c.counters.bump("tcp.bad_ack_in_syn_received")
            c.engine.reset_for(p, c.path)
            return False
        established(c, window, seq, ack)
    elif ack > c.snd_max:
        answer(c, p, now, "tcp.ack_of_unsent")
        return False
    elif ack < una - c.max_snd_wnd:
        challenge(c, now, "tcp.ack_too_old")
        return False
    if ack > una:
        acknowledged(c, ack, now, options.timestamps[1] if options.timestamps and c.ts_ok else 0)
    elif not c.sack_ok:
        _count_duplicate(c, p, ack)
    if options.sack and c.sack_ok:
        _note_sack(c, ack, options)
    if ack >= una and (c.snd_wl1 < seq or (c.snd_wl1 == seq and c.snd_wl2 <= ack)):
        set_window(c, window)
        c.snd_wl1 = seq
        c.snd_wl2 = ack
    c.mark()
    return _our_fin(c, now)


def established(c: Connection, window: int, seq: int, ack: int) -> None:
    """Our SYN is acknowledged, by a segment at ``seq`` whose ACK is ``ack``."""
    c.snd_wnd = window
    c.snd_wl1 = seq
    c.snd_wl2 = ack
    c.max_snd_wnd = max(c.max_snd_wnd, window)
    if c.retransmits:
        # RFC 6298 rule 5.7; RFC 6928 section 2 keeps the initial window after a single loss, which may be a false one.
        c.rtt = AFTER_LOST_SYN
        c.backoff = 0
        c.update_rto()
        if c.retransmits > 1:
            c.cc.on_timeout(0, first=False)
    c.enter(ESTABLISHED)
    if c.fin_queued:
        c.fin_moves_state()
    c.counters.bump("tcp.established")
    c.engine.opened(c)


def _note_sack(c: Connection, ack: int, options: TcpOptions) -> None:
    """Take SACK blocks (RFC 2018, RFC 6675) and ask for recovery when they say that something is lost."""
    news = 0
    for left32, right32 in options.sack:
        left, right = unwrap(left32, c.snd_una), unwrap(right32, c.snd_una)
        if ack <= left < right <= c.snd_max:
            left = max(left, c.snd_una)  # an ACK that was overtaken may report what is acknowledged by now
            if left < right:
                news += c.board.add(left, right)
        elif not (left < right <= ack):  # a D-SACK (RFC 2883) lies below the ACK; anything else is a lie
            c.counters.bump("tcp.bad_sack")
    if not news:
        return
    c.dup_acks += 1
    if not c.in_recovery and c.snd_una >= c.recover:
        if c.dup_acks >= DUP_THRESH or c.board.lost_below(c.mss) > c.snd_una:
            _enter_recovery(c)


def _count_duplicate(c: Connection, p: Packet, ack: int) -> None:
    """A duplicate ACK as RFC 5681 section 2 defines it."""
    if (
        ack != c.snd_una
        or c.snd_max == c.snd_una
        or p.end != p.payload
        or p.flags & (SYN | FIN)
        or p.window << c.snd_wscale != c.snd_wnd
        or not c.snd_wnd
    ):
        return
    c.dup_acks += 1
    c.counters.bump("tcp.duplicate_ack")
    # Strictly beyond: duplicates of what a time-out or a recovery sent needlessly mean no loss (RFC 6582 step 2).
    if c.dup_acks == DUP_THRESH and not c.in_recovery and c.snd_una > c.recover:
        _enter_recovery(c)


def _enter_recovery(c: Connection) -> None:
    """Fast retransmit and fast recovery: RFC 5681 section 3.2, RFC 6582, RFC 6675 section 5."""
    c.counters.bump("tcp.fast_recovery")
    c.in_recovery = True
    c.recover = c.snd_max
    c.rtx_nxt = c.snd_una
    c.snd_nxt = c.snd_max
    c.cc.on_loss(c.snd_max - c.snd_una)
    c.mark()


def acknowledged(c: Connection, ack: int, now: Micros, echo: int) -> None:
    """New data (or our SYN or FIN) is acknowledged up to ``ack``: buffers, RTT, congestion, timer."""
    una = c.snd_una
    acked = ack - una
    flight = c.snd_nxt - una
    c.snd_una = ack
    if c.snd_nxt < ack:
        c.snd_nxt = ack
    buffered = c.sendbuf
    if buffered.base < ack:
        buffered.acknowledge(min(ack, buffered.end))
    if c.timed_at != NEVER:
        if ack >= c.timed_seq:
            c.rtt = c.rtt.sample(now - c.timed_at)
            c.timed_at = NEVER
            c.timed_again_at = now + _SAMPLE_EVERY
            c.backoff = 0
            c.update_rto()
    elif echo and c.backoff:
        # Karn's ambiguity does not touch timestamps (RFC 7323 section 4.1), but a lost ACK does: the answer to a
        # duplicate echoes the first copy, and its age would count the time-out itself as a round trip.
        elapsed = (c.ts_now(now) - echo) & MASK
        if elapsed * 1000 <= now - c.resent_at:
            c.rtt = c.rtt.sample(max(elapsed, 1) * 1000)
        c.backoff = 0
        c.update_rto()
    c.retransmits = 0
    c.first_rtx_at = NEVER
    if c.board:
        c.board.acknowledge(ack)
    if c.in_recovery:
        _recovery_progress(c, ack, acked)
    else:
        c.dup_acks = 0
        c.cc.on_ack(acked, flight)
    c.rtx_at = now + c.rto if c.snd_max > ack else NEVER
    if c.tell_sent:
        c.notify(events.SENT)


def _recovery_progress(c: Connection, ack: int, acked: int) -> None:
    """A cumulative ACK within recovery: a full one ends it, a partial one shows the next loss (RFC 6582 3.2)."""
    if ack >= c.recover:
        c.in_recovery = False
        c.dup_acks = 0
        c.cc.on_recovered(c.snd_max - ack)
    elif c.sack_ok:
        c.rtx_nxt = max(c.rtx_nxt, ack)
    else:
        c.dup_acks = max(c.dup_acks - max(acked // c.mss - 1, 0), 0)
        c.rtx_nxt = ack


def set_window(c: Connection, window: int) -> None:
    """SND.WND changed. A window that opens takes back a probe that the peer could not take (section 3.8.6.1)."""
    if window and not c.snd_wnd:
        if c.snd_max > c.snd_una:
            c.snd_nxt = c.snd_una
            c.timed_at = NEVER
        # The pauses between probes say nothing of the round trip: what is sent now has a timer of its own.
        c.rtx_at = c.first_rtx_at = NEVER
        c.backoff = 0
        c.update_rto()
    c.snd_wnd = window
    if window > c.max_snd_wnd:
        c.max_snd_wnd = window
    c.mark()


def _our_fin(c: Connection, now: Micros) -> bool:
    """What the acknowledgement of our FIN does (step 5, the states after ESTABLISHED)."""
    if not c.fin_queued or c.snd_una <= c.sendbuf.end:
        return True
    if c.state == FIN_WAIT_1:
        c.enter(FIN_WAIT_2)
    elif c.state == CLOSING:
        c.engine.time_wait(c, now)
    elif c.state == LAST_ACK:
        c.engine.finish(c, None)
        return False
    return True


def answer(c: Connection, p: Packet, now: Micros, reason: str) -> None:
    """Acknowledge a segment that is dropped.

    One that asks for nothing itself is answered within the throttle of challenge ACKs only: two ends that disagree
    would otherwise answer each other for ever.
    """
    if p.end == p.payload and not p.flags & FIN:
        challenge(c, now, reason)
        return
    c.counters.bump(reason)
    c.ack_due = True
    c.mark()


def challenge(c: Connection, now: Micros, reason: str) -> None:
    """A challenge ACK (RFC 5961), throttled per connection: a global throttle is a side channel (CVE-2016-5696)."""
    c.counters.bump(reason)
    if c.deferred:
        return
    if now - c.challenge_at >= SECOND:
        c.challenge_at = now
        c.challenges = 0
    if c.challenges >= c.config.challenge_acks_per_second:
        c.counters.bump("tcp.challenge_ack_throttled")
        return
    c.challenges += 1
    c.counters.bump("tcp.challenge_ack")
    c.ack_due = True
    c.mark()
