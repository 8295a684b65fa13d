"""What an arriving segment does to a connection: RFC 9293 section 3.10.7, one function per step.

Read with it: RFC 5681 and 6582 (duplicate ACKs), RFC 6675 (SACK), RFC 7323 (timestamps, PAWS, window scale), RFC 5961
(blind attacks).

The fast path comes first: an established connection, the next segment in order, nothing unusual in its flags or
options. It reaches the same state as the general path, by property test.
"""

from __future__ import annotations

import struct
from typing import Final

from pystack.clock import SECOND, Micros
from pystack.seq import MASK, unwrap
from pystack.tcp import events
from pystack.tcp.acks import ack_field, acknowledged, answer, challenge, set_window
from pystack.tcp.assembler import Assembler
from pystack.tcp.events import TcpError
from pystack.tcp.handshake import syn_sent, take_syn
from pystack.tcp.state import (
    CLOSE_WAIT,
    CLOSING,
    ESTABLISHED,
    FIN_WAIT_1,
    FIN_WAIT_2,
    LAST_ACK,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
)
from pystack.tcp.tcb import Connection
from pystack.timers import NEVER
from pystack.wire.packet import ACK, FIN, RST, SYN, URG, Packet
from pystack.wire.tcp import TcpOptions, parse_options_untrusted

_HALF: Final = 0x8000_0000
_UNUSUAL: Final = SYN | FIN | RST | URG | ACK
_TS_PREFIX: Final = b"\x01\x01\x08\x0a"
_TS: Final = struct.Struct("!II")
_COPY_BELOW: Final = 4096
_MERGE_BELOW: Final = 512
_RECEIVING: Final = frozenset({ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2})
_TS_VALID_FOR: Final[Micros] = 24 * 86_400 * SECOND


def on_segment(c: Connection, p: Packet, now: Micros) -> None:
    """A verified segment for ``c``, in any state but LISTEN and CLOSED."""
    c.idle_since = now
    if c.state != ESTABLISHED or p.flags & _UNUSUAL != ACK or not _in_order(c, p, now):
        _general(c, p, now)


def _in_order(c: Connection, p: Packet, now: Micros) -> bool:
    """The fast path. False (and nothing changed) when the segment is not of the ordinary kind."""
    rcv_nxt = c.rcv_nxt
    if p.seq != rcv_nxt & MASK or c.snd_wl1 > rcv_nxt:
        return False
    frame = p.frame
    start = p.payload
    n = p.end - start
    una = c.snd_una
    ack = una + ((p.ack - una + _HALF) & MASK) - _HALF
    if ack > c.snd_max or ack < una or (ack == una and not n) or c.in_recovery or c.dup_acks:
        return False
    if n and (rcv_nxt + n > c.rcv_adv or c.assembler or c.reader_gone or c.peer_fin >= 0):
        return False
    options = p.l4 + 20
    echo = 0
    if c.ts_ok:
        if start - options != 12 or frame[options : options + 4] != _TS_PREFIX:
            return False
        value, echo = _TS.unpack_from(frame, options + 4)
        if (value - c.ts_recent) & MASK >= _HALF:
            return False
        if rcv_nxt == c.last_ack_sent:
            c.ts_recent = value
            c.ts_recent_at = now
    elif start != options:
        return False
    if ack != una:
        acknowledged(c, ack, now, echo)
    window = p.window << c.snd_wscale
    if window != c.snd_wnd:
        if c.snd_wnd and window <= c.max_snd_wnd:
            c.snd_wnd = window
        else:
            set_window(c, window)
    if not c.dirty and (c.sendbuf.end > c.snd_nxt or c.fin_queued):
        c.mark()
    c.snd_wl1 = rcv_nxt
    c.snd_wl2 = ack
    if n:
        _deliver(c, frame, start, n)
        c.rcv_nxt = rcv_nxt + n
        _schedule_ack(c, n, now)
    return True


def _deliver(c: Connection, frame: bytes, start: int, n: int) -> None:
    """Queue ``n`` bytes that are next in order. Large payloads stay views; small ones are copied, which is cheaper."""
    rx = c.rx
    if n > _COPY_BELOW:
        rx.append(memoryview(frame)[start : start + n])
    elif n < _MERGE_BELOW and rx and len(rx[-1]) < _COPY_BELOW:
        rx[-1] = b"".join((rx[-1], frame[start : start + n]))
    else:
        rx.append(frame[start : start + n])
    c.readable += n
    if not c.events:
        c.engine.ready.append(c)
    c.events |= events.DATA


