"""When do operators hear that a bound refuses sessions?

The engine counts what its bounds refuse (docs/adr/0008-bounds.md); the metric `lapse_engine_total` has the counts. A
log line says so at once, and then at most once a minute a partition, however fast a flood comes.
"""

from collections.abc import Mapping
from typing import Final

import structlog

from lapse.pipeline.engine.sessions import REFUSED_FULL, REFUSED_SUBJECT, VIOLATIONS_UNREPORTED

__all__ = ["ALARM_INTERVAL_MS", "BoundsAlarm"]

ALARM_INTERVAL_MS: Final = 60_000

_log = structlog.get_logger("lapse.processor")


class BoundsAlarm:
    """Watches one partition's counters."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._told: dict[str, int] = {}
        self._quiet_until_ms = float("-inf")

    def look(self, counters: Mapping[str, int], now_ms: float) -> None:
        """Say what has been refused since the last word, if it is time."""
        if now_ms < self._quiet_until_ms:
            return
        counts = {what: counters.get(what, 0) for what in (REFUSED_FULL, REFUSED_SUBJECT, VIOLATIONS_UNREPORTED)}
        new = {what: count - self._told.get(what, 0) for what, count in counts.items()}
        if any(new.values()):
            self._told = counts
            self._quiet_until_ms = now_ms + ALARM_INTERVAL_MS
            _log.error(
                "sessions are refused: they will not be timed. A flood, or LAPSE_SESSIONS_MAX or "
                "LAPSE_SESSIONS_PER_SUBJECT_MAX is too small",
                partition=self._partition,
                **new,
            )
