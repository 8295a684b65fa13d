"""Timers: a heap with lazy deadlines."""

from __future__ import annotations

import random

from pystack.timers import NEVER, Timers


class Owner:
    """Counts how often it fires; asks for what ``plan`` says next."""

    def __init__(self, timers: Timers, deadline: int, *plan: int) -> None:
        self.timers = timers
        self.deadline = deadline
        self.armed_at = NEVER
        self.fired: list[int] = []
        self.log: list[int] = []
        self.plan = list(plan)
        timers.arm(self)

    def on_timer(self, now: int) -> None:
        assert now >= self.deadline
        self.fired.append(now)
        self.log.append(self.deadline)
        self.deadline = self.plan.pop(0) if self.plan else NEVER

    def move(self, deadline: int) -> None:
        self.deadline = deadline
        self.timers.arm(self)


def test_fires_when_due_and_not_before() -> None:
    timers = Timers()
    owner = Owner(timers, 100)
    assert timers.next_timeout() == 100
    assert timers.fire(99) == 0
    assert timers.fire(100) == 1
    assert owner.fired == [100]
    assert timers.next_timeout() is None
    assert timers.fire(10_000) == 0


def test_fires_in_order_of_the_deadlines() -> None:
    timers = Timers()
    order: list[int] = []
    for at in (30, 10, 20):
        Owner(timers, at).log = order
    assert timers.fire(30) == 3
    assert order == [10, 20, 30]


def test_a_deadline_moved_to_the_future_is_free_and_found_when_the_old_one_comes() -> None:
    timers = Timers()
    owner = Owner(timers, 100)
    for at in range(101, 1000):
        owner.move(at)
    assert len(timers) == 1
    assert timers.fire(500) == 0
    assert owner.fired == []
    assert timers.next_timeout() == 999
    assert timers.fire(999) == 1


def test_a_deadline_moved_to_the_past_supersedes_its_entry() -> None:
    timers = Timers()
    owner = Owner(timers, 100)
    owner.move(50)
    assert timers.next_timeout() == 50
    assert timers.fire(60) == 1
    assert timers.fire(200) == 0
    assert owner.fired == [60]


def test_a_deadline_that_was_taken_back_does_not_fire() -> None:
    timers = Timers()
    owner = Owner(timers, 100)
    owner.deadline = NEVER
    assert timers.next_timeout() is None
    assert timers.fire(100) == 0
    assert owner.fired == []


def test_an_owner_may_arm_itself_again_while_it_fires() -> None:
    timers = Timers()
    owner = Owner(timers, 100, 150, 200)
    for now in (100, 150, 200, 250):
        timers.fire(now)
    assert owner.fired == [100, 150, 200]


def test_an_owner_that_never_moves_its_deadline_does_not_spin() -> None:
    timers = Timers()
    owner = Owner(timers, 100, 100, 100, 100)
    assert timers.fire(100) == 1
    assert timers.fire(100) == 1
    assert owner.fired == [100, 100]


def test_heap_stays_proportional_to_the_owners() -> None:
    timers = Timers()
    owner = Owner(timers, 1_000_000)
    for at in range(999_999, 900_000, -1):
        owner.move(at)
    assert len(timers) < 200


def test_equals_a_naive_model_for_any_order_of_moves() -> None:
    rng = random.Random(7)
    timers = Timers()
    owners = [Owner(timers, NEVER) for _ in range(20)]
    now = 0
    for _ in range(5000):
        owner = rng.choice(owners)
        match rng.randrange(4):
            case 0 | 1:
                owner.move(now + rng.randrange(1, 100))
            case 2:
                owner.deadline = NEVER
            case _:
                now += rng.randrange(30)
                due = [one for one in owners if one.deadline <= now]
                before = {one: len(one.fired) for one in owners}
                assert timers.fire(now) == len(due)
                assert all(len(one.fired) == before[one] + (one in due) for one in owners)
        deadlines = [one.deadline for one in owners if one.deadline != NEVER]
        assert timers.next_timeout() == (min(deadlines) if deadlines else None)


def test_renewing_forgets_whoever_is_not_named_and_keeps_the_deadlines_of_the_others() -> None:
    timers = Timers()
    gone, early, late, idle = Owner(timers, 10), Owner(timers, 20), Owner(timers, 90), Owner(timers, 50)
    late.move(30)
    early.move(40)
    idle.move(NEVER)
    timers.renew([early, late, idle])
    assert len(timers) == 2
    assert timers.next_timeout() == 30
    assert timers.fire(100) == 2
    assert (gone.fired, early.fired, late.fired, idle.fired) == ([], [100], [100], [])
    idle.move(110)
    assert timers.next_timeout() == 110
