"""NewReno: RFC 5681 (slow start, congestion avoidance), RFC 6582 (recovery), RFC 6928 (initial window).

The window does not inflate with duplicate ACKs: the sender estimates what is in flight (RFC 6675's pipe, or duplicate
ACKs counted as segments that have left), which is the same thing said once.
"""

from __future__ import annotations

from typing import Final, final

_UNLIMITED: Final = 1 << 40


@final
class NewReno:
    """A `CongestionControl`. ``smss`` bytes a segment; ``initial_segments`` of them in the first window."""

    __slots__ = ("_acked", "_initial", "_smss", "cwnd", "ssthresh")

    def __init__(self, smss: int, initial_segments: int) -> None:
        self._smss = smss
        # RFC 6928 section 2: min(10*MSS, max(2*MSS, 14600)), with the 10 configurable.
        self._initial = min(initial_segments * smss, max(2 * smss, initial_segments * 1460))
        self.cwnd = self._initial
        self.ssthresh = _UNLIMITED
        self._acked = 0

    def on_ack(self, acked: int, flight: int) -> None:
        """Grow, unless the window was not what held the sender back (RFC 9293 SHLD: do not bank what was not used)."""
        cwnd = self.cwnd
        if cwnd < self.ssthresh:
            if 2 * flight >= cwnd:
                # RFC 5681 equation 2 per segment acknowledged; one ACK may cover a whole train of them here.
                self.cwnd = min(cwnd + acked, max(self.ssthresh, cwnd + self._smss))
        elif flight + self._smss >= cwnd:
            self._acked += acked
            if self._acked >= cwnd:
                self._acked -= cwnd
                self.cwnd = cwnd + self._smss

    def on_loss(self, flight: int) -> None:
        """RFC 5681 equation 4."""
        self.ssthresh = max(flight // 2, 2 * self._smss)
        self.cwnd = self.ssthresh
        self._acked = 0

    def on_recovered(self, flight: int) -> None:
        """RFC 6582 section 3.2 step 3, option 1: no burst after a recovery that left little in flight."""
        self.cwnd = min(self.ssthresh, max(flight, self._smss) + self._smss)

    def on_timeout(self, flight: int, first: bool) -> None:
        """RFC 5681 section 3.1: the loss window is one segment; ssthresh falls at the first timeout only."""
        if first:
            self.ssthresh = max(flight // 2, 2 * self._smss)
        self.cwnd = self._smss
        self._acked = 0

    def on_idle(self) -> None:
        """RFC 5681 section 4.1: the restart window."""
        self.cwnd = min(self.cwnd, self._initial)

    def on_smss(self, smss: int) -> None:
        """Keep the window in segments of the new size."""
        self.cwnd = max(self.cwnd * smss // self._smss, smss)
        self._smss = smss
