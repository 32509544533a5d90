"""Goal: operators hear of refused sessions at once, and not more than once a minute. Method: counters and a clock."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from lapse.pipeline.engine import EngineSettings
from lapse.pipeline.processor.bounds import ALARM_INTERVAL_MS, BoundsAlarm

FULL, SUBJECT, CLASS = "sessions_refused_full", "sessions_refused_subject", "sessions_refused_class"


def _alarm(**bounds: Any) -> BoundsAlarm:
    return BoundsAlarm(EngineSettings(partition=3, partitions=8, worker_key=b"k" * 32, **bounds))


def test_it_speaks_at_once_and_then_once_a_minute_of_what_is_new() -> None:
    alarm = _alarm()
    with capture_logs() as said:
        alarm.look({}, 0.0)
        alarm.look({"ages_clamped": 7}, 1.0)
        assert said == []
        alarm.look({FULL: 2}, 5.0)
        for now_ms in range(6, ALARM_INTERVAL_MS, 1000):
            alarm.look({FULL: now_ms}, now_ms)
        assert [(one["partition"], one[FULL]) for one in said] == [(3, 2)]
        alarm.look({FULL: 100, SUBJECT: 4}, ALARM_INTERVAL_MS + 5.0)
        assert [one.get(FULL) or one[SUBJECT] for one in said[1:]] == [98, 4]
        alarm.look({FULL: 100, SUBJECT: 4}, 3.0 * ALARM_INTERVAL_MS)
    assert [one["log_level"] for one in said] == ["error"] * 3


@pytest.mark.parametrize(
    ("what", "bounds", "words"),
    [
        (FULL, {"sessions_max": 77}, "LAPSE_SESSIONS_MAX=77"),
        (SUBJECT, {"sessions_per_subject_max": 5}, "LAPSE_SESSIONS_PER_SUBJECT_MAX=5"),
        (CLASS, {"classes_max": 9}, "may have 9 such classes"),
        ("violations_unreported", {}, "lapse fleet"),
    ],
)
def test_each_bound_says_its_own_value_and_what_to_do(what: str, bounds: dict[str, int], words: str) -> None:
    with capture_logs() as said:
        _alarm(**bounds).look({what: 1}, 0.0)
    (line,) = said
    assert words in line["event"]
    assert line[what] == 1
