"""What a connection sends when its turn comes, and what its timers do (RFC 9293 sections 3.8 and 3.10.8).

Read with it: RFC 5681, 6582 and 6675 (what may be sent when), RFC 6298 (the timer), RFC 7323 (timestamps), RFC 9293
section 3.8.6 (windows, probes, silly windows).

One call makes everything that the state allows: the ACK of all that was received in this batch rides on data or
follows it alone, so that a batch costs one ACK (MUST-58, MUST-59).
"""

from __future__ import annotations

import struct
from typing import Final

from pystack.clock import Micros
from pystack.frame import TxFrame
from pystack.seq import MASK
from pystack.tcp.state import (
    CLOSED,
    ESTABLISHED,
    FIN_WAIT_2,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
)
from pystack.tcp.tcb import Connection
from pystack.timers import NEVER
from pystack.wire.packet import ACK, FIN, PSH, RST, SYN
from pystack.wire.tcp import build_options

_TS_OPTION: Final = struct.Struct("!III")
_TS_HEAD: Final = 0x0101080A
_MAX_DUP_ACKS: Final = 64


def output(c: Connection, now: Micros, out: list[TxFrame], limit: int) -> bool:
    """Append to ``out`` what ``c`` may send now, until it holds ``limit`` frames; True when nothing is left to send."""
    state = c.state
    if state == CLOSED or c.deferred:
        return True
    if not c.path.ready:
        # Unresolved neighbour: the timer runs all the same, so that the attempt ends.
        if c.rtx_at == NEVER and state != TIME_WAIT:
            c.rtx_at = now + c.rto
        arm(c, now)
        return True
    done = True
    if c.snd_nxt == c.iss:
        _send_syn(c, now, out)
    elif state != SYN_SENT and state != SYN_RECEIVED:
        if c.in_recovery:
            done = _retransmit(c, now, out, limit)
        if done and (c.snd_nxt < c.sendbuf.end or (c.fin_queued and c.snd_nxt == c.sendbuf.end)):
            done = _send_data(c, now, out, limit)
    if c.ack_due and done:
        _send_acks(c, now, out)
    if (
        c.snd_max == c.snd_una
        and c.snd_nxt < c.sendbuf.end + c.fin_queued
        and c.rtx_at == NEVER
        and state > SYN_RECEIVED
    ):
        # Nothing in flight and something to send: the window is closed or too small. The same timer probes it.
        c.rtx_at = now + c.rto
    if c.config.keepalive:
        arm_keepalive(c, now)
    arm(c, now)
    return done


def arm(c: Connection, now: Micros) -> None:
    """Set the one deadline that `Timers` knows from the timers of the connection."""
    if c.state == FIN_WAIT_2 and c.reader_gone and c.fin_wait_at == NEVER:
        c.fin_wait_at = now + c.config.fin_wait_2_timeout
    deadline = min(c.rtx_at, c.ack_delay_at, c.time_wait_at, c.fin_wait_at, c.keepalive_at)
    c.deadline = deadline
    if deadline < c.armed_at:
        c.engine.timers.arm(c)


# -- segments --------------------------------------------------------------------------------------------------------


