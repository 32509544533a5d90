"""Which numbers rule one partition's engine?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lapse.schemas import AGE_MAX_MS

__all__ = ["CLASSES_MAX", "SESSIONS_MAX", "SESSIONS_PER_SUBJECT_MAX", "EngineSettings"]

SESSIONS_MAX = 1_000_000
"""Live sessions of a partition, and as many remembered ones. 0.4 KB a session (names of 30 characters; measured) are
400 MB for either; names of 256 characters make it 1 KB. A million users in each of 8 partitions is no estate that a
partition count of 8 was chosen for."""

SESSIONS_PER_SUBJECT_MAX = 1_000
"""Live sessions of a subject. People have some ten devices, a machine account some hundred instances. A start walks
along its subject's sessions: 70 us at a thousand (measured), so a flood under one name passes at 14,000 a second."""

CLASSES_MAX = 16_384
"""Classes of sessions (tenant, service, policy, attributes, token life) of a partition's live sessions: 0.5 KB each
with one attribute, 8 MB together; 64 KB each where a record is full of them, 1 GB. New policies are held against
each, 7 us a class."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The settings of one partition's engine; durations in ms (defaults and meanings: DESIGN.md sections 2 and 3)."""

    partition: int
    partitions: int
    worker_key: bytes = field(repr=False)  # a secret: no log shows it by accident
    topic: str = "lapse.activity"
    grace_ms: int = 250
    gap_ms: int = 3_000
    gap_grace_ms: int = 5_000
    age_max_ms: int = AGE_MAX_MS
    ended_memory_ms: int = 3_600_000
    violation_after_ms: int = 2_000
    session_life_max_ms: int = 30 * 86_400_000
    adopt_unknown: bool = True
    sessions_max: int = SESSIONS_MAX
    sessions_per_subject_max: int = SESSIONS_PER_SUBJECT_MAX
    classes_max: int = CLASSES_MAX
    clock: Literal["disciplined", "append"] = "disciplined"
    """`append`: the broker's clock is believed, and records that are no ticks move time (append_clock.py)."""
