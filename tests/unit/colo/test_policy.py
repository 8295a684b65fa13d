"""When comparing does not pay, when it pays again, and when the next periodic checkpoint is due."""

from __future__ import annotations

from typing import Any

import pytest

from colo.checkpoint import CheckpointConfig, Checkpoints
from colo.clients import InProcessClient
from colo.compare import Mode
from colo.policy import COST_CHECKPOINTS, PERIODIC, Policy, PolicyConfig
from pystack.clock import Micros
from pystack.errors import UsageError

MS = 1_000
SECOND = 1_000_000
CONFIG = PolicyConfig()


def differ(
    policy: Policy, count: int, now: Micros, every: Micros = MS, took: Micros = 0, reason: str = "payload"
) -> Micros:
    """``count`` differences, each with its checkpoint, one ``every`` so many microseconds; returns when it is then."""
    for _ in range(count):
        policy.on_request(reason, now)
        policy.on_completed(took, now)
        now += every
    return now


def fall(policy: Policy, now: Micros) -> Micros:
    """Make differences come too often."""
    now = differ(policy, CONFIG.max_rate + 1, now)
    assert policy.choose(now) is Mode.PERIODIC
    return now


def rise(policy: Policy, now: Micros) -> Micros:
    """Wait until comparing is tried again, with the checkpoint that this takes effect at."""
    assert policy.choose(now + policy.hold - 1) is Mode.PERIODIC
    assert policy.choose(now + policy.hold) is Mode.COMPARE
    policy.on_completed(0, now + policy.hold + 1)
    return now + policy.hold + 1


def moved(policy: Policy) -> dict[str, int]:
    return policy.counters.snapshot()


# ----------------------------------------------------------------------------------------------------------- how often


def test_it_begins_with_comparing_and_asks_for_nothing() -> None:
    policy = Policy()
    assert policy.choose(0) is Mode.COMPARE
    assert policy.next_checkpoint(10**9) is None
    assert moved(policy) == {}
    assert (policy.why, policy.since, policy.hold) == ("", None, CONFIG.hold)


def test_differences_at_the_rate_of_periodic_mode_are_still_compared() -> None:
    policy, now = Policy(), 0
    for _ in range(500):
        now = differ(policy, 1, now, every=CONFIG.periodic_interval)
        assert policy.choose(now) is Mode.COMPARE
    assert policy.recent(now) < CONFIG.max_rate
    assert moved(policy) == {}


def test_more_differences_than_that_mean_periodic_mode() -> None:
    policy = Policy()
    now = differ(policy, CONFIG.max_rate, 0)
    assert policy.choose(now) is Mode.COMPARE
    assert policy.recent(now) == CONFIG.max_rate
    now = differ(policy, 1, now)
    assert policy.choose(now) is Mode.PERIODIC
    assert (policy.why, policy.since) == ("differences", now)
    assert moved(policy) == {"policy.to_periodic.differences": 1}


@pytest.mark.parametrize(
    ("interval", "window", "rate"),
    [(100 * MS, 2 * SECOND, 20), (10 * MS, 2 * SECOND, 200), (SECOND, 2 * SECOND, 2), (60 * SECOND, 2 * SECOND, 1)],
)
def test_the_rate_that_is_too_high_follows_the_period(interval: Micros, window: Micros, rate: int) -> None:
    config = PolicyConfig(periodic_interval=interval, window=window)
    assert config.max_rate == rate
    policy = Policy(config)
    now = differ(policy, rate, 0)
    assert policy.choose(now) is Mode.COMPARE
    now = differ(policy, 1, now)
    assert policy.choose(now) is Mode.PERIODIC


def test_a_rate_that_was_chosen_stays() -> None:
    assert PolicyConfig(periodic_interval=SECOND, max_rate=7).max_rate == 7


def test_what_left_the_window_does_not_count() -> None:
    policy = Policy()
    differ(policy, CONFIG.max_rate, 0, every=1)
    now = differ(policy, 1, CONFIG.window + CONFIG.max_rate)
    assert policy.choose(now) is Mode.COMPARE
    assert policy.recent(now) == 1


def test_many_differences_that_one_checkpoint_serves_count_once() -> None:
    policy = Policy()
    for _ in range(100):
        policy.on_request("payload", 0)
    policy.on_completed(3 * MS, 3 * MS)
    assert policy.recent(3 * MS) == 1
    assert policy.choose(3 * MS) is Mode.COMPARE


