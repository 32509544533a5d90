"""What do this machine's clocks say? The one file that reads them; nothing decided about a session comes from here.

Two clocks, for two purposes:

- `mono_ms`: counts on through suspension (CLOCK_BOOTTIME), never steps. Ticks carry it, and the owner's estimate of log
  time rests on it. CLOCK_MONOTONIC stands still while a machine sleeps: a worker that woke would take a tick that lay
  in it for hours to be fresh.
- `wall_at`: what the machine believes the time is. It goes into ticks as evidence (CLOCK.md) and decides nothing.
"""

import time
from typing import Final

__all__ = ["mono_ms", "wall_at"]

# macOS has no CLOCK_BOOTTIME; its CLOCK_MONOTONIC already counts on through sleep.
_STEADY: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def mono_ms() -> float:
    """Return milliseconds of a clock that never steps and counts on through suspension. Its zero means nothing."""
    return time.clock_gettime_ns(_STEADY) / 1e6


def wall_at() -> int:
    """Return the machine's wall clock, epoch milliseconds. It may be wrong."""
    return time.time_ns() // 1_000_000
