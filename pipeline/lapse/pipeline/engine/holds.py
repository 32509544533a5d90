"""Was the log away, and are idle endings held because of it?

Theory of operation
-------------------
An outage of the log must log nobody out: while it lasts no touch can be appended, and when it is over the touches that
services kept need a moment to arrive. The log shows an outage as a jump of its stamps by more than `gap_ms`. But a
failover of the owner on a silent partition looks the same, and must not delay anything. The owner's ticks tell the two
apart.

    none ──jump──> awaiting_tick ──tick covers the jump──> awaiting_ack ──acknowledged in time──> none
                        │                                      │
                        └── tick does not cover it ──> outage <┘ not shown to be
                                                          │
                                                          └── stamp reaches the end ──> none

A tick *covers* the jump when its owner's appends have worked since before it: `stamp - up_ms` is not after the stamp
before the jump. A tick that lay in a client through the outage would claim that too; so the tick after it must show
that it was acknowledged within a second. From the first tick on the hold has an end, `jump + gap_grace_ms`, whatever
comes out; before that tick it has none. A new jump starts anew. A hold is on for stamps below its end.

A step of the broker's clock may hide an outage, or most of it. So a hold begins also where one is taken out, by a tick
of an owner whose appends have not worked for as long as a hold lasts.

What was delayed is known by time alone: an idle ending whose instant (due + grace) is not after `held_through`, the
stamp of the last record inside the hold, would have been settled by some earlier record.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from lapse.schemas import ClockTick

__all__ = ["ACKNOWLEDGED_WITHIN_MS", "Hold"]

ACKNOWLEDGED_WITHIN_MS = 1000
"""A tick whose acknowledgement took longer proves nothing about when it was appended (DESIGN.md section 2)."""

Phase = Literal["none", "awaiting_tick", "awaiting_ack", "outage"]


@dataclass(slots=True)
class Hold:
    """The hold of one partition. Instants are stamps, epoch ms; see the module's theory of operation."""

    gap_ms: int
    gap_grace_ms: int
    phase: Phase = "none"
    jump_at: int = 0
    before_at: int = 0
    tick_epoch: int = 0
    tick_mono_ms: int = 0
    held_through: int = -1
    ended_at: int = -1
    """Where the last hold that ran its time ended; -1 when it was turned off by proof."""

    @property
    def on(self) -> bool:
        """Whether idle endings are held at the latest stamp."""
        return self.phase != "none"

    @property
    def ends_at(self) -> int | None:
        """The stamp at which the hold is over, or None: no hold, or its end is not known yet."""
        return self.jump_at + self.gap_grace_ms if self.phase in ("awaiting_ack", "outage") else None

    def moved(self, before: int, stamp: int) -> bool:
        """Take in that the stamp moved from `before` (> 0) to `stamp`; return whether a hold just ended by time."""
        if stamp - before > self.gap_ms:
            self.phase, self.jump_at, self.before_at = "awaiting_tick", stamp, before
            return False
        if self.phase in ("awaiting_ack", "outage") and stamp >= self.jump_at + self.gap_grace_ms:
            self.phase = "none"
            self.ended_at = self.jump_at + self.gap_grace_ms
            return True
        return False

    def tick(self, stamp: int, tick: ClockTick) -> bool:
        """Take in a valid tick of the current epoch; return whether the hold is over with it."""
        if self.phase == "awaiting_tick":
            covers = stamp - tick.up_ms <= self.before_at
            self.phase = "awaiting_ack" if covers else "outage"
            self.tick_epoch, self.tick_mono_ms = tick.epoch, tick.mono_ms
            if stamp >= self.jump_at + self.gap_grace_ms:  # the first tick came after all that a hold waits for
                self.phase, self.ended_at = "none", self.jump_at + self.gap_grace_ms
                return True
        elif self.phase == "awaiting_ack":
            shown = (
                tick.epoch == self.tick_epoch
                and tick.prev_ms == self.tick_mono_ms
                and tick.ack_ms is not None
                and 0 <= tick.ack_ms - self.tick_mono_ms <= ACKNOWLEDGED_WITHIN_MS
            )
            self.phase = "none" if shown else "outage"
            if shown:
                self.ended_at = -1
            return shown
        return False

    def stepped(self, stamp: int, up_ms: int) -> None:
        """Take in that a step of the broker's clock was taken out at this stamp, by a tick with this `up_ms`.

        Stamps do not tell then how long the log had been away. Only an owner whose appends have worked since before all
        that a hold waits for shows that it was not.
        """
        if up_ms < self.gap_grace_ms:
            self.phase, self.jump_at, self.before_at = "outage", stamp, stamp

    def save(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {name: value for name, value in asdict(self).items() if name not in ("gap_ms", "gap_grace_ms")}

    def load(self, state: dict[str, object]) -> None:
        """Take the state of a checkpoint back."""
        for name, value in state.items():
            setattr(self, name, value)
