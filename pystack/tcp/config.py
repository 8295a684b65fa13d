"""What can be set on a connection. One immutable value, shared by all connections that were opened with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pystack.clock import MILLISECOND, SECOND, Micros
from pystack.tcp.congestion import CongestionControl
from pystack.tcp.congestion.newreno import NewReno


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpConfig:
    """Settings of a connection. Lengths in bytes, times in microseconds.

    Attributes:
        receive_buffer, send_buffer: bytes held for the reader, and unacknowledged or unsent for the peer.
        window_scale, sack, timestamps: whether to offer the option (RFC 7323, RFC 2018).
        mss: upper limit for both directions, 0 for what the MTU gives.
        nagle: hold back a small segment while one is unacknowledged (RFC 9293 section 3.7.4).
        delayed_ack: how long an ACK waits for company; RFC 9293 (MUST-40) allows up to 500 ms. Short, because a long
            one halves the speed of a chatty protocol.
        rto_initial, rto_min, rto_max: RFC 6298. Its SHOULD of a one-second minimum is not followed by default: as in
            Linux, 200 ms.
        syn_timeout: R2 of SYN segments, at least 3 minutes (MUST-23). data_timeout: R2 otherwise (SHLD-11).
        time_wait: 2 MSL. fin_wait_2_timeout: for a connection nobody reads from any more.
        keepalive: idle time before the first probe, 0 for none (MUST-25); keepalive_interval between probes; after
            keepalive_probes unanswered ones the connection is given up.
        persist_max: the longest pause between zero-window probes.
        initial_window_segments: RFC 6928.
        congestion: makes the congestion controller of a connection from its SMSS.
        max_out_of_order: how many out-of-order pieces are kept per connection.
        challenge_acks_per_second: the throttle of RFC 5961 section 7, per connection.
        dscp: the differentiated services code point of what is sent, 0 to 63 (RFC 9293 section 3.9.1.9).
    """

    receive_buffer: int = 1 << 20
    send_buffer: int = 1 << 20
    window_scale: bool = True
    sack: bool = True
    timestamps: bool = True
    mss: int = 0
    nagle: bool = True
    delayed_ack: Micros = 5 * MILLISECOND
    rto_initial: Micros = SECOND
    rto_min: Micros = 200 * MILLISECOND
    rto_max: Micros = 60 * SECOND
    syn_timeout: Micros = 180 * SECOND
    data_timeout: Micros = 120 * SECOND
    time_wait: Micros = 60 * SECOND
    fin_wait_2_timeout: Micros = 60 * SECOND
    keepalive: Micros = 0
    keepalive_interval: Micros = 75 * SECOND
    keepalive_probes: int = 9
    persist_max: Micros = 60 * SECOND
    initial_window_segments: int = 10
    congestion: Callable[[int, int], CongestionControl] = NewReno
    max_out_of_order: int = 4096
    challenge_acks_per_second: int = 10
    dscp: int = 0
