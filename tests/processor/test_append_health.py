"""Goal: `up_ms` never claims that appends went through when they did not.

Method: appends are told one by one, with the time passed in.
"""

from __future__ import annotations

from lapse.pipeline.processor.append_health import OVERDUE_MS, AppendHealth


def healthy(until_ms: float) -> AppendHealth:
    health = AppendHealth()
    health.acknowledged(health.sent(0.0), 2.0)
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
