"""One side's input: how far it has come, and the frame of a stream that is not whole yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from colo.framing import BAD_VNET_HDR_LEN, Framing
from colo.lane import Lane, Slow
from pystack import Counters, Micros
from pystack.flow.fragments import FragmentInspector


@final
class FramedInput:
    """Where one side is in what it sends.

    Args:
        heard: told of everything before it is dealt with: its position, the bytes, and where the first whole frame is.

    Attributes:
        lane: the fast way for its ordinary frames. inspector: puts its fragments together.
        position: bytes of whole frames, or bare frames, that were dealt with. aside: whether it is past its boundary.
        error: why its stream cannot be followed any more, a counter's name; "" while it can.
    """

    __slots__ = ("_counters", "_framing", "_heard", "_rest", "aside", "error", "inspector", "lane", "position")

    def __init__(
        self,
        framing: Framing,
        counters: Counters,
        lane: Lane,
        heard: Callable[[int, bytes, int], None] = lambda _position, _data, _at: None,
    ) -> None:
        self._framing = framing
        self._counters = counters
        self._heard = heard
        self._rest = bytearray()  # the start of a frame whose end has not come
        self.lane = lane
        self.inspector = FragmentInspector(counters)
        self.position = 0
        self.aside = False
        self.error = ""

    def reset(self) -> None:
        """The stream starts anew."""
        self._rest.clear()
        self.error = ""

    def feed(self, data: bytes, walk: Slow, now: Micros) -> int:
        """Have ``walk`` deal with all whole frames, the one that began earlier too; returns how many bytes they are."""
        if self.error:
            return 0
        before = self.position
        at = 0
        if self._rest:
            at = self._complete_untrusted(data)
            if at < 0:
                return 0
            frame = bytes(self._rest)
            self._rest.clear()
            self._heard(self.position, frame, 0)
            walk(frame, 0, self.position, now)
            self.position += len(frame)
        self._heard(self.position - at, data, at)
        end = walk(data, at, self.position - at, now)
        self.position += end - at
        if end < len(data) and not self.error:
            self._rest += memoryview(data)[end:]
        return self.position - before

    def _complete_untrusted(self, data: bytes) -> int:
        """Add what is missing to the rest; returns how much of ``data`` that took, -1 if it is not enough."""
        rest, prefix = self._rest, self._framing.prefix
        taken = 0
        if len(rest) < prefix:
            taken = prefix - len(rest)
            rest += data[:taken]
            if len(rest) < prefix:
                return -1
        length, _ = self._framing.lengths_untrusted(rest, 0)
        if length < 0:
            self._break(length)
            return -1
        missing = prefix + length - len(rest)
        rest += data[taken : taken + missing]
        return taken + missing if len(rest) == prefix + length else -1

    def whole_untrusted(self, data: bytes, at: int) -> tuple[int, int]:
        """Where the frame at ``at`` ends, -1 unless all of it is there; and its virtio_net_hdr's length."""
        start = at + self._framing.prefix
        if start > len(data):
            return -1, 0
        length, vnet_hdr_len = self._framing.lengths_untrusted(data, at)
        if length < 0:
            self._break(length)
            return -1, 0
        return (start + length, vnet_hdr_len) if start + length <= len(data) else (-1, 0)

    def _break(self, why: int) -> None:
        self.error = "compare.bad_vnet_hdr_len" if why == BAD_VNET_HDR_LEN else "compare.too_long"
        self._rest.clear()
        self._counters.bump(self.error)
