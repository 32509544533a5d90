"""For how long have this worker's appends gone through?

Ticks say it as `up_ms`. After a jump of the stamps the engine asks it whether the log was there all the while (a worker
failed over) or not (an outage, and what services kept is still on its way). So it must never claim too much:

- it counts from the sending of the first append that was acknowledged,
- an append that is overdue (OVERDUE_MS) makes it 0 until it is acknowledged, and counts anew from there,
- so does one that failed, and a stall of this process in which nothing could have been noticed,
- and a silence (SILENT_MAX_MS) in which it appended nothing: what was not tried has not gone through.

A spare worker that owns nothing, or owns nothing any more, appends nothing: it has proved nothing, and its first
partition pays one hold.
"""

from typing import Final

__all__ = ["OVERDUE_MS", "SILENT_MAX_MS", "AppendHealth"]

# DESIGN.md section 2: "not failed or been overdue by more than a second".
OVERDUE_MS: Final = 1_000

# Whoever owns a partition ticks every second and waits for each tick, which is overdue after another. Found by the
# simulator: a worker whose partitions were moved away as an outage began, and that was given others as it ended, had
# tried nothing in between and claimed to have been up; so the outage passed for a failover, and logged people out.
SILENT_MAX_MS: Final = 2_000


class AppendHealth:
    """Counts, for one worker, since when its appends have gone through."""

    __slots__ = ("_last_ms", "_next", "_open", "_since_ms")

    def __init__(self) -> None:
        self._since_ms: float | None = None
        self._last_ms = 0.0  # when the last append was sent or acknowledged
        # Appends under way, oldest first (a dict keeps the order). At most one tick and one copy a partition, each with
        # its batch of at most COPY_BATCH records: some thousands.
        self._open: dict[int, float] = {}
        self._next = 0

    def sent(self, mono_ms: float) -> int:
        """Note that an append is on its way; return what `acknowledged` or `failed` will be told."""
        if self._is_silent(mono_ms):
            self._since_ms = None
        self._last_ms = mono_ms
        self._next += 1
        self._open[self._next] = mono_ms
        return self._next

    def acknowledged(self, append: int, mono_ms: float) -> None:
        """Note that the append stands in the log."""
        sent_ms = self._open.pop(append)
        self._last_ms = mono_ms
        if mono_ms - sent_ms > OVERDUE_MS:
            self._since_ms = mono_ms
        elif self._since_ms is None:
            self._since_ms = sent_ms

    def failed(self, append: int) -> None:
        """Note that the append will not be made."""
        self._open.pop(append, None)
        self._since_ms = None

    def stalled(self, mono_ms: float) -> None:
        """Note that this process stood still for longer than an append may be overdue."""
        if self._since_ms is not None:
            self._since_ms = mono_ms

    def up_ms(self, mono_ms: float) -> int:
        """Return for how long appends have gone through; 0 while one is overdue, or none was tried for too long."""
        if self._since_ms is None or self._is_silent(mono_ms):
            return 0
        oldest = next(iter(self._open.values()), mono_ms)
        if mono_ms - oldest > OVERDUE_MS:
            return 0
        return max(0, int(mono_ms - self._since_ms))

    def _is_silent(self, mono_ms: float) -> bool:
        return not self._open and mono_ms - self._last_ms > SILENT_MAX_MS
