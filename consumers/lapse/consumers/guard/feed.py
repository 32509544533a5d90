"""How does a guard follow its two topics on a broker?

Each topic has a tail of its own (a consumer, all partitions, no group), so that a revocation never waits behind a
thousand endings. A tail does, again and again:

    1. connect, assign all partitions, and take the end offsets: the guard is fresh when it has applied up to these
    2. read from the earliest record on, in slices, so that the service's loop is held for about 10 ms at most; up to
       the end offsets the broker is asked for more while a slice is applied (backlog.py)
    3. once a second ask for the end offsets; having applied up to them proves what was known when they were asked for

and starts over at 1, the guard stale until then and its denials kept, when what it sees cannot be: an end offset or a
record before what was read (the topic was recreated or cut), an instant that stands at an earlier offset than when it
was last asked for (the topic was recreated, and filled past what was read, between two looks), another number of
partitions, an end offset that moved while nothing came for STUCK_AFTER_MS (aiokafka issue 1154), an error.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from lapse.consumers.guard.backlog import begin_backlog, end_backlog
from lapse.consumers.guard.freshness import Source
from lapse.consumers.guard.intake import Intake
from lapse.consumers.producer import refuse_missing
from lapse.schemas import TopicNames

__all__ = ["Feed", "KafkaFeed"]

_log = logging.getLogger("lapse.consumers")

SLICE_RECORDS_MAX: Final = 250
"""Records taken and applied before the service's own work gets its turn: 1 ms of usual endings, 3 ms of records that
need their model. Slices of 1,000 were slower by a fifth: of so many objects at once Python looks for cycles in vain."""

FETCH_BYTES_MAX: Final = 4 * 1024 * 1024
PARTITION_FETCH_BYTES_MAX: Final = 1024 * 1024
"""Of one answer, and of a partition in it: 9,000 endings and 2,300, which the client copies in 3 ms."""

FETCH_MAX_WAIT_MS: Final = 100
"""How long the broker keeps a fetch that finds nothing. New records answer it at once, so this is no latency: it is
ten empty fetches a second and topic."""

PROOF_INTERVAL_S: Final = 1.0
METADATA_AGE_MAX_MS: Final = 2_000
"""How old what the client knows of partitions may be. With PROOF_INTERVAL_S an added one is noticed within 3 s, the
least that `stale_after_ms` can be. The client's own 5 minutes would have a guard say meanwhile that it knows all."""

STUCK_AFTER_MS: Final = 10_000.0

_LANDMARK_MS: Final = 600_000
"""A landmark is given up for a newer one after ten minutes: one that cleanup has passed says less and less."""

_REQUEST_TIMEOUT_MS: Final = 5_000
_START_TIMEOUT_S: Final = 15.0
_STOP_TIMEOUT_S: Final = 5.0
_LOOK_INTERVAL_S: Final = 5.0
_SILENT_LOOKS_MAX: Final = 5
"""After 25 s without a turn a client hangs: longer than its start may take (15 s) and its stop (5 s)."""

_BACKOFF_S: Final = (0.1, 5.0)
_RESTARTING: Final = (KafkaError, TimeoutError, OSError, AssertionError)
"""What a client can fail with; aiokafka asserts what a broker that is going away can break."""


class Feed(Protocol):
    """Where a guard's records come from."""

    async def start(self, intake: Intake) -> None:
        """Start to give records to the intake."""

    async def stop(self) -> None:
        """Give no more."""


class _Astray(Exception):
    """What the tail sees cannot be: it must start over."""


class KafkaFeed:
    """The feed from a broker.

    Args:
        client: what aiokafka's clients take to reach the cluster.
        name: the client id.
        clock: monotonic ms.
    """

    def __init__(self, client: Mapping[str, Any], topics: TopicNames, name: str, clock: Callable[[], float]) -> None:
        self._client = {**client, "metadata_max_age_ms": METADATA_AGE_MAX_MS}
        self._name = name
        self._clock = clock
        self._topics: dict[Source, str] = {"expiries": topics.expiries, "revocations": topics.revocations}
        self._tails: list[asyncio.Task[None]] = []

    async def start(self, intake: Intake) -> None:
        for source, topic in self._topics.items():
            tail = _Tail(self._client, self._name, source, topic, intake, self._clock)
            self._tails.append(asyncio.create_task(tail.run(), name=f"lapse-guard-{source}"))

    async def stop(self) -> None:
        tails, self._tails = self._tails, []
        for tail in tails:
            tail.cancel()
        await asyncio.gather(*tails, return_exceptions=True)


