"""Goal: what the wire allows and nobody can mean is not set. Method: each is refused, and its neighbour taken."""

from __future__ import annotations

from typing import Any

import pytest

from lapse.pipeline.operations.policies import refuse_senseless
from lapse.pipeline.settings import Settings
from lapse.schemas import ConfigError, Policy

SETTINGS = Settings(kafka="127.0.0.1:1", session_life_max_ms=86_400_000)


def policy(**limits: Any) -> Policy:
    return Policy.model_validate({"name": "p", "idle_ms": 900_000, "absolute_ms": 28_800_000, **limits})


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"absolute_ms": 86_400_001}, "session_life_max_ms"),
        ({"token_life_ms": 86_400_001}, "session_life_max_ms"),
        ({"warn_before_ms": 900_000}, "warn_before_ms"),
        ({"idle_ms": None, "warn_before_ms": 28_800_000}, "warn_before_ms"),
    ],
)
def test_a_policy_that_nobody_can_mean_is_refused(limits: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        refuse_senseless(policy(**limits), SETTINGS)


@pytest.mark.parametrize(
    "limits",
    [
        {"absolute_ms": 86_400_000},
        {"absolute_ms": None, "idle_ms": None, "warn_before_ms": 60_000},
        {"warn_before_ms": 899_999},
    ],
)
def test_its_neighbours_are_taken(limits: dict[str, Any]) -> None:
    refuse_senseless(policy(**limits), SETTINGS)
