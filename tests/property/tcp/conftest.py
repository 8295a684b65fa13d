"""Every change of a connection's state is one that RFC 9293 knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tcp_rules import every_transition_is_allowed


@pytest.fixture(autouse=True)
def _transitions() -> Iterator[None]:
    with every_transition_is_allowed():
        yield
