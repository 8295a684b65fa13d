"""Sequence numbers modulo 2**32 (RFC 9293 section 3.4), and the way out of them.

Inside the project streams are counted by absolute offsets, plain integers that never wrap. Only the edge (a header
that arrives or leaves) uses the 32-bit form: `unwrap` turns it into an absolute number next to a known one.
"""

from __future__ import annotations

from typing import Final

MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000


def add(seq: int, n: int) -> int:
    """``seq + n`` modulo 2**32; ``n`` may be negative."""
    return (seq + n) & MASK


def sub(a: int, b: int) -> int:
    """The signed distance ``a - b`` in [-2**31, 2**31): positive when ``a`` is the later one."""
    return ((a - b + _HALF) & MASK) - _HALF


def lt(a: int, b: int) -> bool:
    """Whether ``a`` comes before ``b``."""
    return sub(a, b) < 0


def le(a: int, b: int) -> bool:
    """Whether ``a`` comes before ``b`` or is equal to it."""
    return sub(a, b) <= 0


def in_window(seq: int, left: int, size: int) -> bool:
    """Whether ``left <= seq < left + size`` modulo 2**32, for ``size`` up to 2**31."""
    return ((seq - left) & MASK) < size


def unwrap(seq: int, near: int) -> int:
    """The absolute number that is congruent to ``seq`` and closest to the absolute number ``near``.

    It may be negative when ``near`` is close to zero: what lies before the start of a stream.
    """
    return near + ((seq - near + _HALF) & MASK) - _HALF
