"""What the passing of time does to a connection: RFC 9293 section 3.10.8, RFC 6298 section 5, and keepalive.

The deadlines are set where their cause arises; here they come due.
"""

from __future__ import annotations

from typing import Final

from pystack.clock import Micros
from pystack.frame import TxFrame
from pystack.seq import MASK
from pystack.tcp import events
from pystack.tcp.events import TcpError
from pystack.tcp.send import arm, arm_keepalive, emit, segment_options
from pystack.tcp.state import CLOSED, SYN_RECEIVED
from pystack.tcp.tcb import Connection
from pystack.timers import NEVER
from pystack.wire.packet import ACK

_MAX_BACKOFF: Final = 16
_R1: Final = 3  # RFC 9293 section 3.8.3: the owner hears of it (SHLD-9, SHLD-10)
_MIN_RETRANSMITS: Final = 6  # a time-out that is backed off already must not end a connection by two losses


def on_timer(c: Connection, now: Micros) -> None:
    """Whatever of the connection's timers is due at ``now``. The output that follows makes the segments."""
    if c.time_wait_at <= now:
        c.engine.finish(c, None)
        return
    if c.fin_wait_at <= now:
        c.counters.bump("tcp.fin_wait_2_timeout")
        c.engine.finish(c, None)
        return
    if c.ack_delay_at <= now:
        c.ack_delay_at = NEVER
        c.ack_due = True
        c.mark()
    if c.rtx_at <= now:
        _on_retransmission_timer(c, now)
        if c.state == CLOSED:
            return
    if c.keepalive_at <= now:
        _on_keepalive(c, now)
        if c.state == CLOSED:
            return
    arm_keepalive(c, now)
    arm(c, now)


def _on_retransmission_timer(c: Connection, now: Micros) -> None:
    """RFC 6298 section 5, rules 5.4 to 5.7, or a zero-window probe (RFC 9293 section 3.8.6.1)."""
    c.rtx_at = NEVER
    if c.state > SYN_RECEIVED and not c.snd_wnd and (c.sendbuf.end > c.snd_una or c.fin_queued):
        _probe(c, now)
        return
    if c.snd_max == c.snd_una and c.path.ready:
        # Nothing is in flight: silly-window avoidance held something back long enough.
        c.override = True
        c.mark()
        return
    if c.first_rtx_at == NEVER:
        c.first_rtx_at = now - c.rto
    patience = c.config.syn_timeout if c.state <= SYN_RECEIVED else c.config.data_timeout
    if now - c.first_rtx_at >= patience and (c.retransmits >= _MIN_RETRANSMITS or c.state <= SYN_RECEIVED):
        c.counters.bump("tcp.gave_up")
        c.engine.finish(c, TcpError.TIMED_OUT)
        return
    c.counters.bump("tcp.retransmission_timeout")
    c.retransmits += 1
    if c.retransmits == _R1:
        c.soft_error = f"no acknowledgement after {_R1} retransmissions"
        c.notify(events.SOFT_ERROR)
    c.resent_at = now
    c.timed_at = NEVER
    if c.state <= SYN_RECEIVED:
        c.snd_nxt = c.iss
    else:
        c.cc.on_timeout(c.snd_max - c.snd_una, c.retransmits == 1)
        if c.retransmits > 1:
            c.board.clear()  # the peer may have reneged (RFC 2018 section 8)
        c.in_recovery = False
        c.dup_acks = 0
        c.recover = c.snd_max
        c.snd_nxt = c.snd_una
    c.backoff = min(c.backoff + 1, _MAX_BACKOFF)
    c.update_rto()
    c.rtx_at = now + c.rto
    c.mark()


def _probe(c: Connection, now: Micros) -> None:
    """One octet beyond a closed window. It may stay closed for ever, as long as the probes are answered (MUST-37)."""
    if c.first_rtx_at == NEVER:
        c.first_rtx_at = now
    if now - max(c.idle_since, c.first_rtx_at) >= c.config.data_timeout + c.config.persist_max:
        c.counters.bump("tcp.gave_up")
        c.engine.finish(c, TcpError.TIMED_OUT)
        return
    c.counters.bump("tcp.window_probe")
    c.backoff = min(c.backoff + 1, _MAX_BACKOFF)
    c.update_rto()
    c.rtx_at = now + min(c.rto, c.config.persist_max)
    if c.path.ready:
        n = 1 if c.snd_una < c.sendbuf.end else 0
        out: list[TxFrame] = []
        following = emit(c, c.snd_una, n, now, out)
        c.snd_nxt = max(following, c.snd_una)
        c.timed_at = NEVER
        for frame in out:
            c.engine.reply(frame)


def _on_keepalive(c: Connection, now: Micros) -> None:
    """RFC 9293 section 3.8.4. The probe is the octet before SND.NXT's, without data (SHLD-12)."""
    config = c.config
    if c.keep_probes and c.idle_since >= c.keepalive_at - config.keepalive_interval:
        c.keep_probes = 0  # something has come since the last probe
    if now - c.idle_since < config.keepalive:
        c.keepalive_at = c.idle_since + config.keepalive
        return
    if c.keep_probes >= config.keepalive_probes:
        c.counters.bump("tcp.keepalive_timeout")
        c.engine.finish(c, TcpError.TIMED_OUT)
        return
    c.keep_probes += 1
    c.keepalive_at = now + config.keepalive_interval
    if c.path.ready:
        c.counters.bump("tcp.keepalive_probe")
        c.engine.reply(
            c.writer.write(
                (c.snd_una - 1) & MASK, c.rcv_nxt & MASK, ACK, c.window_field(), segment_options(c, now, False)
            )
        )
