"""What does an applier report? The figures of a `guard.status`, kept as it goes along; nothing is decided by them."""

from __future__ import annotations

import importlib.metadata
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from lapse.consumers.appliers.effects import Effect, Ending
from lapse.consumers.guard.broker_clock import BrokerClock
from lapse.consumers.guard.reports import percentile
from lapse.schemas import GuardStatus, PropagationMs

__all__ = ["ApplierReports"]

_PROPAGATIONS_MAX: Final = 1_024


class ApplierReports:
    """Counts what one applier does."""

    def __init__(self, name: str, instance: str, effect: Effect) -> None:
        self.broker_clock = BrokerClock()
        self.rejected = 0
        self._name = name
        self._instance = instance
        self._effect = effect
        self._version = importlib.metadata.version("lapse")
        self._seen = 0
        self._effects = False
        self._partitions = 0
        self._reached: dict[int, int] = {}
        self._ends: Mapping[int, int] = {}
        self._assigned_at = _now()
        self._appended: dict[tuple[int, int], int] = {}  # of endings whose effect is being had
        self._watermarks: dict[int, int] = {}
        self._read_watermarks: dict[int, int] = {}
        self._propagations_ms: deque[float] = deque(maxlen=_PROPAGATIONS_MAX)

    def assigned(self, partitions: int, committed: Mapping[int, int], ends: Mapping[int, int]) -> None:
        """Note how many partitions there are; of those assigned, what has had its effect, and the ends."""
        self._partitions = partitions
        self._reached = {partition: offset - 1 for partition, offset in committed.items()}
        self._ends = ends
        self._assigned_at = _now()
        self._watermarks = {}
        self._read_watermarks = {}
        self._appended = {}

    def received(self, stamp: int) -> None:
        self.broker_clock.received(stamp, _now())

    def seen(self, partition: int, offset: int, stamp: int) -> None:
        """Note an ending that was read; history says nothing of how fast this is."""
        self._seen += 1
        if offset >= self._ends.get(partition, 0):
            self._appended[partition, offset] = stamp

    def watermark(self, partition: int, stamp: int) -> None:
        self._read_watermarks[partition] = stamp

    def had_effect(self, endings: Sequence[Ending]) -> None:
        now = _now()
        self._effects = True
        for ending in endings:
            stamp = self._appended.pop((ending.partition, ending.offset), None)
            if stamp is not None:
                self._propagations_ms.append(self.broker_clock.since(stamp, now))

    def reached(self, partition: int, offset: int) -> None:
        """Note that everything up to this offset has had its effect."""
        self._reached[partition] = max(offset, self._reached.get(partition, -1))
        if partition in self._read_watermarks:
            self._watermarks[partition] = self._read_watermarks[partition]

    def take_effects(self) -> bool:
        """Return whether anything had an effect since the last call."""
        effects, self._effects = self._effects, False
        return effects

    def status(self) -> GuardStatus:
        """Return what is reported once a second; partitions of other instances are left out, as -1 is not true."""
        now = _now()
        broker_now = self.broker_clock.since(0, now)
        ordered = sorted(self._propagations_ms)
        whole = len(self._reached) == self._partitions
        return GuardStatus(
            service=self._name,
            instance=self._instance,
            version=self._version,
            applied={"expiries": [self._reached[number] for number in sorted(self._reached)]} if whole else {},
            stale_ms=self._stale_ms(now),
            entries=self._effect.entries,
            checks=self._seen,
            refused=self._effect.done,
            allowed_while_stale=0,
            propagation_ms=PropagationMs(
                p50=round(percentile(ordered, 0.50), 3), p99=round(percentile(ordered, 0.99), 3)
            )
            if ordered
            else None,
            clock_offset_ms=round(broker_now - time.time() * 1000, 1) if broker_now else None,
        )

    def _stale_ms(self, now: float) -> int:
        ages = [
            self.broker_clock.since(stamp, now)
            if (stamp := self._watermarks.get(partition)) is not None
            else now - self._assigned_at
            for partition in self._reached
        ]
        return int(max(ages, default=0))


def _now() -> float:
    return time.monotonic() * 1000
