"""What comes out of the engine? Effects, as data; the processor publishes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lapse.pipeline.engine.log_clock import ClockAlarm
from lapse.schemas import DeadLetter, SessionEnded, SessionExpiring, Violation

__all__ = ["Checkpoint", "Effects", "Forward"]


class Forward(NamedTuple):
    """A record that belongs to another partition.

    Attributes:
        partition: where its subject belongs.
        record: the JSON object with `forwarded` set and without `mac`; its ages are those of `stamp`. The sender grows
            `age_ms` (and `since_ms`) by its estimate of log time minus `stamp`, and signs it for `partition`.
        stamp: the stamp it had here, epoch ms.
    """

    partition: int
    record: dict[str, Any]
    stamp: int


@dataclass(slots=True)
class Effects:
    """What one batch brought about, each list in the order in which it came about."""

    endings: list[SessionEnded] = field(default_factory=list)
    warnings: list[SessionExpiring] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    alarms: list[ClockAlarm] = field(default_factory=list)
    """Steps of the broker's clock that were taken out."""
    ticked: bool = False
    """A valid tick of the current or a newer epoch was among the records."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The changed state as of one exact input offset.

    Attributes:
        offset: every record below it is in the state, none at or above it.
        records: (key, value) for `lapse.state`, the marker (key b"m") last.
    """

    offset: int
    records: list[tuple[bytes, bytes | None]]
