"""Goal: a tick goes out each second, and at once when something is due; never so often that it helps nobody.

Method: the schedule is pure; it is told instants, and asked how long to wait.
"""

from __future__ import annotations

import pytest

from lapse.pipeline.processor.ticks import DUE_SPACING_MS, READ_BACK_MS, TICK_INTERVAL_MS, TickSchedule


def wait(
    schedule: TickSchedule, now: float, *, due: int | None = None, log_now: float | None = None, applied: int = 0
) -> float:
    return schedule.wait_ms(now, due_at=due, log_now=log_now, applied=applied)


def ticked(now: float = 0.0, offset: int = 10) -> TickSchedule:
    """Return a schedule whose first tick has gone out now."""
    schedule = TickSchedule(now)
    assert wait(schedule, now) == 0
    schedule.ticked(now, offset)
    return schedule


def test_the_first_tick_goes_out_at_once_and_then_one_each_second() -> None:
    schedule = ticked()
    assert wait(schedule, 0) == TICK_INTERVAL_MS
    schedule.ticked(1_004, 11)
    # From the schedule: ticks do not drift.
    assert wait(schedule, 1_004) == 996


def test_after_a_pause_the_ticks_that_were_missed_are_not_made_up_for() -> None:
    schedule = ticked()
    schedule.ticked(7_300, 11)
    assert wait(schedule, 7_300) == TICK_INTERVAL_MS


def test_a_tick_for_something_due_does_not_move_the_regular_ones() -> None:
    schedule = ticked()
    schedule.ticked(400, 11)
    assert wait(schedule, 400) == 600


@pytest.mark.parametrize(("left", "expected"), [(300, 300), (0, 0), (-50, -50), (5_000, 900)])
def test_a_tick_goes_out_when_something_is_due_by_the_estimate(left: int, expected: float) -> None:
    schedule = ticked()
    assert wait(schedule, 100, due=50_000 + left, log_now=50_000, applied=11) == expected


def test_without_an_estimate_only_the_regular_ticks_go_out() -> None:
    schedule = ticked()
    assert wait(schedule, 100, due=0, log_now=None, applied=11) == 900


def test_two_ticks_for_something_due_are_apart() -> None:
    schedule = ticked()
    schedule.ticked(500, 11)
    assert wait(schedule, 503, due=0, log_now=50_000, applied=12) == DUE_SPACING_MS - 3


def test_a_tick_that_came_back_too_early_is_followed_by_another_when_it_is_due() -> None:
    """The engine has read it back, and says that the same instant is still due, 30 ms from now."""
    schedule = ticked()
    schedule.ticked(500, 11)
    assert wait(schedule, 504, due=50_030, log_now=50_000, applied=12) == 30


def test_no_other_tick_goes_out_while_one_is_on_its_way_back_unless_it_is_lost() -> None:
    schedule = ticked()
    schedule.ticked(500, 11)
    assert wait(schedule, 520, due=0, log_now=50_000, applied=11) == READ_BACK_MS - 20
    assert wait(schedule, 500 + READ_BACK_MS, due=0, log_now=50_000, applied=11) <= 0


def test_it_knows_how_late_the_regular_tick_is() -> None:
    schedule = ticked()
    assert schedule.late_ms(1_000) == 0
    assert schedule.late_ms(4_000) == 3_000
