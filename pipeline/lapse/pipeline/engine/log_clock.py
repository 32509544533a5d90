"""What time is it in this log?

Theory of operation
-------------------
The log is the clock (DESIGN.md section 2). A clock of one partition gives two readings:

* `record(append)` gives a record's *stamp*: its append time, kept monotone. Stamps decide.
* `time` is *log time*: how far time has certainly come. It only says when an ending that is settled may be emitted.

`AppendClock` is the first form: log time is the latest stamp. It follows the broker's clock wherever that goes. A
form that survives steps of the broker's clock needs what ticks carry (`epoch`, `mono_ms`, `wall_at`, `prev_ms`,
`ack_ms`), so every clock is shown every tick through `tick`, and may then move `time`."""

from __future__ import annotations

from typing import Protocol

from lapse.schemas import ClockTick

__all__ = ["AppendClock", "LogClock"]


class LogClock(Protocol):
    """The clock of one partition, fed with append times (epoch ms) in log order."""

    stamp: int
    """The latest stamp, epoch ms; 0 before the first record."""

    time: int
    """Log time, epoch ms; never falls."""

    def record(self, append: int) -> int:
        """Take in a record's append time and return its stamp."""

    def tick(self, append: int, tick: ClockTick) -> None:
        """Take in a valid tick of the owner, after `record(append)` of the same record."""

    def save(self) -> dict[str, int]:
        """Return the state for a checkpoint."""

    def load(self, state: dict[str, int]) -> None:
        """Take the state of a checkpoint back."""


class AppendClock:
    """Log time is the latest stamp; see the module's theory of operation."""

    __slots__ = ("stamp", "time")

    def __init__(self) -> None:
        self.stamp = 0
        self.time = 0

    def record(self, append: int) -> int:
        """Return the stamp: never below the one before it."""
        if append > self.stamp:
            self.stamp = self.time = append
        return self.stamp

    def tick(self, append: int, tick: ClockTick) -> None:
        """A tick is a record like any other to this clock."""

    def save(self) -> dict[str, int]:
        """Return the state for a checkpoint."""
        return {"stamp": self.stamp}

    def load(self, state: dict[str, int]) -> None:
        """Take the state of a checkpoint back."""
        self.stamp = self.time = state["stamp"]
