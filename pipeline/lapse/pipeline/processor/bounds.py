"""When do operators hear that a bound refuses sessions?

The engine counts what its bounds refuse (docs/adr/0008-bounds.md); the metric `lapse_engine_total` has the counts. A
log line says so at once, and then at most once a minute a partition, however fast a flood comes.
"""

from collections.abc import Mapping
from typing import Final

import structlog

from lapse.pipeline.engine.sessions import REFUSED_CLASS, REFUSED_FULL, REFUSED_SUBJECT, VIOLATIONS_UNREPORTED
from lapse.pipeline.engine.settings import EngineSettings

__all__ = ["ALARM_INTERVAL_MS", "BoundsAlarm"]

ALARM_INTERVAL_MS: Final = 60_000

_log = structlog.get_logger("lapse.processor")


class BoundsAlarm:
    """Watches one partition's counters."""

    def __init__(self, settings: EngineSettings) -> None:
        self._partition = settings.partition
        self._told: dict[str, int] = {}
        self._quiet_until_ms = float("-inf")
        untimed = "sessions are refused: they will not be timed, and no ending will tell of them"
        self._meaning = {
            REFUSED_FULL: f"{untimed}. A flood, or LAPSE_SESSIONS_MAX={settings.sessions_max} is too small: one "
            "partition may have so many live sessions, and remember so many ended ones. Look who reports them",
            REFUSED_SUBJECT: f"{untimed}. Somebody logs in without end, or "
            f"LAPSE_SESSIONS_PER_SUBJECT_MAX={settings.sessions_per_subject_max} is too small",
            REFUSED_CLASS: f"{untimed}. A service gives logins attributes, or a token_life_ms, that differ from login "
            f"to login: one partition may have {settings.classes_max} such classes. Send only what policies match",
            VIOLATIONS_UNREPORTED: "violations are counted, not reported: too many ended sessions are in use. "
            "A service accepts them without a guard, see `lapse fleet`",
        }

    def look(self, counters: Mapping[str, int], now_ms: float) -> None:
        """Say what has been refused since the last word, if it is time."""
        if now_ms < self._quiet_until_ms:
            return
        for what, meaning in self._meaning.items():
            count = counters.get(what, 0)
            new = count - self._told.get(what, 0)
            if new:
                self._told[what] = count
                self._quiet_until_ms = now_ms + ALARM_INTERVAL_MS
                _log.error(meaning, partition=self._partition, **{what: new})
