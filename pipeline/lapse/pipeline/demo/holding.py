"""When does the auditor take the log to have been away, and hold idle endings for it?

DESIGN.md section 2, "An outage of the log logs nobody out", in its plainest form. A jump of the stamp by more than
`gap_ms` begins a hold. The owner's next tick gives it an end, `gap_grace_ms` after the jump. If that tick's appends
worked since before the jump, and the tick after it shows that it was acknowledged within a second, the log was there,
and the hold is off.
"""

from __future__ import annotations

from typing import Final

from lapse.schemas import ClockTick

__all__ = ["Holding"]

_ACKNOWLEDGED_WITHIN_MS: Final = 1_000


class Holding:
    """The hold of one partition.

    Attributes:
        on: whether idle endings are held at the present record.
        last_inside: stamp of the last record for which it was on.
        ran_out_at: where the last hold ended that ran its time; None: another began since, or was turned off by proof.
        ran_out_now: whether the present record is the first one after it.
    """

    def __init__(self, gap_ms: int, gap_grace_ms: int) -> None:
        self._gap_ms = gap_ms
        self._gap_grace_ms = gap_grace_ms
        self.on = False
        self.last_inside = -1
        self.ran_out_at: int | None = None
        self.ran_out_now = False
        self._before_at = 0
        self._jump_at = 0
        self._ends_at: int | None = None
        self._unproven: ClockTick | None = None
        self._epoch = -1

    def move(self, before: int | None, stamp: int) -> None:
        """Take in that the stamp moved; `before` is None at the first record, which is no jump."""
        self.ran_out_now = False
        if before is not None and stamp - before > self._gap_ms:
            self.on, self._before_at, self._jump_at = True, before, stamp
            self._ends_at = self._unproven = self.ran_out_at = None
        elif self.on and self._ends_at is not None and stamp >= self._ends_at:
            self.on, self.ran_out_at, self.ran_out_now = False, self._ends_at, True
        if self.on:
            self.last_inside = stamp

    def tick(self, stamp: int, tick: ClockTick) -> None:
        """Take in a tick of the owner; one of a former owner says nothing."""
        if tick.epoch < self._epoch:
            return
        self._epoch = tick.epoch
        if not self.on:
            return
        if self._ends_at is None:
            self._ends_at = self._jump_at + self._gap_grace_ms
            self._unproven = tick if stamp - tick.up_ms <= self._before_at else None
        elif self._unproven is not None:
            first, self._unproven = self._unproven, None
            if (
                tick.epoch == first.epoch
                and tick.prev_ms == first.mono_ms
                and tick.ack_ms is not None
                and 0 <= tick.ack_ms - first.mono_ms <= _ACKNOWLEDGED_WITHIN_MS
            ):
                self.on = False
