"""The table of flows against a naive model, under any order of uses, additions and times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pystack.slirp.nat import IdleTable

LIMIT, IDLE = 4, 100

steps = st.lists(st.tuples(st.sampled_from(["use", "add", "remove", "expire"]), st.integers(0, 6), st.integers(0, 60)))


@given(steps)
def test_the_table_is_a_bounded_dictionary_that_forgets_what_was_not_used(steps: list[tuple[str, int, int]]) -> None:
    table: IdleTable[int, str] = IdleTable(limit=LIMIT, idle=IDLE)
    model: dict[int, int] = {}  # key -> when it was last used
    now = 0
    for what, key, later in steps:
        now += later
        oldest = min(model, key=lambda k: model[k], default=None)
        if what == "use":
            assert table.use(key, now) == (f"flow {key}" if key in model else None)
            if key in model:
                model[key] = now
        elif what == "add" and key not in model:
            evicted = table.add(key, f"flow {key}", now)
            if len(model) == LIMIT:
                assert oldest is not None
                assert evicted in {f"flow {k}" for k in model if model[k] == model[oldest]}
                assert evicted is not None
                del model[int(evicted.split()[1])]
            else:
                assert evicted is None
            model[key] = now
        elif what == "remove":
            assert table.remove(key) == (f"flow {key}" if model.pop(key, None) is not None else None)
        elif what == "expire":
            gone = {k for k in model if model[k] + IDLE <= now}
            assert set(table.expire(now)) == {f"flow {k}" for k in gone}
            for k in gone:
                del model[k]
        table.check()
        assert len(table) == len(model)
        assert set(table.values()) == {f"flow {k}" for k in model}
        assert all(k in table for k in model)
        assert table.next_timeout() == (min(model.values()) + IDLE if model else None)
