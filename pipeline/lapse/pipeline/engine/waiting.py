"""Which records wait until the clock has decided, and what are they told then?

Theory of operation
-------------------
A stamp may lie from the moment the broker's clock is set until a tick decides (log_clock.py). What a lying stamp would
spoil must not be applied, and whatever comes after it neither, or the order of the log would not be kept. So a record
waits, and all that follow it, from the first that

    is suspicious    its append time fell, or jumped so far that it may follow a step, or
    may be late      an activity that its stamp says is past its session's end, though log time has not come there: if
                     the stamp lies, the activity is in time, and counts

until a tick decides. A second clock, the copy of the engine's, reads ahead meanwhile; the engine's stands still. The
owner ticks at once while anything waits, so that normally three appends decide it, some ten milliseconds.

    stamps were right    the records up to the tick that was decided about are applied as if they came now, with their
                         own stamps, and the late are late; those after it are looked at anew
    there was a step     (or, where more than one is suspicious, two may have cancelled each other) nobody can tell when
                         between the first of them and the decision each record came. So each is given the benefit of
                         the doubt: its stamp is the end of that time, and it is judged by the beginning. Sessions live
                         longer by that, at most, and none ends early.

What waits is bounded by WAITING_BYTES_MAX. Beyond it (no owner has ticked for long) waiting ends without a decision:
where records only may have been late, their stamps are believed, for a step has not been seen; else stamps are
*doubtful* until a tick decides, and what comes is judged by log time alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

from lapse.pipeline.engine.log_clock import Decision, LogClock
from lapse.schemas import ClockTick

__all__ = ["WAITING_BYTES_MAX", "Outcome", "Waiting"]

WAITING_BYTES_MAX = 16 * 1024 * 1024
"""Of values, for each partition: 60,000 touches, or 250,000 in packed records; a minute of 1,000 touches a second.
With Python's objects around them some 40 MB at worst; eight partitions that all wait for a dead owner take 320 MB."""


class _Record(Protocol):
    @property
    def timestamp(self) -> int: ...

    @property
    def value(self) -> bytes | None: ...


R = TypeVar("R", bound=_Record)


class Outcome(NamedTuple, Generic[R]):
    """What the clock has decided about records that waited.

    Attributes:
        applied: the records to be applied now.
        anew: the records after them, which are to be looked at anew.
        decision: None: there was none, and too much waits.
        clock: the clock that has read ahead to the last of both.
        even: whether their stamps are right.
        suspicious: whether any of them was.
    """

    applied: Sequence[R]
    anew: Sequence[R]
    decision: Decision | None
    clock: LogClock
    even: bool
    suspicious: bool

    @property
    def stamp(self) -> int | None:
        """The stamp that all of them get, since theirs are wrong; None: they have their own."""
        return None if self.decision is None or self.even else self.decision.stamp


class Waiting(Generic[R]):
    """The records of one partition that wait, from `first` on; see the module's theory of operation."""

    def __init__(self, clock: LogClock, epoch: int, tick_of: Callable[[R], ClockTick | None]) -> None:
        """Args: clock: a copy that stands before the first; epoch: so far; tick_of: reads a record that is a tick."""
        self.clock = clock
        self.records: list[R] = []
        self.epoch = epoch
        """The highest epoch of a tick, those that wait included."""
        self._tick_of = tick_of
        self._suspicions = 0
        self._bytes = 0
        self._ticked = 0  # so many records stand up to the latest tick of the present owner

    def add(self, record: R) -> Outcome[R] | None:
        """Let one more record wait; return what the clock has decided with it, if it has."""
        self.records.append(record)
        self._bytes += len(record.value or b"")
        if self.clock.suspicious(record.timestamp):
            self._suspicions += 1
        self.clock.record(record.timestamp)
        tick = self._tick_of(record)
        if tick is not None and tick.epoch >= self.epoch:
            self.epoch = tick.epoch
            decision = self.clock.tick(record.timestamp, tick)
            decided, self._ticked = self._ticked, len(self.records)
            if decision is not None and decision.alarm is not None:
                return self._outcome(len(self.records), decision)
            if decision is not None and decided > 0:
                return self._outcome(decided, decision)
        if self._bytes > WAITING_BYTES_MAX:
            return self._outcome(len(self.records), None)
        return None

    def _outcome(self, decided: int, decision: Decision | None) -> Outcome[R]:
        records, suspicions = self.records, self._suspicions
        # Suspicious more than once: that the clock is right now does not say that it was all the while.
        even = decision is not None and decision.alarm is None and suspicions <= 1
        return Outcome(records[:decided], records[decided:], decision, self.clock, even, suspicions > 0)
