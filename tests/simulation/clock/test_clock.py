"""Is log time never ahead of the truth, and does no session end early, whatever the broker's clock does?

Method: scenarios of real time from fixed seeds (model.py); the whole numbers are in docs/adr/0006 and come from
`python -m tests.simulation.clock`. Each check is tried on a clock that it must reject.
"""

from __future__ import annotations

from collections import Counter

import pytest

from lapse.pipeline.engine import core, log_clock
from lapse.pipeline.engine.append_clock import AppendClock

from tests.simulation.clock.estate import live
from tests.simulation.clock.model import SETS, Conditions, play

BOUND_MS = 700.0
CERTAIN = SETS[:5]
"""The sets that leave nothing to chance: no steps that cancel each other unseen, no walls that err with the broker."""


@pytest.mark.parametrize("conditions", SETS, ids=[conditions.name for conditions in SETS])
def test_log_time_never_falls(conditions: Conditions) -> None:
    """T is monotone, also where it cannot be right."""
    assert not [seed for seed in range(40) if play(seed, conditions).fell]


@pytest.mark.parametrize("conditions", CERTAIN, ids=[conditions.name for conditions in CERTAIN])
def test_log_time_is_never_ahead_of_a_stamp(conditions: Conditions) -> None:
    """Nothing ends by log time before it would by true time, to within what brackets and leaders' skew leave open."""
    assert [(seed, early) for seed in range(150) if (early := play(seed, conditions).early) > BOUND_MS] == []


def test_a_step_is_reported_with_direction_and_size() -> None:
    """Steps large enough to be told apart give one alarm each, of the right sign and size."""
    said = Counter[str]()
    for seed in range(150):
        alarms = [alarm for _, alarm in play(seed, SETS[2]).alarms]
        said.update(alarm.kind for alarm in alarms)
        assert all((alarm.moved_ms > 0) == (alarm.kind != "back") for alarm in alarms), (seed, alarms)
    assert said["forward"] >= 30
    assert said["back"] >= 30


@pytest.mark.parametrize("conditions", CERTAIN, ids=[conditions.name for conditions in CERTAIN])
def test_no_session_ends_early_and_none_is_missed(conditions: Conditions) -> None:
    """The whole engine, in true time, with checkpoints and restores: 0 early, 0 missed, one ending each."""
    endings = 0
    for seed in range(40):
        verdict = live(seed, conditions)
        assert (verdict.early, verdict.missed, verdict.wrong) == ([], [], []), seed
        endings += verdict.endings
    assert endings > 150


def test_the_check_rejects_a_clock_that_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By append times alone, sessions end early under one step in some estates."""
    monkeypatch.setattr(core, "DisciplinedClock", AppendClock)
    assert any(live(seed, SETS[2]).early for seed in range(40))


def test_the_check_rejects_an_engine_that_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disciplined log time alone is not enough: stamps lie, and what they call late is lost."""
    monkeypatch.setattr(log_clock.DisciplinedClock, "suspicious", lambda self, append: False)
    verdicts = [live(seed, SETS[2]) for seed in range(60)]
    assert any(verdict.early or verdict.missed or verdict.wrong for verdict in verdicts)