async def _leave(task: "asyncio.Task[None]", *, cancel_first: bool = True) -> None:
    """Let a task end, and leave it behind if it does not: aiokafka's swallow cancellations now and then."""
    if cancel_first:
        task.cancel()
    _, pending = await asyncio.wait({task}, timeout=_STOP_TIMEOUT_S)
    if pending:
        task.cancel()
        _log.warning("a Kafka consumer did not stop within %g s and is left behind", _STOP_TIMEOUT_S)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


class _Tail:
    """Follows one topic."""

    def __init__(
        self,
        client: Mapping[str, Any],
        name: str,
        source: Source,
        topic: str,
        intake: Intake,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._name = name
        self._source = source
        self._topic = topic
        self._intake = intake
        self._clock = clock
        self._positions: dict[TopicPartition, int] = {}
        self._proof: tuple[float, dict[TopicPartition, int]] | None = None  # asked at, the ends
        self._moved_at = 0.0
        self._signs = 0  # of life
        self._has_backlog = False
        self._usual: float | None = None  # what the client is set back to when the backlog is read
        self._newest: dict[TopicPartition, int] = {}  # the append time of the last record read
        self._landmarks: dict[
            TopicPartition, tuple[int, int]
        ] = {}  # an append time, and the first offset not before it

    async def run(self) -> None:
        """Follow the topic until cancelled."""
        backoff_s = _BACKOFF_S[0]
        while True:
            started_at = time.monotonic()
            try:
                await self._watch(asyncio.create_task(self._follow()))
            except (_Astray, *_RESTARTING) as error:
                reason = f"{self._topic}: {type(error).__name__.lstrip('_')} {error}".strip()
                self._intake.lose(self._source, reason)
                _log.warning("the guard starts over with %s", reason)
            except Exception as error:  # a fault of ours: the guard is stale, says so, and tries again
                self._intake.lose(self._source, f"{self._topic}: {type(error).__name__}")
                _log.exception("the guard failed over %s and starts over", self._topic)
            backoff_s = min(2 * backoff_s, _BACKOFF_S[1]) if time.monotonic() - started_at < 60 else _BACKOFF_S[0]
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))

    async def _watch(self, following: "asyncio.Task[None]") -> None:
        """Wait for what a follower ends with, and give one up that shows no sign of life: its client hangs.

        Counted in looks, so that a service whose loop stood still is not taken for a client that does.
        """
        try:
            silent, seen = 0, self._signs
            while not (await asyncio.wait({following}, timeout=_LOOK_INTERVAL_S))[0]:
                silent, seen = (silent + 1 if self._signs == seen else 0), self._signs
                if silent >= _SILENT_LOOKS_MAX:
                    raise _Astray("its client hangs")
            following.result()
        finally:
            await _leave(following)

    async def _follow(self) -> None:
        consumer = AIOKafkaConsumer(
            **self._client,
            client_id=self._name,
            group_id=None,
            enable_auto_commit=False,
            # Not seek_to_beginning under "latest": it was measured to land at the end in 10 % of starts.
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES_MAX,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES_MAX,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
        )
        try:
            partitions = await self._assign(consumer)
            prover = asyncio.create_task(self._ask_for_ends(consumer, partitions))
            try:
                while True:
                    await self._take(consumer)
                    if prover.done():
                        await prover  # it ends only by what it found
            finally:
                prover.cancel()
                await asyncio.gather(prover, return_exceptions=True)
        finally:
            await _leave(asyncio.create_task(consumer.stop()), cancel_first=False)

    async def _assign(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        """Step 1. Return the partitions, in order."""
        async with asyncio.timeout(_START_TIMEOUT_S):
            await consumer.start()
            self._usual = begin_backlog(consumer)
            refuse_missing([self._topic], await consumer.topics())
            # Only by a first assignment and question does the client learn how many partitions there are.
            first = TopicPartition(self._topic, 0)
            consumer.assign([first])
            await consumer.end_offsets([first])
            numbers = consumer.partitions_for_topic(self._topic)
            if not numbers:
                raise UnknownTopicOrPartitionError(f"the broker knows {self._topic} without its partitions")
            partitions = [TopicPartition(self._topic, number) for number in range(len(numbers))]
            consumer.assign(partitions)
            asked_at = self._clock()
            ends = await consumer.end_offsets(partitions)
            self._positions = {partition: await consumer.position(partition) for partition in partitions}
        self._proof = (asked_at, ends)
        self._has_backlog = True
        self._rest(consumer)
        self._moved_at = self._clock()
        self._newest.clear()
        self._landmarks.clear()
        self._intake.begin(
            self._source,
            [ends[partition] for partition in partitions],
            [self._positions[partition] for partition in partitions],
        )
        self._prove(consumer)
        return partitions

    async def _take(self, consumer: AIOKafkaConsumer) -> None:
        """Step 2: apply the next slice."""
        self._signs += 1
        fetched = await consumer.getmany(timeout_ms=200, max_records=SLICE_RECORDS_MAX)
        now = self._clock()
        for partition, records in fetched.items():
            if records[0].offset < self._positions[partition]:
                raise _Astray(f"partition {partition.partition} went back to offset {records[0].offset}")
            self._intake.apply(self._source, partition.partition, records, now)
            self._positions[partition] = records[-1].offset + 1
            self._newest[partition] = records[-1].timestamp
            self._moved_at = now
        if self._proof is not None:
            await self._pass_over(consumer)
            self._rest(consumer)
            self._prove(consumer)
        # Without data getmany has waited; with data it may not have, and the service's own tasks must get their turn.
        await asyncio.sleep(0)

    async def _pass_over(self, consumer: AIOKafkaConsumer) -> None:
        """Move past offsets that hold no record any more, where that is all that is left."""
        for partition, position in self._positions.items():
            reached = await consumer.position(partition)
            if reached > position:
                self._positions[partition] = reached
                self._intake.reached(self._source, partition.partition, reached)

    def _prove(self, consumer: AIOKafkaConsumer) -> None:
        """Close the open proof once everything up to its ends is applied; with the first the backlog is read."""
        if self._proof is not None:
            asked_at, ends = self._proof
            if all(self._positions[partition] >= end for partition, end in ends.items()):
                self._proof = None
                self._intake.freshness.proven(self._source, asked_at)
                if self._has_backlog:
                    self._has_backlog = False
                    end_backlog(consumer, self._usual)

    def _rest(self, consumer: AIOKafkaConsumer) -> None:
        """Ask no more of the partitions that are read up to the end of the backlog."""
        if self._has_backlog and self._proof is not None:
            _, ends = self._proof
            consumer.pause(*(one for one, end in ends.items() if self._positions[one] >= end))

    async def _ask_for_ends(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        """Step 3. Ends by raising only."""
        while True:
            await asyncio.sleep(PROOF_INTERVAL_S)
            asked_at = self._clock()
            if self._proof is not None:
                if asked_at - max(self._moved_at, self._proof[0]) > STUCK_AFTER_MS:
                    raise _Astray(f"nothing came for {STUCK_AFTER_MS:.0f} ms although there is more to read")
                continue
            read_by_then = dict(self._positions)  # the answer may be older than what is read while it is under way
            async with asyncio.timeout(_START_TIMEOUT_S):
                ends = await consumer.end_offsets(partitions)
            for partition, end in ends.items():
                if end < read_by_then[partition]:
                    raise _Astray(f"partition {partition.partition} ends at {end}, before what was read")
            await self._look_at_landmarks(consumer)
            numbers = consumer.partitions_for_topic(self._topic)
            if numbers is not None and len(numbers) != len(partitions):
                raise _Astray(f"the number of partitions went from {len(partitions)} to {len(numbers)}")
            self._proof = (asked_at, ends)

    async def _look_at_landmarks(self, consumer: AIOKafkaConsumer) -> None:
        """Raise _Astray if an instant has moved to an earlier offset, which appends and cleanup of one log never do.

        What was read last is the landmark of the looks to come, whatever clock had stamped it.
        """
        asked = {partition: stamp for partition, (stamp, _) in self._landmarks.items()}
        for partition, stamp in self._newest.items():
            asked.setdefault(partition, stamp)
        if not asked:
            return
        async with asyncio.timeout(_START_TIMEOUT_S):
            found = await consumer.offsets_for_times(asked)
        for partition, at in found.items():
            if at is None:
                continue
            known = self._landmarks.get(partition)
            if known is not None and at.offset < known[1]:
                raise _Astray(f"partition {partition.partition} is another log: it was recreated")
            self._landmarks[partition] = (asked[partition], at.offset)
        for partition, stamp in self._newest.items():
            known = self._landmarks.get(partition)
            if known is not None and stamp >= known[0] + _LANDMARK_MS:
                del self._landmarks[partition]  # the next look takes a newer one
