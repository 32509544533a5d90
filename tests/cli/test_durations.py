"""Goal: a duration means what its writer means, or is refused. Method: a table, and a round trip over all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.pipeline.cli.durations import BadDuration, format_duration, parse_duration
from lapse.schemas import DURATION_MAX_MS


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("15m", 900_000),
        ("8h", 28_800_000),
        ("90s", 90_000),
        ("500ms", 500),
        ("7d", 604_800_000),
        ("1h30m", 5_400_000),
        ("1h 30m", 5_400_000),
        ("1.5s", 1_500),
        ("15M", 900_000),
        ("1.001s", 1_001),
        ("0.057s", 57),
    ],
)
def test_a_number_and_a_unit_is_a_duration(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "15",
        "m",
        "15 minutes",
        "-5m",
        "0s",
        "1.5ms",
        "1m!",
        "none",
        "\uff15m",
        "1e3s",
        "9" * 5_000 + "d",
        "104249992d",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadDuration):
        parse_duration(text)


@given(st.integers(min_value=1, max_value=DURATION_MAX_MS))
def test_what_is_shown_is_read_back_as_the_same(ms: int) -> None:
    assert parse_duration(format_duration(ms)) == ms


def test_no_limit_is_none() -> None:
    assert format_duration(None) == "none"
