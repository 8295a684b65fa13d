"""SYN-SENT, and what a SYN carries: RFC 9293 sections 3.10.7.3 and 3.7.1, RFC 7323 section 2.2."""

from __future__ import annotations

from typing import Final

from pystack.clock import Micros
from pystack.seq import unwrap
from pystack.tcp.acks import acknowledged, established
from pystack.tcp.events import TcpError
from pystack.tcp.state import SYN_RECEIVED
from pystack.tcp.tcb import Connection
from pystack.wire.packet import ACK, RST, SYN, Packet
from pystack.wire.tcp import parse_options_untrusted

_MIN_MSS: Final = 64


def syn_sent(c: Connection, p: Packet, now: Micros) -> None:
    """RFC 9293 section 3.10.7.3."""
    ack = unwrap(p.ack, c.snd_una)
    good_ack = bool(p.flags & ACK) and c.iss < ack <= c.snd_max
    if p.flags & ACK and not good_ack:
        c.counters.bump("tcp.bad_ack_in_syn_sent")
        if not p.flags & RST:
            c.engine.reset_for(p, c.path)
        return
    if p.flags & RST:
        if good_ack:
            c.counters.bump("tcp.rst_received")
            c.engine.finish(c, TcpError.REFUSED)
        return
    if not p.flags & SYN:
        c.counters.bump("tcp.no_syn_in_syn_sent")
        return
    take_syn(c, p, now)
    if good_ack:
        established(c, p.window, c.irs, ack)
        acknowledged(c, ack, now, 0)
        c.ack_due = True
    else:
        c.counters.bump("tcp.simultaneous_open")
        c.enter(SYN_RECEIVED)
        c.snd_nxt = c.iss
    c.mark()


def take_syn(c: Connection, p: Packet, now: Micros) -> None:
    """Take the peer's ISN and its options (RFC 9293 section 3.7.1, RFC 7323 section 2.2).

    Text on a SYN is left to be sent again.
    """
    options = parse_options_untrusted(p.frame, p.l4 + 20, p.payload, c.counters)
    c.irs = p.seq
    c.rcv_nxt = c.last_ack_sent = p.seq + 1
    c.rcv_adv = c.rcv_nxt + min(c.receive_space(), 0xFFFF)
    c.snd_wnd = c.max_snd_wnd = p.window
    config = c.config
    if config.window_scale and options.window_scale is not None:
        c.snd_wscale = options.window_scale
    else:
        c.snd_wscale = c.rcv_wscale = 0
    c.sack_ok = config.sack and options.sack_permitted
    c.ts_ok = config.timestamps and options.timestamps is not None
    if options.timestamps is not None:
        c.ts_recent = options.timestamps[0]
        c.ts_recent_at = now
    peer_mss = options.mss if options.mss is not None else (536 if p.version == 4 else 1220)
    if peer_mss < _MIN_MSS:
        # A tiny MSS makes each byte cost a packet (CVE-2019-11479).
        c.counters.bump("tcp.tiny_mss")
        peer_mss = _MIN_MSS
    c.set_mss(min(peer_mss, c.mss_for_path()))
    c.cc = config.congestion(c.mss, config.initial_window_segments)