def segment_options(c: Connection, now: Micros, sack_blocks: bool) -> bytes:
    """The options of a segment that is not a SYN."""
    if sack_blocks and c.assembler and c.sack_ok:
        blocks = tuple((a & MASK, b & MASK) for a, b in c.assembler.blocks(3 if c.ts_ok else 4))
        return build_options(timestamps=(c.ts_now(now), c.ts_recent) if c.ts_ok else None, sack=blocks)
    if c.ts_ok:
        return _TS_OPTION.pack(_TS_HEAD, (now // 1000 + c.ts_offset) & MASK, c.ts_recent)
    return b""


def _acked_now(c: Connection) -> None:
    """An ACK has just left, alone or with data."""
    c.last_ack_sent = c.rcv_nxt
    c.unacked_rx = 0
    c.ack_due = False
    c.ack_delay_at = NEVER


def _send_syn(c: Connection, now: Micros, out: list[TxFrame]) -> None:
    """SYN or SYN-ACK, first or again. Its window is never scaled (RFC 7323 section 2.2)."""
    config = c.config
    active = c.state == SYN_SENT
    options = build_options(
        mss=c.mss_for_path(),
        window_scale=c.rcv_wscale if config.window_scale and (active or c.snd_wscale or c.rcv_wscale) else None,
        sack_permitted=config.sack if active else c.sack_ok,
        timestamps=(c.ts_now(now), c.ts_recent) if (config.timestamps if active else c.ts_ok) else None,
    )
    window = min(c.receive_space(), 0xFFFF)
    if not active:
        c.rcv_adv = max(c.rcv_adv, c.rcv_nxt + window)
    flags = SYN if active else SYN | ACK
    out.append(c.writer.write(c.iss & MASK, c.rcv_nxt & MASK if not active else 0, flags, window, options))
    if not active:
        _acked_now(c)
    first = c.snd_max == c.iss
    c.snd_nxt = c.iss + 1
    if first:
        c.snd_max = c.snd_nxt
        c.timed_seq = c.snd_max
        c.timed_at = now
    else:
        c.timed_at = NEVER
        c.counters.bump("tcp.syn_retransmitted")
    if c.rtx_at == NEVER:
        c.rtx_at = now + c.rto


def emit(c: Connection, start: int, n: int, now: Micros, out: list[TxFrame]) -> int:
    """One frame with the ``n`` bytes at ``start``, and the FIN if it follows; returns the number after what it has."""
    buffered = c.sendbuf
    end = start + n
    flags = ACK
    if n and end == buffered.end:
        flags |= PSH
    following = end
    # The FIN takes a place in the window like any byte (section 3.4). One without text was judged by the caller.
    if c.fin_queued and end == buffered.end and (not n or end < c.snd_una + c.snd_wnd):
        flags |= FIN
        following += 1
    options = segment_options(c, now, False)
    pieces = buffered.slices(start, n) if n else []
    mss = c.mss
    out.append(
        c.writer.write(
            start & MASK, c.rcv_nxt & MASK, flags, c.window_field(), options, pieces, n, mss if n > mss else 0
        )
    )
    if c.last_ack_sent != c.rcv_nxt or c.ack_due or c.ack_delay_at != NEVER:
        if c.dup_acks_due == 0:
            _acked_now(c)
    if start < c.snd_max:
        c.counters.bump("tcp.retransmitted")
        c.counters.bump("tcp.retransmitted_bytes", n)
        if c.timed_at != NEVER and c.timed_seq > start:
            c.timed_at = NEVER  # Karn: an ACK would not say which copy it is for
    _has_left(c, following, now)
    return following


def _has_left(c: Connection, following: int, now: Micros) -> None:
    """Something up to ``following`` was sent: time what is new of it, and see that it is acknowledged."""
    if following > c.snd_max:
        c.snd_max = following
        if c.timed_at == NEVER and now >= c.timed_again_at:
            # An ACK of a byte that was never sent before can only be for this copy, whatever comes before it.
            c.timed_seq = following
            c.timed_at = now
    if c.rtx_at == NEVER:
        c.rtx_at = now + c.rto
    c.override = False
    c.keepalive_at = NEVER
    c.sent_at = now


def _send_data(c: Connection, now: Micros, out: list[TxFrame], limit: int) -> bool:  # noqa: C901 hot
    """Send at SND.NXT what the window, the congestion window, Nagle and silly-window avoidance let go."""
    buffered = c.sendbuf
    end = buffered.end
    edge = c.snd_una + c.snd_wnd
    room = c.cc.cwnd - _pipe(c)
    mss = c.mss
    if c.snd_max == c.snd_una and now - c.sent_at > c.rto and c.retransmits == 0:
        c.cc.on_idle()
        room = c.cc.cwnd
    while len(out) < limit:
        start = c.snd_nxt
        stop = min(end, edge)
        if start < c.snd_max and c.board:
            hole = c.board.hole(start, c.snd_max)
            if hole is None:
                c.snd_nxt = c.snd_max
                continue
            start = c.snd_nxt = hole[0]
            if hole[1] < c.snd_max:
                stop = min(stop, hole[1])
        n = min(stop - start, room, c.segment_limit)
        if start == end:
            # Nothing but the FIN.
            if c.fin_queued and edge > start:
                c.snd_nxt = emit(c, start, 0, now, out)
            return True
        if n <= 0:
            return True
        if start + n < end:
            if n >= mss:
                n -= n % mss
            elif n < stop - start:
                if c.snd_max > c.snd_una:
                    return True  # the congestion window would cut a small piece: wait for an ACK
            elif not _worth_sending(c, n, start):
                return True
        elif n < mss and not _worth_sending(c, n, start):
            return True
        if n == c.segment_limit and start == c.snd_max and min(stop - start, room) > n:
            frames = min((min(stop - start, room) - 1) // n, limit - len(out))
            room -= _send_train(c, start, frames, now, out)
            continue
        following = emit(c, start, n, now, out)
        room -= n
        c.snd_nxt = following
        if following > end:
            return True
        if following >= end and not c.fin_queued:
            return True
    return False


def _send_train(c: Connection, start: int, count: int, now: Micros, out: list[TxFrame]) -> int:
    """``count`` frames of the largest size with new data: `emit` in bulk, with what they share made once.

    Never the last frame of what there is, whose flags differ. Returns how many bytes were sent.
    """
    size, mss = c.segment_limit, c.mss
    gso_size = mss if size > mss else 0
    options = segment_options(c, now, False)
    window = c.window_field()
    ack = c.rcv_nxt & MASK
    write, slices = c.writer.write, c.sendbuf.slices
    end = start + count * size
    out += [
        write(seq & MASK, ack, ACK, window, options, slices(seq, size), size, gso_size)
        for seq in range(start, end, size)
    ]
    if c.dup_acks_due == 0:
        _acked_now(c)
    c.snd_nxt = end
    _has_left(c, end, now)
    return end - start


def _worth_sending(c: Connection, n: int, start: int) -> bool:
    """Sender's silly-window avoidance (RFC 9293 section 3.8.6.2.1) and Nagle (3.7.4) for less than a segment."""
    if start < c.snd_max or c.override:
        return True  # a retransmission was judged when it was new
    if start + n == c.sendbuf.end:
        return not c.config.nagle or c.snd_una == c.snd_nxt or c.fin_queued
    # The window cuts it: worth it if it is half of the largest window ever seen.
    return n >= c.max_snd_wnd >> 1


def _pipe(c: Connection) -> int:
    """An estimate of the bytes that are in the network (RFC 6675 section 4, SetPipe)."""
    una, nxt = c.snd_una, c.snd_nxt
    if not c.in_recovery:
        if c.board:
            return nxt - una - c.board.sacked_between(una, nxt)
        if c.dup_acks and not c.sack_ok:
            # Limited transmit (RFC 3042): the first two duplicate ACKs let one segment more go each.
            return max(nxt - una - min(c.dup_acks, 2) * c.mss, 0)
        return nxt - una
    if not c.sack_ok:
        # Each duplicate ACK stands for a segment that has left; what was retransmitted is back in.
        return max(nxt - una - min(c.dup_acks * c.mss, nxt - una), 0) + max(c.rtx_nxt - una, 0)
    board = c.board
    lost = min(max(board.lost_below(c.mss), una), nxt)
    resent = min(max(c.rtx_nxt, una), lost)
    alive = nxt - lost - board.sacked_between(lost, nxt)
    return alive + resent - una - board.sacked_between(una, resent)


def _retransmit(c: Connection, now: Micros, out: list[TxFrame], limit: int) -> bool:
    """Within recovery: fill what is lost, in order (RFC 6675 section 5 step C; RFC 6582 for a peer without SACK)."""
    una = c.snd_una
    mss = c.mss
    while len(out) < limit:
        if c.sack_ok:
            # At the start the first hole is lost by definition, whatever the scoreboard can prove (step 4.3).
            lost = max(c.board.lost_below(mss), una + 1 if c.rtx_nxt <= una else 0)
            hole = c.board.hole(max(c.rtx_nxt, una), min(max(lost, una), c.recover))
            if hole is not None and hole[1] == una + 1:
                hole = c.board.hole(una, min(una + mss, c.recover))
        else:
            hole = (una, min(una + mss, c.recover)) if c.rtx_nxt <= una else None
        if hole is None:
            return True
        start, stop = hole
        first = c.rtx_nxt <= una
        room = c.cc.cwnd - _pipe(c)
        if room < mss and not first:
            return True
        n = min(stop, c.sendbuf.end) - start
        n = min(n, max(room, mss), c.segment_limit if not first else mss)
        if n < 0:
            return True
        c.rtx_nxt = max(emit(c, start, n, now, out), c.rtx_nxt)
        if n == 0:
            return True
    return False


def _send_acks(c: Connection, now: Micros, out: list[TxFrame]) -> None:
    """A pure ACK; several of them when a peer without SACK counts duplicates to find a loss (RFC 5681 section 4.2)."""
    count = 1
    if c.dup_acks_due > 1 and not c.sack_ok:
        count = min(c.dup_acks_due, _MAX_DUP_ACKS)
    window = c.window_field()
    options = segment_options(c, now, True)
    ack = c.rcv_nxt & MASK
    seq = _edge(c) & MASK
    out += [c.writer.write(seq, ack, ACK, window, options)] * count
    c.dup_acks_due = 0
    _acked_now(c)


def _edge(c: Connection) -> int:
    """The sequence number of a segment without text: the highest one sent, unless it lies beyond the peer's window.

    There it would not be acceptable (section 3.10.7.4, step 1), and its ACK lost; a probe of a closed window is there.
    """
    edge = c.snd_una + c.snd_wnd
    return edge if edge < c.snd_max and c.state > SYN_RECEIVED else c.snd_max


def reset(c: Connection, out: list[TxFrame]) -> None:
    """An RST for a synchronized connection (RFC 9293 section 3.10.5); it never advertises a window."""
    if c.path.ready:
        c.counters.bump("tcp.rst_sent")
        out.append(c.writer.write(_edge(c) & MASK, c.rcv_nxt & MASK, RST | ACK, 0))


def arm_keepalive(c: Connection, now: Micros) -> None:
    """Keepalive runs while nothing is outstanding (MUST-26)."""
    if c.config.keepalive and ESTABLISHED <= c.state < TIME_WAIT and c.snd_max == c.snd_una and c.keepalive_at == NEVER:
        c.keepalive_at = max(c.idle_since + c.config.keepalive, now + 1)
