"""How much time has passed, by a clock that nobody sets?"""

import time

__all__ = ["monotonic_ms"]


def monotonic_ms() -> float:
    """Return this process's monotonic clock, ms: no instant of the log, and of no meaning to another process."""
    return time.monotonic() * 1000
