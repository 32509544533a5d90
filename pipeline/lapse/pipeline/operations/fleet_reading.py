"""What is read of the topics, so that it can be said who enforces?

    1. the revocations of the window (of one that is asked about: the whole topic, until it is found)
    2. the reports of the window, and of LEAVING_MS before it: a stop explains the activity that follows it; of a
       revocation that is older than the window also those of a window after its append
    3. a sample of the activity: the newest ACTIVITY_RECORDS_MAX records of each partition, within the window
    4. from then on reports and revocations as they come, and the ends of all topics once a second

Everything is bounded: of the reports at most REPORTS_MAX are read back, the newest. A service whose activity is so rare
that it is not in the sample is not seen; the sample's size and age are told with every view.

Silence is measured by the broker's clock: this machine's, moved by how far the newest report was stamped from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from lapse.pipeline.operations.connection import consuming, require_topics
from lapse.pipeline.operations.fleet import LEAVING_MS, Fleet
from lapse.pipeline.operations.reading import Record, read_until
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    NAME_LENGTH_MAX,
    BadRecord,
    GuardStatus,
    SessionClosed,
    SessionElevated,
    SessionRefreshed,
    SessionStarted,
    SessionTouched,
    TopicNames,
    parse_enforcement,
    parse_revocation,
)
from lapse.schemas.errors import ConfigError

__all__ = ["ACTIVITY_RECORDS_MAX", "REPORTS_MAX", "Sample", "View", "watch_fleet"]

_log = logging.getLogger(__name__)

ACTIVITY_RECORDS_MAX: Final = 2_000
"""Of each partition: 16,000 of 8, about a tenth of a second's reading and 2 MB."""

REPORTS_MAX: Final = 500_000
"""Reports read back, of all partitions: those of 1,000 guards in 8 minutes, some 5 s of reading."""

_REVOCATIONS_MAX: Final = 20_000
"""Revocations read back where none is asked about, of all partitions; `Fleet` keeps the newest of them."""

_SAMPLE_INTERVAL_S: Final = 10.0
_JUDGE_TIMEOUT_S: Final = 5.0
_POLL_MS: Final = 200

_OF_SERVICES: Final = frozenset(
    {"touches"}
    | {
        str(model.model_fields["type"].default)
        for model in (SessionStarted, SessionTouched, SessionRefreshed, SessionElevated, SessionClosed)
    }
)

