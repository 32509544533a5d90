"""Does a person see what there is, on a terminal of 80 columns and 24 lines?"""

from __future__ import annotations

import time
from collections import Counter

import pytest
from rich.console import Console

from lapse.pipeline.demo.measure import Percentiles
from lapse.pipeline.demo.observing import Event, Observer
from lapse.pipeline.demo.people import Crowd, CrowdCounts
from lapse.pipeline.demo.recompute import Finding, Verdict
from lapse.pipeline.demo.summary import Result
from lapse.pipeline.demo.view import FINDINGS_SHOWN, progress, summary, view
from lapse.pipeline.settings import Settings
from lapse.schemas import Cause, GuardStatus


def _result(**changes: object) -> Result:
    verdict = Verdict(900, {Cause.IDLE: 200, Cause.REVOKED: 40}, (), ())
    values = {
        "verdict": verdict,
        "lateness": Percentiles(260.0, 300.5),
        "propagation": Percentiles(2.5, None),
        "accepted_after_end": 0,
        "crowd": CrowdCounts(refused=Counter({"shop": 3, "billing": 4})),
    }
    return Result(**(values | changes))  # type: ignore[arg-type]  # the values above, and what a test changes


def _printed(renderable: object) -> str:
    console = Console(width=80, height=24, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.fixture
def observer() -> Observer:
    found = Observer(Settings(kafka="127.0.0.1:9"), {})
    found.causes.update({Cause.IDLE: 1234, Cause.ABSOLUTE: 17})
    found.live.update(("a", "b"))
    for number in range(10):
        found.events.append(Event(1_700_000_000_000 + number, "idle", f"person-\x1b[31m{number}", "ended 260 ms after"))
    found.guards["shop"] = GuardStatus(
        service="shop",
        instance="i",
        version="1",
        applied={},
        stale_ms=120,
        entries=512,
        checks=90210,
        refused=14,
        allowed_while_stale=0,
    )
    return found


def test_the_view_fits_a_small_terminal_and_shows_all_parts(observer: Observer) -> None:
    lines = _printed(view(observer, Crowd({}), time.monotonic(), 60)).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for part in ("2 sessions live", "1234", "90210", "lateness", "propagation", "last events", "person-"):
        assert part in text
    assert "\x1b[31m" not in text


def test_progress_is_one_line(observer: Observer) -> None:
    line = progress(observer, Crowd({}), time.monotonic())
    assert "2 sessions live" in line
    assert "idle 1234" in line
    assert "\n" not in line


def test_the_result_has_the_form_that_is_published() -> None:
    assert _result().as_json() == {
        "sessions": 900,
        "endings": {"idle": 200, "absolute": 0, "revoked": 40, "closed": 0},
        "early": 0,
        "missed": 0,
        "accepted_after_end": 0,
        "lateness_ms": {"p50": 260.0, "p99": 300.5},
        "propagation_ms": {"p50": 2.5, "p99": None},
        "refused": 7,
    }


def test_anything_wrong_makes_the_result_wrong_and_is_said() -> None:
    wrong = Finding("s-1", "over since 5, and its partition is silent")
    early = Verdict(1, {}, (wrong,), ())
    missed = Verdict(1, {}, (), (wrong,) * (FINDINGS_SHOWN + 5))
    assert _result().is_right
    for result in (_result(verdict=early), _result(verdict=missed), _result(accepted_after_end=1)):
        assert not result.is_right
    assert "early: s-1 over since 5" in _printed(summary(_result(verdict=early)))
    assert "and 5 more" in _printed(summary(_result(verdict=missed)))
