"""Goal: checkpoints come as often as set, unless their cuts would take more than a fortieth of the time."""

import pytest

from lapse.pipeline.processor.pace import INTERVAL_MAX_S, CheckpointPace


def test_short_cuts_leave_the_interval_as_it_is_set() -> None:
    pace = CheckpointPace(2.0)
    for partition in range(8):
        pace.cut(partition, 0.005)
    assert pace.interval_s == 2.0


def test_long_cuts_stretch_it_up_to_a_limit_and_partitions_that_are_gone_do_not_count() -> None:
    pace = CheckpointPace(2.0)
    for partition in range(8):
        pace.cut(partition, 0.03)
    assert pace.interval_s == pytest.approx(9.6)
    for partition in range(4):
        pace.gave_up(partition)
    assert pace.interval_s == pytest.approx(4.8)
    pace.cut(4, 30.0)
    assert pace.interval_s == INTERVAL_MAX_S
    pace.cut(4, 0.0)
    assert pace.interval_s == pytest.approx(3.6)


def test_a_longer_setting_is_kept() -> None:
    pace = CheckpointPace(60.0)
    pace.cut(0, 30.0)
    assert pace.interval_s == 60.0


def test_before_the_first_cut_it_goes_by_the_sessions() -> None:
    pace = CheckpointPace(2.0)
    for partition in range(8):
        pace.begin(partition, 125_000)
    assert pace.interval_s == pytest.approx(5.0)
    for partition in range(8):
        pace.cut(partition, 0.001)
    assert pace.interval_s == 2.0
