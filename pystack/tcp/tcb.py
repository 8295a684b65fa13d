"""The transmission control block, and what its owner may do with it (RFC 9293 sections 3.3.1 and 3.9.1).

State and the user's calls live here; what arriving segments do to them is in `pystack.tcp.receive`, what leaves in
`pystack.tcp.send`. Sequence numbers are absolute: they start at the 32-bit ISN and never wrap; the 32-bit form exists
only in headers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.errors import UsageError
from pystack.frame import Buffer
from pystack.net.path import Path
from pystack.seq import MASK
from pystack.tcp.assembler import Assembler
from pystack.tcp.config import TcpConfig
from pystack.tcp.congestion import CongestionControl
from pystack.tcp.events import TcpError
from pystack.tcp.rto import RttEstimate
from pystack.tcp.sack import Scoreboard
from pystack.tcp.segment import SegmentWriter
from pystack.tcp.sendbuf import SendBuffer
from pystack.tcp.state import (
    CLOSE_WAIT,
    CLOSED,
    ESTABLISHED,
    FIN_WAIT_1,
    FIN_WAIT_2,
    LAST_ACK,
    NAMES,
    SYN_RECEIVED,
    SYN_SENT,
    TIME_WAIT,
)
from pystack.timers import NEVER

if TYPE_CHECKING:
    from pystack.tcp.engine import TcpEngine
    from pystack.tcp.listener import Listener

_IOV: Final = 512
_MAX_SCALE: Final = 14
_DEFAULT_MSS: Final = {4: 536, 6: 1220}


def _scale_for(buffer: int) -> int:
    """The smallest shift with which a 16-bit window can offer all of ``buffer`` (RFC 7323 section 2.2)."""
    return min(max((buffer - 1) >> 16, 0).bit_length(), _MAX_SCALE)


@final
class Connection:
    """One connection. Made by the engine; every method is safe in every state and never raises on a dead connection.

    The variables are those of RFC 9293 section 3.3.1, absolute. Those that need a word:

    Attributes:
        snd_max: the highest number ever sent. ``snd_nxt`` falls back to SND.UNA after a timeout; snd_max never does.
            Invariant: snd_una <= snd_nxt <= snd_max.
        rcv_adv: the right edge of the window as last advertised; it never moves to the left (SHLD-14).
        rto: the retransmission timeout that ``rtt`` and ``backoff`` give.
        recover: end of the recovery under way (RFC 6582), or the snd_max of the last timeout.
        rtx_nxt: the next number to consider for retransmission within a recovery (RFC 6675's HighRxt).
        rtx_at: when the retransmission timer, which is the persist timer while the window is closed, fires.
        user: a free slot for the owner. tell_sent: whether the owner wants SENT events, which cost one for every ACK.
        error: why the connection ended, None while it lives and after an orderly close.
    """

    __slots__ = (
        "ack_delay_at", "ack_due", "armed_at", "assembler", "backoff", "board", "cc", "challenge_at", "challenges",
        "config", "counters", "deadline", "deferred", "dirty", "dup_acks", "dup_acks_due", "engine", "error",
        "events", "fin_queued", "fin_wait_at", "first_rtx_at", "gone", "idle_since", "in_recovery", "irs", "iss",
        "keep_probes", "keepalive_at", "key", "last_ack_sent", "listener", "local_addr", "local_port", "max_snd_wnd",
        "mss", "opened_passively", "override", "path", "peer_fin", "rcv_adv", "rcv_buf", "rcv_nxt", "rcv_wscale",
        "readable", "reader_gone", "recover", "remote_addr", "remote_port", "resent_at", "retransmits", "rto", "rtt",
        "rtx_at", "rtx_nxt", "rx", "sack_ok", "segment_limit", "sendbuf", "sent_at", "snd_max", "snd_nxt", "snd_una",
        "snd_wl1", "snd_wl2", "snd_wnd", "snd_wscale", "soft_error", "state", "tell_sent", "time_wait_at",
        "timed_again_at", "timed_at", "timed_seq", "ts_offset", "ts_ok", "ts_recent", "ts_recent_at", "unacked_rx",
        "urgent_until", "user", "writer",
    )  # fmt: skip

    def __init__(
        self,
        engine: TcpEngine,
        config: TcpConfig,
        path: Path,
        key: bytes,
        local: tuple[bytes, int],
        remote: tuple[bytes, int],
        iss: int,
        ts_offset: int,
    ) -> None:
        self.engine = engine
        self.counters: Counters = engine.counters
        self.config = config
        self.path = path
        self.key = key
        self.local_addr, self.local_port = local
        self.remote_addr, self.remote_port = remote
        self.user: object = None
        self.tell_sent = True
        self.state = CLOSED
        self.error: TcpError | None = None
        self.soft_error = ""
        self.events = 0
        self.dirty = False
        self.gone = False
        self.deferred = False
        self.opened_passively = False
        self.listener: Listener | None = None
        self.writer = SegmentWriter(path, local[1], remote[1])
        # Sending.
        self.iss = self.snd_una = self.snd_nxt = self.snd_max = iss
        self.snd_wnd = 0
        self.max_snd_wnd = 0
        self.snd_wl1 = self.snd_wl2 = 0
        self.snd_wscale = 0
        self.sendbuf = SendBuffer(iss + 1)
        self.override = False  # silly-window avoidance has held something back for long enough
        self.fin_queued = False
        self.mss = _DEFAULT_MSS[path.version]
        self.segment_limit = self.mss
        self.cc: CongestionControl = config.congestion(self.mss, config.initial_window_segments)
        self.board = Scoreboard()
        self.dup_acks = 0
        self.in_recovery = False
        self.recover = iss
        self.rtx_nxt = iss
        self.retransmits = 0
        self.rtt = RttEstimate()
        self.rto: Micros = config.rto_initial  # with its back-off; see update_rto
        self.backoff = 0
        self.resent_at: Micros = 0  # when the retransmission timer fired last
        self.sent_at: Micros = 0  # when text was sent last
        self.timed_seq = 0
        self.timed_at: Micros = NEVER
        self.timed_again_at: Micros = 0
        # Receiving.
        self.irs = 0
        self.rcv_nxt = 0
        self.rcv_adv = 0
        self.rcv_buf = config.receive_buffer
        self.rcv_wscale = _scale_for(config.receive_buffer) if config.window_scale else 0
        self.rx: deque[Buffer] = deque()
        self.readable = 0
        self.assembler: Assembler | None = None
        self.peer_fin = -1
        self.reader_gone = False
        self.unacked_rx = 0
        self.ack_due = False
        self.dup_acks_due = 0
        self.last_ack_sent = 0
        self.urgent_until = 0
        # Options.
        self.sack_ok = False
        self.ts_ok = False
        self.ts_recent = 0
        self.ts_recent_at: Micros = 0
        self.ts_offset = ts_offset
        # Timers: one variable per concern, NEVER when off.
        self.rtx_at: Micros = NEVER
        self.ack_delay_at: Micros = NEVER
        self.time_wait_at: Micros = NEVER
        self.fin_wait_at: Micros = NEVER
        self.keepalive_at: Micros = NEVER
        self.keep_probes = 0
        self.idle_since: Micros = 0
        self.first_rtx_at: Micros = NEVER
        self.challenge_at: Micros = 0
        self.challenges = 0
        self.deadline: Micros = NEVER
        self.armed_at: Micros = NEVER

    # -- what the owner asks --------------------------------------------------------------------------------------

    @property
    def state_name(self) -> str:
        """The state as RFC 9293 writes it."""
        return NAMES[self.state]

    @property
    def send_space(self) -> int:
        """How many bytes `write` would take now; 0 once the sending direction is closed."""
        if self.fin_queued or self.state in (CLOSED, TIME_WAIT):
            return 0
        return max(self.config.send_buffer - len(self.sendbuf), 0)

    @property
    def unsent_or_unacked(self) -> int:
        """Bytes written that the peer has not acknowledged."""
        return len(self.sendbuf)

    @property
    def eof(self) -> bool:
        """Whether the peer has closed its direction and everything before that was read."""
        return 0 <= self.peer_fin < self.rcv_nxt and not self.readable

    def write(self, data: bytes | memoryview) -> int:
        """Queue ``data`` for sending and return how many bytes were taken, which may be fewer than there are.

        Kept by reference until acknowledged: a memoryview must be of an object that does not change.
        """
        space = self.send_space
        n = len(data)
        if n > space:
            data = memoryview(data)[:space]
            n = space
        if n:
            self.sendbuf.append(data)
            self.mark()
        return n

    def shutdown(self) -> None:
        """Close the sending direction: a FIN follows what is queued (RFC 9293 section 3.9.1.4)."""
        if self.fin_queued or self.state in (CLOSED, TIME_WAIT):
            return
        self.fin_queued = True
        self.fin_moves_state()
        self.mark()

    def fin_moves_state(self) -> None:
        """What a queued FIN makes of the state; before ESTABLISHED it waits for the handshake."""
        if self.state == ESTABLISHED:
            self.enter(FIN_WAIT_1)
        elif self.state == CLOSE_WAIT:
            self.enter(LAST_ACK)

    def peek(self, limit: int = _IOV) -> Sequence[Buffer]:
        """Up to ``limit`` chunks of what is readable, in order, without taking them: for gather writes."""
        return list(islice(self.rx, limit))

    def consume(self, n: int) -> None:
        """Take ``n`` bytes (at most `readable`) from the front, which opens the window."""
        rx = self.rx
        n = min(n, self.readable)
        if not n:
            return
        self.readable -= n
        while n:
            chunk = rx[0]
            if len(chunk) > n:
                rx[0] = memoryview(chunk)[n:]
                break
            n -= len(chunk)
            rx.popleft()
        if not self.ack_due and self.peer_fin < 0 and self._window_grew():
            self.ack_due = True
            self.mark()

    def read(self, limit: int) -> bytes:
        """Take up to ``limit`` bytes."""
        pieces: list[Buffer] = []
        left = limit
        for chunk in self.rx:
            if left <= 0:
                break
            pieces.append(memoryview(chunk)[:left] if len(chunk) > left else chunk)
            left -= len(chunk)
        data = b"".join(pieces)
        self.consume(len(data))
        return data

    def close(self) -> None:
        """Close both directions: nobody will read any more. If data is lost by that, the peer gets an RST (SHLD-3)."""
        if self.deferred:
            self.refuse()
            return
        self.reader_gone = True
        if self.readable or self.state == SYN_SENT:
            self.abort()
            return
        self.shutdown()
        if self.state == FIN_WAIT_2 and self.fin_wait_at == NEVER:
            self.mark()

    def abort(self) -> None:
        """End the connection now, with an RST where the state calls for one (RFC 9293 section 3.10.5)."""
        if self.state == CLOSED:
            return
        if self.state not in (SYN_SENT, TIME_WAIT) and not self.deferred:
            self.engine.send_reset(self)
        self.engine.finish(self, TcpError.ABORTED)

    def accept(self) -> None:
        """Let a deferred connection's handshake go on: its SYN-ACK is sent now."""
        if self.deferred and self.state == SYN_RECEIVED:
            self.deferred = False
            self.mark()

    def refuse(self, *, silent: bool = False) -> None:
        """End a deferred connection as if nobody listened: with an RST, or ``silent`` without."""
        if not self.deferred or self.state != SYN_RECEIVED:
            return
        if not silent:
            self.engine.send_refusal(self)
        self.engine.finish(self, TcpError.REFUSED)

    def set_dscp(self, dscp: int) -> None:
        """Send with the code point ``dscp`` (0 to 63) from now on (RFC 9293 section 3.9.1.9: MUST-48, SHLD-21)."""
        if not 0 <= dscp < 64:
            raise UsageError(f"{dscp} is no DSCP: choose one from 0 to 63.")
        self.path.tos = dscp << 2
        self.writer = SegmentWriter(self.path, self.local_port, self.remote_port)

    # -- what receive and send share ------------------------------------------------------------------------------

    def mark(self) -> None:
        """Have the engine look at this connection at its next output."""
        if not self.dirty and not self.gone:
            self.dirty = True
            self.engine.dirty.append(self)

    def notify(self, flags: int) -> None:
        """Collect events for the owner."""
        if not self.events:
            self.engine.ready.append(self)
        self.events |= flags

    def enter(self, state: int) -> None:
        """Change the state. Every change is one of `pystack.tcp.state.TRANSITIONS`."""
        self.state = state

    @property
    def fin_sent(self) -> bool:
        """Whether our FIN is among what was sent."""
        return self.fin_queued and self.snd_max > self.sendbuf.end

    def receive_space(self) -> int:
        """Bytes that still fit into the receive buffer."""
        return max(self.rcv_buf - self.readable, 0)

    def window_field(self) -> int:
        """The window to advertise, as the field of a non-SYN segment; moves ``rcv_adv`` to the edge that it states.

        The edge never moves to the left, and to the right only by a worthwhile step (RFC 9293 section 3.8.6.2.2): the
        smaller of a segment and half of the buffer.
        """
        rcv_nxt = self.rcv_nxt
        space = max(self.rcv_buf - self.readable, 0)
        edge = rcv_nxt + space
        if edge - self.rcv_adv < min(self.mss, self.rcv_buf >> 1):
            edge = self.rcv_adv
        scale = self.rcv_wscale
        unit = 1 << scale
        # Rounded up: rounding down would take back a part of what was offered. But not at every ACK again: small
        # segments would push the edge before them, past the end of the buffer.
        field = min((edge - rcv_nxt + unit - 1) >> scale, 0xFFFF)
        if field << scale >= space + unit:
            field -= 1
        self.rcv_adv = max(self.rcv_adv, rcv_nxt + (field << scale))
        return field

    def _window_grew(self) -> bool:
        """Whether the window opened so far that the peer should hear of it without waiting for its data.

        Not while an ACK is due soon that says it too, unless what is still offered may hold the peer back until then.
        """
        if self.ack_delay_at != NEVER and self.rcv_adv - self.rcv_nxt >= 2 * self.mss:
            return False
        growth = self.rcv_nxt + self.receive_space() - self.rcv_adv
        return growth >= min(max(2 * self.mss, self.rcv_buf >> 2), self.rcv_buf >> 1)

    def set_mss(self, mss: int) -> None:
        """Take a new effective send MSS (without options): at the handshake, or from path MTU discovery."""
        options = 12 if self.ts_ok else 0
        self.mss = max(mss - options, 8)
        self.segment_limit = self.writer.segment_limit(self.mss, options)
        self.cc.on_smss(self.mss)

    def mss_for_path(self) -> int:
        """What the path's MTU leaves for the payload and options of a segment."""
        limit = self.path.mtu - (40 if self.path.version == 4 else 60)
        return min(limit, self.config.mss) if self.config.mss else limit

    def update_rto(self) -> None:
        """Follow a change of ``rtt`` or ``backoff`` (RFC 6298 rules 2.5 and 5.5)."""
        config = self.config
        base = self.rtt.rto(config.rto_initial, config.rto_min, config.rto_max)
        self.rto = min(base << self.backoff, config.rto_max)

    def ts_now(self, now: Micros) -> int:
        """Our timestamp clock: milliseconds with an offset of the connection's own (RFC 7323 section 5.4)."""
        return (now // 1000 + self.ts_offset) & MASK

    def on_timer(self, now: Micros) -> None:
        """Called by `Timers`."""
        self.engine.on_timer(self, now)

    def drop_buffers(self) -> None:
        """Free what a dead connection needs no more; unread data stays readable."""
        # An acknowledged FIN keeps its place behind the (empty) buffer.
        self.sendbuf = SendBuffer(self.snd_max - 1 if self.fin_sent and self.snd_una == self.snd_max else self.snd_una)
        self.assembler = None
        self.board.clear()

    def _check(self) -> None:
        """Verify the invariants; for tests."""
        assert self.snd_una <= self.snd_nxt <= self.snd_max, self
        assert self.snd_max <= self.sendbuf.end + 1
        assert self.rcv_nxt <= self.rcv_adv or self.state in (CLOSED, SYN_SENT, SYN_RECEIVED)
        assert self.readable == sum(len(chunk) for chunk in self.rx)
        assert self.cc.cwnd >= 1
        if self.assembler is not None:
            self.assembler._check()  # noqa: SLF001 for tests, as this is

    def __repr__(self) -> str:
        return (
            f"<Connection {self.local_addr.hex()}:{self.local_port} {self.remote_addr.hex()}:{self.remote_port}"
            f" {self.state_name}>"
        )