def test_differences_without_a_completed_checkpoint_do_not_count() -> None:
    policy = Policy()
    for now in range(100):
        policy.on_request("payload", now)
    assert policy.choose(100) is Mode.COMPARE


@pytest.mark.parametrize(
    "reason", ["timeout", "queue_full", "secondary_queue_full", "retransmission", "options", "datagram"]
)
def test_a_frame_held_for_too_long_is_as_good_as_a_difference(reason: str) -> None:
    policy = Policy()
    now = differ(policy, CONFIG.max_rate + 1, 0, reason=reason)
    assert policy.choose(now) is Mode.PERIODIC
    assert policy.why == "differences"


@pytest.mark.parametrize("reason", [PERIODIC, "unasked"])
def test_other_checkpoints_are_no_differences(reason: str) -> None:
    policy = Policy()
    now = differ(policy, 1000, 0, reason=reason)
    for _ in range(1000):
        policy.on_completed(MS, now)  # the hypervisor's own
    assert policy.recent(now) == 0
    assert policy.choose(now) is Mode.COMPARE


# ------------------------------------------------------------------------------------------------------------ how long


def test_few_checkpoints_that_take_half_of_the_time_mean_periodic_mode() -> None:
    policy = Policy()
    now = differ(policy, 5, 0, every=400 * MS, took=200 * MS)
    assert policy.choose(now) is Mode.COMPARE
    now = differ(policy, 6, now, every=250 * MS, took=200 * MS)
    assert policy.choose(now) is Mode.PERIODIC
    assert policy.why == "differences"


def test_checkpoints_that_are_longer_than_the_window_are_told_from_a_single_one() -> None:
    took = 4 * CONFIG.window
    lonely = Policy()
    now = differ(lonely, 1, took, took=took)
    assert lonely.choose(now) is Mode.COMPARE
    dense = Policy()
    now = took
    for _ in range(COST_CHECKPOINTS):
        now = differ(dense, 1, now, every=took + MS, took=took)
    assert dense.choose(now - took) is Mode.PERIODIC


