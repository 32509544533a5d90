"""How do endings reach their effect, each at least once, in spite of crashes?

An applier is a consumer of lapse.expiries in a group of its own. Several instances of one name share the partitions.

    1. a partition is assigned: reading begins at what is committed; of a group that has committed nothing at the
       topic's start or its end, as it is told; with a memory (a second look) so much further back
    2. a batch is read and its endings are parsed; what cannot be read is dead-lettered
    3. the effect is had for the whole batch; while it is unavailable, the same batch is tried again
    4. what was rejected for good is dead-lettered, and acknowledged there
    5. the offsets are committed

A crash before 5 repeats 3, which changes nothing where it was had. Revocations of subjects, tenants and everyone need
no reading here: the processor writes an ending for every session they end.

Assigned partitions are paused until step 1 is done, in this task and not in the client's: so nothing is read from where
the client would begin by itself, and a failure there is seen.

It reports as guards do: a status once a second, with itself as the service, and a last one when it is told to stop.
`checks` are endings seen, `refused` sessions ended where they live, `entries` what the effect keeps; its staleness is
the time since the append of the last watermark whose predecessors have all had their effect, the worst partition's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Literal

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord

from lapse.consumers.appliers.effects import Effect, Ending, Unavailable
from lapse.consumers.appliers.reporting import ApplierReports
from lapse.consumers.guard.reports import LAST_REPORT_TIMEOUT_S
from lapse.consumers.producer import WRITE_ERRORS, Producer, refuse_missing
from lapse.schemas import (
    NAME_LENGTH_MAX,
    BadRecord,
    ConfigError,
    DeadLetter,
    SessionEnded,
    TopicNames,
    encode,
    parse_expiry,
)

__all__ = ["Applier", "Start"]

_log = logging.getLogger("lapse.consumers")

Start = Literal["earliest", "latest"]

BATCH_MAX: Final = 500
"""Records whose effects are had together; so many are repeated after a crash."""

_COMMIT_INTERVAL_S: Final = 1.0
"""How often watermarks alone are committed; what had an effect is committed at once."""

_POLL_MS: Final = 200
_SESSION_TIMEOUT_MS: Final = 10_000
_REQUEST_TIMEOUT_MS: Final = 20_000
"""Above the session timeout: joining waits so long for a member that hangs, and a join that is given up before leaves
a member behind that nobody is."""

_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 5.0
_WRITE_TIMEOUT_S: Final = 10.0
_BACKOFF_S: Final = (0.1, 5.0)
_RESTARTING: Final = (KafkaError, TimeoutError, OSError, AssertionError)


class Applier:
    """Follows the endings for one effect; `run` until cancelled.

    Args:
        bootstrap_servers: of Kafka.
        name: this applier's, in its group (`<prefix><name>`) and in its reports.
        instance: this process's name; by default host and process id.
        prefix: of the topics.
        start: where a group begins that has committed nothing.
        memory_ms: how far before what is committed reading begins; for effects that look twice.
        client: further settings of aiokafka's clients.

    Raises:
        ConfigError: the name is empty or too long.
    """

    def __init__(
        self,
        bootstrap_servers: str | Sequence[str],
        effect: Effect,
        *,
        name: str,
        instance: str | None = None,
        prefix: str = "lapse.",
        start: Start = "earliest",
        memory_ms: int = 0,
        client: Mapping[str, Any] | None = None,
    ) -> None:
        if not 1 <= len(name) <= NAME_LENGTH_MAX:
            raise ConfigError(f"the applier's name has 1 to {NAME_LENGTH_MAX} characters")
        self.name = name
        self.instance = instance or f"{socket.gethostname()}-{os.getpid()}"[-NAME_LENGTH_MAX:]
        self.group = f"{prefix}{name}"
        self._effect = effect
        self._topics = TopicNames(prefix)
        self._start: Start = start
        self._memory_ms = memory_ms
        self._client = {**(client or {}), "bootstrap_servers": bootstrap_servers}
        self._unwritten: deque[DeadLetter] = deque()
        self._reports = ApplierReports(name, self.instance, effect)
        self._assigned: set[TopicPartition] | None = None
        self._floor: dict[TopicPartition, int] = {}  # up to where offsets are committed, or about to be
        self._committable: dict[TopicPartition, int] = {}
        self._committed_at = 0.0

    async def run(self) -> None:
        """Apply endings until cancelled.

        Raises:
            ConfigError: the effect's store is not what it was said to be.
        """
        topics = (self._topics.enforcement, self._topics.dead_letters)
        producer = Producer(self._client, f"lapse-{self.name}", topics)
        reporting = asyncio.create_task(self._report(producer), name="lapse-apply-reports")
        backoff_s = _BACKOFF_S[0]
        stopping = False
        try:
            while True:
                began_at = time.monotonic()
                try:
                    await self._follow(producer)
                except (Unavailable, *_RESTARTING) as error:
                    _log.warning("%s starts over: %s %s", self.name, type(error).__name__, error)
                backoff_s = min(2 * backoff_s, _BACKOFF_S[1]) if time.monotonic() - began_at < 60 else _BACKOFF_S[0]
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
        except asyncio.CancelledError:
            stopping = True  # whoever ends by an error does not: it is to stand out
            raise
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            try:
                if stopping:
                    await self._report_stop(producer)
            finally:
                await producer.close()

    async def _follow(self, producer: Producer) -> None:
        async with self._consuming() as consumer:
            try:
                await self._effect.start(lambda: self._ends(consumer))
                self.assign(None)
                self._unwritten.clear()  # what was not committed is read again
                consumer.subscribe([self._topics.expiries], listener=_Listener(self, consumer))
                while True:
                    fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=BATCH_MAX)
                    if self._assigned is not None:
                        await self._begin(consumer)
                    await self._take(producer, fetched)
                    await self._commit(consumer, fetched)
            finally:
                await self._effect.stop()

    @contextlib.asynccontextmanager
    async def _consuming(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            **self._client,
            client_id=f"lapse-{self.name}",
            group_id=self.group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # what is committed may have been trimmed away meanwhile
            session_timeout_ms=_SESSION_TIMEOUT_MS,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await consumer.start()
                refuse_missing([self._topics.expiries], await consumer.topics())
            yield consumer
        finally:
            with contextlib.suppress(*_RESTARTING):
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await consumer.stop()

    async def _ends(self, consumer: AIOKafkaConsumer) -> Mapping[int, int]:
        partitions = [tp for tp in consumer.assignment() if tp.topic == self._topics.expiries]
        ends = await consumer.end_offsets(partitions) if partitions else {}
        return {tp.partition: end for tp, end in ends.items()}

    # Step 1

    def assign(self, partitions: set[TopicPartition] | None) -> None:
        """Note that partitions have been assigned (None: none), paused until reading begins where it must."""
        self._assigned = partitions

    async def _begin(self, consumer: AIOKafkaConsumer) -> None:
        """Step 1. What another rebalance takes away meanwhile raises, and all starts over."""
        assigned, self._assigned = self._assigned or set(), None
        self._committable = {}
        partitions = sorted(assigned)
        committed = {tp: await consumer.committed(tp) for tp in partitions}
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions) if partitions else {}
        # A topic that ends before what is committed is another one.
        self._floor = {tp: 0 if offset is None or offset > ends[tp] else offset for tp, offset in committed.items()}
        initial = {}
        starts = dict(self._floor)
        if self._start == "latest":
            initial = {tp: ends[tp] for tp, offset in committed.items() if offset is None}
            starts |= initial
        if self._memory_ms and partitions:
            since = time.time_ns() // 1_000_000 - self._memory_ms
            found = await consumer.offsets_for_times(dict.fromkeys(partitions, since))
            starts |= {tp: min(starts[tp], at.offset) for tp, at in found.items() if at is not None}
        self._reports.assigned(
            len(consumer.partitions_for_topic(self._topics.expiries) or ()),
            {tp.partition: offset for tp, offset in (self._floor | initial).items()},
            {tp.partition: end for tp, end in ends.items()},
        )
        for tp, offset in starts.items():
            consumer.seek(tp, offset)
        # Where a new group began at the end must be kept: a restart must not begin at a later one.
        await self._commit_offsets(consumer, initial)
        if partitions:
            consumer.resume(*partitions)

    # Steps 2 to 5

    async def _take(self, producer: Producer, fetched: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        endings = [ending for records in fetched.values() for record in records if (ending := self._read(record))]
        if endings:
            rejected = await self._have_effect(endings)
            self._reports.had_effect(endings)
            for one in rejected:
                place = one.ending
                _log.error(
                    "%s gives up the ending %s (%s/%d, offset %d): %s",
                    self.name, place.ended.id, self._topics.expiries, place.partition, place.offset, one.reason,
                )  # fmt: skip
                self._unwritten.append(
                    DeadLetter.of(self._topics.expiries, place.partition, place.offset, place.value, one.reason)
                )
            self._reports.rejected += len(rejected)
        await self._write_dead_letters(producer)
        for tp, records in fetched.items():
            self._reports.reached(tp.partition, records[-1].offset)

    def _read(self, record: ConsumerRecord) -> Ending | None:
        self._reports.received(record.timestamp)
        if record.value is None:
            return None  # a tombstone means nothing here
        try:
            expiry = parse_expiry(record.value)
        except BadRecord as bad:
            self._unwritten.append(
                DeadLetter.of(self._topics.expiries, record.partition, record.offset, record.value, bad.reason)
            )
            return None
        if not isinstance(expiry, SessionEnded):
            self._reports.watermark(record.partition, record.timestamp)
            return None
        self._reports.seen(record.partition, record.offset, record.timestamp)
        return Ending(expiry, record.partition, record.offset, record.value)

    async def _have_effect(self, endings: Sequence[Ending]) -> Sequence[Any]:
        """Step 3: again and again, while its store does not answer."""
        backoff_s = _BACKOFF_S[0]
        while True:
            try:
                return await self._effect.apply(endings)
            except Unavailable as error:
                if backoff_s == _BACKOFF_S[0]:
                    _log.warning("%s waits with %d endings: %s", self.name, len(endings), error)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, _BACKOFF_S[1])

    async def _write_dead_letters(self, producer: Producer) -> None:
        """Step 4: until all are acknowledged."""
        while self._unwritten:
            letter = self._unwritten[0]
            client = await producer.ready()
            key = f"{letter.topic}/{letter.partition}/{letter.offset}"
            try:
                async with asyncio.timeout(_WRITE_TIMEOUT_S):
                    await client.send_and_wait(self._topics.dead_letters, encode(letter), key=key.encode())
            except WRITE_ERRORS:
                await producer.give_up(client)
                raise
            self._unwritten.popleft()

    async def _commit(self, consumer: AIOKafkaConsumer, fetched: Mapping[TopicPartition, Sequence[Any]]) -> None:
        """Step 5; what lies before what is committed (the memory) is not committed again."""
        for tp, records in fetched.items():
            offset = records[-1].offset + 1
            if offset > self._floor.get(tp, offset):
                self._committable[tp] = self._floor[tp] = offset
        due = time.monotonic() - self._committed_at >= _COMMIT_INTERVAL_S
        if self._committable and (self._reports.take_effects() or due):
            offsets, self._committable = self._committable, {}
            await self._commit_offsets(consumer, offsets)

    async def _commit_offsets(self, consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
        held = {tp: offset for tp, offset in offsets.items() if tp in consumer.assignment()}
        self._committed_at = time.monotonic()
        if not held:
            return
        try:
            await consumer.commit(held)
        except (CommitFailedError, IllegalStateError) as moved:
            # The partitions have moved; who has them now has these endings' effects once more.
            _log.info("%s could not commit, its partitions have moved: %s", self.name, moved)

    async def _report(self, producer: Producer) -> None:
        """Write the status once a second; best effort, as guards do."""
        failing = False
        while True:
            await asyncio.sleep(1.0)
            try:
                await self._report_status(producer)
                failing = False
            except WRITE_ERRORS as error:
                if not failing:
                    _log.warning("%s cannot write its reports: %s %s", self.name, type(error).__name__, error)
                failing = True
            except (
                Exception
            ):  # a fault of ours: reports that ended for good would look like an applier that does not run
                if not failing:
                    _log.exception("the reports of %s failed and go on", self.name)
                failing = True

    async def _report_status(self, producer: Producer, *, stopping: bool = False) -> None:
        client = await producer.ready()
        status = self._reports.status().model_copy(update={"stopping": stopping})
        key = f"{self.name}/{self.instance}".encode()
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                sent_at = time.monotonic() * 1000
                written = await client.send_and_wait(self._topics.enforcement, encode(status), key=key)
        except WRITE_ERRORS:
            await producer.give_up(client)
            raise
        if written.timestamp_type == 1:
            self._reports.broker_clock.acknowledged(written.timestamp, sent_at, time.monotonic() * 1000)

    async def _report_stop(self, producer: Producer) -> None:
        try:
            async with asyncio.timeout(LAST_REPORT_TIMEOUT_S):
                await self._report_status(producer, stopping=True)
        except WRITE_ERRORS as error:
            _log.info("the last status of %s was not written: %s", self.name, error)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Tells the applier what it has been assigned, and holds it until the applier has looked where to begin."""

    def __init__(self, applier: Applier, consumer: AIOKafkaConsumer) -> None:
        self._applier = applier
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Leave what is not committed to whoever comes."""

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        if assigned:
            self._consumer.pause(*assigned)
        self._applier.assign(set(assigned))
