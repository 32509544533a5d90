"""What is over by now? Things with an end, kept by the minute."""

import heapq
from typing import Final, Generic, TypeVar

__all__ = ["BUCKET_MS", "Buckets"]

BUCKET_MS: Final = 60_000
"""Things are given back up to so long after their end: a denial kept for a minute too long costs memory alone, and a
list of a minute costs 8 bytes a thing where a heap would cost 70."""

T = TypeVar("T")


class Buckets(Generic[T]):
    """Things by the minute in which they end."""

    def __init__(self) -> None:
        self._things: dict[int, list[T]] = {}
        self._order: list[int] = []

    def add(self, until: int, thing: T) -> None:
        """Keep the thing until the instant; it may be kept more than once."""
        bucket = until // BUCKET_MS
        things = self._things.get(bucket)
        if things is None:
            self._things[bucket] = [thing]
            heapq.heappush(self._order, bucket)
        else:
            things.append(thing)

    def pop(self, now: int) -> list[T]:
        """Return the things whose whole minute is over at `now`, and forget them."""
        over: list[T] = []
        while self._order and (self._order[0] + 1) * BUCKET_MS <= now:
            over += self._things.pop(heapq.heappop(self._order))
        return over
