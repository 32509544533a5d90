"""What does an activity say that may move a session's last_seen_at?"""

from __future__ import annotations

from lapse.schemas import DURATION_MAX_MS

__all__ = ["Touch"]


class Touch:
    """An activity that may move last_seen_at: its ages are within their range, in ms.

    Attributes:
        age_ms: instant = stamp - age_ms.
        since_ms: age of the first touch it stands for, >= age_ms.
        pause_ms: the longest pause between them.
        hold_ms: for how long it counts, before the policy's cap.
        session_age_ms: how long before the instant the session started, or None.
    """

    __slots__ = ("age_ms", "hold_ms", "pause_ms", "session_age_ms", "since_ms")

    def __init__(
        self,
        age_ms: int,
        since_ms: int | None = None,
        pause_ms: int | None = None,
        hold_ms: int | None = None,
        session_age_ms: int | None = None,
    ) -> None:
        self.age_ms = age_ms
        self.since_ms = age_ms if since_ms is None else max(since_ms, age_ms)
        self.pause_ms = pause_ms or 0
        # A hold or a start of more than 2**53 ms (285,000 years) away would leave the 64 bits of a column.
        self.hold_ms = min(max(hold_ms or 0, 0), DURATION_MAX_MS)
        self.session_age_ms = None if session_age_ms is None else min(max(session_age_ms, 0), DURATION_MAX_MS)
