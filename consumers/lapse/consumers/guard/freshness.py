"""How old is what a guard knows?

Pure: monotonic ms (`at`, `asked_at`, `now`: the guard's own clock) and instants of the log's scale (`as_of`, `stamp`)
are passed in. No wall clock is read, so no service's clock has to be right.

Theory of operation. Knowledge is as old as its oldest part; the worst partition counts. A guard is fresh while

    1. it has read up to the end offsets of both topics that were taken after its assignment (until then it may lack
       anything), and nothing was found that it cannot read;
    2. of each partition of lapse.expiries a watermark is known that was appended after that, and the log's time has
       since moved less than `stale_after_ms` past its `as_of`;
    3. each partition of lapse.revocations was read up to an end offset that was asked for less than `stale_after_ms`
       ago. There is no watermark there, for revocations must work when no processor runs.

The log's time now is a watermark's append time plus what the monotonic clock says has passed since it was received;
the best of all watermarks counts, discounted by DRIFT, so that one that came late, or a batch that lay in a socket
while the service's loop was blocked, is seen as late. An age is that time minus the partition's `as_of`: how long ago
its last watermark came, plus how far that lagged, by its way here or because its processor was behind in writing it.

A watermark read from before the assignment says nothing: how long ago it was appended is not known. A restarted guard
is therefore fresh after at most one watermark's interval (a second).

Fresh while now < fresh_until; stale from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final, Literal

__all__ = ["DRIFT", "Freshness", "Source"]

Source = Literal["expiries", "revocations"]

DRIFT: Final = 500e-6
"""How fast the monotonic clock and the broker's may drift apart at most: 500 ppm, five times a bad crystal, as CLOCK.md
has it. It discounts 1.8 s of an old best watermark in an hour."""


@dataclass(slots=True)
class _Progress:
    """How far one topic has been read."""

    ends: Sequence[int] = ()  # taken after the assignment
    positions: list[int] = field(default_factory=list)
    caught_up: bool = False
    proven_at: float = -inf  # all partitions were read up to ends that were asked for then


class Freshness:
    """The freshness of one guard; see the module.

    Args:
        stale_after_ms: at least 1.
        at: now, monotonic ms.

    Attributes:
        fresh_until: when the guard will be stale unless it hears more; -inf while it is.
    """

    def __init__(self, stale_after_ms: int, at: float) -> None:
        self._stale_after = stale_after_ms
        self._progress: dict[Source, _Progress] = {"expiries": _Progress(), "revocations": _Progress()}
        self._as_of: dict[int, int] = {}  # the newest watermark of each partition from after the assignment
        self._reached: dict[int, int] = {}  # the newest one of each partition, also from before
        self._offset = -inf  # the log's time minus the monotonic clock's, at least
        self._offset_at = at
        self._unreadable: dict[Source, str] = {}
        self._lost: dict[Source, str] = {"expiries": "not read yet", "revocations": "not read yet"}
        self._known_at = at  # as of when the guard knew everything, the last time that could be said
        self.fresh_until = -inf

    @property
    def blind(self) -> str | None:
        """Return why the guard cannot see, as a sentence, or None if it can."""
        return next(iter((*self._unreadable.values(), *self._lost.values())), None)

    @property
    def caught_up(self) -> bool:
        """Return whether both topics were read up to the ends taken after the assignment."""
        return all(progress.caught_up for progress in self._progress.values())

    def has_caught_up(self, source: Source) -> bool:
        """Return whether a topic was read up to the ends taken after the assignment."""
        return self._progress[source].caught_up

    @property
    def log_time(self) -> int | None:
        """Return what log time has certainly reached in all partitions, epoch ms, or None while that is not known.

        A watermark from before the assignment tells it as well: only how long ago that was is not known.
        """
        if len(self._reached) < len(self._progress["expiries"].ends):
            return None
        return min(self._reached.values(), default=None)

    def begin(self, source: Source, ends: Sequence[int], positions: Sequence[int]) -> None:
        """Note that a topic is read from its start, up to these end offsets at least."""
        self._progress[source] = _Progress(ends=tuple(ends), positions=list(positions))
        self._unreadable.pop(source, None)
        self._lost[source] = "not read to the end yet"
        if source == "expiries":
            self._as_of.clear()
            self._reached.clear()
            self._offset = -inf
        self._catch_up(source, self._progress[source])
        self._renew()

    def lose(self, source: Source, reason: str) -> None:
        """Note that what is read of a topic can no longer be relied on, until it is begun anew."""
        self._progress[source] = _Progress()
        self._lost[source] = reason
        if source == "expiries":
            self._as_of.clear()
            self._reached.clear()
        self._renew()

    def unreadable(self, source: Source, reason: str) -> None:
        """Note a record that cannot be read: what it says is not known, until the topic is begun anew."""
        self._unreadable.setdefault(source, reason)
        self._renew()

    def reached(self, source: Source, partition: int, position: int) -> None:
        """Note that a partition has been applied up to (not including) the offset."""
        progress = self._progress[source]
        if partition < len(progress.positions):
            progress.positions[partition] = max(progress.positions[partition], position)
            if not progress.caught_up:
                self._catch_up(source, progress)

    def proven(self, source: Source, asked_at: float) -> None:
        """Note that all partitions were applied up to the end offsets that were asked for at `asked_at`."""
        progress = self._progress[source]
        progress.proven_at = max(progress.proven_at, asked_at)
        self._renew()

    def watermark(self, partition: int, offset: int, as_of: int, stamp: int, at: float) -> None:
        """Note a watermark, received at `at`.

        Args:
            stamp: the append time of its record.
        """
        progress = self._progress["expiries"]
        if partition >= len(progress.ends):
            return
        self._reached[partition] = max(self._reached.get(partition, as_of), as_of)
        if offset < progress.ends[partition]:
            return  # appended before the assignment
        self._as_of[partition] = max(self._as_of.get(partition, as_of), as_of)
        # An owner whose log time is ahead of the broker's clock (it was set back) is believed: log time is what counts.
        discounted = self._offset - DRIFT * (at - self._offset_at)
        self._offset = max(discounted, max(stamp, as_of) - at)
        self._offset_at = at
        self._renew()

    def stale_ms(self, now: float) -> int:
        """Return how old the guard's knowledge is: from stale_after_ms on it is stale."""
        age = max(0, int(now - self._known_at))
        return max(age, self._stale_after) if self.fresh_until == -inf else age

    def _catch_up(self, source: Source, progress: _Progress) -> None:
        if all(position >= end for position, end in zip(progress.positions, progress.ends, strict=True)):
            progress.caught_up = True
            self._lost.pop(source, None)
            self._renew()

    def _renew(self) -> None:
        """Compute fresh_until anew."""
        fresh_until = self._fresh_until()
        if fresh_until != -inf:
            self._known_at = fresh_until - self._stale_after  # first: another thread is to see no age of before
        self.fresh_until = fresh_until

    def _fresh_until(self) -> float:
        partitions = len(self._progress["expiries"].ends)
        if not self.caught_up or self._unreadable or self._lost or len(self._as_of) < partitions:
            return -inf
        known_at = self._progress["revocations"].proven_at
        if self._as_of:
            known_at = min(known_at, min(self._as_of.values()) - self._offset)
        return known_at + self._stale_after
