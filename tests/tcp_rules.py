"""Rules that hold wherever a TCP runs: shared by the scripts, the unit and property tests, and the fuzzers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pystack.tcp.state import NAMES, TRANSITIONS
from pystack.tcp.tcb import Connection


@contextmanager
def every_transition_is_allowed() -> Iterator[set[tuple[int, int]]]:
    """Hold every assignment to a connection's ``state``, wherever it is made, against `TRANSITIONS`.

    Yields the set of the transitions that were seen. May be nested.
    """
    slot = vars(Connection)["state"]
    seen: set[tuple[int, int]] = set()

    def change(self: Connection, new: int) -> None:
        try:
            old = slot.__get__(self)
        except AttributeError:  # the first assignment
            old = new
        if old != new:
            assert (old, new) in TRANSITIONS, f"{NAMES[old]} -> {NAMES[new]}"
            seen.add((old, new))
        slot.__set__(self, new)

    type.__setattr__(Connection, "state", property(slot.__get__, change))
    try:
        yield seen
    finally:
        type.__setattr__(Connection, "state", slot)
