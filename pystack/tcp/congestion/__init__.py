"""Congestion control behind a Protocol: what the sender asks, and what it tells (RFC 5681)."""

from __future__ import annotations

from typing import Protocol


class CongestionControl(Protocol):
    """Decides how many bytes may be in flight. Knows nothing of sequence numbers.

    Invariant: ``cwnd`` >= 1 SMSS.
    """

    cwnd: int
    ssthresh: int

    def on_ack(self, acked: int, flight: int) -> None:
        """``acked`` new bytes were acknowledged outside of recovery; ``flight`` bytes had been in flight before."""

    def on_loss(self, flight: int) -> None:
        """A loss was found by duplicate ACKs or SACK: recovery begins (RFC 5681 section 3.2)."""

    def on_recovered(self, flight: int) -> None:
        """The recovery has ended; ``flight`` bytes are in flight."""

    def on_timeout(self, flight: int, first: bool) -> None:
        """The retransmission timer fired; ``first`` when for the first time on this data (RFC 5681 section 3.1)."""

    def on_idle(self) -> None:
        """Nothing was sent for longer than the RTO (RFC 5681 section 4.1)."""

    def on_smss(self, smss: int) -> None:
        """The segment size has changed, by path MTU discovery."""
