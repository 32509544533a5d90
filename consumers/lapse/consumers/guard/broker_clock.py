"""What does the broker's clock say now, by our monotonic clock?

Pure. The offset between the two is bounded from both sides, as NTP bounds it, without reading a wall clock:

    a record stamped `stamp` was received at `at`:           offset >= stamp - at
    a record sent at `sent_at` came back with its stamp,
    acknowledged at `acked_at`:                              stamp - acked_at <= offset <= stamp + 1 - sent_at

(a stamp is a whole millisecond, cut off). The middle of the bounds is the estimate, its error at most half their
distance: half a round trip of the fastest write. Bounds widen by DRIFT. Bounds that exclude each other prove that the
broker's clock was set: the last measurement starts anew. It serves reports only; nothing is decided by it.
"""

from math import inf

from lapse.consumers.guard.freshness import DRIFT

__all__ = ["BrokerClock"]


class BrokerClock:
    """The broker's clock as seen from one process."""

    def __init__(self) -> None:
        self._low = -inf
        self._high = inf
        self._at = 0.0

    def received(self, stamp: int, at: float) -> None:
        """Note that a record with this append time was received at `at`, monotonic ms."""
        self._narrow(stamp - at, inf, at)

    def acknowledged(self, stamp: int, sent_at: float, acked_at: float) -> None:
        """Note that a record of ours was sent, and acknowledged with this append time."""
        self._narrow(stamp - acked_at, stamp + 1 - sent_at, acked_at)

    def since(self, stamp: int, at: float) -> float:
        """Return how long before `at` a record was appended, ms, at least 0; `at` is monotonic ms."""
        if self._low == -inf:
            return 0.0
        offset = self._low if self._high == inf else (self._low + self._high) / 2
        return max(0.0, at + offset - stamp)

    def _narrow(self, low: float, high: float, at: float) -> None:
        drift = DRIFT * max(0.0, at - self._at) if self._at else 0.0
        self._at = max(self._at, at)
        self._low = max(self._low - drift, low)
        self._high = min(self._high + drift, high)
        if self._low > self._high:
            self._low, self._high = low, high
