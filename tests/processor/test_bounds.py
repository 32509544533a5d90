"""Goal: operators hear of refused sessions at once, and not more than once a minute. Method: counters and a clock."""

from structlog.testing import capture_logs

from lapse.pipeline.processor.bounds import ALARM_INTERVAL_MS, BoundsAlarm


def test_it_speaks_at_once_and_then_once_a_minute_of_what_is_new() -> None:
    alarm = BoundsAlarm(3)
    with capture_logs() as said:
        alarm.look({}, 0.0)
        alarm.look({"ages_clamped": 7}, 1.0)
        assert said == []
        alarm.look({"sessions_refused_full": 2}, 5.0)
        for now_ms in range(6, ALARM_INTERVAL_MS, 1000):
            alarm.look({"sessions_refused_full": now_ms}, now_ms)
        assert [(one["partition"], one["sessions_refused_full"]) for one in said] == [(3, 2)]
        alarm.look({"sessions_refused_full": 100, "sessions_refused_subject": 4}, ALARM_INTERVAL_MS + 5.0)
        assert (said[-1]["sessions_refused_full"], said[-1]["sessions_refused_subject"]) == (98, 4)
        alarm.look({"sessions_refused_full": 100, "sessions_refused_subject": 4}, 3.0 * ALARM_INTERVAL_MS)
    assert [one["log_level"] for one in said] == ["error", "error"]