def test_long_checkpoints_that_are_rare_are_worth_it() -> None:
    policy, now = Policy(), 0
    for _ in range(100):
        now = differ(policy, 1, now, every=60 * SECOND, took=SECOND // 2)
        assert policy.choose(now) is Mode.COMPARE
    assert policy.mean_duration == SECOND // 2


def test_the_duration_is_measured_of_all_checkpoints_in_whole_microseconds() -> None:
    policy = Policy()
    policy.on_completed(800, 0)
    assert policy.mean_duration == 800
    policy.on_completed(1601, 1)
    assert policy.mean_duration == 900
    assert type(policy.mean_duration) is int


# ----------------------------------------------------------------------------------------------------- back, and again


def test_after_its_time_comparing_is_tried_again() -> None:
    policy = Policy()
    now = rise(policy, fall(policy, 0))
    assert policy.choose(now) is Mode.COMPARE
    assert (policy.why, policy.since) == ("", now - 1)
    assert moved(policy) == {"policy.to_periodic.differences": 1, "policy.to_compare": 1}


def test_the_differences_of_last_time_are_forgotten_by_then() -> None:
    policy = Policy(PolicyConfig(hold=1, window=3600 * SECOND, max_rate=CONFIG.max_rate))
    now = rise(policy, fall(policy, 0))
    assert policy.recent(now) == 0
    assert policy.choose(now) is Mode.COMPARE


def test_differences_in_periodic_mode_do_not_make_comparing_relapse_at_once() -> None:
    """A queue that fills, for instance, is reported there too."""
    policy = Policy()
    now = fall(policy, 0) + policy.hold
    for _ in range(CONFIG.max_rate + 1):
        policy.on_request("queue_full", now - 1)
        policy.on_completed(1000, now - 1)
    assert policy.choose(now) is Mode.COMPARE
    assert policy.choose(now + 1) is Mode.COMPARE
    assert "policy.relapsed" not in moved(policy)


def test_each_relapse_doubles_the_time_up_to_a_bound() -> None:
    policy, now = Policy(), 0
    held = []
    for _ in range(9):
        now = fall(policy, now)
        held.append(policy.hold // SECOND)
        now = rise(policy, now)
    assert held == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert moved(policy)["policy.relapsed"] == 8


def test_a_service_that_never_answers_alike_costs_few_checkpoints_in_the_long_run() -> None:
    policy, now, trials = Policy(), 0, 0
    while now < 24 * 3600 * SECOND:
        now = rise(policy, fall(policy, now))
        trials += CONFIG.max_rate + 1
    assert trials < 24 * 3600 * SECOND // CONFIG.hold_max * (CONFIG.max_rate + 1) + 200


def test_long_peace_halves_the_time_again_step_by_step() -> None:
    policy, now = Policy(), 0
    for _ in range(4):
        now = rise(policy, fall(policy, now))
    assert policy.hold == 40 * SECOND
    holds = []
    for _ in range(5):
        now += CONFIG.peace
        assert policy.choose(now) is Mode.COMPARE
        holds.append(policy.hold // SECOND)
    assert holds == [20, 10, 5, 5, 5]


def test_after_peace_a_fall_is_no_relapse() -> None:
    policy = Policy()
    now = rise(policy, fall(policy, 0)) + CONFIG.peace
    policy.choose(now)
    fall(policy, now)
    assert policy.hold == CONFIG.hold
    assert "policy.relapsed" not in moved(policy)


def test_peace_is_noticed_however_rarely_it_is_looked_at() -> None:
    often, rarely = Policy(), Policy()
    for policy in (often, rarely):
        now = 0
        for _ in range(6):
            now = rise(policy, fall(policy, now))
        end = now + 2 * CONFIG.peace + 1
        if policy is often:
            for at in range(now, end, SECOND):
                policy.choose(at)
        policy.choose(end)
    assert often.hold == rarely.hold == 40 * SECOND


# --------------------------------------------------------------------------------------------------------- connections


def test_a_full_table_means_periodic_mode_until_it_is_under_eighty_percent() -> None:
    policy = Policy()
    policy.on_table(99, 100, 0)
    assert policy.choose(0) is Mode.COMPARE
    policy.on_table(100, 100, 1)
    assert policy.choose(1) is Mode.PERIODIC
    assert policy.why == "table"
    later = 1 + policy.hold
    policy.on_table(80, 100, later)
    assert policy.choose(later) is Mode.PERIODIC
    policy.on_table(79, 100, later)
    assert policy.choose(later) is Mode.COMPARE
    assert moved(policy) == {"policy.to_periodic.table": 1, "policy.to_compare": 1}


def test_a_table_that_empties_at_once_is_still_held_for_a_while() -> None:
    policy = Policy()
    policy.on_table(100, 100, 0)
    policy.choose(0)
    policy.on_table(0, 100, 1)
    assert policy.choose(policy.hold - 1) is Mode.PERIODIC
    assert policy.choose(policy.hold) is Mode.COMPARE


def test_a_connection_that_finds_no_room_outweighs_a_count_until_the_checkpoint() -> None:
    policy = Policy()
    policy.on_request("table_full", 0)
    policy.on_table(10, 100, 0)
    assert policy.choose(0) is Mode.PERIODIC
    assert policy.why == "table"
    policy.on_completed(MS, MS)
    policy.on_table(10, 100, MS)
    assert policy.choose(policy.hold) is Mode.COMPARE


def test_a_table_that_fills_again_and_again_is_tried_ever_more_rarely() -> None:
    policy, now, held = Policy(), 0, []
    for _ in range(3):
        policy.on_table(100, 100, now)
        assert policy.choose(now) is Mode.PERIODIC
        held.append(policy.hold // SECOND)
        policy.on_table(0, 100, now)
        now = rise(policy, now)
    assert held == [5, 10, 20]


def test_a_full_table_keeps_periodic_mode_that_differences_began() -> None:
    policy = Policy()
    now = fall(policy, 0)
    policy.on_table(100, 100, now)
    assert policy.choose(now + policy.hold) is Mode.PERIODIC
    policy.on_table(10, 100, now + policy.hold)
    assert policy.choose(now + policy.hold) is Mode.COMPARE


# -------------------------------------------------------------------------------------------------------------- choice


def test_periodic_mode_by_choice_is_left_by_choice_alone() -> None:
    policy = Policy(PolicyConfig(forced="periodic"))
    assert policy.choose(0) is Mode.PERIODIC
    assert policy.why == "choice"
    assert policy.choose(3600 * SECOND) is Mode.PERIODIC
    policy.forced = None
    assert policy.choose(3600 * SECOND) is Mode.COMPARE
    assert moved(policy) == {"policy.to_periodic.choice": 1, "policy.to_compare": 1}


def test_choice_is_no_relapse() -> None:
    policy = Policy()
    now = rise(policy, fall(policy, 0))
    policy.forced = "periodic"
    assert policy.choose(now) is Mode.PERIODIC
    assert policy.hold == CONFIG.hold


def test_comparing_by_choice_goes_on_whatever_it_costs() -> None:
    policy = Policy(PolicyConfig(forced="compare"))
    policy.on_table(100, 100, 0)
    now = differ(policy, 1000, 0)
    assert policy.choose(now) is Mode.COMPARE
    assert moved(policy) == {}
    policy.forced = None
    assert policy.choose(now) is Mode.PERIODIC


def test_the_choice_of_comparing_ends_periodic_mode_at_once() -> None:
    policy = Policy()
    now = fall(policy, 0)
    policy.forced = "compare"
    assert policy.choose(now) is Mode.COMPARE


# ------------------------------------------------------------------------------------------------ periodic checkpoints


def test_the_first_periodic_checkpoint_is_due_at_once_when_there_was_none_for_long() -> None:
    policy = Policy(PolicyConfig(forced="periodic"))
    policy.choose(777)
    assert policy.next_checkpoint(777) == 777


def test_the_interval_counts_from_one_completion_to_the_next_beginning() -> None:
    policy = Policy(PolicyConfig(forced="periodic"))
    policy.choose(0)
    policy.on_request(PERIODIC, 0)
    assert policy.next_checkpoint(50) is None
    policy.on_completed(3 * MS, 3 * MS)
    assert policy.next_checkpoint(3 * MS) == 3 * MS + CONFIG.periodic_interval


def test_a_checkpoint_for_another_reason_starts_the_interval_anew() -> None:
    policy = Policy()
    now = fall(policy, 0)
    last = now - MS  # the last completion
    assert policy.next_checkpoint(now) == last + CONFIG.periodic_interval


def test_comparing_again_takes_effect_with_one_more_checkpoint() -> None:
    policy = Policy()
    now = fall(policy, 0)
    policy.on_completed(0, now + 1)
    later = now + policy.hold
    assert policy.choose(later) is Mode.COMPARE
    assert policy.next_checkpoint(later) == later
    policy.on_request(PERIODIC, later)
    assert policy.next_checkpoint(later) is None
    policy.on_completed(0, later + 1)
    assert policy.next_checkpoint(later + 1) is None


def test_in_periodic_mode_a_checkpoint_begins_every_interval_and_a_failed_one_is_not_asked_for_twice() -> None:
    works = [True]
    client = InProcessClient(lambda _: works[0], duration=3 * MS)
    checkpoints = Checkpoints(client, CheckpointConfig())
    policy = Policy(PolicyConfig(forced="periodic"))
    completed = 0
    for now in range(0, 10 * SECOND, MS):
        works[0] = not 5 * SECOND <= now < 6 * SECOND
        due = policy.next_checkpoint(now)
        if due is not None and due <= now:
            checkpoints.request(PERIODIC, now)
            policy.on_request(PERIODIC, now)
        checkpoints.advance(now)
        while completed < checkpoints.counters["checkpoint.completed"]:
            completed += 1
            policy.on_completed(checkpoints.last_duration, now)
        policy.choose(now)
    assert checkpoints.by_reason == {PERIODIC: completed}
    assert 80 <= completed <= 10 * SECOND // (103 * MS)
    assert checkpoints.counters["checkpoint.merged"] == 0
    assert checkpoints.counters["checkpoint.failed"] == 4


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "setting",
    [
        {"forced": "sometimes"},
        {"periodic_interval": 0},
        {"window": 0},
        {"max_rate": -1},
        {"hold": 0},
        {"hold": 2, "hold_max": 1},
        {"peace": 0},
        {"max_share_percent": 0},
        {"table_back_percent": 101},
    ],
)
def test_a_setting_that_cannot_be_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(setting)) if "forced" not in setting else "sometimes"):
        PolicyConfig(**setting)
