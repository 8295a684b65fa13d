"""One integer per path: what happened, countable by a test, a person and a metrics endpoint alike.

A name is ``layer.what`` (``ipv4.bad_checksum``). Tests assert the whole difference between two snapshots, so that they
prove which path ran and not merely that something did.
"""

from __future__ import annotations

from typing import final


@final
class Counters:
    """Named integers that only grow. Bumping costs one dictionary update (about 50 ns)."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, int] = {}

    def bump(self, name: str, by: int = 1) -> None:
        """Add ``by`` to the counter ``name``, which starts at 0."""
        values = self._values
        values[name] = values.get(name, 0) + by

    def __getitem__(self, name: str) -> int:
        return self._values.get(name, 0)

    def snapshot(self) -> dict[str, int]:
        """A copy of all counters that were ever bumped."""
        return dict(self._values)

    def since(self, snapshot: dict[str, int]) -> dict[str, int]:
        """What moved since ``snapshot`` was taken: only the non-zero differences."""
        return {
            name: value - snapshot.get(name, 0)
            for name, value in self._values.items()
            if value != snapshot.get(name, 0)
        }
