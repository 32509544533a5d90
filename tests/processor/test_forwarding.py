"""Goal: a forwarded record stands for the same instants as the original.

Method: the growing of ages is pure; the rest is shown on a real broker (tests/integration/test_processor_copies.py).
"""

from __future__ import annotations

from lapse.pipeline.processor.forwarding import grown
from lapse.schemas import INT64_MAX

TOUCH = {"type": "session.touched", "age_ms": 40, "since_ms": 900, "pause_ms": 300, "hold_ms": 5, "session_age_ms": 7}


def test_ages_grow_and_lengths_do_not() -> None:
    assert grown(TOUCH, 60) == {**TOUCH, "age_ms": 100, "since_ms": 960}


def test_nothing_gets_younger() -> None:
    assert grown(TOUCH, -5) == TOUCH


def test_an_age_that_was_not_given_is_not_made_up() -> None:
    assert grown({"age_ms": 1, "since_ms": None}, 9) == {"age_ms": 10, "since_ms": None}
    assert grown({"age_ms": 1}, 9) == {"age_ms": 10}


def test_an_absurd_age_stays_readable() -> None:
    assert grown({"age_ms": INT64_MAX}, 9) == {"age_ms": INT64_MAX}


def test_the_original_is_not_touched() -> None:
    original = dict(TOUCH)
    grown(original, 60)
    assert original == TOUCH
