"""Which numbers rule one partition's engine?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lapse.schemas import AGE_MAX_MS

__all__ = ["EngineSettings"]


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings of one partition's engine; durations in ms (defaults and meanings: DESIGN.md sections 2 and 3)."""

    partition: int
    partitions: int
    worker_key: bytes
    topic: str = "lapse.activity"
    grace_ms: int = 250
    gap_ms: int = 3_000
    gap_grace_ms: int = 5_000
    age_max_ms: int = AGE_MAX_MS
    ended_memory_ms: int = 3_600_000
    violation_after_ms: int = 2_000
    session_life_max_ms: int = 30 * 86_400_000
    adopt_unknown: bool = True
    clock: Literal["disciplined", "append"] = "disciplined"
    """`append`: the broker's clock is believed, and records that are no ticks move time (append_clock.py)."""