def _schedule_ack(c: Connection, n: int, now: Micros) -> None:
    """An ACK at once for every second full segment, otherwise soon (RFC 9293 section 3.8.6.3: SHLD-18, SHLD-19)."""
    c.unacked_rx += n
    if c.unacked_rx >= 2 * c.mss:
        c.ack_due = True
    elif c.ack_delay_at == NEVER:
        c.ack_delay_at = now + c.config.delayed_ack
    if not c.dirty:
        c.dirty = True
        c.engine.dirty.append(c)


# -- the general path, in the order of RFC 9293 section 3.10.7.4 -------------------------------------------------------


def _general(c: Connection, p: Packet, now: Micros) -> None:
    if c.state == SYN_SENT:
        syn_sent(c, p, now)
        return
    options = parse_options_untrusted(p.frame, p.l4 + 20, p.payload, c.counters)
    seq = unwrap(p.seq, c.rcv_nxt)
    if c.state == SYN_RECEIVED and seq == c.irs and p.flags & (SYN | RST) == SYN and _same_syn(c, p, seq, options, now):
        return
    if not _timestamps_acceptable(c, p, options, now):
        return
    trimmed = _acceptable(c, p, seq, now)
    if trimmed is None:
        return
    if p.flags & RST:
        _reset_received(c, seq)
        return
    if p.flags & SYN:
        challenge(c, now, "tcp.syn_in_synchronized_state")
        return
    if not p.flags & ACK:
        c.counters.bump("tcp.no_ack_flag")
        return
    if c.ts_ok and options.timestamps and seq <= c.last_ack_sent:
        # RFC 7323 section 4.3: the timestamp of the segment that covers Last.ACK.sent is the one to echo.
        c.ts_recent = options.timestamps[0]
        c.ts_recent_at = now
    if not ack_field(c, p, seq, options, now):
        return
    if p.flags & URG:
        _urgent(c, p, seq)
    start, n, fin = trimmed
    if n or fin:
        _text(c, p, seq + start, p.payload + start, n, fin, now)


def _timestamps_acceptable(c: Connection, p: Packet, options: TcpOptions, now: Micros) -> bool:
    """PAWS: RFC 7323 section 5.3. An RST is exempt."""
    if not c.ts_ok or p.flags & RST:
        return True
    if options.timestamps is None:
        c.counters.bump("tcp.missing_timestamp")
        return False
    if (options.timestamps[0] - c.ts_recent) & MASK < _HALF or now - c.ts_recent_at > _TS_VALID_FOR:
        return True
    answer(c, p, now, "tcp.paws")
    return False


def _acceptable(c: Connection, p: Packet, seq: int, now: Micros) -> tuple[int, int, bool] | None:
    """Step 1, the sequence number.

    Returns what of the payload is new and inside the window: its offset, its length, and whether the FIN counts; None
    when the segment was dealt with.
    """
    n = p.end - p.payload
    fin = bool(p.flags & FIN)
    length = n + fin + bool(p.flags & SYN)
    left, right = c.rcv_nxt, max(c.rcv_adv, c.rcv_nxt)
    end = seq + length
    inside = seq < right and end > left if length else left <= seq < right or seq == left
    if not inside and seq == left:
        # A closed window still takes valid ACKs, URGs and RSTs (MUST-66); its text is acknowledged again.
        c.ack_due = True
        c.mark()
        return (0, 0, False)
    if not inside:
        _unacceptable(c, p, now)
        return None
    skip = max(left - seq, 0)
    keep = min(n, right - seq)
    if skip:
        c.counters.bump("tcp.partly_duplicate")
        c.ack_due = True
        c.mark()
    if keep < n:
        c.counters.bump("tcp.beyond_window")
        c.ack_due = True
        c.mark()
        fin = False
    skip = min(skip, keep)
    return (skip, keep - skip, fin)


def _unacceptable(c: Connection, p: Packet, now: Micros) -> None:
    """A segment from outside of the window is answered by an ACK and dropped; an RST is dropped alone."""
    if p.flags & RST:
        c.counters.bump("tcp.rst_outside_window")
        return
    if p.flags & SYN:
        challenge(c, now, "tcp.syn_in_synchronized_state")
        return
    if c.state == TIME_WAIT and p.flags & FIN:
        # A retransmitted FIN: our last ACK was lost (section 3.10.7.4, step 8). The wait begins anew.
        c.time_wait_at = now + c.config.time_wait
    answer(c, p, now, "tcp.outside_window")


