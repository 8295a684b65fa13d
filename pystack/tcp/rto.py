"""The retransmission timeout: RFC 6298, as pure functions on a small immutable value."""

from __future__ import annotations

from typing import Final, NamedTuple

from pystack.clock import MILLISECOND, SECOND, Micros

GRANULARITY: Final[Micros] = 1 * MILLISECOND
"""G of RFC 6298: how coarse a driver's timers are."""


class RttEstimate(NamedTuple):
    """SRTT and RTTVAR in microseconds. Before the first sample SRTT is 0, and RTTVAR a floor for the timeout."""

    srtt: Micros = 0
    rttvar: Micros = 0

    def sample(self, rtt: Micros) -> RttEstimate:
        """The estimate after a round trip of ``rtt`` (section 2: rules 2.2 and 2.3, alpha = 1/8, beta = 1/4)."""
        if not self.srtt:
            return RttEstimate(max(rtt, 1), rtt >> 1)
        rttvar = self.rttvar + ((abs(self.srtt - rtt) - self.rttvar) >> 2)
        return RttEstimate(max(self.srtt + ((rtt - self.srtt) >> 3), 1), rttvar)

    def rto(self, initial: Micros, minimum: Micros, maximum: Micros) -> Micros:
        """The timeout without back-off (rules 2.1 to 2.5)."""
        if not self.srtt:
            return max(initial, self.rttvar)
        return min(max(self.srtt + max(GRANULARITY, 4 * self.rttvar), minimum), maximum)


AFTER_LOST_SYN: Final = RttEstimate(0, 3 * SECOND)
"""Rule 5.7: when the timer expired for a SYN, data starts with a timeout of 3 seconds."""
