"""What may happen to packets on their way: the numbers, and how a person writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from pystack.clock import MILLISECOND, SECOND, Micros
from pystack.errors import UsageError

_TIME_UNITS: Final = {"us": 1, "ms": MILLISECOND, "s": SECOND}
_RATE_UNITS: Final = {"bit": 1, "kbit": 1_000, "mbit": 1_000_000, "gbit": 1_000_000_000}
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)([a-z%]*)")
_PROBABILITIES: Final = ("loss", "reorder", "duplicate", "corrupt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Impairment:
    """What happens to the packets of one direction. The default is nothing.

    Attributes:
        loss, reorder, duplicate, corrupt: the fraction of packets it happens to, 0 to 1, each on its own. A reordered
            packet is held back, so that those behind it overtake it. A corrupted one has one bit of its IP packet
            flipped; what is not IP is spared, since what carries no checksum of its own would poison and not test.
        delay: added to every packet, in microseconds. jitter: the delay is up to this much longer or shorter, in
            microseconds, which does not change the order.
        rate: bits of Ethernet frame per second, 0 for no limit. queue: packets that wait for their turn at ``rate``;
            what comes when there are as many is lost.

    Raises:
        UsageError: a number is out of its range.
    """

    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay: Micros = 0
    jitter: Micros = 0
    rate: int = 0
    queue: int = 1000

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} must be between 0% and 100%, not {value:.6g} ({value:.6%}).")
        if min(self.delay, self.jitter, self.rate) < 0 or self.queue < 1:
            raise UsageError("delay, jitter and rate cannot be negative, and queue must be 1 at least.")

    @property
    def nothing(self) -> bool:
        """Whether packets pass untouched."""
        return not (any(getattr(self, name) for name in _PROBABILITIES) or self.delay or self.jitter or self.rate)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``loss=3%,delay=10ms,jitter=2ms,rate=10mbit``.

        Probabilities are per cent (``3%``) or fractions (``0.03``); times end in us, ms or s; rates in bit, kbit, mbit
        or gbit (powers of 1,000); queue is a number of packets.

        Raises:
            UsageError: one sentence that names the valid keys, or how a value is written.
        """
        values: dict[str, Any] = {}
        names = [field.name for field in fields(cls)]
        for item in text.split(","):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in names or not equals:
                raise UsageError(f"{item.strip()!r} is no impairment: write KEY=VALUE with one of {', '.join(names)}.")
            if key in values:
                raise UsageError(f"The impairment {key} is given twice.")
            values[key] = _value(key, value.lower())
        return cls(**values)


def _value(key: str, text: str) -> float | int:
    match = _QUANTITY.fullmatch(text)
    number, unit = (float(match[1]), match[2]) if match is not None else (0.0, "?")
    if key in _PROBABILITIES:
        if unit not in {"", "%"}:
            raise UsageError(f"{key}={text} cannot be read: write per cent, as in {key}=3%.")
        fraction = number / 100 if unit else number
        if fraction > 1:
            raise UsageError(f"{key}={text} is out of range: it must be between 0% and 100%.")
        return fraction
    if key == "queue":
        if unit or not number.is_integer() or number < 1:
            raise UsageError(f"queue={text} cannot be read: write a number of packets, as in queue=1000.")
        return int(number)
    units, example = (_RATE_UNITS, "rate=10mbit") if key == "rate" else (_TIME_UNITS, f"{key}=10ms")
    if unit not in units:
        raise UsageError(f"{key}={text} cannot be read: write a number with {', '.join(units)}, as in {example}.")
    return round(number * units[unit])
