"""Goal: `up_ms` never claims that appends went through when they did not.

Method: appends are told one by one, with the time passed in.
"""

from __future__ import annotations

from lapse.pipeline.processor.append_health import OVERDUE_MS, SILENT_MAX_MS, AppendHealth


def healthy(until_ms: float) -> AppendHealth:
    health = AppendHealth()
    for second in range(0, int(until_ms), 1_000):
        health.acknowledged(health.sent(float(second)), second + 2.0)
    assert health.up_ms(until_ms) == int(until_ms)
    return health


def test_nothing_is_claimed_before_the_first_acknowledgement() -> None:
    health = AppendHealth()
    append = health.sent(100.0)
    assert health.up_ms(500.0) == 0
    health.acknowledged(append, 600.0)
    # From its sending on: an append that came through says that the log was there.
    assert health.up_ms(700.0) == 600


def test_an_overdue_append_makes_it_0_and_its_acknowledgement_begins_anew() -> None:
    health = healthy(10_000.0)
    append = health.sent(10_000.0)
    assert health.up_ms(10_000.0 + OVERDUE_MS) == 10_000 + OVERDUE_MS
    assert health.up_ms(10_001.0 + OVERDUE_MS) == 0
    health.acknowledged(append, 15_000.0)
    assert health.up_ms(15_500.0) == 500


def test_a_younger_append_does_not_hide_an_overdue_one() -> None:
    health = healthy(10_000.0)
    health.sent(10_000.0)
    health.acknowledged(health.sent(11_500.0), 11_502.0)
    assert health.up_ms(11_600.0) == 0


def test_a_failed_append_makes_it_0_until_one_comes_through() -> None:
    health = healthy(10_000.0)
    health.failed(health.sent(10_000.0))
    assert health.up_ms(10_100.0) == 0
    health.acknowledged(health.sent(10_200.0), 10_202.0)
    assert health.up_ms(10_300.0) == 100


def test_a_stall_of_the_process_begins_anew() -> None:
    health = healthy(10_000.0)
    health.stalled(10_000.0)
    assert health.up_ms(10_400.0) == 400


def test_a_silence_proves_nothing() -> None:
    """A worker that owned something, then nothing, has not tried: an outage in between is none that it went through."""
    health = healthy(10_000.0)
    assert health.up_ms(9_002.0 + SILENT_MAX_MS) == 9_002 + SILENT_MAX_MS
    assert health.up_ms(9_003.0 + SILENT_MAX_MS) == 0
    append = health.sent(60_000.0)
    assert health.up_ms(60_000.0) == 0
    health.acknowledged(append, 60_002.0)
    assert health.up_ms(60_500.0) == 500


def test_ticks_that_come_each_second_are_no_silence() -> None:
    """Neither are ticks whose acknowledgements take just not too long."""
    health = AppendHealth()
    now = 0.0
    for _ in range(20):
        append = health.sent(now)
        health.acknowledged(append, now + OVERDUE_MS)
        now += OVERDUE_MS + 999.0
    assert health.up_ms(now) == int(now)