Offsets = dict[TopicPartition, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """How much of the activity was looked at; `since`: when its oldest record was appended, None for no record."""

    records: int
    since: int | None


@dataclass(frozen=True, slots=True)
class View:
    """What is known now; `now`: epoch ms of the broker's clock, as estimated."""

    fleet: Fleet
    now: int
    sample: Sample


async def watch_fleet(settings: Settings, *, within_ms: int, revocation: str | None = None) -> AsyncGenerator[View]:
    """Yield what is known, first when every reporting instance could be judged, then once a second, for ever.

    Args:
        within_ms: how far back reports, revocations and activity are read.
        revocation: the id of the one revocation that is asked about.

    Raises:
        ConfigError: a topic is missing, or there is no such revocation.
        RuntimeFault: no broker answers.
    """
    names = TopicNames(settings.prefix)
    topics = (names.enforcement, names.revocations, names.expiries, names.activity)
    counts = await require_topics(settings, topics)
    async with consuming(settings) as consumer, consuming(settings) as sampler:
        reader = _Reader(consumer, sampler, names, counts, within_ms, revocation)
        await reader.read_back()
        ends = await reader.ends()
        await reader.follow(1.0)
        give_up_at = time.monotonic() + _JUDGE_TIMEOUT_S
        await reader.expect(ends)
        while not reader.fleet.is_judged(reader.now) and time.monotonic() < give_up_at:
            await reader.follow(0.1)
        sampled_at = time.monotonic()
        while True:
            yield View(reader.fleet, reader.now, reader.sample)
            ends = await reader.ends()
            await reader.follow(1.0)
            if reader.fleet.is_judged(reader.now):
                await reader.expect(ends)
            if time.monotonic() - sampled_at >= _SAMPLE_INTERVAL_S:
                sampled_at = time.monotonic()
                await reader.sample_activity()


class _Reader:
    """The topics of one fleet."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        sampler: AIOKafkaConsumer,
        names: TopicNames,
        counts: Mapping[str, int],
        within_ms: int,
        revocation: str | None,
    ) -> None:
        self.fleet = Fleet(revocation)
        self.sample = Sample(0, None)
        self._consumer = consumer
        self._sampler = sampler
        self._names = names
        self._within_ms = within_ms
        self._revocation = revocation
        self._skew_ms = 0

        def partitions(topic: str) -> list[TopicPartition]:
            return [TopicPartition(topic, number) for number in range(counts[topic])]

        self._enforcement = partitions(names.enforcement)
        self._revocations = partitions(names.revocations)
        self._expiries = partitions(names.expiries)
        self._activity = partitions(names.activity)

    @property
    def now(self) -> int:
        return time.time_ns() // 1_000_000 + self._skew_ms

    async def read_back(self) -> None:
        """Steps 1 to 3."""
        since = self.now - self._within_ms
        consumer = self._consumer
        followed = [*self._enforcement, *self._revocations]
        ends: Offsets = await consumer.end_offsets(followed)
        orders = {tp: ends[tp] for tp in self._revocations}
        if self._revocation is None:
            await self._read(await self._starts(consumer, orders, since, _REVOCATIONS_MAX), orders)
        else:
            await self._read(await consumer.beginning_offsets(self._revocations), orders)
            ordered_at = self.fleet.ordered_at(self._revocation)
            if ordered_at is None:
                raise ConfigError(
                    f"{self._names.revocations} holds no revocation {self._revocation!r}: its id is what "
                    "`lapse revoke` printed; it is kept for the longest session life"
                )
            if ordered_at < since:
                await self._read_after(ordered_at, {tp: ends[tp] for tp in self._enforcement})
        reports = {tp: ends[tp] for tp in self._enforcement}
        await self._read(await self._starts(consumer, reports, since - LEAVING_MS, REPORTS_MAX), reports)
        consumer.assign(followed)
        for tp, end in ends.items():
            consumer.seek(tp, end)
        await self.sample_activity()

    async def _read_after(self, at: int, ends: Offsets) -> None:
        """Read the reports of a window that begins at an instant."""
        first = await self._starts(self._consumer, ends, at, None)
        last = await self._starts(self._consumer, ends, at + self._within_ms, None)
        share = REPORTS_MAX // len(ends)
        await self._read(first, {tp: min(end, first[tp] + share) for tp, end in last.items()})

    async def sample_activity(self) -> None:
        """Step 3."""
        self._sampler.assign(self._activity)
        ends: Offsets = await self._sampler.end_offsets(self._activity)
        since = self.now - self._within_ms
        starts = await self._starts(self._sampler, ends, since, ACTIVITY_RECORDS_MAX * len(ends))
        for tp, start in starts.items():
            self._sampler.seek(tp, start)
        records = 0
        oldest: int | None = None
        async with contextlib.aclosing(read_until(self._sampler, ends)) as found:
            async for record in found:
                records += 1
                oldest = record.timestamp if oldest is None else min(oldest, record.timestamp)
                service = _publisher(record.value)
                if service is not None:
                    self.fleet.activity(service, record.timestamp)
        self.sample = Sample(records, oldest)

    async def ends(self) -> Mapping[Any, list[int]]:
        """Return the ends of the topics that guards follow, as `Fleet.expect` takes them."""
        tps = [*self._expiries, *self._revocations]
        ends: Offsets = await self._consumer.end_offsets(tps)
        return {
            "expiries": [ends[tp] for tp in self._expiries],
            "revocations": [ends[tp] for tp in self._revocations],
        }

    async def expect(self, ends: Mapping[Any, list[int]]) -> None:
        """Hold what is reported from now on against these ends."""
        marks: Offsets = await self._consumer.end_offsets(self._enforcement)
        self.fleet.expect(ends, [marks[tp] for tp in self._enforcement])

    async def follow(self, seconds: float) -> None:
        """Step 4, for so long."""
        until = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < until:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS)
            wall = time.time_ns() // 1_000_000
            newest = [batch[-1].timestamp for batch in fetched.values()]
            if newest:
                self._skew_ms = max(newest) - wall
            for batch in fetched.values():
                for record in batch:
                    self._take(record)

    async def _read(self, starts: Offsets, ends: Offsets) -> None:
        self._consumer.assign(list(ends))
        for tp, start in starts.items():
            self._consumer.seek(tp, start)
        async with contextlib.aclosing(read_until(self._consumer, ends)) as records:
            async for record in records:
                self._take(record)

    async def _starts(self, consumer: AIOKafkaConsumer, ends: Offsets, since: int, records_max: int | None) -> Offsets:
        """Return where to begin for what was appended since an instant, at most so many records before the ends."""
        found = await consumer.offsets_for_times(dict.fromkeys(ends, since))
        first = {tp: end if (at := found[tp]) is None else min(at.offset, end) for tp, end in ends.items()}
        if records_max is None:
            return first
        share = records_max // len(ends)
        return {tp: max(start, ends[tp] - share) for tp, start in first.items()}

    def _take(self, record: Record) -> None:
        place = (record.partition, record.offset)
        try:
            if record.topic == self._names.revocations:
                self.fleet.revocation(parse_revocation(record.value).id, record.timestamp, place)
                return
            report = parse_enforcement(record.value)
        except BadRecord as bad:
            if record.value is not None:
                _log.warning("%s/%d, offset %d: %s", record.topic, record.partition, record.offset, bad.reason)
            return
        if isinstance(report, GuardStatus):
            self.fleet.status(report, record.timestamp, place)
        else:
            self.fleet.applied(report, record.timestamp)


def _publisher(value: bytes | None) -> str | None:
    """Return the service of a record that services write, or None; the rest of the record is not looked at."""
    try:
        record = orjson.loads(value or b"")
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("type") not in _OF_SERVICES:
        return None
    service = record.get("service")
    return service if isinstance(service, str) and 0 < len(service) <= NAME_LENGTH_MAX else None
