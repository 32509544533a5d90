"""Which clock do ages and delays of a service go by?"""

import time

__all__ = ["monotonic_ms"]


def monotonic_ms() -> float:
    """Return this machine's monotonic clock, ms: it counts from anywhere, and nobody sets it."""
    return time.monotonic() * 1000
