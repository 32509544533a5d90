"""What if the broker's clock is simply right? The first form of log time: the latest append time.

It follows the broker's clock wherever that goes, and knows nothing of ticks. Every stamp is final at once. Rules are
tested with it one by one, record by record; workers run the disciplined clock (log_clock.py).
"""

from __future__ import annotations

from lapse.pipeline.engine.log_clock import Decision
from lapse.schemas import ClockTick

__all__ = ["AppendClock"]


class AppendClock:
    """Log time is the latest append time, kept monotone; see `LogClock` for the methods."""

    __slots__ = ("time",)

    final = True
    offset_ms = 0
    doubtful = False

    def __init__(self) -> None:
        self.time = 0

    def suspicious(self, append: int) -> bool:  # the interface's
        """No append time is."""
        return False

    def record(self, append: int) -> int:
        """Return the append time as it is."""
        if append > self.time:
            self.time = append
        return append

    def tick(self, append: int, tick: ClockTick) -> Decision | None:  # the interface's
        """A tick is a record like any other to this clock."""
        return None

    def time_at(self, epoch: int, mono_ms: float) -> float | None:  # the interface's
        """It knows nothing of the owner's clock."""
        return None

    def presume(self) -> None:
        """Nothing is ever undecided."""

    def copy(self) -> AppendClock:
        """Return a clock that stands where this one does."""
        other = AppendClock()
        other.time = self.time
        return other

    def save(self) -> dict[str, int | float | None]:
        """Return the state for a checkpoint."""
        return {"time": self.time}

    def load(self, state: dict[str, int | float | None]) -> None:
        """Take the state of a checkpoint back."""
        self.time = int(state["time"] or 0)
