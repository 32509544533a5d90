"""Goal: the owner's estimate of log time is never ahead of the log's clock, and follows it closely.

Method: a simulated log clock and network, seeded by hypothesis; the estimate is compared with the truth.
"""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from lapse.pipeline.processor.log_time import DRIFT_MAX, LogTime

delays = st.floats(0.0, 400.0)


@given(
    offset=st.integers(-(10**12), 10**12),
    appends=st.lists(st.tuples(st.floats(0.0, 2_000.0), delays, delays), min_size=1, max_size=30),
    rest=st.floats(0.0, 5_000.0),
)
async def test_the_estimate_is_never_ahead_and_lags_by_the_way_back(
    offset: int, appends: list[tuple[float, float, float]], rest: float
) -> None:
    """The log's clock is `mono + offset`; an append is on its way for `there`, its acknowledgement for `back`."""
    log_time = LogTime()
    mono = 0.0
    shortest = float("inf")
    for pause, there, back in appends:
        mono += pause
        appended_at = math.floor(mono + there + offset)
        log_time.observe(sent_ms=mono, acked_ms=mono + there + back, appended_at=appended_at)
        mono += there + back
        shortest = min(shortest, back)
    now = mono + rest
    # Half a microsecond for floats of this size.
    assert log_time.at(now) <= now + offset + 1e-3
    assert log_time.at(now) >= now + offset - shortest - 1 - DRIFT_MAX * mono - 1e-3


async def test_it_follows_a_clock_that_goes_back_at_the_next_append() -> None:
    log_time = LogTime()
    log_time.observe(sent_ms=0, acked_ms=2, appended_at=3_600_001)
    assert log_time.at(2) == 3_600_001
    log_time.observe(sent_ms=1_000, acked_ms=1_002, appended_at=1_001)
    assert log_time.at(1_002) == 1_001


async def test_it_follows_a_clock_that_goes_forward_at_the_next_append() -> None:
    log_time = LogTime()
    log_time.observe(sent_ms=0, acked_ms=2, appended_at=1)
    log_time.observe(sent_ms=1_000, acked_ms=1_002, appended_at=3_601_001)
    assert log_time.at(1_002) == 3_601_001


async def test_a_late_acknowledgement_does_not_worsen_it() -> None:
    log_time = LogTime()
    log_time.observe(sent_ms=0, acked_ms=2, appended_at=1)
    log_time.observe(sent_ms=1_000, acked_ms=1_900, appended_at=1_001)
    assert abs(log_time.at(1_900) - 1_899) <= DRIFT_MAX * 1_900


async def test_it_is_known_from_the_first_append_on() -> None:
    log_time = LogTime()
    known = [log_time.known]
    log_time.observe(sent_ms=0, acked_ms=2, appended_at=1)
    known.append(log_time.known)
    assert known == [False, True]
    await log_time.wait_known()


def test_an_age_goes_by_the_lesser_of_both_clocks_until_the_engine_can_say() -> None:
    """Whichever was set forward must not make a session older than it is; what the engine says is neither's."""
    said: list[float] = []
    log_time = LogTime(lambda mono_ms: said[-1] if said else None)
    log_time.observe(sent_ms=0, acked_ms=2, appended_at=3_600_002)
    assert log_time.surely_at(2, wall_at=5_000) == 5_000
    assert log_time.surely_at(2, wall_at=9_000_000) == 3_600_002
    said.append(4_000.0)
    assert log_time.surely_at(2, wall_at=1) == 4_000
