"""Goal: what is old by log time goes, and nothing before its time, whatever the broker's clock shows.

Method: the marks are pure; they are told log time and where topics end. Deleting is shown on a real broker
(tests/integration/test_processor_trimming.py).
"""

from __future__ import annotations

from lapse.pipeline.processor.trimming import MARK_INTERVAL_MS, Mark, Marks

HOUR = 3_600_000
DAY = 24 * HOUR
KEPT = {"activity": 7 * DAY, "expiries": 30 * DAY}


def filled(days: int) -> Marks:
    """Return marks of each hour of so many days; both topics grow by 10 records an hour."""
    marks = Marks(KEPT)
    for hour in range(1, days * 24 + 1):
        assert marks.wants_one(hour * HOUR)
        marks.note(Mark(hour * HOUR, {"activity": hour * 10, "expiries": hour * 10}))
    return marks


def test_a_mark_is_wanted_once_an_hour_of_log_time() -> None:
    marks = Marks(KEPT)
    assert not marks.wants_one(0)  # no record yet: no time
    assert marks.wants_one(5)
    marks.note(Mark(5, {}))
    assert not marks.wants_one(4 + MARK_INTERVAL_MS)
    assert marks.wants_one(5 + MARK_INTERVAL_MS)


def test_nothing_goes_before_its_time() -> None:
    marks = filled(7)
    assert marks.cuts(7 * DAY) == {}
    assert marks.cuts(7 * DAY + HOUR - 1) == {}


def test_what_stands_below_an_old_enough_mark_goes() -> None:
    marks = filled(8)
    assert marks.cuts(8 * DAY) == {"activity": 240}
    assert filled(40).cuts(40 * DAY) == {"activity": 33 * 240, "expiries": 10 * 240}


def test_marks_that_nobody_needs_are_forgotten_and_the_rest_survives_a_restore() -> None:
    marks = filled(100)
    saved = marks.encode()
    assert len(saved) < 64_000
    assert Marks(KEPT, saved).cuts(100 * DAY) == marks.cuts(100 * DAY) == {"activity": 93 * 240, "expiries": 70 * 240}


def test_many_marks_grow_sparse_and_trim_later_never_sooner() -> None:
    marks = Marks({"activity": 3000 * DAY})
    for hour in range(1, 5001):
        marks.note(Mark(hour * HOUR, {"activity": hour}))
    saved = marks.encode()
    assert len(saved) < 64_000
    for hour in (1, 777, 2500, 5000):
        assert marks.cuts(3000 * DAY + hour * HOUR).get("activity", 0) <= hour
