"""Goal: how a log is cut into batches changes nothing, also where its broker's clock is set.

Method: a log whose records share their append times by twos and threes, the tick first, with a step of the clock in the
middle; read whole, and record by record. What is said and what is saved must be the same bytes.
"""

from __future__ import annotations

import pytest

from lapse.pipeline.engine import PartitionEngine
from lapse.schemas import encode

from tests.engine.records import Log, default_policy, revocation_ordered, settings, started, tick, touched

STEP_AT_MS = 6_000


def log_with_a_step(by_ms: int) -> Log:
    """Return 12 s of a log; a second of it is a tick, an order and a login of one append time."""
    log = Log(settings(clock="disciplined"))
    log.add(0, default_policy())
    prev = ack = None
    for second in range(1, 13):
        for extra in (0, 40, 80) if second * 1000 > STEP_AT_MS else (0,):
            now = second * 1000 + extra
            append = now + 3 + (by_ms if now > STEP_AT_MS else 0)
            log.add(append, tick(now, wall_at=1_700_000_000_000 + now, prev_ms=prev, ack_ms=ack))
            log.add(append, revocation_ordered(append - 20, f"r-{now}", subject=f"u-{second % 4}"))
            log.add(append, started(f"s-{now}", subject=f"u-{second % 3}"))
            log.add(append, touched(f"s-{now - 1000}", subject=f"u-{(second - 1) % 3}"))
            prev, ack = now, now + 5
    return log


@pytest.mark.parametrize("by_ms", [-3_600_000, -1_500, -300, -33, 33, 300, 1_500, 3_600_000])
def test_a_log_with_a_step_is_the_same_in_any_batches(by_ms: int) -> None:
    log = log_with_a_step(by_ms)
    whole, single = PartitionEngine(log.settings), PartitionEngine(log.settings)
    said = [encode(ending) for ending in whole.apply(log.records).endings]
    assert [encode(ending) for record in log.records for ending in single.apply([record]).endings] == said
    assert single.cut() == whole.cut()