def _same_syn(c: Connection, p: Packet, seq: int, options: TcpOptions, now: Micros) -> bool:
    """In SYN-RECEIVED, the SYN that is known, again. False when it goes the way of any segment."""
    if not p.flags & ACK:
        c.counters.bump("tcp.duplicate_syn")
        if c.deferred:
            take_syn(c, p, now)  # nothing was answered yet; and some peers leave options out when they try again
        else:
            c.snd_nxt = c.iss  # its answer goes again, too
            c.mark()
        return True
    if c.opened_passively:
        return False
    # Simultaneous open (RFC 9293 figure 8): the SYN is old, its ACK is what completes the handshake.
    if ack_field(c, p, seq + 1, options, now):
        c.ack_due = True
    return True


def _reset_received(c: Connection, seq: int) -> None:
    """Step 2, with RFC 5961 section 3.2: only an exact RST resets, any other one in the window is challenged."""
    if seq != c.rcv_nxt:
        challenge(c, c.idle_since, "tcp.rst_challenged")
        return
    c.counters.bump("tcp.rst_received")
    if c.state == SYN_RECEIVED:
        # A passive opener goes back to LISTEN, which is where its listener still is; an active one was refused.
        c.engine.finish(c, TcpError.RESET if c.opened_passively else TcpError.REFUSED)
    elif c.state in (CLOSING, LAST_ACK, TIME_WAIT) and not c.sendbuf:
        c.engine.finish(c, None)  # all that was written has arrived: as good as the ACK of our FIN
    else:
        c.engine.finish(c, TcpError.RESET)


def _urgent(c: Connection, p: Packet, seq: int) -> None:
    """Step 6: note the furthest urgent pointer (MUST-62: it points behind the urgent data).

    A number and nothing more: no length is ever computed from it. Behind the peer's FIN it means nothing.
    """
    c.counters.bump("tcp.urgent")
    if c.state not in _RECEIVING:
        return
    until = seq + p.urgent
    if until > max(c.urgent_until, c.rcv_nxt):
        c.urgent_until = until
        c.notify(events.URGENT)


def _text(c: Connection, p: Packet, seq: int, start: int, n: int, fin: bool, now: Micros) -> None:
    """Steps 7 and 8: the text that is new, then the FIN behind it."""
    if c.state not in _RECEIVING:
        c.counters.bump("tcp.text_after_fin")
        return
    if c.peer_fin >= 0:
        n = max(min(n, c.peer_fin - seq), 0)
        fin = fin and seq + n == c.peer_fin
    if n and c.reader_gone:
        c.counters.bump("tcp.data_after_close")
        c.engine.send_reset(c)
        c.engine.finish(c, TcpError.ABORTED)
        return
    if fin and c.peer_fin < 0:
        c.peer_fin = seq + n
        if c.assembler:
            c.assembler.truncate(c.peer_fin)
    if seq != c.rcv_nxt:
        _out_of_order(c, p, seq, start, n)
        return
    if n:
        _deliver(c, p.frame, start, n)
        c.rcv_nxt += n
        if c.assembler:
            _drain_assembler(c)
            c.ack_due = True
        _schedule_ack(c, n, now)
    if c.peer_fin == c.rcv_nxt:
        _fin_reached(c, now)


def _out_of_order(c: Connection, p: Packet, seq: int, start: int, n: int) -> None:
    """Keep text beyond a gap, and say at once what is missing (RFC 5681 section 4.2)."""
    c.counters.bump("tcp.out_of_order")
    if n:
        if c.assembler is None:
            c.assembler = Assembler(c.config.max_out_of_order)
        if not c.assembler.insert(seq, p.frame[start : start + n]):
            c.counters.bump("tcp.out_of_order_full")
    c.dup_acks_due += 1
    c.ack_due = True
    c.mark()


def _drain_assembler(c: Connection) -> None:
    """Move what the gap had held back into the receive queue."""
    assert c.assembler is not None
    for piece in c.assembler.take(c.rcv_nxt):
        c.rx.append(piece)
        c.readable += len(piece)
        c.rcv_nxt += len(piece)
    if not c.assembler:
        c.assembler = None


def _fin_reached(c: Connection, now: Micros) -> None:
    """Step 8: the FIN is next in order. It is acknowledged at once."""
    c.rcv_nxt += 1
    c.rcv_adv = max(c.rcv_adv, c.rcv_nxt)  # a FIN may lie just behind a window that the text before it fills
    c.ack_due = True
    c.assembler = None
    c.notify(events.EOF)
    if c.state == ESTABLISHED:
        c.enter(CLOSE_WAIT)
    elif c.state == FIN_WAIT_1:
        c.enter(CLOSING)  # our own FIN is not acknowledged, or step 5 would have moved on
    else:
        c.engine.time_wait(c, now)
    c.mark()
